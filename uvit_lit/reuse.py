"""Reuse of features between neighbouring steps: most calls run the outermost blocks alone.

"DeepCache: Accelerating Diffusion Models for Free", Ma et al., CVPR 2024, on the U-ViT. From one
step of a solver to the next the image changes little, and what the inner blocks make of it less.
The long skip of the outermost pair of blocks brings them the image of this step; the backbone
features that meet it there may be those of a step before.
"""

from copy import copy
from typing import Any

from torch import Tensor, nn


class Memory(nn.Module):
    """A block that keeps what it returned last."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.features: Any = None

    def forward(self, *features: Tensor) -> Tensor:
        """Run the block."""
        self.features = self.block(*features)
        return self.features


class Recall(nn.Module):
    """In the place of a block: what a ``Memory`` keeps, whatever comes in."""

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        self.memory = memory

    def forward(self, x: Tensor) -> Tensor:
        """Return the kept features, of the shape of ``x``."""
        return self.memory.features


class Reusing(nn.Module):
    """A U-ViT whose inner blocks run only every so many calls: a backbone around a backbone.

    The pair of the first and the last block is itself a U-ViT, with all other blocks for a middle
    block. The first call and every ``every``-th after it run the whole network; the calls between
    run the pair, and recall what the inner blocks gave last. The filter and the backbone scale of
    the outermost long skip act in every call, at its own t.

    It is made for one trajectory: a batch of images from the first step to the last. The window
    of the override of the skips is the one that was set when it was made.

    Args:
        backbone: A ``UViT``, whose weights it shares.
        every: Calls from one of the whole network to the next, at least 1.

    References:
        Ma et al., "DeepCache", CVPR 2024, section 3.2, with uniform intervals.
    """

    def __init__(self, backbone: Any, every: int) -> None:
        super().__init__()
        self.every = every
        self.calls = 0
        self.null_class = backbone.null_class
        blocks = [backbone.mid_block, *backbone.out_blocks]
        blocks[-2] = memory = Memory(blocks[-2])  # the last inner one
        self.whole = _twin(backbone, mid_block=blocks[0], out_blocks=nn.ModuleList(blocks[1:]))
        self.pair = _twin(
            backbone,
            in_blocks=backbone.in_blocks[:1],
            mid_block=Recall(memory),
            out_blocks=backbone.out_blocks[-1:],
            long_skips=backbone.long_skips[:1],
        )

    def forward(self, x: Tensor, timesteps: Tensor, y: Tensor | None = None) -> Tensor:
        """Predict; the arguments and the result are those of ``UViT``."""
        network = self.pair if self.calls % self.every else self.whole
        self.calls += 1
        return network(x, timesteps, y)


def _twin(module: nn.Module, **parts: nn.Module) -> nn.Module:
    """The same module but for the named parts; what is not named is shared, weights too."""
    twin = copy(module)
    twin._modules = {**module._modules, **parts}  # a copy would share the dictionary
    return twin
