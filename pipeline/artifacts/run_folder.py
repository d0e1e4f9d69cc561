"""The folder of a training run. No other module contains the names of the files in it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from ...config import TrainConfig
from ...converter import read_json
from ...errors import CheckpointError, ConfigError
from ...stores.files import remove_leftovers, write_json
from ...stores.layout import latents_group
from ...stores.model_names import canonical_name

CHECKPOINT_SUFFIX = ".pt"
MAX_NAME = 255  # bytes of a name on common file systems


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The folder `<output_dir>/<exp_name>`, and every file in it."""

    path: Path

    @classmethod
    def of(cls, config: TrainConfig) -> Self:
        """Return the folder of a run.

        Raises:
            ConfigError: the name of the run is not that of one folder in `output_dir`.
        """
        name = str(config.exp_name)
        if not name.strip(". ") or not name.isprintable() or set(name) & {"/", "\\"} or len(name.encode()) > MAX_NAME:
            raise ConfigError(
                f"--exp-name is {name[:MAX_NAME]!r}: expected the name of one folder, without separators; "
                "--output-dir is its parent"
            )
        return cls(Path(config.output_dir) / name)

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.path.name

    @property
    def config_file(self) -> Path:
        """`train.json`: the settings of the run."""
        return self.path / "train.json"

    @property
    def record_file(self) -> Path:
        """`run.json`: notes, tags, and when, where and how the run was trained."""
        return self.path / "run.json"

    @property
    def checkpoint_folder(self) -> Path:
        """`checkpoints/`."""
        return self.path / "checkpoints"

    @property
    def metrics_log(self) -> Path:
        """`metrics.parquet`: one row per `--log-steps` steps."""
        return self.path / "metrics.parquet"

    @property
    def metrics_log_copy(self) -> Path:
        """`metrics.parquet.copy`: the log up to the last checkpoint, used if the log is damaged."""
        return self.path / "metrics.parquet.copy"

    @property
    def samples(self) -> Path:
        """`samples/`: generated images."""
        return self.path / "samples"

    @property
    def curves(self) -> Path:
        """`by-step/`: metrics of every checkpoint."""
        return self.path / "by-step"

    @property
    def probes(self) -> Path:
        """`probe.json`: linear probing and CKNNA of every checkpoint."""
        return self.path / "probe.json"

    @property
    def machine_file(self) -> Path:
        """`machine.json`: the number of GPUs that a sweep gave to the training."""
        return self.path / "machine.json"

    @property
    def log(self) -> Path:
        """`log.txt`: output of a sweep's commands."""
        return self.path / "log.txt"

    @property
    def evaluation_log(self) -> Path:
        """`eval.log`: output of the commands that evaluate checkpoints during training."""
        return self.path / "eval.log"

    @property
    def tensorboard(self) -> Path:
        """`tensorboard/`: event files."""
        return self.path / "tensorboard"

    @property
    def wandb_id(self) -> Path:
        """`wandb_id`: ID of the run in Weights & Biases, which a resumed run continues."""
        return self.path / "wandb_id"

    @property
    def trackio_name(self) -> Path:
        """`trackio_name`: name of the run in trackio, which a resumed run continues."""
        return self.path / "trackio_name"

    @property
    def aim_id(self) -> Path:
        """`aim_id`: ID of the run in Aim, which a resumed run continues."""
        return self.path / "aim_id"

    @property
    def trackers_file(self) -> Path:
        """`trackers.json`: the last steps that were passed to W&B and trackio."""
        return self.path / "trackers.json"

    def checkpoint(self, step: int) -> Path:
        """`checkpoints/0050000.pt`: the state after this step, named as by REPA's trainer."""
        return self.checkpoint_folder / f"{step:07d}{CHECKPOINT_SUFFIX}"

    def nonfinite_checkpoint(self, step: int) -> Path:
        """`checkpoints/nan-0050000.pt`: the state before a step that was not finite; runs do not resume from it."""
        return self.checkpoint_folder / f"nan-{step:07d}{CHECKPOINT_SUFFIX}"

    def nonfinite_report(self, step: int) -> Path:
        """`nan-0050000.json`: losses and samples of a step that was not finite."""
        return self.path / f"nan-{step:07d}.json"

    def profile(self, first: int, last: int) -> Path:
        """`profile-0000100-0000105.json.gz`: a trace of the steps between two steps."""
        return self.path / f"profile-{first:07d}-{last:07d}.json.gz"

    def sample_grid(self, step: int) -> Path:
        """`samples/step-0050000.png`: images generated during training."""
        return self.samples / f"step-{step:07d}.png"

    def checkpoints(self) -> list[Path]:
        """Return the checkpoints, oldest first, without temporary files of killed writers."""
        found = self.checkpoint_folder.glob(f"*{CHECKPOINT_SUFFIX}")
        return sorted((path for path in found if path.stem.isdigit()), key=lambda path: int(path.stem))

    def require_checkpoints(self) -> list[Path]:
        """Return the checkpoints, oldest first; raise CheckpointError when there is none."""
        found = self.checkpoints()
        if not found:
            raise CheckpointError(
                f"no checkpoint in {self.checkpoint_folder}: expected a run folder of 'repa-pipe train'"
            )
        return found

    def last_checkpoint(self) -> Path:
        """Return the newest checkpoint; raise CheckpointError when there is none."""
        return self.require_checkpoints()[-1]

    def drop_old_checkpoints(self, keep: int, milestone_steps: int, needed: Collection[int] = ()) -> None:
        """Delete old checkpoints.

        Args:
            keep: number of checkpoints to keep in addition to the last one; 0 keeps all.
            milestone_steps: checkpoints at multiples of this step are always kept; 0 for none.
            needed: steps whose checkpoints are kept for now.
        """
        for path in self.checkpoints()[: -(keep + 1)] if keep else ():
            step = int(path.stem)
            if step not in needed and (not milestone_steps or step % milestone_steps):
                path.unlink()

    def remove_leftovers(self) -> None:
        """Delete the temporary files of killed trainings; the caller holds the lease of the folder."""
        for name in (
            "train.json",
            "run.json",
            "trackers.json",
            "metrics.parquet*",
            "nan-*",
            "profile-*",
            "checkpoints/*",
        ):
            remove_leftovers(self.path, name)

    def read_config(self) -> TrainConfig:
        """Read the settings of the run; raise ConfigError when the file is missing, damaged or from another version."""
        return TrainConfig.from_json(read_json(self.config_file), str(self.config_file))

    def has_config(self) -> bool:
        """Return whether the settings can be read."""
        try:
            self.read_config()
        except ConfigError:
            return False
        return True

    def write_config(self, config: TrainConfig) -> None:
        """Record the settings of the run."""
        write_json(self.config_file, config.as_json())

    def differences(self, config: TrainConfig) -> list[str]:
        """Return how the recorded settings differ from others: not in how the path of a VAE is spelled."""
        recorded = self.read_config()
        if _same_latents(recorded, config):
            config = replace(config, vae=recorded.vae)
        return recorded.differences(config)

    def require_same_settings(self, config: TrainConfig) -> None:
        """Raise ConfigError if the run has checkpoints that were trained with other settings."""
        if not self.checkpoints():
            return
        different = self.differences(config)
        if different:
            raise ConfigError(
                f"{self.path} was trained with other settings ({'; '.join(different)}): "
                "use the same flags to resume, or another --exp-name"
            )


def _same_latents(recorded: TrainConfig, config: TrainConfig) -> bool:
    """Return whether both have the latents of one VAE, whatever the spelling of its path."""
    first, second = (latents_group(canonical_name(str(each.vae))) for each in (recorded, config))
    return first == second and recorded.token_latents == config.token_latents


def run_of(checkpoint: Path) -> RunFolder | None:
    """Return the run that a checkpoint file belongs to, or None if it is outside of a run folder."""
    run = RunFolder(checkpoint.parent.parent)
    return run if checkpoint.parent.name == run.checkpoint_folder.name else None
