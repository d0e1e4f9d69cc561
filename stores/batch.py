"""One batch of samples, and how torch's DataLoader joins batches of single samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data._utils.collate import default_collate_fn_map

from ..errors import ConfigError


class Batch(NamedTuple):
    """One rank's part of a global batch, with the store's dtypes: B samples. Lists have one entry per encoder.

    Attributes:
        indices: `[B]` int64 in numpy: the samples.
        labels: `[B]` int64.
        moments: `[B, 2C, h, w]`: mean and standard deviation of the posterior, unscaled; None with other latents.
        patch_tokens: per encoder `[B, N, D]` float16, or codes as the group's codec stores them.
        token_scales: per encoder `[B, N]` float16 if requested and the codec has scales, else None.
        cls_tokens: per encoder `[B, D]` float16 if requested and the encoder has class tokens, else None.
        latent_tokens: `[B, N, D]` float16, or codes: the tokens that are the latents, with `token_latents`; else None.
        latent_scales: `[B, N]` float16, their scales if the codec has scales, else None.
        fixed_latents: `[B, C, h, w]`: unscaled latents that were drawn once, of a group that holds such; else None.
    """

    indices: npt.NDArray[np.int64]
    labels: torch.Tensor
    moments: torch.Tensor | None
    patch_tokens: list[torch.Tensor]
    token_scales: list[torch.Tensor | None]
    cls_tokens: list[torch.Tensor | None]
    latent_tokens: torch.Tensor | None = None
    latent_scales: torch.Tensor | None = None
    fixed_latents: torch.Tensor | None = None

    def __repr__(self) -> str:
        hidden = {
            "indices",
            *(name for name in ("latent_tokens", "latent_scales", "fixed_latents") if getattr(self, name) is None),
        }
        named = {name: found for name, found in zip(self._fields, self, strict=True) if name not in hidden}
        return f"<Batch of {len(self.indices)} samples: {', '.join(f'{n} {_describe(v)}' for n, v in named.items())}>"

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Return the batch with every tensor on `device`. `indices` stay on the host.

        Args:
            device: target of the copies.
            non_blocking: do not wait for copies from page-locked memory.
        """

        def move(tensor: torch.Tensor | None) -> Any:
            return None if tensor is None else tensor.to(device, non_blocking=non_blocking)

        return Batch(
            indices=self.indices,
            labels=move(self.labels),
            moments=move(self.moments),
            patch_tokens=[move(tokens) for tokens in self.patch_tokens],
            token_scales=[move(scales) for scales in self.token_scales],
            cls_tokens=[move(token) for token in self.cls_tokens],
            latent_tokens=move(self.latent_tokens),
            latent_scales=move(self.latent_scales),
            fixed_latents=move(self.fixed_latents),
        )

    def tensors(self) -> list[torch.Tensor]:
        """Return all tensors of the batch."""
        latents = [self.moments, self.latent_tokens, self.latent_scales, self.fixed_latents]
        lists = (latents, self.patch_tokens, self.token_scales, self.cls_tokens)
        return [self.labels, *(tensor for found in lists for tensor in found if tensor is not None)]


def _describe(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_describe, value))}]"
    return "None" if value is None else f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"


def collate(batches: Sequence[Batch]) -> Batch:
    """Join batches as torch's DataLoader does by default: one batch stays as it is, single samples are concatenated.

    Raises:
        ConfigError: the batches already hold several samples each.
    """
    if len(batches) == 1:
        return batches[0]
    sizes = [len(batch.indices) for batch in batches]
    if max(sizes) > 1:
        raise ConfigError(
            f"the DataLoader joins {len(batches)} batches of {max(sizes)} samples: an AlignmentDataset yields batches, "
            "so pass batch_size=None to the DataLoader. To draw single samples, use "
            "DataLoader(MapStyleDataset(dataset), batch_size=…, shuffle=True)"
        )

    def join(found: Sequence[Any]) -> Any:
        return None if found[0] is None else torch.cat(list(found))

    def join_lists(name: str) -> list[Any]:
        return [join(found) for found in zip(*(getattr(batch, name) for batch in batches), strict=True)]

    return Batch(
        indices=np.concatenate([batch.indices for batch in batches]),
        labels=join([batch.labels for batch in batches]),
        moments=join([batch.moments for batch in batches]),
        patch_tokens=join_lists("patch_tokens"),
        token_scales=join_lists("token_scales"),
        cls_tokens=join_lists("cls_tokens"),
        latent_tokens=join([batch.latent_tokens for batch in batches]),
        latent_scales=join([batch.latent_scales for batch in batches]),
        fixed_latents=join([batch.fixed_latents for batch in batches]),
    )


def _collate(batches: Sequence[Batch], *, collate_fn_map: Any = None) -> Batch:
    return collate(batches)


default_collate_fn_map[Batch] = _collate  # torch's documented way to make DataLoader's default collation handle a type
