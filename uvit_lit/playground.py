"""The work behind the page of ``uvit-lit play``: what its controls mean, and drawing on demand.

Nothing here knows the page; ``uvit_lit.cli.play`` shows it.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from uvit_lit.detail import radial_power_spectrum
from uvit_lit.errors import InputError, require
from uvit_lit.evaluation.reference import open_data
from uvit_lit.filters import MAX_FREQUENCY
from uvit_lit.generation import Generation, choose_labels
from uvit_lit.model import gain_chart
from uvit_lit.options import ReferenceOptions, SamplingOptions, SkipOptions
from uvit_lit.settings import SkipSettings
from uvit_lit.skips import SkipModulation, override_skips
from uvit_lit.svg import Curve, line_chart

PREVIEW_STEPS = 4
"""Steps of the picture that is shown first."""

KEPT = 32
"""Drawn sets of images that are kept, so that going back to a setting is immediate."""


def _round_up(value: float, step: float) -> float:
    """The next value on the grid of a slider that starts at 0."""
    return round(math.ceil(value / step) * step, 3)


KNOBS = {
    "s": (0.0, 2.0, 0.01),
    "b": (0.0, 2.0, 0.01),
    "cutoff": (0.005, _round_up(MAX_FREQUENCY, 0.005), 0.005),
}
"""Least value, largest value and step of the sliders that may have one value per long skip."""

DESIGN = ("order", "ripple", "attenuation", "b_channels", "b_map", "keep_mean")
"""Settings of the long skips that have one control each."""

SAMPLING = ("n", "seed", "classes", "cfg", "solver", "steps")
"""Options of sampling that have a control; the others stay as the command line gave them."""

LIMITS = {"n": (1, 64), "steps": (1, 100), "cfg": (0, 10)}
"""Least and largest value of the controls of sampling."""

DATA_IMAGES = 2_000
"""Real images whose spectrum is shown, at most."""

TRAINED = "as trained"
"""Choice of a filter that leaves the one of the training."""

TRAINED_COLOUR, SET_COLOUR, DATA_COLOUR = "hsl(215 12% 55%)", "hsl(22 85% 52%)", "hsl(160 60% 40%)"


class Stopped(Exception):
    """The pictures are no longer wanted."""


class _Bar(tqdm):
    """A hidden bar that tells a function how many network calls have been made."""

    def __init__(self, report: Callable[[int], None]) -> None:
        super().__init__(disable=True)
        self.report = report

    def update(self, n: float | None = 1) -> None:
        """Report n more."""
        self.report(int(n or 0))


def spectrum(images: Tensor) -> Curve:
    """Mean power of the luma of some images over frequency, in dB."""
    rings, power = radial_power_spectrum(images)
    return rings.tolist(), (10 * power.mean(0).clamp_min(1e-6).log10()).tolist()


def _lists(settings: dict[str, Any]) -> set[str]:
    """The knobs that have one value per skip."""
    return {k for k in KNOBS if isinstance(settings.get(k), list) and len(settings[k]) > 1}


def _value(knob: str, value: float) -> float:
    """What a slider means; the end of the cutoff's is its bound, which is on no grid."""
    return min(float(value), MAX_FREQUENCY) if knob == "cutoff" else float(value)


def _check(name: str, value: float, low: float, high: float) -> None:
    """Refuse what a control cannot show."""
    if not low <= value <= high:
        raise InputError(f"{name} is {value}; accepted on this page: {low:g} to {high:g}")


def _key(generation: Generation, skips: SkipOptions) -> str:
    """What decides the images of a model, as text."""
    return repr((generation.options, skips))


@dataclass(frozen=True)
class Drawn:
    """What there is to show.

    Attributes:
        trained: Images as trained, (n, 3, H, W) uint8; None until they are drawn.
        chosen: The same seeds with the settings.
        steps: Steps that made them.
        parameters: What the picture of ``chosen`` says about itself; None of a preview.
    """

    trained: Tensor | None
    chosen: Tensor
    steps: int
    parameters: dict[str, Any] | None


class Playground:
    """A model, its images at any setting, and the meaning of the controls of a page.

    Args:
        generation: The model and the options of sampling that have no control.
        real: Which real images to compare the spectrum with, where they are on this machine.

    Attributes:
        starts: Trained value of each knob, one per long skip, with the decimals of its slider.
        ranges: ``KNOBS``, widened where the training left them.
    """

    def __init__(self, generation: Generation, real: ReferenceOptions | None = None) -> None:
        require(generation.devices.count == 1, "devices", generation.devices.count, "1")
        generation.launch()
        self.base, self.model = generation, generation.model
        long_skips = self.model.denoiser.backbone.long_skips
        self.tokens = long_skips[-1].grid[0]
        self.trained: list[SkipSettings] = [skip.settings for skip in long_skips]
        self.starts = {
            knob: [round(getattr(skip, knob), 2 if step == 0.01 else 3) for skip in self.trained]
            for knob, (_, _, step) in KNOBS.items()
        }
        self.ranges = {knob: self._range(knob) for knob in KNOBS}
        self.real_spectrum = None if real is None else self._measure_data(real)
        self._kept: dict[str, Tensor] = {}
        self._lock = Lock()  # the settings in force are the model's: one job at a time

    def _range(self, knob: str) -> tuple[float, float, float]:
        """Least value, largest value and step of a slider that can show what was trained."""
        low, high, step = KNOBS[knob]
        largest = max(getattr(skip, knob) for skip in self.trained)
        return min(low, *self.starts[knob]), max(high, _round_up(largest, step)), step

    def _measure_data(self, real: ReferenceOptions) -> Curve | None:
        """Spectrum of the data of the training; None where they are not on this machine."""
        with suppress(InputError, OSError):
            data = open_data(real, self.base, download=False)
            assert data.train is not None
            count = min(DATA_IMAGES, len(data.train))
            index = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))
            return spectrum(data.train.take(index[:count], seed=0)[0])
        return None

    def _apart(self, skips: SkipOptions) -> list[SkipModulation]:
        """Long skips with the same settings as the model's, which may be at work meanwhile.

        Raises:
            ValueError: If the options do not fit the model.
        """
        own = self.model.resolve_skips(skips)
        for name in ("t_range", "t_fade"):
            own.pop(name, None)
        apart = [SkipModulation(**asdict(trained)) for trained in self.trained]
        override_skips(apart, **own)
        return apart

    def fill(self, skips: SkipOptions, sampling: SamplingOptions) -> dict[str, Any]:
        """Values of the controls for some options, a preset's settings included.

        Raises:
            ValueError: If the options do not fit the model, or a slider does not reach a value.
        """
        settings = self.model.resolve_skips(skips)
        acting = self.model.choose_skips(settings["skips"])
        self._apart(skips)  # refuses what does not fit
        lists = _lists(settings)
        if lists and len(acting["s"]) < len(self.trained) and settings.keys() & {"filter", *DESIGN}:
            raise InputError(
                f"skips is {skips.skips} with one value for each and a filter; accepted on this "
                "page: one value for each of all skips"
            )
        values: dict[str, Any] = {"per_skip": bool(lists)}
        for knob, (low, high, _) in self.ranges.items():
            given: Any = settings.get(knob)
            start = self.starts[knob]
            if isinstance(given, list) and len(given) == 1:
                (given,) = given
            column = dict.fromkeys(acting[knob], given)
            if isinstance(given, list):
                column = dict(zip(acting[knob], given, strict=True))
            each = [start[k] if column.get(k) is None else column[k] for k in range(len(start))]
            single: Any = self.single_start(knob) if given is None or knob in lists else given
            for value in (single, *each):
                _check(knob, value, low, high)
            values[knob] = single
            values |= {f"{knob}{k}": value for k, value in enumerate(each)}
        values["filter"] = settings.get("filter") or TRAINED
        values["skips"] = skips.settings(self.tokens).get("skips", self.model.default_skips)
        trained = self.trained[0]
        values |= {name: settings.get(name, getattr(trained, name)) for name in DESIGN}
        values["t_first"], values["t_last"] = skips.t_range or (0.0, 1.0)
        values["t_fade"] = skips.t_fade
        values["cfg_first"], values["cfg_last"] = sampling.cfg_range
        values |= {name: getattr(sampling, name) for name in SAMPLING}
        for name, limits in LIMITS.items():
            for value in values[name] if isinstance(values[name], list) else [values[name]]:
                _check(name, value, *limits)
        choose_labels(self.model, sampling.classes, 1)
        return values

    @property
    def shows_best(self) -> bool:
        """Whether every option that the card of the model recommends has a control."""
        shown = {*KNOBS, *DESIGN, *SAMPLING, "filter", "skips", "t_range", "t_fade", "cfg_range"}
        advice = self.model.recommended.keys()
        return bool(advice) and advice <= shown and not isinstance(self.base.options.cfg, list)

    def single_start(self, knob: str) -> float:
        """Where the slider of all acting skips starts: the mean of what was trained."""
        acting = self.model.choose_skips()[knob]
        digits = 2 if KNOBS[knob][2] == 0.01 else 3
        return round(sum(self.starts[knob][k] for k in acting) / len(acting), digits)

    def read(self, values: dict[str, Any]) -> tuple[SkipOptions, SamplingOptions]:
        """The options that the values of the controls mean.

        A control that is where the training left it sets nothing.

        Args:
            values: As ``fill`` gives them.
        """
        given: dict[str, Any] = {}
        count = len(self.trained)
        per_skip = values["per_skip"] and count > 1
        for knob in KNOBS:
            if per_skip:
                each = [values[f"{knob}{k}"] for k in range(count)]
                moved = [v != start for v, start in zip(each, self.starts[knob], strict=True)]
                exact = [
                    _value(knob, v) if has_moved else getattr(trained, knob)
                    for v, has_moved, trained in zip(each, moved, self.trained, strict=True)
                ]
                given[knob] = exact if any(moved) else None
            elif values[knob] != self.single_start(knob):
                given[knob] = _value(knob, values[knob])
        for name in DESIGN:
            if values[name] != getattr(self.trained[0], name):
                given[name] = values[name]
        if values["filter"] != TRAINED:
            given["filter"] = values["filter"]
        given = {name: value for name, value in given.items() if value is not None}
        unfiltered = self.trained[0].filter == given.get("filter", "none") == "none"
        shapes_filter = bool(given.keys() - {"s", "b", "b_channels", "b_map"})
        if shapes_filter and self.trained[0].filter == "none" and not unfiltered:
            given.setdefault("s", 1.0)
        skips = values["skips"] or self.model.default_skips
        if given and not per_skip and skips != self.model.default_skips:
            given["skips"] = skips
        if given and (values["t_first"], values["t_last"]) != (0, 1):
            given["t_range"] = (float(values["t_first"]), float(values["t_last"]))
            given["t_fade"] = float(values["t_fade"])
        chosen = {name: values[name] for name in SAMPLING if name in values}
        chosen |= {name: int(chosen[name] or 0) for name in ("n", "seed", "steps")}
        chosen["classes"] = chosen["classes"] or None
        chosen["cfg_range"] = (float(values["cfg_first"]), float(values["cfg_last"]))
        return SkipOptions(**given), replace(self.base.options, **chosen)

    def draw(
        self, skips: SkipOptions, sampling: SamplingOptions, report: Callable[[float], None]
    ) -> Iterator[Drawn]:
        """Draw the images as set and as trained, after few steps first.

        Args:
            skips: Settings of the long skips.
            sampling: How to draw.
            report: Called at every step with the share of the work that is done, in [0, 1]; what
                it raises ends the work.

        Raises:
            ValueError: If an option is outside its range or does not fit the model.
        """
        labels = choose_labels(self.model, sampling.classes, sampling.n)
        final = replace(self.base, options=sampling, labels=labels)
        generations = [final]
        if sampling.steps > PREVIEW_STEPS:
            with suppress(InputError):  # the solver has more steps at least, or a narrow window
                few = replace(sampling, steps=PREVIEW_STEPS)
                generations.insert(0, replace(final, options=few))
        with self._lock:
            final.check_skips(skips)
            with self.model.skips(skips):
                parameters = final.parameters(skips)
        settings = list({repr(s): s for s in (skips, SkipOptions())}.values())
        missing = [g.calls for g in generations for s in settings if _key(g, s) not in self._kept]
        total, done = max(1, sum(missing) * sampling.n), 0

        def count(images: int) -> None:
            nonlocal done
            done += images
            report(min(1.0, done / total))

        for generation in generations:
            is_final = generation is final
            last = parameters if is_final else None
            steps = generation.options.steps
            chosen = self._images(generation, skips, count)
            trained = self._kept.get(_key(generation, SkipOptions()))
            if trained is None:
                yield Drawn(None, chosen, steps, None)
                trained = self._images(generation, SkipOptions(), count)
            yield Drawn(trained, chosen, steps, last)

    def _images(
        self, generation: Generation, skips: SkipOptions, count: Callable[[int], None]
    ) -> Tensor:
        """Images at a setting, (n, 3, H, W) uint8: drawn, or kept from before."""
        key = _key(generation, skips)
        if key not in self._kept:
            with self._lock, self.model.skips(skips), _Bar(count) as bar:
                images = generation.run(bar)
            self._kept[key] = images
            if len(self._kept) > KEPT:
                del self._kept[next(iter(self._kept))]
        return self._kept[key]

    def gains(self, skips: SkipOptions) -> str:
        """Gain over frequency of every long skip, as an SVG chart."""
        return gain_chart(self._apart(skips))

    def spectra(self, drawn: Drawn) -> str:
        """Power of the images over frequency, with the data's where they are known, as SVG."""
        curves: dict[str, Curve] = {}
        colours = []
        if self.real_spectrum is not None:
            curves["data"] = self.real_spectrum
            colours.append(DATA_COLOUR)
        if drawn.trained is not None:
            curves[TRAINED] = spectrum(drawn.trained)
            colours.append(TRAINED_COLOUR)
        curves["as set"] = spectrum(drawn.chosen)
        colours.append(SET_COLOUR)
        label = "frequency (fraction of the pixels' Nyquist)"
        return line_chart(curves, colours, label, "power of the luma (dB)")
