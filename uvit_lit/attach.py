"""Skip modulations on a network that is not ours, without a change to its code.

The networks that are known: U-ViTs, the official code's and ours, and the U-Nets of diffusers. Of
any other network the caller names the layers at which long skips join the backbone.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from uvit_lit.errors import InputError
from uvit_lit.settings import NAMED_SKIPS, Window, choose_skips, per_skip
from uvit_lit.skips import SkipModulation, override_skips
from uvit_lit.uvit import MAX_TIMESTEP


class Join(NamedTuple):
    """A layer at which a long skip joins the backbone.

    Attributes:
        name: Of the layer in its network.
        channels: How many channels of the first argument of the layer, the concatenated features,
            are the backbone's, which come first. None: its arguments are (backbone, skip).
        grid: Height and width of the features; None where they are not known.
        prefix: Leading tokens that are neither filtered nor scaled.
    """

    name: str
    channels: int | None = None
    grid: tuple[int, int] | None = None
    prefix: int = 0


class Attached(nn.Module):
    """The modulations of some long skips of a network, which stay until ``remove``.

    They are parts of this module and not of the network, whose parameters and state dict are as
    they were. ``parameters()`` is what they learn. As a context manager it removes them at the end.

    Attributes:
        layers: Names of the layers of the network that have a modulation, in the order of
            ``modulations``.
        modulations: A ``SkipModulation`` for each.
    """

    def __init__(
        self, network: nn.Module, joins: Sequence[Join], learn: Sequence[str], **settings: Any
    ) -> None:
        super().__init__()
        self.layers = [join.name for join in joins]
        modulations = [
            SkipModulation(join.grid, join.prefix, learn, **chosen)
            for join, chosen in zip(joins, per_skip(settings, range(len(joins))), strict=True)
        ]
        self.modulations: Any = nn.ModuleList(modulations)
        self._t: Any = None
        self._hooks = [
            network.register_forward_pre_hook(self._read_time, with_kwargs=True),
            network.register_forward_hook(self._forget_time, always_call=True),
        ]
        for number, join in enumerate(joins):
            layer = network.get_submodule(join.name)
            hook = functools.partial(self._modulate, join, number)
            self._hooks.append(layer.register_forward_pre_hook(hook))

    def set(
        self,
        *,
        t_range: tuple[float, float] | None = None,
        t_fade: float = 0.0,
        **settings: Any,
    ) -> None:
        """Set what the modulations do; a call replaces the one before.

        Args:
            t_range: First and last t in [0, 1] at which the settings act, where 1 is pure noise: t
                is the timestep that the network is called with, over 1000. None is always.
            t_fade: Width in t, in [0, 1], over which they go from off to on on either side of that
                range, as half a cosine; 0 switches.
            **settings: Fields of ``uvit_lit.settings.SkipSettings``: one value, or one per layer.
                What is not named is as the modulations were made: learned, or no change. Without
                settings all of it is.

        Raises:
            ValueError: If a value is outside its range or a list has the wrong length.
        """
        override_skips(list(self.modulations), window=Window.of(t_range, t_fade), **settings)

    def remove(self) -> None:
        """Take the modulations off: the network is what it was. A second call does nothing."""
        while self._hooks:
            self._hooks.pop().remove()

    def __enter__(self) -> "Attached":
        """The modulations themselves, which are in place already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Take them off."""
        self.remove()

    def _read_time(self, network: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Keep the timesteps that the network is called with."""
        named = [kwargs[name] for name in ("timestep", "timesteps") if name in kwargs]
        self._t = args[1] if len(args) > 1 else named[0] if named else None

    def _forget_time(self, *_: object) -> None:
        """Keep no timesteps of a call that is over: recomputed layers need their own."""
        self._t = None

    def _modulate(self, join: Join, number: int, layer: nn.Module, args: tuple) -> tuple:
        """Replace the features that a layer is called with."""
        backbone, skip, rest = _split(join, args)
        modulation = self.modulations[number]  # of now: an export puts another in its place
        buffer = next(modulation.buffers(), None)
        if buffer is not None and buffer.device != skip.device:  # the network has moved
            modulation.to(skip.device)
        t = None
        if modulation.window is not None:
            if self._t is None:
                raise InputError(
                    f"t_range needs the timestep of the call: accepted where {join.name} runs in a "
                    "call network(x, timestep, ...), and is not computed again in the backward pass"
                )
            t = torch.as_tensor(self._t, dtype=torch.float32, device=skip.device) / MAX_TIMESTEP
            t = t.expand(len(skip))
        backbone, skip = modulation(backbone, skip, t)
        if join.channels is None:
            return backbone, skip, *rest
        return torch.cat([backbone, skip], dim=_channel_axis(skip)), *rest


def modulate(
    network: nn.Module,
    *,
    skips: str | Sequence[int | str] = "all",
    learn: Sequence[str] = (),
    t_range: tuple[float, float] | None = None,
    t_fade: float = 0.0,
    at: Mapping[str, int | None] | None = None,
    grid: tuple[int, int] | None = None,
    prefix: int = 0,
    **settings: Any,
) -> Attached:
    """Put skip modulations on a network: a filter on its skip features, a backbone scale.

    Known are U-ViTs (the official code's and ours) and the U-Nets of diffusers
    (``UNet2DModel``, ``UNet2DConditionModel``). A network's own forward pass, parameters and
    state dict stay as they are.

    Args:
        network: The network, on any device.
        skips: Which long skips: ``all``, ``inner`` (the innermost one), ``outer``, numbers (0 is
            the outermost), or names of layers or of what they lie in, such as ``up_blocks.0``; a
            sequence, or a text with commas.
        learn: Which of ``s``, ``cutoff`` and ``b`` are parameters, for each skip; see
            ``SkipModulation``. The settings are where they start.
        t_range: First and last t in [0, 1] at which the settings act, as ``Attached.set`` takes
            it; only where nothing is learned.
        t_fade: Likewise.
        at: For any other network: the layers at which its long skips join, outermost first. The
            value is the number of backbone channels of the layer's first argument, which is the
            concatenation of backbone and skip (along dimension 1 of maps, the last of tokens), or
            None where its first two arguments are backbone and skip.
        grid: With ``at``: height and width of the features in tokens. Needed where something is
            learned, or where tokens make no square.
        prefix: With ``at``: leading tokens (time, class) that are left alone. Maps have none.
        **settings: Fields of ``uvit_lit.settings.SkipSettings``: filter, s, cutoff, b, b_channels,
            order, ripple, attenuation, b_map, keep_mean. One value, or one per chosen skip in the
            order in which they are named; ``all`` begins with the outermost.

    Returns:
        What ``set``s and ``remove``s them, a module whose parameters are what they learn.

    Raises:
        ValueError: If the network has no long skips that are known, a layer does not exist, or a
            value is outside its range.

    >>> import torch
    >>> from diffusers import UNet2DModel
    >>> unet = UNet2DModel(8, block_out_channels=(32, 32), norm_num_groups=8,
    ...                    down_block_types=["DownBlock2D"] * 2, up_block_types=["UpBlock2D"] * 2)
    >>> with modulate(unet, skips="up_blocks.0", s=0.5, b=1.3) as attached:
    ...     attached.layers
    ['up_blocks.0.resnets.2', 'up_blocks.0.resnets.1', 'up_blocks.0.resnets.0']
    """
    if at is None:
        joins = known_joins(network)
    else:
        joins = [Join(name, channels, grid, prefix) for name, channels in at.items()]
        layers = dict(network.named_modules())
        if unknown := [join.name for join in joins if join.name not in layers]:
            raise InputError(f"at is {unknown[0]!r}; accepted: names of layers of the network")
    if not joins:
        raise InputError(
            f"{type(network).__name__} has no long skips that are known; accepted: a U-ViT, a "
            "U-Net of diffusers, or at={layer: number of its backbone channels}"
        )
    chosen = [joins[number] for number in _choose(skips, [join.name for join in joins])]
    window = Window.of(t_range, t_fade)
    if learn and window is not None:
        raise InputError("t_range is given; accepted where nothing is learned")
    if learn and any(join.grid is None for join in chosen):
        raise InputError(
            "grid is not known; accepted where something is learned: grid with at, or "
            "a network whose config has its sample_size"
        )
    if learn:
        return Attached(network, chosen, learn, **settings)
    attached = Attached(network, chosen, ())
    try:
        attached.set(t_range=t_range, t_fade=t_fade, **settings)
    except Exception:
        attached.remove()
        raise
    return attached


def known_joins(network: Any) -> list[Join]:
    """Layers at which the long skips of a known network join, outermost first; none of others."""
    if hasattr(network, "out_blocks") and hasattr(network, "pos_embed"):
        prefix = network.extras if hasattr(network, "extras") else network.num_prefix
        tokens = network.pos_embed.shape[1] - prefix
        side = round(tokens**0.5)
        grid = (side, side) if side**2 == tokens else None
        joins = [
            Join(f"out_blocks.{i}", None, grid, prefix)
            for i, block in enumerate(network.out_blocks)
            if getattr(block, "skip_linear", None) is not None
        ]
        return joins[::-1]
    try:
        return _unet_joins(network)[::-1]
    except AttributeError:  # a network of another kind
        return []


def _unet_joins(unet: Any) -> list[Join]:
    """Layers at which the long skips of a U-Net of diffusers join, innermost first."""
    joins = []
    inner = unet.mid_block if unet.mid_block is not None else unet.down_blocks[-1]
    channels = inner.resnets[-1].out_channels
    sample_size = unet.config.get("sample_size")
    size = (sample_size, sample_size) if isinstance(sample_size, int) else sample_size
    for k, block in enumerate(unet.up_blocks):
        factor = 2 ** sum(_upsamples(later) for later in unet.up_blocks[k:])
        grid = None if size is None else (-(-size[0] // factor), -(-size[1] // factor))
        for j, resnet in enumerate(block.resnets):
            if resnet.in_channels > channels:  # what is more than the backbone's is the skip's
                joins.append(Join(f"up_blocks.{k}.resnets.{j}", channels, grid))
            channels = resnet.out_channels
    return joins


def _upsamples(block: nn.Module) -> bool:
    """Whether an up block of diffusers ends with twice the height and width."""
    names = ("upsamplers", "resnet_up")
    return any(getattr(block, name, None) is not None for name in names)


def _choose(skips: str | Sequence[int | str], names: list[str]) -> list[int]:
    """Numbers of the long skips that are chosen by number, by a word, or by a name of a layer.

    Raises:
        ValueError: If there is no such long skip, or one is named twice, or none is.
    """
    if isinstance(skips, str) and skips in NAMED_SKIPS:
        return choose_skips(skips, len(names))
    numbers: list[int] = []
    for item in skips.split(",") if isinstance(skips, str) else skips:
        item = str(item).strip()
        inside = [i for i, name in enumerate(names) if f"{name}.".startswith(f"{item}.")]
        if not inside and item not in map(str, range(len(names))):
            raise InputError(
                f"skips is {skips!r}; accepted: {', '.join(NAMED_SKIPS)}, numbers from 0 (the "
                f"outermost) to {len(names) - 1}, or beginnings of {', '.join(names)}"
            )
        numbers += inside or [int(item)]
    return choose_skips(numbers, len(names))


def _channel_axis(features: Tensor) -> int:
    """Dimension of the channels: 1 of maps, the last of tokens."""
    return 1 if features.ndim == 4 else -1


def _split(join: Join, args: tuple) -> tuple[Tensor, Tensor, tuple]:
    """Backbone features, skip features and the other arguments of a layer.

    Raises:
        ValueError: If the layer is called with something else.
    """
    taken = 2 if join.channels is None else 1
    if len(args) < taken or not all(isinstance(x, Tensor) for x in args[:taken]):
        raise InputError(
            f"{join.name} is not called with {'backbone and skip' if taken == 2 else 'features'} "
            f"as its first argument{'s' if taken == 2 else ''}"
        )
    if join.channels is None:
        return args[0], args[1], args[2:]
    axis = _channel_axis(args[0])
    channels = args[0].shape[axis]
    if not 0 < join.channels < channels:
        raise InputError(
            f"{join.name} has {channels} channels, of which {join.channels} would be the "
            f"backbone's; accepted: 1 to {channels - 1}"
        )
    backbone, skip = args[0].split([join.channels, channels - join.channels], dim=axis)
    return backbone, skip, args[1:]
