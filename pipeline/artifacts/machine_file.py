"""The machine that a sweep gave to a training, `machine.json`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated

from msgspec import Meta

from ...converter import read_record
from ...stores.files import write_json
from .run_folder import RunFolder


@dataclass(frozen=True, slots=True)
class Machine:
    """The contents of `machine.json`."""

    gpus: Annotated[float, Meta(ge=0, le=1e6)]  # 0 for none


def read_machine(run: RunFolder) -> Machine | None:
    """Read the machine of a run; None if it was not trained by a sweep.

    Raises:
        ConfigError: the file is damaged.
    """
    if not run.machine_file.exists():
        return None
    return read_record(run.machine_file, Machine, "delete it, which only leaves the number of GPUs out of reports")


def write_machine(run: RunFolder, machine: Machine) -> None:
    """Record the machine of a run."""
    write_json(run.machine_file, asdict(machine))
