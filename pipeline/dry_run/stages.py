"""What each command would read and write; settings are checked as far as possible without doing the work."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from ...config import (
    AblateConfig,
    Config,
    EncodeConfig,
    EvaluateConfig,
    ExportConfig,
    NearestConfig,
    PlanConfig,
    ProbeConfig,
    RankConfig,
    SampleConfig,
    TrainConfig,
)
from ...errors import ConfigError
from ...sources import open_source
from ...stores import open_store
from ...stores.layout import GroupSpec
from ..artifacts.image_counts import listed_as_store
from ..reporting.tables import count_text, list_text
from ..runtime.sizes import bytes_text
from .preview import Preview

BYTES_PER_WEIGHT = 16  # in a checkpoint: float32 weights, EMA, and two moments of AdamW


def preview(*configs: Config) -> Preview:
    """Return the preview of a command.

    Args:
        configs: the config of the command; two for `evaluate-checkpoints`.

    Raises:
        RepaPipeError: as the command, for settings and files that cannot work.
    """
    kind = "evaluate-checkpoints" if len(configs) > 1 else configs[0].kind
    return _PREVIEWS[kind](*configs)


def _plan(config: PlanConfig) -> Preview:
    source = f"the list of images in {config.source}" if config.source else "nothing"
    return Preview((config,), (source,), ())


def _encode(config: EncodeConfig) -> Preview:
    from ..encoding.work import images_of, plan_work, require_sizes, wanted_groups, with_vae_name
    from ..plan import bytes_per_sample

    config = with_vae_name(config)
    options = listed_as_store(config.store, config.source_options)
    images = len(open_source(config.source, config.source_kind, options).index())
    todo = images
    if _is_store(config.store):
        with open_store(config.store) as store:
            todo = images_of(plan_work(config, store, wanted_groups(config)), store)
    else:
        require_sizes(config, wanted_groups(config))
    size = bytes_per_sample(PlanConfig(**{name: getattr(config, name) for name in _SHARED_WITH_PLAN}))
    done = f" ({images - todo:,} are encoded already)" if todo < images else ""
    return Preview(
        (config,),
        (f"{todo:,} of {count_text(images, 'image', 'images')} in {config.source}{done}",),
        (f"{config.store}: {', '.join(wanted_groups(config))}, {_total(todo, 'image', size)}",) if todo else (),
    )


_SHARED_WITH_PLAN = ("vae", "encoder", "resolution", "codec", "flip")


def _train(config: TrainConfig) -> Preview:
    import torch

    from ..artifacts.hub_models import with_recorded_weights
    from ..artifacts.run_folder import RunFolder
    from ..training.model_config import groups_of
    from ..training.setup import build_model, resolve, training_rows

    with open_store(config.store, config.store_cache) as store:
        config = resolve(config, store)
        with torch.device("meta"):
            weights = sum(weight.numel() for weight in build_model(config, store).parameters())
        folder = RunFolder.of(config)
        folder.require_same_settings(with_recorded_weights(config, folder))
        done = int(folder.checkpoints()[-1].stem) if folder.checkpoints() else 0
        steps = max(0, config.max_train_steps - done)
        groups = groups_of(config)
        size = sum(_view_bytes(store.group(group).spec) for group in groups)
        samples = len(training_rows(config, store))
        reads = [
            f"{config.store}: {', '.join(groups)}, {count_text(samples, 'sample', 'samples')}",
            f"{count_text(steps, 'step', 'steps')} of {config.batch_size:,} samples, "
            f"{steps * config.batch_size / samples:.1f} epochs, {_total(steps * config.batch_size, 'sample', size)}",
        ]
        writes = (
            f"{folder.path}: a model of {weights / 1e6:,.1f} M weights, checkpoints of about "
            f"{bytes_text(weights * BYTES_PER_WEIGHT)} every {config.checkpointing_steps:,} steps, metrics"
        )
    return Preview((config,), (*([f"checkpoint of step {done:,}"] if done else []), *reads), (writes,) if steps else ())


def _sample(config: SampleConfig) -> Preview:
    from ...models.rae_files import patch_size_of
    from ...models.vae import describe_vae
    from ..artifacts.checkpoints import load_model, resolve_checkpoint, unrecorded
    from ..artifacts.sample_files import files_of
    from ..sampling.decoder import vae_name

    checkpoint = resolve_checkpoint(config.checkpoint)
    trained = load_model(checkpoint, config.ema, unrecorded(config))
    side = trained.model.config.input_size
    if trained.normalization is None:
        vae = vae_name(config, trained)
        side, decoder = side * describe_vae(vae)[1], f"VAE {vae}"
    elif config.decoder is not None:
        side, decoder = side * patch_size_of(config.decoder), f"decoder {config.decoder}"
    else:
        raise ConfigError(f"the latents are tokens of {trained.store.token_latents}: pass --decoder")
    size = config.num_fid_samples * side * side * 3
    images = f"{config.num_fid_samples:,} images of {side} pixels, {bytes_text(size)}"
    return Preview(
        (config,),
        (f"{checkpoint}, step {trained.step:,}", decoder),
        (f"{files_of(config, checkpoint).npz}: {images}",),
    )


def _export(config: ExportConfig) -> Preview:
    from ..artifacts.checkpoints import load_checkpoint, read_header, resolve_checkpoint
    from ..export import check_out

    check_out(config)
    checkpoint = resolve_checkpoint(config.checkpoint)
    values = load_checkpoint(checkpoint)
    header, tensors = read_header(values, checkpoint), values["ema" if config.ema else "model"]
    size = bytes_text(sum(tensor.nbytes for tensor in tensors.values()))
    return Preview((config,), (f"{checkpoint}, step {header.steps:,}",), (f"{config.out}: {size}",))


def _evaluate(config: EvaluateConfig) -> Preview:
    from ..artifacts.images import open_images
    from ..artifacts.metric_files import metrics_file, resolve_samples

    config = resolve_samples(config)
    images = open_images(config.samples, config.batch_size, resize=config.resize)
    return Preview(
        (config,),
        (f"{config.samples}: {images.side} pixels", config.reference, f"detectors {list_text(config.detector)}"),
        (str(metrics_file(config)),),
    )


def _evaluate_checkpoints(sampling: SampleConfig, evaluation: EvaluateConfig) -> Preview:
    from ..artifacts.metric_files import curve_file
    from ..artifacts.run_folder import RunFolder

    folder = RunFolder(Path(sampling.checkpoint))
    checkpoints = folder.require_checkpoints()
    count = count_text(len(checkpoints), "checkpoint", "checkpoints")
    return Preview(
        (sampling, evaluation),
        (f"{folder.path}: {count}", evaluation.reference, f"detectors {list_text(evaluation.detector)}"),
        (
            f"{folder.samples}: {sampling.num_fid_samples:,} images per checkpoint",
            str(curve_file(sampling, evaluation)),
        ),
        omitted=("samples",),
    )


def _nearest(config: NearestConfig) -> Preview:
    with open_store(config.store) as store:
        reads = f"{config.store}: {count_text(len(store), 'sample', 'samples')} of {list_text(store.encoders)}"
    return Preview((config,), (config.samples, reads), (config.out, str(Path(config.out).with_suffix(".html"))))


def _probe(config: ProbeConfig) -> Preview:
    from ..artifacts.checkpoints import load_model, resolve_checkpoint, unrecorded
    from ..artifacts.run_folder import RunFolder, run_of

    last = resolve_checkpoint(config.checkpoint)
    checkpoints = RunFolder(Path(config.checkpoint)).checkpoints() or [last]
    trained = load_model(last, config.ema, unrecorded(config))
    config = dataclasses.replace(
        config, store=config.store or trained.config.store, vae=config.vae or trained.config.vae
    )
    with open_store(str(config.store)) as store:
        config = dataclasses.replace(config, encoder=config.encoder or store.encoders)
        images = min(config.num_images, len(store))
    out = Path(config.out) if config.out else (run_of(last) or RunFolder(last.parent)).probes
    count = count_text(len(checkpoints), "checkpoint", "checkpoints")
    return Preview(
        (dataclasses.replace(config, out=str(out)),),
        (f"{config.checkpoint}: {count}", f"{config.store}: {count_text(images, 'image', 'images')}"),
        tuple(str(out.with_suffix(suffix)) for suffix in (".json", ".parquet", ".html")),
    )


def _rank(config: RankConfig) -> Preview:
    with open_store(config.store) as store:
        count = count_text(min(config.num_samples, len(store)), "sample", "samples")
        reads = f"{config.store}: {count} of {list_text(store.encoders)}"
    return Preview((config,), (reads,), (config.out, str(Path(config.out).with_suffix(".html"))))


def _ablate(config: AblateConfig) -> Preview:
    from ..ablate import commands_of, out_folder, plan
    from ..ablation.sweep import read_sweep

    out = out_folder(config)
    jobs = plan(read_sweep(Path(config.sweep), config.store, out), config.store)
    return Preview(
        (dataclasses.replace(config, out=str(out)),),
        (config.store,),
        (f"{out}: {count_text(len(jobs), 'run', 'runs')}, results.json, results.parquet, report.html",),
        runs=tuple(commands_of(jobs)),
    )


def _is_store(location: str) -> bool:
    return "://" in location or (Path(location).expanduser() / "zarr.json").exists()


def _view_bytes(spec: GroupSpec) -> float:
    return spec.sample_bytes / (2 if spec.has_flips else 1)


def _total(count: int, noun: str, size: float) -> str:
    return f"{bytes_text(size)} per {noun}, {bytes_text(count * size)} in total"


_PREVIEWS: dict[str, Callable[..., Preview]] = {
    "plan": _plan,
    "encode": _encode,
    "train": _train,
    "sample": _sample,
    "export": _export,
    "evaluate": _evaluate,
    "evaluate-checkpoints": _evaluate_checkpoints,
    "nearest": _nearest,
    "probe": _probe,
    "rank": _rank,
    "ablate": _ablate,
}
