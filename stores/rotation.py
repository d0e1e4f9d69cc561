"""An orthogonal matrix that spreads the outlier channels of a token over all channels.

It must stay the same permanently and in every language, so it is defined by closed forms and SHA-256 and uses no
library's random numbers.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

KIND = "signs-hadamard-dct"


@dataclass(frozen=True, slots=True)
class Rotation:
    """An orthogonal matrix R = (C ⊗ H) diag(s) of any width, identical on every machine.

    The width is `num_blocks` (odd) times `block` (a power of two). s are signs derived from SHA-256, H is Sylvester's
    Hadamard matrix of size `block`, and C is the orthonormal DCT-II of size `num_blocks`.
    """

    width: int
    seed: int

    @property
    def block(self) -> int:
        """The largest power of two that divides the width."""
        return self.width & -self.width

    @property
    def num_blocks(self) -> int:
        """Number of blocks in the width."""
        return self.width // self.block

    @property
    def attributes(self) -> dict[str, Any]:
        """The recipe as JSON values, for the attributes of a group."""
        return {"kind": KIND, "seed": self.seed, "block": self.block, "num_blocks": self.num_blocks}

    def signs(self) -> npt.NDArray[np.float32]:
        """Return s, `[width]` float32: +1 for a 0 and -1 for a 1 among the bits of a sequence of digests.

        The digests are SHA-256("repa-pipe rotation <seed> <k>") for k = 0, 1, …; the lowest bit of a byte comes first.
        """
        digests = [
            hashlib.sha256(f"repa-pipe rotation {self.seed} {k}".encode()).digest()
            for k in range(-(-self.width // 256))
        ]
        bits = np.unpackbits(np.frombuffer(b"".join(digests), np.uint8), bitorder="little")[: self.width]
        return (1 - 2 * bits.astype(np.float32)).astype(np.float32)

    def mixing(self) -> npt.NDArray[np.float64]:
        """Return C, `[num_blocks, num_blocks]`."""
        size = self.num_blocks
        row, column = np.mgrid[:size, :size]
        cosines = np.cos(math.pi * row * (2 * column + 1) / (2 * size)) * math.sqrt(2 / size)
        cosines[0] = math.sqrt(1 / size)
        return np.asarray(cosines)

    def matrix(self) -> npt.NDArray[np.float32]:
        """Return R, `[width, width]`. `y @ R` restores a row from its rotated coordinates y."""
        hadamard = np.ones((1, 1))
        while len(hadamard) < self.block:
            hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
        dense = np.kron(self.mixing(), hadamard / math.sqrt(self.block)) * self.signs()
        return np.asarray(dense, dtype=np.float32)

    def rotate(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return `tokens @ R.T` for `[..., width]` float32.

        Uses butterflies, so that additions have a fixed order on every device.
        """
        signs = torch.from_numpy(self.signs()).to(tokens.device)
        rows = (tokens * signs).movedim(-1, 0).contiguous()  # channels first, so that a butterfly adds long rows
        spare = torch.empty_like(rows)
        half = 1
        while half < self.block:
            pairs = (self.width // (2 * half), 2, half, *rows.shape[1:])
            left, right = rows.view(pairs).unbind(1)
            total, difference = spare.view(pairs).unbind(1)
            torch.add(left, right, out=total)
            torch.sub(left, right, out=difference)
            rows, spare = spare, rows
            half *= 2
        blocks = (rows * (1 / math.sqrt(self.block))).view(self.num_blocks, self.block, *rows.shape[1:])
        mixing = torch.from_numpy(self.mixing().astype(np.float32)).to(tokens.device)
        mixed = torch.zeros_like(blocks)
        for index, block in enumerate(blocks):
            mixed += mixing[:, index].view(-1, *[1] * block.ndim) * block
        return mixed.view(rows.shape).movedim(0, -1).contiguous()
