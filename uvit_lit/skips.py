"""The modulation of a long skip: a filter on the skip features, a scale on the backbone features.

Equations 1 to 5 of "Image Generation at Different Detail Level: Scaling Skip Connections in
ViT-based Diffusion Models" (Liu et al.). ``SkipModulation`` works on the features of any network;
``uvit_lit.attach`` puts it into one.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uvit_lit.errors import InputError
from uvit_lit.families import FILTERS, LEARNED
from uvit_lit.filters import MAX_FREQUENCY, axis, frequencies, hartley_matrix, without_autocast
from uvit_lit.settings import (
    OF_B,
    SkipSettings,
    Window,
    changed,
    choose_b_skips,
    choose_skips,
    per_skip,
)

MAX_SCALE = 2.0
"""A learned s or b stays between 0 and this: 1, no change, is in the middle."""


class Learned(nn.Module):
    """A number that training moves inside (low, high): low + (high - low) * sigmoid(raw).

    Args:
        name: What it is, for the error.
        value: Where it starts.
        low: Lower bound.
        high: Upper bound.

    Raises:
        ValueError: If it does not start inside its bounds.
    """

    def __init__(self, name: str, value: float, low: float, high: float) -> None:
        super().__init__()
        if not low < value < high:
            raise InputError(
                f"{name} is {value}; accepted where it is learned: between {low:g} and {high:.4f}"
            )
        self.low, self.high = low, high
        self.raw = nn.Parameter(torch.tensor([math.log((value - low) / (high - value))]))

    def forward(self) -> Tensor:
        """The number, a tensor of no dimension, at least float32."""
        raw = self.raw[0].to(torch.promote_types(self.raw.dtype, torch.float32))
        return self.low + (self.high - self.low) * torch.sigmoid(raw)

    def number(self) -> float:
        """The number as a float inside the bounds.

        Raises:
            FloatingPointError: If it is not finite, since training diverged.
        """
        value = float(self().detach())
        if not math.isfinite(value):
            raise FloatingPointError("training diverged: what a long skip learns is not finite")
        return min(max(value, self.low), self.high)


def scale_backbone(
    x: Tensor,
    b: Tensor | float,
    prefix: int = 0,
    channels: float = 1.0,
    b_map: str = "structure",
) -> Tensor:
    """Amplify the backbone features where they are strong (equations 3 to 5).

    The mean over the channels gives one value per patch token (3); min-max normalised over the
    tokens of its image it becomes alpha = (b - 1) * normalised + 1 (4), which multiplies the
    features (5). Each image has statistics of its own. A constant map has no largest token:
    there alpha is 1.

    Args:
        x: (batch, tokens, channels), prefix tokens first. Not changed.
        b: Backbone scale, at least 0; 1 returns ``x`` itself. A tensor of no dimension is learned.
        prefix: How many leading tokens (time, class) are left alone.
        channels: Fraction of the channels, in (0, 1], that is amplified; the first ones.
        b_map: ``constant`` takes 1 for the normalised map, so that alpha is b at every patch token.

    Returns:
        (batch, tokens, channels), of the dtype of ``x``.
    """
    if not isinstance(b, Tensor) and b == 1:
        return x
    accurate = torch.promote_types(x.dtype, torch.float32)
    if b_map == "structure":
        mean = x[:, prefix:].mean(dim=-1, keepdim=True, dtype=accurate)
        low, high = mean.amin(dim=1, keepdim=True), mean.amax(dim=1, keepdim=True)
        normalised = (mean - low) / (high - low).clamp_min(1e-6)
    else:
        normalised = torch.ones_like(x[:, prefix:, :1], dtype=accurate)
    alpha = (b - 1) * normalised + 1
    alpha = F.pad(alpha, (0, 0, prefix, 0), value=1.0)
    if channels < 1:
        amplified = torch.arange(x.shape[-1], device=x.device) < round(channels * x.shape[-1])
        alpha = torch.where(amplified, alpha, 1.0)
    return x * alpha.to(x.dtype)


class Acting(nn.Module):
    """One set of numbers at work on a grid: filter the skip features, scale the backbone features.

    The filter adds (gain - 1) times what the features have at each frequency. Both directions are
    the Hartley transform, along the rows and along the columns of the grid, with the frequencies
    whose gain is not 1. A flat gain is a plain factor.

    Args:
        settings: The numbers.
        learned: Which of s, cutoff and b are parameters instead. They belong to the
            ``SkipModulation``, not to this module.
        grid: Height and width in patch tokens.
    """

    def __init__(
        self, settings: SkipSettings, learned: dict[str, Any], grid: tuple[int, int]
    ) -> None:
        super().__init__()
        self.settings, self.learned, self.grid = settings, learned, grid
        self.is_factor = settings.filter == "flat" and not settings.keep_mean
        self.low_pass = None if self.is_factor else settings.low_pass()
        self.filter_is_learned = self.low_pass is not None and bool({"s", "cutoff"} & set(learned))
        with torch.device("cpu"):  # also on the meta device: the gain decides the shapes
            frequency = frequencies(grid)
            change = frequency.new_zeros(grid)
            if self.low_pass is not None and not self.filter_is_learned:
                change = (settings.s - 1) * self.low_pass(frequency, settings.cutoff)
            acts = (change != 0) | self.filter_is_learned
            rows, columns = acts.any(1), acts.any(0)
            from_height, from_width = (hartley_matrix(n) for n in grid)
        buffers = {
            "rows": from_height[:, rows].float(),
            "columns": from_width[:, columns].float(),
            "frequency": frequency[rows][:, columns].float(),
            "change": change[rows][:, columns].float(),
        }
        if settings.filter == "freeu_box":
            buffers |= {"vertical": _opposite(rows), "horizontal": _opposite(columns)}
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer, persistent=False)

    def forward(self, backbone: Tensor, skip: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
        """Scale and filter tokens or maps, as ``SkipModulation.forward`` takes them."""
        if skip.ndim == 4:
            backbone, skip = self(backbone.flatten(2).mT, skip.flatten(2).mT, 0)
            return backbone.mT.unflatten(2, self.grid), skip.mT.unflatten(2, self.grid)
        b, channels = self._value("b"), self.settings.b_channels
        backbone = scale_backbone(backbone, b, prefix, channels, self.settings.b_map)
        patches = skip[:, prefix:]
        if self.is_factor:
            filtered = (patches * self._value("s")).to(skip.dtype)
        elif self.get_buffer("rows").shape[1]:
            filtered = self._filter(patches)
        else:
            return backbone, skip
        return backbone, torch.cat([skip[:, :prefix], filtered], 1)

    def _filter(self, patches: Tensor) -> Tensor:
        """Filter (batch, patch tokens, channels)."""
        batch, _, channels = patches.shape
        height, width = self.grid
        rows = self.get_buffer("rows").to(patches.dtype).expand(batch, -1, -1)
        columns = self.get_buffer("columns").to(patches.dtype)
        lines = patches.unflatten(1, self.grid).flatten(2)  # (batch, height, width * channels)
        bins = (rows.mT @ lines).unflatten(2, (width, channels))
        bins = columns.mT @ bins  # (batch, bins of the height, bins of the width, channels)
        change = columns @ self._change(bins).to(bins.dtype)
        filtered = torch.baddbmm(lines, rows, change.flatten(2).to(patches.dtype))
        return filtered.to(patches.dtype).view(batch, height * width, channels)

    def _value(self, name: str) -> Any:
        """The number s, cutoff or b, as a tensor where it is learned."""
        return self.learned[name]() if name in self.learned else getattr(self.settings, name)

    def _change(self, bins: Tensor) -> Tensor:
        """Multiply bins (batch, height, width, channels) by the gain minus 1."""
        change = self.get_buffer("change")
        if self.low_pass is not None and self.filter_is_learned:
            frequency = self.get_buffer("frequency")
            with without_autocast(frequency):
                change = (self._value("s") - 1) * self.low_pass(frequency, self._value("cutoff"))
        if self.settings.filter != "freeu_box":
            return bins * change[..., None]
        # The box is the same at f and -f, but not at opposite frequencies of one axis. That part of
        # it takes what is at -f to f.
        vertical, horizontal = self.get_buffer("vertical"), self.get_buffer("horizontal")
        even, odd = (change + change[vertical]) / 2, (change - change[vertical]) / 2
        return bins * even[..., None] - bins[:, vertical][:, :, horizontal] * odd[..., None]


def _opposite(chosen: Tensor) -> Tensor:
    """Where -f stands among the chosen frequencies of an axis, of which each has its opposite.

    Args:
        chosen: (frequencies,) whether each is chosen, in the order of ``torch.fft``.
    """
    numbers = chosen.nonzero()[:, 0]
    return torch.searchsorted(numbers, -numbers % len(chosen))


class SkipModulation(nn.Module):
    """Filter the features of a long skip and scale the backbone features that meet it.

    The gain of the filter at frequency f is 1 - (1 - s) |H(f)|, where H is a low-pass (equation 2).

    Args:
        grid: Height and width of the features in tokens. None takes it from the features, which
            works where nothing is learned: from maps, and from tokens that make a square.
        prefix: Leading tokens (time, class) that are neither filtered nor scaled. Maps have none.
        learn: Which of ``s``, ``cutoff`` and ``b`` are parameters; their settings are where they
            start. s and b stay between 0 and 2, the cutoff between half a bin and sqrt(2).
        **settings: The fields of ``SkipSettings``: filter, s, cutoff, b, b_channels, order, ripple,
            attenuation, b_map, keep_mean. Without a filter, an ``s`` gets the step.

    Raises:
        ValueError: If a setting is outside its range, or what is learned does not start inside its
            bounds or needs a grid.

    >>> backbone, skip = torch.randn(2, 1, 65, 32)
    >>> modulation = SkipModulation((8, 8), s=0.5, b=1.3)
    >>> scaled, filtered = modulation(backbone, skip)
    >>> torch.equal(filtered[:, 0], skip[:, 0])  # the prefix token
    True
    >>> torch.allclose(filtered[:, 1:].mean(1), 0.5 * skip[:, 1:].mean(1), atol=1e-6)  # the mean
    True
    """

    def __init__(
        self,
        grid: tuple[int, int] | None = None,
        prefix: int = 1,
        learn: Sequence[str] = (),
        **settings: Any,
    ) -> None:
        super().__init__()
        chosen = changed(SkipSettings(), settings)
        if unknown := set(learn) - {"s", "cutoff", "b"}:
            raise InputError(f"learn is {', '.join(sorted(unknown))}; accepted: s, cutoff, b")
        for name in sorted({"s", "cutoff"} & set(learn) - set(LEARNED.get(chosen.filter, ()))):
            accepted = ", ".join(filter for filter, names in LEARNED.items() if name in names)
            raise InputError(
                f"filter is {chosen.filter}; accepted where {name} is learned: {accepted}"
            )
        if learn and grid is None:
            raise InputError("grid is None; accepted where something is learned: (height, width)")
        self.grid, self.prefix = grid, prefix
        bounds = {"s": (0.0, MAX_SCALE), "b": (0.0, MAX_SCALE)}
        if grid is not None:
            bounds["cutoff"] = (1 / max(grid), MAX_FREQUENCY)  # from half a bin
        self.learned = nn.ModuleDict(
            {
                name: Learned(name, getattr(chosen, name), *bounds[name])
                for name in ("s", "cutoff", "b")
                if name in learn
            }
        )
        self.trained = chosen
        self.override: SkipSettings | None = None
        self.window: Window | None = None
        self._changes: dict[str, Any] = {}  # the settings that the override names
        self._acting: Any = nn.ModuleDict()  # trained, and override where there is one
        self._built: tuple[int, int] | None = None  # grid that they are made for
        if grid is not None:
            self._build(grid)

    @property
    def settings(self) -> SkipSettings:
        """What is in force, as numbers, what is learned as its value.

        Raises:
            FloatingPointError: If a learned number is not finite, since training diverged.
        """
        chosen = self.override or self.trained
        numbers = {name: learned.number() for name, learned in self._learned_in_force().items()}
        return dataclasses.replace(chosen, **numbers)

    def _learned_in_force(self) -> dict[str, Any]:
        """What is learned and not overridden; without a filter there is no s and no cutoff."""
        gone = {*self._changes}
        if (self.override or self.trained).filter == "none":
            gone |= {"s", "cutoff"}
        return {name: v for name, v in self.learned.items() if name not in gone}

    def set(self, window: Window | None = None, **changes: Any) -> None:
        """Override some settings; what is not named stays as trained, learned numbers too.

        Args:
            window: When it acts, where ``forward`` gets the times; None is always.
            **changes: Fields of ``SkipSettings``. None of them returns to the trained settings.

        Raises:
            ValueError: If a value is outside its range.
        """
        self.override = changed(self.trained, changes) if changes else None
        self._changes, self.window = changes, window
        if self._built is not None:
            self._build(self._built)

    @property
    def state(self) -> tuple[Any, ...]:
        """What is in force, for ``restore``."""
        return self.override, self.window, self._changes, self._acting, self._built

    def restore(self, state: tuple[Any, ...]) -> None:
        """Put back what was in force, without preparing it again."""
        device = self._device
        self.override, self.window, self._changes, acting, self._built = state
        self._acting = acting.to(device).train(self.training)

    def gain(self, frequency: Tensor) -> Tensor:
        """Gain of the filter in force, 1 - (1 - s) |H(f)|.

        Args:
            frequency: (..., 2) vertical and horizontal frequency, fraction of Nyquist.

        Returns:
            (...), of the device and the dtype of ``frequency``.
        """
        chosen = self.settings
        low_pass = chosen.low_pass()
        if low_pass is None:
            return torch.ones_like(frequency[..., 0])
        return 1 + (chosen.s - 1) * low_pass(frequency, chosen.cutoff)

    @torch.no_grad()
    def gain_curve(self, points: int = 500) -> tuple[Tensor, Tensor]:
        """Frequencies along an axis, from 0 to the corner, and gain in force, each (points,)."""
        frequency = axis(points)
        return frequency[:, 0], self.gain(frequency)

    def forward(
        self, backbone: Tensor, skip: Tensor, t: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Modulate the backbone and the skip features.

        Args:
            backbone: Tokens (batch, prefix + height * width, channels), or maps (batch, channels,
                height, width). Not changed.
            skip: The same, with channels of its own. Not changed.
            t: (batch,) times in [0, 1]; needed where the override has a window.

        Returns:
            Scaled backbone features and filtered skip features, each of its shape.

        Raises:
            ValueError: If the grid is not known, or the times are needed and missing.
        """
        if skip.ndim == 4:
            grid = (skip.shape[2], skip.shape[3])
        else:
            grid = self.grid or _square(skip.shape[1] - self.prefix)
        if grid != self._built:
            self._build(grid, skip.device)
        in_force = "trained" if self.override is None else "override"
        inside = self._acting[in_force](backbone, skip, self.prefix)
        if self.override is None or self.window is None:
            return inside
        if t is None:
            raise InputError("t is None; accepted with a window: the times, one per image")
        outside = self._acting["trained"](backbone, skip, self.prefix)
        weight = self.window.strength(t).view(-1, *[1] * (skip.ndim - 1)).to(skip.dtype)
        return torch.lerp(outside[0], inside[0], weight), torch.lerp(outside[1], inside[1], weight)

    def _build(self, grid: tuple[int, int], device: Any = None) -> None:
        """Prepare what acts for a grid, for training too."""
        with torch.inference_mode(False):
            acting = {"trained": Acting(self.trained, dict(self.learned), grid)}
            if self.override is not None:
                acting["override"] = Acting(self.override, self._learned_in_force(), grid)
            self._acting = nn.ModuleDict(acting).to(device or self._device).train(self.training)
        self._built = grid

    @property
    def _device(self) -> Any:
        """Where what acts is."""
        return next((buffer.device for buffer in self._acting.buffers()), "cpu")


def _square(tokens: int) -> tuple[int, int]:
    """Sides of a square grid.

    Raises:
        ValueError: If so many tokens make no square.
    """
    side = math.isqrt(max(tokens, 0))
    if side == 0 or side * side != tokens:
        raise InputError(f"{tokens} patch tokens make no square; accepted: grid=(height, width)")
    return side, side


def override_skips(
    long_skips: Sequence[SkipModulation],
    skips: str | Sequence[int] = "all",
    window: Window | None = None,
    **settings: Any,
) -> None:
    """Override what acts on the long skips, without touching the weights.

    A call replaces the one before. What is None stays as trained, learned values too, so a call
    without values returns to the trained model.

    Args:
        long_skips: Outermost pair of blocks first.
        skips: Which of them the values act on, as ``choose_skips`` takes it, or ``split``. The
            others stay as trained.
        window: When the values act; None is always.
        **settings: Fields of ``SkipSettings``: one value, or one per chosen long skip in the order
            in which they are named; ``all`` begins with the outermost. A model trained without a
            filter gets the step where ``s`` is given.

    Raises:
        ValueError: If a value is outside its range or a list has the wrong length.
    """
    names = {field.name for field in dataclasses.fields(SkipSettings)}
    if unknown := settings.keys() - names:
        raise TypeError(f"unknown settings {', '.join(sorted(unknown))}")
    given = {name: value for name, value in settings.items() if value is not None}
    unfiltered = long_skips[0].trained.filter == "none" and "s" not in given
    is_filter = given.get("filter", "step") in FILTERS[1:]
    if unfiltered and is_filter and given.keys() - OF_B:
        raise InputError("a filter without s changes nothing on this model: give s as well")
    changes: dict[int, dict[str, Any]] = {}
    for choose, own in ((choose_skips, names - OF_B), (choose_b_skips, OF_B)):
        chosen = choose(skips, len(long_skips))
        part = {name: value for name, value in given.items() if name in own}
        for number, of_skip in zip(chosen, per_skip(part, chosen), strict=True):
            changes.setdefault(number, {}).update(of_skip)
    for number, of_skip in changes.items():  # all are validated before one is set
        changed(long_skips[number].trained, of_skip)
    for number, long_skip in enumerate(long_skips):
        long_skip.set(window, **changes.get(number, {}))


@contextmanager
def skip_settings(
    long_skips: Sequence[SkipModulation],
    skips: str | Sequence[int] = "all",
    window: Window | None = None,
    **settings: Any,
) -> Iterator[None]:
    """Override what acts on the long skips inside a ``with`` block.

    The arguments and errors are those of ``override_skips``. At the end of the block the override
    of before is in force again.
    """
    with _kept(long_skips):
        override_skips(long_skips, skips, window, **settings)
        yield


@contextmanager
def restored(
    long_skips: Sequence[SkipModulation], states: Sequence[tuple[Any, ...]]
) -> Iterator[None]:
    """Put states of before in force inside a ``with`` block.

    Args:
        long_skips: Outermost first.
        states: The ``state`` of each at another time.
    """
    with _kept(long_skips):
        for long_skip, state in zip(long_skips, states, strict=True):
            long_skip.restore(state)
        yield


@contextmanager
def _kept(long_skips: Sequence[SkipModulation]) -> Iterator[None]:
    """What is in force at the beginning of a ``with`` block is in force again at its end."""
    before = [long_skip.state for long_skip in long_skips]
    try:
        yield
    finally:
        for long_skip, state in zip(long_skips, before, strict=True):
            long_skip.restore(state)
