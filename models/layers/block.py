"""The transformer block and the final layer of LightningDiT (arXiv 2501.01423), which RAE's models use as well."""

from __future__ import annotations

from dataclasses import dataclass, fields

from torch import Tensor, nn

from .attention import Attention
from .feed_forward import Mlp, SwiGLU, swiglu_width
from .linear import linear
from .modulation import chunks, modulate, modulation
from .norms import PLAIN_LAYER_NORM, RMS_NORM
from .rotary import Rotary


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockOptions:
    """What differs between published models."""

    mlp_ratio: float = 4.0
    use_rmsnorm: bool = True  # instead of layer norm, whose norms of tokens have no weights
    use_swiglu: bool = True  # instead of a GELU
    use_qknorm: bool = False
    wo_shift: bool = False  # modulation scales but does not shift

    @classmethod
    def of(cls, config: object) -> BlockOptions:
        """Return the options that a model's config has under the same names."""
        return cls(**{field.name: getattr(config, field.name) for field in fields(cls)})


class DiTBlock(nn.Module):
    """A transformer block with norms and gates modulated by the condition; initialized to the identity."""

    def __init__(self, width: int, num_heads: int, options: BlockOptions) -> None:
        super().__init__()
        norm = RMS_NORM if options.use_rmsnorm else PLAIN_LAYER_NORM
        head_norm = RMS_NORM if options.use_rmsnorm else nn.LayerNorm
        self.wo_shift = options.wo_shift
        self.norm1 = norm(width)
        self.attn = Attention(width, num_heads, head_norm if options.use_qknorm else None)
        self.norm2 = norm(width)
        ratio = options.mlp_ratio
        self.mlp = SwiGLU(width, swiglu_width(width, ratio)) if options.use_swiglu else Mlp(width, int(width * ratio))
        self.adaLN_modulation = modulation(width, 4 if options.wo_shift else 6)

    def forward(self, tokens: Tensor, condition: Tensor, rotary: Rotary | None = None) -> Tensor:
        """Return tokens [B, N, D], given tokens [B, N, D] and condition [B, D], or [B, N, D] with one per token."""
        shift1: Tensor | float
        shift2: Tensor | float
        if self.wo_shift:
            shift1 = shift2 = 0.0
            scale1, gate1, scale2, gate2 = chunks(self.adaLN_modulation, condition, 4)
        else:
            shift1, scale1, gate1, shift2, scale2, gate2 = chunks(self.adaLN_modulation, condition, 6)
        tokens = tokens + gate1 * self.attn(modulate(self.norm1(tokens), shift1, scale1), rotary)
        result: Tensor = tokens + gate2 * self.mlp(modulate(self.norm2(tokens), shift2, scale2))
        return result


class DiTFinalLayer(nn.Module):
    """Tokens [B, N, D] to patches [B, N, outputs]; zero-initialized."""

    def __init__(self, width: int, outputs: int, use_rmsnorm: bool = True) -> None:
        super().__init__()
        self.norm_final = (RMS_NORM if use_rmsnorm else PLAIN_LAYER_NORM)(width)
        self.linear = linear(width, outputs, nn.init.zeros_)
        self.adaLN_modulation = modulation(width, 2)

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """Return patches, given a condition [B, D], or [B, N, D] with one per token."""
        shift, scale = chunks(self.adaLN_modulation, condition, 2)
        patches: Tensor = self.linear(modulate(self.norm_final(tokens), shift, scale))
        return patches
