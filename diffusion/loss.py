"""What training minimizes: `denoising_loss(...).mean() + proj_coeff * alignment_loss(...)` (REPA, arXiv 2410.06940)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from ..errors import ConfigError


def denoising_loss(velocity: Tensor, target: Tensor) -> Tensor:
    """Each sample's mean squared error: [B, ...] twice, of any floating dtype, to [B] float32."""
    return (velocity.float() - target.float()).square().flatten(1).mean(dim=1)


def alignment_loss(projected: Sequence[Tensor], patch_tokens: Sequence[Tensor]) -> Tensor:
    """REPA's alignment: minus the cosine between projected and stored tokens, averaged over encoders, samples, tokens.

    Args:
        projected: the model's guess for each encoder, [B, N, D] of any floating dtype.
        patch_tokens: the encoder's own tokens, in the same order and shapes. Their lengths don't matter.

    Returns:
        A scalar float32 between -1 and 1. All of it is computed in float32, also under autocast: float16 runs of the
        published program, which isn't as careful, have ended in NaN.

    Raises ConfigError where encoders or shapes don't match.
    """
    pairs = _pairs(projected, patch_tokens)
    return torch.stack([-(guess * token).sum(dim=-1).mean() for guess, token in pairs]).mean()


def nt_xent_loss(projected: Sequence[Tensor], patch_tokens: Sequence[Tensor], temperature: float = 0.1) -> Tensor:
    """The contrastive alternative that REPA's ablation names: SimCLR's NT-Xent (arXiv 2002.05709, equation 1).

    A projected token and the stored token of the same patch are the two views of one thing; every other token of that
    image, projected or stored, is a negative. REPA's release doesn't contain this loss, so the negatives are our
    choice: they stay within the image, so that the loss, like the other one, is a mean over samples that doesn't depend
    on how a batch is spread over processes. 0.1 is SimCLR's temperature.

    Takes and raises what `alignment_loss` does; returns a scalar float32.
    """
    if temperature <= 0:
        raise ConfigError(f"temperature {temperature} must be above 0")
    losses = []
    for guess, token in _pairs(projected, patch_tokens):
        batch, count, _ = guess.shape
        views = torch.cat([guess, token], dim=1)
        with torch.autocast(views.device.type, enabled=False):
            similarity = views @ views.mT / temperature  # [B, 2N, 2N]
        itself = torch.eye(2 * count, dtype=torch.bool, device=views.device)
        partner = torch.arange(2 * count, device=views.device).roll(count).repeat(batch)
        losses.append(cross_entropy(similarity.masked_fill(itself, -torch.inf).flatten(0, 1), partner))
    return torch.stack(losses).mean()


def _pairs(projected: Sequence[Tensor], patch_tokens: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Normalized float32 tokens, encoder by encoder."""
    guesses, tokens = [list(each.shape) for each in projected], [list(each.shape) for each in patch_tokens]
    if guesses != tokens or not guesses:
        raise ConfigError(
            f"the model projects tokens of shape {guesses}, the encoders' are {tokens}: these must be equal, and at "
            "least one. z_dims gives the projectors' widths; input_size / patch_size squared, the number of tokens"
        )
    return [
        (normalize(guess.float(), dim=-1), normalize(token.float(), dim=-1))
        for guess, token in zip(projected, patch_tokens, strict=True)
    ]


def spatial_zscore(patch_tokens: Tensor, gamma: float) -> Tensor:
    """Every channel less gamma times its mean over the image, divided by its deviation over the image.

    This is iREPA's spatial normalization of the target tokens (arXiv 2512.10794): it takes away what all patches share.
    [B, N, D] of any floating dtype to the same in float32; the deviation is the sample's (N - 1).
    """
    tokens = patch_tokens.float()
    deviation = tokens.std(dim=1, keepdim=True)
    return (tokens - gamma * tokens.mean(dim=1, keepdim=True)) / (deviation + 1e-6)
