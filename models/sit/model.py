"""SiT, the scalable interpolant transformer, with REPA's projectors (arXiv 2401.08740 and 2410.06940).

Tensor names and shapes are those of the checkpoints published with REPA (github.com/sihyun-yu/REPA, `models/sit.py`),
so checkpoints load strictly in both directions. The model draws no random numbers: the training code drops labels, with
`drop_labels`.
"""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import CheckpointError, ConfigError
from ..diffusion_model import DiffusionModel
from ..layers.embedders import LabelEmbedder, PatchEmbed, TimestepEmbedder, sincos_position_embedding, unpatchify
from ..layers.projectors import make_projector
from .config import SiTConfig
from .layers import FinalLayer, SiTBlock
from .tensor_names import current_names


class SiT(DiffusionModel):
    """A diffusion transformer that maps (x_t, time, label) to the velocity and to projected tokens per encoder."""

    config: SiTConfig

    def __init__(self, config: SiTConfig) -> None:
        super().__init__()
        self.config = config
        self.grid_size = config.input_size // config.patch_size
        width = config.hidden_size
        self.x_embedder = PatchEmbed(config.in_channels, config.patch_size, width)
        self.t_embedder = TimestepEmbedder(width)
        self.y_embedder = LabelEmbedder(config.num_classes + (config.class_dropout_prob > 0), width)
        self.pos_embed = nn.Parameter(sincos_position_embedding(width, self.grid_size), requires_grad=False)
        self.blocks = nn.ModuleList(SiTBlock(config) for _ in range(config.depth))
        self.projectors = nn.ModuleList(make_projector(config, z_dim) for z_dim in config.z_dims)
        self.final_layer = FinalLayer(config)

    @property
    def taps(self) -> tuple[str, ...]:
        """`block_N`: the tokens [B, N, D] after block N, counted from 1.

        `attention_N`: the attention logits [B, heads, N, N] in block N, counted from 0 as HASTE does.
        """
        depth = self.config.depth
        return (*map(block_tap, range(1, depth + 1)), *map(attention_tap, range(depth)))

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        labels: Tensor,
        project: bool = True,
        *,
        taps: Collection[str] = (),
        groups: Tensor | None = None,
    ) -> tuple[Any, ...]:
        """Predict the velocity, and the encoders' patch tokens from the output of block `encoder_depth`.

        Args:
            x_t: noisy latents [B, C, H, W], in the dtype of the weights (or under autocast).
            t: time [B], 0 at the data and 1 at the noise; or one per token, [B, N].
            labels: [B] int64; `config.null_label` for no class.
            project: False to skip the projectors; the list is then empty.
            taps: what else to return, of `self.taps`.
            groups: [B, N] int64; tokens attend to those of their own group only. None: to all.

        Returns:
            The velocity [B, C, H, W], and one tensor [B, N, z_dim] per entry of `config.z_dims`; with `taps`, a dict of
            these as well.
        """
        tokens, condition = self._embed(x_t, t, labels)
        mask = _mask(groups)
        projected: list[Tensor] = []
        tapped: dict[str, Tensor] = {}
        for number, block in enumerate(self.blocks, start=1):
            if attention_tap(number - 1) in taps:
                only = mask[0] if mask else None
                tokens, tapped[attention_tap(number - 1)] = self._run(block, tokens, condition, only, True)
            else:
                tokens = self._run(block, tokens, condition, *mask)
            if project and number == self.config.encoder_depth:
                projected = [project_tokens(tokens) for project_tokens in self.projectors]
            if block_tap(number) in taps:
                tapped[block_tap(number)] = tokens
        velocity = self._velocity(tokens, condition)
        return (velocity, projected, tapped) if taps else (velocity, projected)

    def hidden_states(
        self, x_t: Tensor, t: Tensor, labels: Tensor, blocks: Collection[int], groups: Tensor | None = None
    ) -> list[Tensor]:
        """Return the output tokens [B, N, D] of the given blocks, counted from 1, in the model's order.

        Later blocks are not run. Times and groups are those of `forward`.

        Raises:
            ConfigError: `blocks` is empty or holds a number that is not a block.
        """
        depth = self.config.depth
        if not blocks or not all(1 <= number <= depth for number in blocks):
            raise ConfigError(f"blocks {list(blocks)}: expected numbers from 1 to {depth}, the model's depth")
        tokens, condition = self._embed(x_t, t, labels)
        mask, states = _mask(groups), []
        for number, block in enumerate(self.blocks[: max(blocks)], start=1):
            tokens = self._run(block, tokens, condition, *mask)
            if number in blocks:
                states.append(tokens)
        return states

    def _embed(self, x_t: Tensor, t: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.x_embedder(x_t) + self.pos_embed
        return tokens, self._condition(t, labels, tokens.dtype)

    def _condition(self, t: Tensor, labels: Tensor, dtype: torch.dtype) -> Tensor:
        times, classes = self.t_embedder(t, dtype), self.y_embedder(labels)
        condition: Tensor = times + (classes if t.ndim == 1 else classes.unsqueeze(1))
        return condition

    def _velocity(self, tokens: Tensor, condition: Tensor) -> Tensor:
        return unpatchify(self.final_layer(tokens, condition), self.config.patch_size)


def _mask(groups: Tensor | None) -> list[Tensor]:
    """Return the argument of blocks whose tokens attend to their own group [B, N]; none without groups."""
    return [] if groups is None else [(groups.unsqueeze(1) == groups.unsqueeze(2)).unsqueeze(1)]


def block_tap(number: int) -> str:
    """Return the name of the tap of a block, counted from 1."""
    return f"block_{number}"


def attention_tap(number: int) -> str:
    """Return the name of the tap of the attention logits in a block, counted from 0."""
    return f"attention_{number}"


def drop_labels(labels: Tensor, drop_mask: Tensor, num_classes: int) -> Tensor:
    """Replace labels [B] by the null label `num_classes` where `drop_mask` [B] is true."""
    return torch.where(drop_mask, num_classes, labels)


_ADVICE = "Use the model, input size, projectors and qk_norm that it was trained with"


def load_sit_state(model: DiffusionModel, state_dict: Mapping[str, Tensor], advice: str = _ADVICE) -> None:
    """Load the weights of a published checkpoint or of repa-pipe strictly: every tensor must match.

    Other names of the same tensors are accepted (`tensor_names.py`), and `decoder_blocks.0` for the first block after
    `encoder_depth`.

    Args:
        model: the model.
        state_dict: tensors by name.
        advice: the end of the error message.

    Raises:
        CheckpointError: names or shapes belong to another model.
    """
    loaded = current_names(state_dict, model.config.encoder_depth)
    expected = model.state_dict()
    problems = [f"{name} is missing" for name in expected if name not in loaded]
    problems += [f"{name} is unexpected" for name in loaded if name not in expected]
    problems += [
        f"{name} has another shape (expected {list(value.shape)}, found {list(loaded[name].shape)})"
        for name, value in expected.items()
        if name in loaded and loaded[name].shape != value.shape
    ]
    if problems:
        more = f" (and {len(problems) - 4} more)" if len(problems) > 4 else ""
        raise CheckpointError(f"the checkpoint does not fit the model: {'; '.join(problems[:4])}{more}. {advice}")
    model.load_state_dict(loaded)
