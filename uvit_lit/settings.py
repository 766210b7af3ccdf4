"""The numbers of a skip modulation: its settings, the long skips and the times that they act on."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from uvit_lit.errors import InputError, require, require_choice
from uvit_lit.families import LEARNED
from uvit_lit.filters import LowPass, check_cutoff

NAMED_SKIPS = {"all": slice(None), "inner": slice(-1, None), "outer": slice(1)}
"""Long skips that have a name: all of them, the innermost one, the outermost one."""

SPLIT = "split"
"""Choice of the long skips where the filter acts on the innermost one, and b on all of them."""

OF_B = {"b", "b_channels", "b_map"}
"""Fields of ``SkipSettings`` that say what is done to the backbone; the others are the filter."""

B_MAPS = ("structure", "constant")
"""Where b acts: by the structure of the image (equation 4), or on every token alike."""


@dataclass(frozen=True)
class SkipSettings:
    """What one long skip does to the features that meet there.

    Attributes:
        filter: Name of the low-pass, one of ``uvit_lit.filters.FILTERS``.
        s: Skip scale: the gain of the low-pass's passband, at least 0. 1 is no change, 0 removes
            the passband. Without a filter nothing is scaled, so ``s`` is 1.
        cutoff: Edge of the low-pass as a fraction of Nyquist, in (0, sqrt(2)]; ``LowPass`` says
            what it means in each family.
        b: Backbone scale, at least 0: the largest factor of equation 4. 1 is no change.
        b_channels: Fraction of the channels, in (0, 1], that ``b`` amplifies; the first ones.
            The paper scales all, FreeU the first half.
        order: Order of butterworth, chebyshev and chebyshev2, 1 to 12.
        ripple: Passband ripple of chebyshev, 0.05 to 6 dB.
        attenuation: Stopband attenuation of chebyshev2, 10 to 80 dB.
        b_map: One of ``B_MAPS``: ``structure`` multiplies by alpha of equation 4, as the paper and
            FreeU 2 do, ``constant`` every patch token by ``b``, as FreeU 1.
        keep_mean: Whether the filter leaves frequency 0, the mean of the skip features, alone.

    Raises:
        ValueError: If a value is outside its range.
    """

    filter: str = "none"
    s: float = 1.0
    cutoff: float = 0.3
    b: float = 1.0
    b_channels: float = 1.0
    order: int = LowPass.order
    ripple: float = LowPass.ripple
    attenuation: float = LowPass.attenuation
    b_map: str = "structure"
    keep_mean: bool = False

    def __post_init__(self) -> None:
        """Validate the settings."""
        self.low_pass()
        for name in ("s", "b"):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise InputError(f"{name} is {value}; accepted: a number of at least 0")
        if self.filter == "none" and self.s != 1:
            raise InputError(f"s is {self.s} without a filter; accepted: 1, or choose a filter")
        check_cutoff(self.cutoff)
        if not 0 < self.b_channels <= 1:
            raise InputError(
                f"b_channels is {self.b_channels}; accepted: a fraction above 0 and at most 1"
            )
        require_choice("b_map", self.b_map, B_MAPS)

    def low_pass(self) -> LowPass | None:
        """The low-pass, or None without a filter."""
        design = LowPass(
            "step" if self.filter == "none" else self.filter,
            self.order,
            self.ripple,
            self.attenuation,
            self.keep_mean,
        )
        return None if self.filter == "none" else design

    @property
    def learnable(self) -> tuple[str, ...]:
        """What training learns of these settings."""
        return LEARNED.get(self.filter, ())


UNCHANGED = SkipSettings()
"""No filter and no backbone scale: a plain long skip."""


def changed(trained: SkipSettings, changes: Mapping[str, Any]) -> SkipSettings:
    """Settings with some changes: an s without a filter brings the step, no filter an s of 1."""
    chosen = dict(changes)
    if trained.filter == "none" and "s" in chosen:
        chosen.setdefault("filter", "step")
    if chosen.get("filter") == "none":
        chosen.setdefault("s", 1.0)
    return dataclasses.replace(trained, **chosen)


@dataclass(frozen=True)
class Window:
    """The times at which an override acts; 1 is pure noise, where sampling begins.

    Attributes:
        first: First time, in [0, 1].
        last: Last time, in [first, 1].
        fade: Width on either side over which it goes from off to on, as half a cosine; 0 switches.

    Raises:
        ValueError: If a value is outside its range.
    """

    first: float = 0.0
    last: float = 1.0
    fade: float = 0.0

    def __post_init__(self) -> None:
        """Validate the times."""
        if not 0 <= self.first <= self.last <= 1:
            raise InputError(
                f"the range of t is {self.first:g},{self.last:g}; accepted: two times, "
                "0 <= first <= last <= 1"
            )
        require(0 <= self.fade <= 1, "t_fade", f"{self.fade:g}", "0 to 1")

    @classmethod
    def of(
        cls, t_range: tuple[float, float] | None, t_fade: float, scale: float = 1.0
    ) -> "Window | None":
        """The window of two options; None, which is always, without a range.

        Args:
            t_range: First and last time.
            t_fade: As ``fade``; only with a range.
            scale: Factor of all times, once they are validated.
        """
        if t_fade and t_range is None:
            raise InputError(f"t_fade is {t_fade:g}; accepted: only with t_range")
        if t_range is None:
            return None
        given = cls(*t_range, t_fade)
        return cls(given.first * scale, given.last * scale, given.fade * scale)

    def strength(self, t: Tensor) -> Tensor:
        """How much the override acts at times t, (batch,): in [0, 1], of the same shape."""
        rounding = 1e-6  # of float32 times: both ends belong to the window
        outside = torch.maximum(self.first - t, t - self.last) - rounding
        return 0.5 + 0.5 * torch.cos(math.pi * (outside / max(self.fade, 1e-7)).clamp(0, 1))


def choose_skips(skips: str | Sequence[int], count: int) -> list[int]:
    """Numbers of the long skips that a filter acts on, in order; 0 is the outermost.

    Args:
        skips: ``all``, ``inner`` (the innermost one), ``outer`` (the outermost one), ``split`` (the
            innermost one; b acts on all), or their numbers, in a text with commas between them.
        count: How many long skips there are.

    Raises:
        ValueError: If there is no such long skip, or one is named twice, or none is.

    >>> choose_skips("inner", 4), choose_skips("2,3", 4)
    ([3], [2, 3])
    """
    if skips == SPLIT:
        skips = "inner"
    if isinstance(skips, str) and skips in NAMED_SKIPS:
        return list(range(count))[NAMED_SKIPS[skips]]
    numbers = {str(number): number for number in range(count)}
    items = [str(item).strip() for item in (skips.split(",") if isinstance(skips, str) else skips)]
    if not items or len(set(items)) < len(items) or not numbers.keys() >= set(items):
        raise InputError(
            f"skips is {skips!r}; accepted: {', '.join([*NAMED_SKIPS, SPLIT])}, or different "
            f"numbers from 0 (the outermost) to {count - 1} with commas"
        )
    return [numbers[item] for item in items]


def choose_b_skips(skips: str | Sequence[int], count: int) -> list[int]:
    """Numbers of the long skips that b acts on; the arguments are those of ``choose_skips``."""
    return choose_skips("all" if skips == SPLIT else skips, count)


def skips_in_words(skips: str) -> str:
    """A choice of long skips for a reader."""
    return "split: s on the innermost, b on all" if skips == SPLIT else skips


def per_skip(settings: Mapping[str, Any], skips: Sequence[int]) -> list[dict[str, Any]]:
    """Settings of each long skip, from single values or lists of as many.

    Raises:
        ValueError: If a list has another length.
    """
    each: list[dict[str, Any]] = [{} for _ in skips]
    for name, value in settings.items():
        values = [value] if isinstance(value, str) or not isinstance(value, Sequence) else value
        if len(values) not in (1, len(skips)):
            accepted = " or ".join(str(count) for count in sorted({1, len(skips)}))
            raise InputError(
                f"{name} has {len(values)} values; accepted: {accepted}, for the long skips "
                f"{','.join(map(str, skips))} (0 is the outermost)"
            )
        for k, own in enumerate(each):
            own[name] = values[k % len(values)]
    return each
