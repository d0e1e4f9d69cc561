"""Training losses: `denoising_loss(...).mean() + proj_coeff * alignment_loss(...)` (REPA, arXiv 2410.06940)."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import (
    cosine_similarity,
    cross_entropy,
    log_softmax,
    mse_loss,
    normalize,
    smooth_l1_loss,
    softmax,
)

from ..errors import ConfigError


def denoising_loss(velocity: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error per sample.

    Args:
        velocity: the model's prediction [B, ...], of any floating dtype.
        target: the velocity of the path, with the same shape.

    Returns:
        [B] float32.
    """
    return (velocity.float() - target.float()).square().flatten(1).mean(dim=1)


def direction_loss(velocity: Tensor, target: Tensor) -> Tensor:
    """Return the mean over positions of 1 - cosine similarity over channels, per sample (LightningDiT).

    Args:
        velocity: the model's prediction [B, C, h, w], of any floating dtype.
        target: the velocity of the path, with the same shape.

    Returns:
        [B] float32.
    """
    return (1 - cosine_similarity(velocity.float(), target.float(), dim=1)).flatten(1).mean(dim=1)


def contrastive_loss(velocity: Tensor, target: Tensor, partner: Tensor) -> Tensor:
    """Return the mean squared error per sample to the target of another sample (arXiv 2506.05350).

    Contrastive flow matching subtracts it from the denoising loss, with a small weight.

    Args:
        velocity: the model's prediction [B, ...], of any floating dtype.
        target: the velocities of the path [M, ...], each with the noise and the time of its own sample.
        partner: [B] int64, rows of `target`.

    Returns:
        [B] float32.
    """
    return denoising_loss(velocity, target[partner])


def previous_samples(count: int, device: torch.device) -> Tensor:
    """Return the partners of SR-DiT (arXiv 2512.12386), [count] int64: the previous sample of each, cyclic."""
    return torch.arange(count, device=device).roll(1)


def self_alignment_loss(student: Tensor, teacher: Tensor, kind: Literal["cos", "sml1", "l1", "l2"] = "cos") -> Tensor:
    """Return SRA's distance between projected tokens of the student and tokens of the teacher (arXiv 2505.02831).

    Args:
        student: [B, N, D] of any floating dtype.
        teacher: like the student.
        kind: `cos`: 1 - cosine similarity of each channel over the tokens, as published (not of each token over the
            channels); `sml1`: smooth L1 with beta 0.05; `l1` and `l2`: absolute and squared differences.

    Returns:
        For `cos`, [B, D] float32; for others, [B, N, D] float32.
    """
    student, teacher = student.float(), teacher.float()
    if kind == "cos":
        return 1 - (normalize(student, dim=1) * normalize(teacher, dim=1)).sum(dim=1)
    if kind == "sml1":
        return smooth_l1_loss(student, teacher, reduction="none", beta=0.05)
    difference = student - teacher
    return difference.abs() if kind == "l1" else difference.square()


def dispersive_loss(hidden: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the dispersive loss, InfoNCE without positive pairs (arXiv 2506.09027).

    The logarithm of the mean over all pairs of samples, each with itself included, of exp(-D / temperature), D being
    the mean squared difference of their activations.

    Args:
        hidden: activations [B, ...] of any floating dtype.
        temperature: above 0; 1 in the published torch code.

    Returns:
        A float32 scalar from -log B to 0.
    """
    vectors = hidden.float().flatten(1)
    with torch.autocast(vectors.device.type, enabled=False):
        distances = torch.pdist(vectors).square() / vectors.shape[1]
    pairs = torch.cat([distances, distances, distances.new_zeros(len(vectors))])
    return (pairs / -temperature).exp().mean().log()


def attention_loss(student_logits: Sequence[Tensor], teacher_logits: Sequence[Tensor]) -> Tensor:
    """Return HASTE's loss between attention maps: their cross-entropy, averaged over blocks (arXiv 2505.16792).

    A cross-entropy is not 0 for equal maps; it is then the entropy of the teacher's.

    Args:
        student_logits: per block [B, heads, queries, keys], of any floating dtype.
        teacher_logits: those of the encoder, in the same order and shapes. They hold patch tokens only: a map is a
            softmax over patches, without the class token.

    Returns:
        A float32 scalar, the mean over blocks, samples, heads and queries, computed in float32.

    Raises:
        ConfigError: the number of blocks or the shapes differ.
    """
    found, expected = [list(each.shape) for each in student_logits], [list(each.shape) for each in teacher_logits]
    if found != expected or not found:
        raise ConfigError(
            f"the model's attention logits have shapes {found}; expected those of the encoder, {expected}, and at "
            "least one block. Both need the same blocks, heads and patch tokens"
        )
    losses = [
        -(softmax(theirs.float(), dim=-1) * log_softmax(ours.float(), dim=-1)).sum(dim=-1).mean()
        for ours, theirs in zip(student_logits, teacher_logits, strict=True)
    ]
    return torch.stack(losses).mean()


def mse_alignment_loss(projected: Sequence[Tensor], patch_tokens: Sequence[Tensor]) -> Tensor:
    """Return the mean squared error of projected tokens, averaged over encoders (RAEv2).

    Args and errors are those of `alignment_loss`.
    """
    _check_pairs(projected, patch_tokens)
    errors = [mse_loss(ours.float(), theirs.float()) for ours, theirs in zip(projected, patch_tokens, strict=True)]
    return torch.stack(errors).mean()


def alignment_loss(projected: Sequence[Tensor], patch_tokens: Sequence[Tensor]) -> Tensor:
    """Return REPA's alignment loss: the negative cosine similarity, averaged over encoders, samples and tokens.

    Args:
        projected: the model's projected tokens per encoder, [B, N, D] of any floating dtype.
        patch_tokens: the encoders' patch tokens, in the same order and shapes. Their norms do not matter.

    Returns:
        A float32 scalar between -1 and 1. Everything is computed in float32, also under autocast: float16 runs of the
        published code, which does not do so, have diverged to NaN.

    Raises:
        ConfigError: the number of encoders or the shapes differ.
    """
    pairs = _normalized_pairs(projected, patch_tokens)
    return torch.stack([-(prediction * token).sum(dim=-1).mean() for prediction, token in pairs]).mean()


def nt_xent_loss(projected: Sequence[Tensor], patch_tokens: Sequence[Tensor], temperature: float = 0.1) -> Tensor:
    """Return the contrastive loss of REPA's ablation: SimCLR's NT-Xent (arXiv 2002.05709, equation 1).

    The positive pair is the projected token and the stored token of a patch. Negatives are all other tokens of the same
    image, projected and stored. REPA's release does not include this loss, so the choice of negatives is ours: within
    an image, the loss is a mean over samples like `alignment_loss` and does not depend on how a batch is distributed
    over processes.

    Args:
        projected: as for `alignment_loss`.
        patch_tokens: as for `alignment_loss`.
        temperature: above 0. The default is SimCLR's.

    Returns:
        A float32 scalar.

    Raises:
        ConfigError: the number of encoders or the shapes differ, or the temperature is not positive.
    """
    if temperature <= 0:
        raise ConfigError(f"temperature is {temperature}; expected a number above 0")
    losses = []
    for prediction, token in _normalized_pairs(projected, patch_tokens):
        batch, count, _ = prediction.shape
        views = torch.cat([prediction, token], dim=1)
        with torch.autocast(views.device.type, enabled=False):
            similarity = views @ views.mT / temperature  # [B, 2N, 2N]
        diagonal = torch.eye(2 * count, dtype=torch.bool, device=views.device)
        positive = torch.arange(2 * count, device=views.device).roll(count).repeat(batch)
        losses.append(cross_entropy(similarity.masked_fill(diagonal, -torch.inf).flatten(0, 1), positive))
    return torch.stack(losses).mean()


def _normalized_pairs(projected: Sequence[Tensor], patch_tokens: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Return (projected, stored) tokens per encoder, normalized in float32."""
    _check_pairs(projected, patch_tokens)
    return [
        (normalize(prediction.float(), dim=-1), normalize(token.float(), dim=-1))
        for prediction, token in zip(projected, patch_tokens, strict=True)
    ]


def _check_pairs(projected: Sequence[Tensor], patch_tokens: Sequence[Tensor]) -> None:
    """Raise ConfigError unless projected and stored tokens have the same shapes."""
    found, expected = [list(each.shape) for each in projected], [list(each.shape) for each in patch_tokens]
    if found != expected or not found:
        raise ConfigError(
            f"projected tokens have shapes {found}; expected those of the encoders' patch tokens, {expected}, and at "
            "least one encoder. z_dims sets the widths, (input_size / patch_size) squared the number of tokens"
        )


def spatial_zscore(patch_tokens: Tensor, gamma: float) -> Tensor:
    """Apply iREPA's spatial normalization to target tokens (arXiv 2512.10794): remove what all patches have in common.

    Each channel minus gamma times its mean over the image, divided by its standard deviation over the image (with
    Bessel's correction).

    Args:
        patch_tokens: [B, N, D] of any floating dtype.
        gamma: the fraction of the mean that is subtracted.

    Returns:
        [B, N, D] float32.
    """
    tokens = patch_tokens.float()
    deviation = tokens.std(dim=1, keepdim=True)
    return (tokens - gamma * tokens.mean(dim=1, keepdim=True)) / (deviation + 1e-6)
