"""The U-ViT backbone: noisy image, time and class in; prediction out.

"All are Worth Words: A ViT Backbone for Diffusion Models", Bao et al., CVPR 2023. Parameter names
and shapes are those of the official code, so its weights load as they are. What acts on the long
skips hangs on a module list of its own; what it learns is all that it adds to the state dict.
"""

import math
import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from uvit_lit.errors import InputError, require
from uvit_lit.settings import UNCHANGED, SkipSettings
from uvit_lit.skips import SkipModulation

MAX_TIMESTEP = 1000
"""Timestep that the long skips see as t = 1; the VP-SDE ends at 999, the tables at 1000."""


MAX_DEPTH = 1000
"""Blocks before and after the middle one, at most; the published models have up to 28."""


def check_memory(numbers: float) -> None:
    """Refuse a network that does not fit into the memory of this machine.

    Args:
        numbers: About how many numbers of 4 bytes it has.

    Raises:
        ValueError: If they do not fit.
    """
    if not hasattr(os, "sysconf"):
        return
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if 4 * numbers > memory:
        raise InputError(
            f"the network would have {numbers:.2g} numbers; accepted: what fits into the "
            f"{memory / 2**30:.0f} GiB of this machine"
        )


def timestep_embedding(timesteps: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding of time, periods up to 10,000: cosines first, then sines.

    Args:
        timesteps: (batch,), may be fractional; the schedule gives them in [0, 1000].
        dim: Size of the embedding, even.

    Returns:
        (batch, dim) float32.
    """
    half = torch.arange(dim // 2, dtype=torch.float32, device=timesteps.device)
    angles = timesteps[:, None].float() * torch.exp(-math.log(10_000) * half / (dim // 2))
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class PatchEmbed(nn.Module):
    """Cut an image into patches and embed each: (B, C, H, W) to (B, L, D)."""

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """Embed."""
        return self.proj(x).flatten(2).transpose(1, 2)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Scaled dot-product attention, each (B, heads, T, D / heads).

    On a CPU the backward pass of the fused kernel does not use the processor's bfloat16 products;
    written as two products it does (docs/results/speed.md).
    """
    if query.is_cpu and query.requires_grad and query.dtype == torch.bfloat16:
        scores = query * query.shape[-1] ** -0.5 @ key.mT
        return scores.softmax(dim=-1).to(value.dtype) @ value
    return F.scaled_dot_product_attention(query, key, value)


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Attend: (B, T, D) to (B, T, D)."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # B, T, 3, heads, D / heads
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each B, heads, T, D / heads
        return self.proj(attend(query, key, value).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token: (B, T, D) to (B, T, D)."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Transformer block; with ``skip`` it first fuses the features of a long skip."""

    def __init__(
        self, dim: int, num_heads: int, mlp_ratio: float, qkv_bias: bool, skip: bool = False
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, num_heads, qkv_bias)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        if skip:
            self.skip_linear = nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """Fuse, attend, transform: (B, T, D) to (B, T, D)."""
        if skip is not None:
            x = self.skip_linear(torch.cat([x, skip], dim=-1))
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class UViT(nn.Module):
    """U-ViT with a filter and a backbone scale on every long skip.

    Args:
        img_size: Height and width of the image in pixels, a multiple of ``patch_size``.
        patch_size: Height and width of a patch in pixels.
        in_chans: Channels of the image.
        embed_dim: Channels D of a token, a multiple of ``num_heads`` and of 2.
        depth: Number of transformer blocks besides the middle one, even; half of it is the
            number of long skips.
        num_heads: Attention heads.
        mlp_ratio: Hidden size of the MLPs as a multiple of ``embed_dim``.
        qkv_bias: Whether the query, key and value projections have a bias.
        num_classes: Number of classes; 0 makes an unconditional model. The embedding has one
            more row, the null class that guidance needs.
        mlp_time_embed: Whether an MLP follows the sinusoidal embedding of time.
        conv: Whether a 3x3 convolution follows the last linear layer.
        grad_checkpoint: Whether to recompute the blocks in the backward pass to save memory.
        skip: What acts on every long skip during training. Of butterworth, chebyshev and chebyshev2
            each long skip learns s (between 0 and 2; at exactly 1 the cutoff has no gradient) and
            the cutoff (between half a bin and sqrt(2)), of flat s alone; the settings are where
            they start.

    Raises:
        ValueError: If sizes do not divide, or what a long skip learns starts outside its bounds.

    References:
        Bao et al. (CVPR 2023); equations 1-5 of "Image Generation at Different Detail Level:
        Scaling Skip Connections in ViT-based Diffusion Models" (Liu et al.).
    """

    def __init__(
        self,
        img_size: int = 32,
        patch_size: int = 2,
        in_chans: int = 3,
        embed_dim: int = 512,
        depth: int = 12,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        num_classes: int = 0,
        mlp_time_embed: bool = False,
        conv: bool = True,
        grad_checkpoint: bool = False,
        skip: SkipSettings = UNCHANGED,
    ) -> None:
        super().__init__()
        for name, value, divisor in (
            ("patch_size", patch_size, 1),
            ("in_chans", in_chans, 1),
            ("img_size", img_size, patch_size),
            ("embed_dim", embed_dim, 2),
            ("depth", depth, 2),
        ):
            if value <= 0 or value % divisor:
                raise InputError(f"{name} is {value}; accepted: a positive multiple of {divisor}")
        if num_heads <= 0 or embed_dim % num_heads:
            raise InputError(f"num_heads is {num_heads}; accepted: a divisor of {embed_dim}")
        require(depth <= MAX_DEPTH, "depth", depth, f"up to {MAX_DEPTH}")
        require(mlp_ratio * embed_dim >= 1, "mlp_ratio", mlp_ratio, "above 0")
        require(num_classes >= 0, "num_classes", num_classes, "0 (no classes) or more")
        tokens = (img_size // patch_size) ** 2
        in_blocks = (depth + 1) * embed_dim**2 * (4 + 2 * mlp_ratio)
        check_memory(in_blocks + (tokens + num_classes + patch_size**2 * in_chans) * embed_dim)
        self.img_size, self.patch_size, self.in_chans = img_size, patch_size, in_chans
        self.embed_dim = embed_dim
        self.num_classes = num_classes
        self.grad_checkpoint = grad_checkpoint
        self.grid = (img_size // patch_size, img_size // patch_size)
        self.num_prefix = 2 if num_classes else 1  # time; class

        def block(skip: bool = False) -> Block:
            return Block(embed_dim, num_heads, mlp_ratio, qkv_bias, skip)

        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        self.time_embed = (
            nn.Sequential(
                nn.Linear(embed_dim, 4 * embed_dim), nn.SiLU(), nn.Linear(4 * embed_dim, embed_dim)
            )
            if mlp_time_embed
            else nn.Identity()
        )
        if num_classes:
            self.label_emb = nn.Embedding(num_classes + 1, embed_dim)
        tokens = self.num_prefix + self.grid[0] * self.grid[1]
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, embed_dim))
        self.in_blocks = nn.ModuleList([block() for _ in range(depth // 2)])
        self.mid_block = block()
        self.out_blocks = nn.ModuleList([block(skip=True) for _ in range(depth // 2)])
        self.norm = nn.LayerNorm(embed_dim)
        self.decoder_pred = nn.Linear(embed_dim, patch_size**2 * in_chans)
        self.final_layer = nn.Conv2d(in_chans, in_chans, 3, padding=1) if conv else nn.Identity()

        self.long_skips: Any = nn.ModuleList(  # outermost pair of blocks first
            [
                SkipModulation(self.grid, self.num_prefix, skip.learnable, **vars(skip))
                for _ in range(depth // 2)
            ]
        )

        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.apply(self._init_weights)

    @staticmethod
    def _init_weights(module: nn.Module) -> None:
        """Initialise as published: truncated normal of std 0.02 for linear layers, zero biases."""
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    @property
    def null_class(self) -> int:
        """Label that stands for "no class": the last row of the embedding."""
        return self.num_classes

    def matrices(self) -> dict[int, list[Tensor]]:
        """Weights of the blocks that Muon takes, by the number of matrices stacked in each."""
        blocks: list[Any] = [*self.in_blocks, self.mid_block, *self.out_blocks]
        fused = [block.attn.qkv for block in blocks]
        linear = [m for block in blocks for m in block.modules() if isinstance(m, nn.Linear)]
        return {3: [m.weight for m in fused], 1: [m.weight for m in linear if m not in fused]}

    def forward(self, x: Tensor, timesteps: Tensor, y: Tensor | None = None) -> Tensor:
        """Predict what the denoiser was trained to predict.

        Args:
            x: (batch, in_chans, img_size, img_size).
            timesteps: (batch,), the schedule's time, in [0, 1000].
            y: (batch,) labels in [0, num_classes], the last for "no class". None means "no
                class" for every image; an unconditional model takes nothing else.

        Returns:
            The prediction, of the shape of ``x``.
        """
        x = self.patch_embed(x)  # B, L, D
        x = torch.cat([*self._prefix(timesteps, y), x], dim=1)  # B, P + L, D
        x = x + self.pos_embed

        skips = []
        for block in self.in_blocks:
            x = self._run(block, x)
            skips.append(x)

        x = self._run(self.mid_block, x)

        for block, long_skip in zip(self.out_blocks, reversed(self.long_skips), strict=True):
            backbone, skip = long_skip(x, skips.pop(), timesteps / MAX_TIMESTEP)
            x = self._run(block, backbone, skip)

        x = self.norm(x)
        x = self.decoder_pred(x[:, self.num_prefix :])  # B, L, patch * patch * C
        return self.final_layer(self._unpatchify(x))  # B, C, H, W

    def _prefix(self, timesteps: Tensor, y: Tensor | None) -> list[Tensor]:
        """Prefix tokens, each (B, 1, D): class (of a conditional model), time."""
        time = self.time_embed(timestep_embedding(timesteps, self.embed_dim))[:, None]
        if not self.num_classes:
            return [time]
        if y is None:
            y = torch.full_like(timesteps, self.null_class, dtype=torch.long)
        return [self.label_emb(y)[:, None], time]

    def _run(self, block: nn.Module, *features: Tensor) -> Tensor:
        """Run a block, recomputing it in the backward pass if asked to."""
        if self.grad_checkpoint and self.training:
            return checkpoint(block, *features, use_reentrant=False)
        return block(*features)

    def _unpatchify(self, x: Tensor) -> Tensor:
        """Put patches together: (B, L, patch * patch * C) to (B, C, H, W)."""
        (rows, columns), patch = self.grid, self.patch_size
        x = x.unflatten(-1, (patch, patch, self.in_chans)).unflatten(1, (rows, columns))
        return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
