"""A U-Net as the backbone: that of diffusers, with the same modulation on its long skips.

``UNet2DModel`` is the U-Net of DDPM (Ho et al. 2020) with group norms and attention at chosen
sizes. Its code and its parameter names stay as they are, below ``unet``.
"""

from typing import Any

import torch
from torch import Tensor, nn

from uvit_lit.attach import Attached, known_joins
from uvit_lit.errors import InputError, require
from uvit_lit.settings import UNCHANGED, SkipSettings


class UNet(nn.Module):
    """U-Net with a filter and a backbone scale on every long skip.

    Args:
        img_size: Height and width of the image in pixels, halved from level to level.
        in_chans: Channels of the image.
        channels: Channels of each level, the finest first, multiples of ``norm_groups``.
        layers: Residual blocks of a level on the way down; it has one more on the way up. Each
            level has ``layers + 1`` long skips.
        attention: Heights at which self-attention follows every residual block.
        head_dim: Channels of an attention head.
        norm_groups: Groups of the group norms.
        dropout: Share of the features, in [0, 1), that a residual block drops in training.
        num_classes: Number of classes; 0 makes an unconditional model. The embedding has one
            more row, the null class that guidance needs.
        skip: What acts on every long skip during training, as ``UViT`` takes it.

    Raises:
        ValueError: If sizes do not divide, or what a long skip learns starts outside its bounds.

    References:
        Ho et al., "Denoising Diffusion Probabilistic Models", 2020, appendix B; FreeU (Si et al.
        2024) for the modulation where the up blocks join.
    """

    def __init__(
        self,
        img_size: int = 32,
        in_chans: int = 3,
        channels: tuple[int, ...] = (32, 64, 96, 160),
        layers: int = 1,
        attention: tuple[int, ...] = (8,),
        head_dim: int = 32,
        norm_groups: int = 8,
        dropout: float = 0.0,
        num_classes: int = 0,
        skip: SkipSettings = UNCHANGED,
    ) -> None:
        super().__init__()
        sizes = [img_size // 2**level for level in range(len(channels))]
        if not channels or layers < 1 or norm_groups < 1 or head_dim < 1:
            raise InputError(
                f"channels are {channels}, layers {layers}, norm_groups {norm_groups}, head_dim "
                f"{head_dim}; accepted: at least one level, and numbers of at least 1"
            )
        if img_size < 1 or img_size % 2 ** (len(channels) - 1):
            raise InputError(
                f"img_size is {img_size}; accepted: a positive multiple of "
                f"{2 ** (len(channels) - 1)}"
            )
        if unknown := set(attention) - set(sizes):
            raise InputError(
                f"attention is at {sorted(unknown)}; accepted: heights of levels, "
                f"{', '.join(map(str, sizes))}"
            )
        for width in channels:
            if width < 1 or width % norm_groups:
                raise InputError(f"channels are {channels}; accepted: multiples of {norm_groups}")
        attended = {w for w, size in zip(channels, sizes, strict=True) if size in attention}
        if any(width % head_dim for width in {*attended, channels[-1]}):  # the middle attends too
            raise InputError(
                f"head_dim is {head_dim}; accepted: a divisor of the channels where "
                "attention is, and of the last level's"
            )
        require(num_classes >= 0, "num_classes", num_classes, "0 (no classes) or more")
        require(0 <= dropout < 1, "dropout", dropout, "from 0 to below 1")
        from diffusers import UNet2DModel  # takes seconds to import

        self.img_size, self.in_chans, self.num_classes = img_size, in_chans, num_classes
        kinds = ["Attn" if size in attention else "" for size in sizes]
        self.unet: Any = UNet2DModel(
            img_size,
            in_chans,
            in_chans,
            block_out_channels=tuple(channels),
            layers_per_block=layers,
            down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
            up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
            attention_head_dim=head_dim,
            norm_num_groups=norm_groups,
            dropout=dropout,
            num_class_embeds=num_classes + 1 if num_classes else None,
        )
        attached = Attached(self.unet, known_joins(self.unet), skip.learnable, **vars(skip))
        self.long_skips: Any = attached.modulations  # outermost first

    @property
    def null_class(self) -> int:
        """Label that stands for "no class": the last row of the embedding."""
        return self.num_classes

    def matrices(self) -> dict[int, list[Tensor]]:
        """Weights of the blocks that Muon takes, by the number of matrices stacked in each."""
        blocks = [*self.unet.down_blocks, self.unet.mid_block, *self.unet.up_blocks]
        kinds = (nn.Linear, nn.Conv2d)
        modules: list[Any] = [module for block in blocks for module in block.modules()]
        return {1: [m.weight for m in modules if isinstance(m, kinds)]}

    def forward(self, x: Tensor, timesteps: Tensor, y: Tensor | None = None) -> Tensor:
        """Predict what the denoiser was trained to predict; arguments as ``UViT`` takes them."""
        if not self.num_classes:
            y = None
        elif y is None:
            y = torch.full_like(timesteps, self.null_class, dtype=torch.long)
        return self.unet(x, timesteps, class_labels=y).sample
