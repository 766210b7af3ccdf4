"""Guidance: a denoiser around a denoiser."""

import torch
from torch import Tensor, nn

from uvit_lit.diffusion import Denoiser


class Guided(nn.Module):
    """Classifier-free guidance (Ho and Salimans 2022).

    The clean image is uncond + scale * (cond - uncond): 1 is the conditional model, 0 the
    unconditional one. Both are computed in one batch.

    Args:
        denoiser: A conditional denoiser trained with class dropout.
        scale: Guidance scale.
    """

    def __init__(self, denoiser: Denoiser, scale: float) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.scale = scale
        self.schedule = denoiser.schedule

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Estimate the clean image; the arguments and the result are those of ``Denoiser``."""
        null = torch.full_like(y, self.denoiser.backbone.null_class)
        both = self.denoiser(torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([y, null]))
        conditional, unconditional = both.chunk(2)
        return torch.lerp(unconditional, conditional, self.scale)
