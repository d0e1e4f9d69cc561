"""Finding the weights of a SiT in a checkpoint of any program.

Trainers nest them differently: `{"ema": {…}}`, Lightning's `{"state_dict": {"ema_model.…": …}}`, a file of weights
alone. All names of tensors are joined to paths, and a SiT is wherever its patch embedding is.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ...errors import CheckpointError
from ...models.sit.tensor_names import without_wrappers
from ..runtime.console import NOTICE

if TYPE_CHECKING:
    from torch import Tensor

_ANCHORS = ("x_embedder.proj.weight", "x_embedder.proj1.weight")  # a tensor that every model has; the latter: JiT
_COUNTERS = {"n_averaged"}  # torch's AveragedModel keeps it among the weights
_EMA = re.compile(r"(^|[._])ema([._\d]|$)|(^|\.)averaged?([._]|$)")
_SECOND_EMA = re.compile(r"(^|\.)model_ema2(?=\.)")  # JiT keeps two averages, and generates with model_ema1
_RAW = re.compile(r"(^|\.)(model|net|student|online)([._]|$)")


logger = logging.getLogger(__name__)


class NoEmaError(CheckpointError):
    """A file that holds the weights of a SiT, but not averaged ones."""


def find_weights(content: Mapping[str, Any], ema: bool) -> dict[str, Tensor]:
    """Return the tensors of the SiT in a checkpoint, under the names that they have there without any prefix.

    Args:
        content: the contents of the file.
        ema: whether to return the averaged weights. Weights whose place does not state what they are, as in a file of
            weights alone, are taken for averaged ones.

    Raises:
        CheckpointError: there is no SiT, or there are no weights of the requested kind, or several.
    """
    tensors = dict(_tensors(content))
    places = [name.removesuffix(anchor) for name in tensors for anchor in _ANCHORS if f".{name}".endswith(f".{anchor}")]
    firsts = {place: _SECOND_EMA.sub(r"\1model_ema1", place) for place in places}
    places = [place for place, first in firsts.items() if first == place or first not in firsts]
    if not places:
        raise CheckpointError(
            f"the checkpoint does not hold a SiT with REPA's tensor names ({_ANCHORS[0]!r} is missing; found "
            f"{', '.join(map(repr, [*content][:4])) or 'nothing'})"
        )
    place = _choose([place for place in places if _is_ema(place) == ema], places, ema)
    found = {name.removeprefix(place): value for name, value in tensors.items() if name.startswith(place)}
    return {name: value for name, value in found.items() if name not in _COUNTERS}


def find_initial_weights(content: Mapping[str, Any], path: str) -> dict[str, Tensor]:
    """Return the EMA weights of a checkpoint, for a run that starts from them; others, with a warning, if it has none.

    Raises:
        CheckpointError: there is no SiT, or there are several.
    """
    try:
        return find_weights(content, ema=True)
    except NoEmaError:
        logger.warning("%s holds no EMA weights: the run starts from the others", path, extra=NOTICE)
        return find_weights(content, ema=False)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _tensors(values: Mapping[Any, Any], place: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors in nested mappings with their paths, without the parts that wrappers add."""
    from torch import Tensor

    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _tensors(value, f"{place}{key}.")
        elif isinstance(value, Tensor):
            yield without_wrappers(f"{place}{key}"), value


def _is_ema(place: str) -> bool:
    return bool(_EMA.search(place)) or not _RAW.search(place)


def _choose(wanted: list[str], places: list[str], ema: bool) -> str:
    if not wanted and ema:
        raise NoEmaError(f"it holds no EMA weights (found {_listed(places)}): add --no-ema")
    if not wanted:
        raise CheckpointError("it holds EMA weights only: remove --no-ema")
    if len(wanted) > 1:
        raise CheckpointError(f"it holds several models ({_listed(wanted)}): save one of them alone")
    return wanted[0]


def _listed(places: list[str]) -> str:
    return ", ".join(repr(place.rstrip(".")) for place in places)
