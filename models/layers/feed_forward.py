"""What transformer blocks apply to each token separately."""

from torch import Tensor, nn
from torch.nn.functional import silu

from .linear import linear


class Mlp(nn.Module):
    """Two linear layers with a GELU (tanh approximation) between them."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1 = linear(width, inner)
        self.act = nn.GELU(approximate="tanh")
        self.fc2 = linear(inner, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens [B, N, D]."""
        result: Tensor = self.fc2(self.act(self.fc1(tokens)))
        return result


def swiglu_width(width: int, ratio: float) -> int:
    """Return the inner width of a SwiGLU that has about as many weights as an MLP of this ratio."""
    return int(2 / 3 * int(width * ratio))


class SwiGLU(nn.Module):
    """`w3(silu(a) * b)`, where a and b are the halves of `w12` (arXiv 2002.05202)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.w12 = linear(width, 2 * inner)
        self.w3 = linear(inner, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens [B, N, D]."""
        gate, value = self.w12(tokens).chunk(2, dim=-1)
        result: Tensor = self.w3(silu(gate) * value)
        return result


def projector(width: int, inner: int, outputs: int) -> nn.Sequential:
    """Build REPA's projector of tokens [B, N, width], three linear layers with SiLU between them."""
    return nn.Sequential(linear(width, inner), nn.SiLU(), linear(inner, inner), nn.SiLU(), linear(inner, outputs))
