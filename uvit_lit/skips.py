"""What acts on a long skip: a filter on the skip features, a scale on the backbone features."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uvit_lit.filters import (
    FILTERS,
    MAX_FREQUENCY,
    PROTOTYPES,
    frequencies,
    hartley_matrix,
)
from uvit_lit.settings import MAX_SCALE, Learned, SkipSettings

NAMED_SKIPS = {"all": slice(None), "inner": slice(-1, None), "outer": slice(1)}
"""Long skips that have a name: all of them, the innermost one, the outermost one."""


def scale_backbone(
    x: Tensor, b: Tensor | float, num_prefix: int = 0, channels: float = 1.0
) -> Tensor:
    """Amplify the backbone features where they are strong (equations 3 to 5).

    The mean over the channels gives one value per patch token (3); min-max normalised over the
    tokens of its image it becomes alpha = (b - 1) * normalised + 1 (4), which multiplies the
    features (5). Each image has statistics of its own. A constant map has no largest token:
    there alpha is 1.

    Args:
        x: (batch, tokens, channels), prefix tokens first. Not changed.
        b: Backbone scale, at least 0; 1 returns ``x`` itself. A tensor, of no dimension, is a
            learned one.
        num_prefix: How many leading tokens (time, class) are left alone.
        channels: Fraction of the channels, in (0, 1], that is amplified; the first ones.

    Returns:
        (batch, tokens, channels), of the dtype of ``x``.
    """
    if not isinstance(b, Tensor) and b == 1:
        return x
    accurate = torch.promote_types(x.dtype, torch.float32)
    mean = x[:, num_prefix:].mean(dim=-1, keepdim=True, dtype=accurate)
    low, high = mean.amin(dim=1, keepdim=True), mean.amax(dim=1, keepdim=True)
    normalised = (mean - low) / (high - low).clamp_min(1e-6)
    alpha = (b - 1) * normalised + 1
    alpha = F.pad(alpha, (0, 0, num_prefix, 0), value=1.0)
    if channels < 1:
        amplified = torch.arange(x.shape[-1], device=x.device) < round(channels * x.shape[-1])
        alpha = torch.where(amplified, alpha, 1.0)
    return x * alpha.to(x.dtype)


class Modulation(nn.Module):
    """The paper's two modulating factors: filter the skip features, scale the backbone features.

    Args:
        settings: What to do.
        grid: Height and width in patch tokens.
        num_prefix: Leading tokens (time, class) that are neither filtered nor scaled.
        learned: Which of s, cutoff and b are not the numbers of ``settings`` but learned. They
            belong to the ``LongSkip``, not to this module.
    """

    def __init__(
        self,
        settings: SkipSettings,
        grid: tuple[int, int],
        num_prefix: int,
        learned: Mapping[str, Learned] | None = None,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.num_prefix = num_prefix
        self.learned = dict(learned or {})
        self.low_pass = settings.low_pass()
        self.filter_is_learned = self.low_pass is not None and bool(
            {"s", "cutoff"} & self.learned.keys()
        )
        if self.low_pass is None:
            return
        # Zero rows for the prefix: it is left alone without cutting and joining.
        basis = F.pad(hartley_matrix(grid), (0, 0, num_prefix, 0))
        frequency = frequencies(grid).flatten(0, 1)
        if self.filter_is_learned:
            self.register_buffer("basis", basis.float(), persistent=False)
            self.register_buffer("frequency", frequency.float(), persistent=False)
            return
        change = (settings.s - 1) * self.low_pass(frequency, settings.cutoff)
        passed = change != 0
        self.is_low_rank = not passed.is_meta and 2 * int(passed.sum()) < len(passed)
        if self.is_low_rank:  # a step touches few frequencies
            basis, change = basis[:, passed], change[passed]
            self.register_buffer("analysis", basis.T.float().contiguous(), persistent=False)
            self.register_buffer("synthesis", (basis * change).float(), persistent=False)
        else:
            self.register_buffer("change", (basis * change @ basis.T).float(), persistent=False)

    def forward(self, backbone: Tensor, skip: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scaled backbone features and the filtered skip features.

        Args:
            backbone: (batch, prefix + patch tokens, channels).
            skip: The same shape.
            t: (batch,) times in [0, 1].
        """
        b = self._value("b", t)
        backbone = scale_backbone(backbone, b, self.num_prefix, self.settings.b_channels)
        if self.filter_is_learned:
            skip = self._learned_filter(skip, t)
        elif self.low_pass is not None and self.settings.s != 1:
            if self.is_low_rank:
                analysis, synthesis = self.get_buffer("analysis"), self.get_buffer("synthesis")
                skip = _add_product(skip, synthesis, _per_image(analysis, skip) @ skip)
            else:
                skip = _add_product(skip, self.get_buffer("change"), skip)
        return backbone, skip

    def _value(self, name: str, t: Tensor) -> Tensor | float:
        """What s, cutoff or b is at the times t."""
        return self.learned[name](t) if name in self.learned else getattr(self.settings, name)

    def gain_change(self, frequency: Tensor, t: Tensor) -> Tensor:
        """Gain minus 1 of the filter: (s - 1) |H(f)|.

        Args:
            frequency: (frequencies, 2), as ``LowPass`` takes them.
            t: (batch,) times in [0, 1].

        Returns:
            (frequencies,) where nothing depends on t, else (batch, frequencies).
        """
        if self.low_pass is None:
            return torch.zeros_like(frequency[..., 0])
        s, cutoff = (
            v[:, None] if isinstance(v, Tensor) and v.ndim else v
            for v in (self._value("s", t), self._value("cutoff", t))
        )
        return (s - 1) * self.low_pass(frequency, cutoff)

    def _learned_filter(self, skip: Tensor, t: Tensor) -> Tensor:
        """The filtered skip features."""
        basis = self.get_buffer("basis")
        with torch.autocast(skip.device.type, enabled=False):  # the design stays in float32
            change = self.gain_change(self.get_buffer("frequency"), t)
            if change.ndim == 1:
                matrix = basis * change @ basis.T
        if change.ndim == 1:
            return _add_product(skip, matrix, skip)
        change = change[:, :, None].to(skip.dtype)
        return _add_product(skip, basis, change * (_per_image(basis.T, skip) @ skip))


def _per_image(matrix: Tensor, features: Tensor) -> Tensor:
    """The matrix once for each image, without a copy (of the features, as torch.matmul makes)."""
    return matrix.to(features.dtype).expand(len(features), -1, -1)


def _add_product(skip: Tensor, matrix: Tensor, features: Tensor) -> Tensor:
    """Add matrix @ features to the skip features of each image; their dtype stays."""
    return torch.baddbmm(skip, _per_image(matrix, skip), features.to(skip.dtype)).to(skip.dtype)


class LongSkip(nn.Module):
    """The modulation of one long skip, as trained, with an optional override for sampling.

    Args:
        settings: What acts during training, or where the learning starts.
        grid: Height and width in patch tokens.
        num_prefix: Leading tokens that are left alone.
        learn_b: Whether b is learned too.
        t_coefficients: Number of cosines in t of the learned s and cutoff; 0 keeps them constant.

    Raises:
        ValueError: If what is learned does not start inside its bounds: s and b between 0 and 2,
            the cutoff between half a bin and sqrt(2).
    """

    def __init__(
        self,
        settings: SkipSettings,
        grid: tuple[int, int],
        num_prefix: int,
        learn_b: bool = False,
        t_coefficients: int = 0,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.num_prefix = num_prefix
        learned = {}
        if settings.filter in PROTOTYPES:
            half_bin = 1 / max(grid)
            learned["s"] = Learned("s", settings.s, 0, MAX_SCALE, t_coefficients)
            learned["cutoff"] = Learned(
                "cutoff", settings.cutoff, half_bin, MAX_FREQUENCY, t_coefficients
            )
        if learn_b:
            learned["b"] = Learned("b", settings.b, 0, MAX_SCALE)
        self.learned = nn.ModuleDict(learned)
        self.trained = Modulation(settings, grid, num_prefix, learned)
        self.override: Modulation | None = None

    @property
    def in_force(self) -> Modulation:
        """The override where there is one, else what was trained."""
        return self.override or self.trained

    @property
    def settings(self) -> SkipSettings:
        """What is in force, as numbers: what is learned as its value, averaged over t.

        Raises:
            FloatingPointError: If a learned number is not finite, since training diverged.
        """
        values: dict[str, Any] = {
            name: learned.average() for name, learned in self.in_force.learned.items()
        }
        return dataclasses.replace(self.in_force.settings, **values)

    def overridden(self, **changes: Any) -> Modulation | None:
        """Modulation with other settings, the rest as trained; None where nothing changes."""
        if not changes:
            return None
        learned = {k: v for k, v in self.trained.learned.items() if k not in changes}
        settings = dataclasses.replace(self.trained.settings, **changes)
        return Modulation(settings, self.grid, self.num_prefix, learned)

    def forward(
        self, backbone: Tensor, skip: Tensor, t: Tensor, strength: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Modulate the backbone and the skip features.

        Args:
            backbone: (batch, prefix + patch tokens, channels).
            skip: The same shape.
            t: (batch,) times in [0, 1].
            strength: (batch, 1, 1) in [0, 1], how much the override acts on each image: 0 is as
                trained, 1 and None are in full.

        Returns:
            Scaled backbone features and filtered skip features, each of the same shape.
        """
        if self.override is None:
            return self.trained(backbone, skip, t)
        inside = self.override(backbone, skip, t)
        if strength is None:
            return inside
        outside = self.trained(backbone, skip, t)  # gain and alpha are linear in s and b
        weight = strength.to(skip.dtype)
        return torch.lerp(outside[0], inside[0], weight), torch.lerp(outside[1], inside[1], weight)


def override_skips(
    long_skips: Sequence[LongSkip],
    device: torch.device,
    *,
    skips: str | Sequence[int] = "all",
    s: float | Sequence[float] | None = None,
    b: float | Sequence[float] | None = None,
    filter: str | None = None,
    cutoff: float | Sequence[float] | None = None,
    order: int | None = None,
    ripple: float | None = None,
    attenuation: float | None = None,
    b_channels: float | None = None,
) -> None:
    """Override what acts on the long skips, without touching the weights.

    A call replaces the one before. What is None stays as trained, learned values too, so a call
    without values returns to the trained model.

    Args:
        long_skips: Outermost pair of blocks first.
        device: Where the model is.
        skips: Which of them the values act on, as ``choose_skips`` takes it. The others stay as
            trained.
        s: Skip scale, at least 0: one value, or one per chosen long skip in the order in which
            they are named; ``all`` begins with the outermost. A model trained without a filter
            gets the step.
        b: Backbone scale, at least 0: one value or one per chosen long skip.
        filter: Another low-pass than the trained one.
        cutoff: Fraction of Nyquist in (0, sqrt(2)]: one value or one per chosen long skip.
        order: Order of butterworth, chebyshev and chebyshev2.
        ripple: Passband ripple of chebyshev in dB.
        attenuation: Stopband attenuation of chebyshev2 in dB.
        b_channels: Fraction of the channels in (0, 1] that ``b`` amplifies.

    Raises:
        ValueError: If a value is outside its range or a list has the wrong length.
    """
    design = {"filter": filter, "cutoff": cutoff, "order": order, "ripple": ripple,
              "attenuation": attenuation}  # fmt: skip
    if long_skips[0].trained.low_pass is None:
        known = filter is None or filter in FILTERS[1:]
        if s is None and known and any(v is not None for v in design.values()):
            raise ValueError("a filter without s changes nothing on this model: give s as well")
        if s is not None and filter is None:
            design["filter"] = "step"
    if filter == "none" and s is None:
        s = 1.0
    given = {"s": s, "b": b, "b_channels": b_channels, **design}
    chosen = choose_skips(skips, len(long_skips))
    columns = {
        name: _per_skip(name, value, chosen) for name, value in given.items() if value is not None
    }
    overrides = {
        number: long_skips[number].overridden(**{name: c[i] for name, c in columns.items()})
        for i, number in enumerate(chosen)
    }
    for number, long_skip in enumerate(long_skips):
        override = overrides.get(number)
        long_skip.override = override and override.to(device)


def choose_skips(skips: str | Sequence[int], count: int) -> list[int]:
    """Numbers of the long skips that a choice names, in its order; 0 is the outermost.

    Args:
        skips: ``all``, ``inner`` (the innermost one), ``outer`` (the outermost one), or their
            numbers, in a text with commas between them.
        count: How many long skips there are.

    Raises:
        ValueError: If there is no such long skip, or one is named twice, or none is.

    >>> choose_skips("inner", 4), choose_skips("2,3", 4)
    ([3], [2, 3])
    """
    if isinstance(skips, str) and skips in NAMED_SKIPS:
        return list(range(count))[NAMED_SKIPS[skips]]
    numbers = {str(number): number for number in range(count)}
    items = [str(item).strip() for item in (skips.split(",") if isinstance(skips, str) else skips)]
    if not items or len(set(items)) < len(items) or not numbers.keys() >= set(items):
        raise ValueError(
            f"skips is {skips!r}; accepted: {', '.join(NAMED_SKIPS)}, or different numbers from 0 "
            f"(the outermost) to {count - 1} with commas"
        )
    return [numbers[item] for item in items]


def _per_skip(name: str, value: object, chosen: list[int]) -> list:
    """One value per chosen long skip, from a single value or a list of as many."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        return [value] * len(chosen)
    if len(value) not in (1, len(chosen)):
        accepted = " or ".join(str(count) for count in sorted({1, len(chosen)}))
        raise ValueError(
            f"{name} has {len(value)} values; accepted: {accepted}, for the long skips "
            f"{','.join(map(str, chosen))} (0 is the outermost)"
        )
    return list(value) * (len(chosen) // len(value))
