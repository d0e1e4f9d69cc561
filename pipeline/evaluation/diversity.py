"""LPIPS diversity: how much generated images of the same class differ."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...metrics.image_quality import Lpips, require_torchmetrics
from ..artifacts.images import Block, Images
from ..artifacts.metric_files import LPIPS
from ..runtime.progress import progress

Image = npt.NDArray[np.uint8]  # [H, W, 3]


@dataclass(frozen=True)
class LpipsDiversity:
    """The distances of pairs of images of a class."""

    network: Lpips
    library: str
    rule: str = "VGG16, images in their own size; pairs of successive images of a class"

    @classmethod
    def load(cls, device: torch.device) -> LpipsDiversity:
        """Load the network; WeightsError if torchmetrics or its weights are unavailable."""
        return cls(Lpips(device), f"torchmetrics {require_torchmetrics('LPIPS')}")

    def distances(self, images: Images, labels: npt.NDArray[np.int64], batch_size: int) -> Tensor:
        """Return the distance of each pair, float32 [P]; an image is in one pair at most.

        Args:
            images: the generated images.
            labels: their classes [N].
            batch_size: pairs per forward pass.
        """
        found = []
        with progress(f"{LPIPS}: samples", images.count // 2, "pairs") as bar:
            for pairs in _batches(pairs_of_classes(images.blocks, labels), batch_size):
                first, second = (
                    torch.from_numpy(np.stack(each)).permute(0, 3, 1, 2) for each in zip(*pairs, strict=True)
                )
                found.append(self.network(first, second).cpu())
                bar.update(len(pairs))
        return torch.cat(found)


def pairs_of_classes(blocks: Iterable[Block], labels: npt.NDArray[np.int64]) -> Iterator[tuple[Image, Image]]:
    """Yield the first and second image of every class, its third and fourth, and so on, as their second one is read."""
    waiting: dict[int, Image] = {}
    images = (image for block in blocks for image in block)
    for image, label in zip(images, labels.tolist(), strict=True):
        other = waiting.pop(label, None)
        if other is None:
            waiting[label] = image.copy()
        else:
            yield other, image.copy()


def _batches(pairs: Iterable[tuple[Image, Image]], size: int) -> Iterator[list[tuple[Image, Image]]]:
    batch: list[tuple[Image, Image]] = []
    for pair in pairs:
        batch.append(pair)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
