"""The head of SRA (arXiv 2505.02831), which maps the model's own earlier tokens to its later ones."""

from torch import Tensor, nn

from .layers.linear import linear

SELF_HEAD = "ap_head"  # the published name of the head in a model


class SelfAlignmentHead(nn.Module):
    """Two linear layers with a SiLU between them, under their published names."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear1, self.act, self.linear2 = linear(width, 2 * width), nn.SiLU(), linear(2 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens [B, N, D]."""
        mapped: Tensor = self.linear2(self.act(self.linear1(tokens)))
        return mapped
