"""The norms of tokens and of queries and keys."""

from functools import partial

from torch import Tensor, nn
from torch.nn.functional import rms_norm


class RMSNorm(nn.RMSNorm):
    """RMS norm that always computes in float32, as the published models do."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalized tensor, in the dtype of `x`."""
        weight = self.weight.float() if self.elementwise_affine else None
        return rms_norm(x.float(), self.normalized_shape, weight, self.eps).to(x.dtype)


RMS_NORM = partial(RMSNorm, eps=1e-6)
PLAIN_RMS_NORM = partial(RMSNorm, elementwise_affine=False, eps=1e-6)
PLAIN_LAYER_NORM = partial(nn.LayerNorm, elementwise_affine=False, eps=1e-6)
