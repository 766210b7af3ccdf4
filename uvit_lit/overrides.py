"""What a command line overrides on the long skips: how it is set, named and written down."""

import argparse
from collections.abc import Container
from itertools import product
from typing import Any, NamedTuple

from uvit_lit.checkpoint import Model


def set_skips(model: Model, args: argparse.Namespace, **settings: Any) -> None:
    """Override what acts on the long skips: by a preset, by the options, by ``settings``.

    Raises:
        ValueError: If a value is outside its range or a list has the wrong length.
    """
    names = ("skips", "s", "b", "filter", "cutoff", "order", "ripple", "attenuation", "b_channels")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.t_range and len(args.t_range) != 2:
        raise ValueError(f"t_range has {len(args.t_range)} values; accepted: two, first and last")
    t_range = tuple(args.t_range) if args.t_range else None
    preset = getattr(args, "preset", None)
    model.set_skips(preset, t_range=t_range, t_fade=args.t_fade, **{**given, **settings})


def stem_of(model: Model, args: argparse.Namespace, *more: str) -> str:
    """Name of what comes out: the run or file of the model, the settings given, and ``more``."""
    parts = [model.name, *([args.preset] if args.preset else [])]
    for knob in ("s", "b"):
        if values := getattr(args, knob):
            parts.append(knob + "-".join(f"{value:g}" for value in values))
    if args.skips is not None:
        parts.append("skips-" + args.skips.replace(",", "-"))
    return "_".join([*parts, *more])


def describe(model: Model, args: argparse.Namespace) -> dict[str, Any]:
    """The model and the settings of its skips in force, as plain data."""
    long_skips = model.denoiser.backbone.long_skips
    return {
        "ckpt": model.ckpt,
        "training_steps": model.step,
        "img_size": model.image_shape[-1],
        "num_heads": model.arguments["num_heads"],
        "schedule": model.denoiser.schedule.name,
        "prediction": model.denoiser.prediction,
        "long_skips": [vars(long_skip.settings) for long_skip in long_skips],
        "skips": [number for number, skip in enumerate(long_skips) if skip.override is not None],
        "t_range": args.t_range,
        "t_fade": args.t_fade,
    }


class Cell(NamedTuple):
    """Settings of all long skips in one cell; None is as trained."""

    filter: str | None
    cutoff: float | None
    s: float | None
    b: float | None

    def stem(self) -> str:
        """Name of its files."""
        numbers = {"cutoff": self.cutoff, "s": self.s, "b": self.b}
        given = {name: str(v).removesuffix(".0") for name, v in numbers.items() if v is not None}
        parts = [name + value for name, value in given.items()]
        return "_".join(filter(None, [self.filter, *parts])) or "as_trained"

    def unchanged(self, cells: Container["Cell"]) -> "Cell | None":
        """What this cell is compared with: s = 1, b = 1, else either as trained; None if absent."""
        candidates = (self._replace(s=s, b=b) for s, b in product((1.0, None), (1.0, None)))
        return next((cell for cell in candidates if cell in cells), None)
