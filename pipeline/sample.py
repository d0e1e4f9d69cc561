"""`repa-pipe sample`: images from a checkpoint, the same ones whatever the batch size, the ranks or the interruptions.

Finished blocks are kept in `<out>.partial` until the .npz is whole; a whole one is not made again.
"""

from __future__ import annotations

import time
import zlib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..config import SampleConfig, read_config
from ..errors import ConfigError
from ..stores.files import write_json
from .artifacts.checkpoints import FOLDER, load_model, resolve_checkpoint
from .artifacts.images import write_png_folder
from .runtime.device import choose_device
from .runtime.distributed import DistributedContext, init_distributed
from .runtime.progress import progress, say
from .sampling.blocks import SampleBlocks, make_blocks
from .sampling.on_ray import make_blocks_on_ray
from .sampling.sampler import Sampler


@dataclass(frozen=True, slots=True)
class SampleResult:
    """What a run of `sample` made."""

    npz: str
    grid: str
    num_images: int
    step: int
    seconds: float


def run(config: SampleConfig) -> SampleResult:
    """Make images and write them as .npz, a grid picture and a JSON of settings.

    Raises ConfigError, CheckpointError and WeightsError for what cannot work.
    """
    device = choose_device("cpu" if config.ray else config.device)  # on Ray, the actors choose theirs
    checkpoint = resolve_checkpoint(config.checkpoint)
    out = Path(config.out) if config.out else default_out(config, checkpoint)
    if out.suffix != ".npz":
        raise ConfigError(f"--out is {str(out)!r}: give a name that ends in .npz")
    with init_distributed(device) as ranks:
        result = finished(config)
        if result:
            say(f"{out} is there already")
        result = result or _make(config, checkpoint, out, device, ranks)
        if config.png_folder and ranks.is_first:
            write_png_folder(out, Path(config.png_folder))
    return result


def default_out(config: SampleConfig, checkpoint: Path) -> Path:
    """`samples/<checkpoint>-<settings>-<count>.npz` in the run's folder, or in this one for a checkpoint of no run."""
    folder = checkpoint.parent.parent if checkpoint.parent.name == FOLDER else Path()
    return folder / "samples" / f"{checkpoint.stem}-{settings_name(config)}.npz"


def settings_name(config: SampleConfig) -> str:
    """What shapes the images, as part of a file name: `ode50-cfg1.5-seed0-50000`."""
    solver = "sde" if config.mode == "sde" else ("heun" if config.heun else "ode")
    words = [f"{solver}{config.num_steps}", f"cfg{config.cfg_scale:g}"]
    if (config.guidance_low, config.guidance_high) != (0, 1):
        words.append(f"from{config.guidance_low:g}to{config.guidance_high:g}")
    if config.labels != "random":
        words.append("balanced" if config.labels == "balanced" else f"labels{zlib.crc32(config.labels.encode()):08x}")
    words += [Path(config.vae).name] if config.vae else []
    words += [] if config.ema else ["no-ema"]
    words += [] if config.precision == "fp32" else [config.precision]
    words += ["compiled"] if config.compile else []
    return "-".join([*words, f"seed{config.global_seed}", str(config.num_fid_samples)])


def _settings(config: SampleConfig, checkpoint: Path) -> dict[str, Any]:
    """All that the images depend on; a checkpoint that was written anew is another one."""
    facts = checkpoint.stat()
    names = [item.name for item in fields(config) if not item.metadata["harmless"] and item.name != "out"]
    file = {"path": str(checkpoint.resolve()), "bytes": facts.st_size, "written": facts.st_mtime_ns}
    return {name: getattr(config, name) for name in names} | {"checkpoint": file}


def finished(config: SampleConfig) -> SampleResult | None:
    """What an earlier run of the same settings made, if it is there; CheckpointError when there is no checkpoint."""
    checkpoint = resolve_checkpoint(config.checkpoint)
    out = Path(config.out) if config.out else default_out(config, checkpoint)
    path = out.with_suffix(".json")
    if not (out.exists() and path.exists()):
        return None
    values = read_config(path)
    if values.get("settings") != _settings(config, checkpoint):
        return None
    return SampleResult(**{item.name: values[item.name] for item in fields(SampleResult)})


def _make(
    config: SampleConfig, checkpoint: Path, out: Path, device: torch.device, ranks: DistributedContext
) -> SampleResult:
    start = time.monotonic()
    settings = _settings(config, checkpoint)
    blocks = SampleBlocks(config, settings, out)
    mine = blocks.all[ranks.rank :: ranks.world_size]
    todo = blocks.missing(mine)
    done = sum(map(len, mine)) - sum(map(len, todo))
    if done:
        say(f"going on: {done:,} images are there")
    labels: npt.NDArray[np.int64]
    with progress("sample", sum(map(len, mine)), "images", done) as bar:
        if config.ray:
            labels, step = make_blocks_on_ray(config, checkpoint, blocks.folder, todo, bar.update)
        else:
            trained = load_model(checkpoint, config.ema)
            sampler = Sampler(config, trained, device)
            make_blocks(sampler, blocks.folder, todo, device, bar.update)
            labels, step = sampler.all_labels(), trained.step
    ranks.barrier()
    grid = out.with_suffix(".png")
    result = SampleResult(str(out), str(grid), len(labels), step, round(time.monotonic() - start, 1))
    if ranks.is_first:
        blocks.assemble(labels, grid)
        write_json(out.with_suffix(".json"), {"config": config.as_json(), "settings": settings, **asdict(result)})
    ranks.barrier()
    return result
