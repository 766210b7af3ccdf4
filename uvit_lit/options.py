"""The choices of a user: read by the commands, taken by ``generate``, written into every picture.

Nothing here imports torch, so a command answers ``--help`` at once.
"""

import math
from collections.abc import Container, Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from types import UnionType
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    TypeAlias,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from uvit_lit.errors import InputError, require, require_choice
from uvit_lit.families import FILTERS

SEEDS = 2**32
"""Number of seeds: torch's generator on the CPU takes them modulo 2^32."""

MAX_IMAGES = 10_000_000
"""Images of one command, at most."""

Options = TypeVar("Options", "SkipOptions", "SamplingOptions")

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
Schedule = Literal["vp", "linear", "cosine", "sd"]
DataName = Literal["cifar10", "cifar100", "folder", "shapes"]

PRESETS: dict[str, dict[str, Any]] = {
    # no change at all
    "neutral": {"s": 1.0, "b": 1.0, "skips": "all"},
    # half of the next
    "mild": {"s": 0.8, "b": 1.1},
    # the middle of the paper's Figure 4, and its corner
    "medium": {"s": 0.6, "b": 1.2},
    "strong": {"s": 0.2, "b": 1.4},
    # FreeU 1 and 2 in their first stage, the innermost: box, channels, and the s and b of the demo
    # and of the README for Stable Diffusion 2.1; the cutoff is the threshold of one frequency,
    # which depends on the grid. 1 has a constant b, 2 the structure-aware map
    "freeu_v1": {
        "filter": "freeu_box",
        "s": 0.9,
        "b": 1.2,
        "b_channels": 0.5,
        "b_map": "constant",
        "skips": "inner",
    },
    "freeu_v2": {"filter": "freeu_box", "s": 0.9, "b": 1.4, "b_channels": 0.5, "skips": "inner"},
}
"""Name of each preset and its settings, on the skips that the model names unless it says which.
Options given beside a preset come before it. docs/results/detail.md has their effect."""

BEST = "best"
"""Preset of what the card of a model recommends, guidance included."""

if TYPE_CHECKING:
    Filter: TypeAlias = str
    Preset: TypeAlias = str
else:
    Filter, Preset = Literal[FILTERS], Literal[(*PRESETS, BEST)]


def preset_settings(name: str, tokens: int) -> dict[str, Any]:
    """Settings of a preset.

    Args:
        name: One of ``PRESETS``.
        tokens: Side of the model's token grid.

    Raises:
        ValueError: If there is no such preset.
    """
    require_choice("preset", name, PRESETS)
    one_frequency = {"cutoff": 2 / tokens} if name.startswith("freeu") else {}
    return {**PRESETS[name], **one_frequency}


@dataclass(frozen=True)
class SkipOptions:
    """Level of detail; by default as trained.

    Attributes:
        s: Skip scale, at least 0: gain of the low frequencies of the long skips. 1 is no change.
            One value, or one per long skip, outermost first.
        b: Backbone scale, at least 0. 1 is no change. One value or several, as s.
        filter: Low-pass whose passband s scales; by default that of the model, else the step.
        cutoff: Cutoff of the low-pass, fraction of Nyquist, up to sqrt(2). One value or several.
        skips: Long skips to act on: all, inner, outer, split (s on the innermost, b on all), or
            numbers with commas, 0 the outermost. By default those that the model's file names; a
            list of values acts on all.
        preset: Settings by name; options given beside it override them. best is what the card of
            the model recommends, including guidance.
        t_range: First and last time at which the settings act, in [0, 1]. 1 is pure noise, where
            sampling begins.
        t_fade: Width in t of the smooth edges of t_range; 0 switches abruptly.
        order: Order of butterworth, chebyshev and chebyshev2, 1 to 12.
        ripple: Passband ripple of chebyshev, 0.05 to 6 dB.
        attenuation: Stopband attenuation of chebyshev2, 10 to 80 dB.
        b_channels: Fraction of the channels that b amplifies, above 0 and at most 1.
        b_map: structure amplifies the tokens whose features are strong, constant all alike.
        keep_mean: The filter does not scale the mean of the features.
    """

    s: float | list[float] | None = None
    b: float | list[float] | None = None
    filter: Filter | None = None
    cutoff: float | list[float] | None = None
    skips: str | None = None
    preset: Preset | None = None
    t_range: tuple[float, float] | None = None
    t_fade: float = 0.0
    order: int | None = None
    ripple: float | None = None
    attenuation: float | None = None
    b_channels: float | None = None
    b_map: Literal["structure", "constant"] | None = None
    keep_mean: bool | None = None

    def settings(self, tokens: int) -> dict[str, Any]:
        """The settings that are given, the preset's included: arguments of ``Denoiser.skips``.

        Args:
            tokens: Side of the model's token grid.

        Raises:
            ValueError: If there is no such preset.
        """
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "preset"}
        given = {name: value for name, value in own.items() if value is not None}
        named = {} if self.preset is None else preset_settings(self.preset, tokens)
        return {**named, **given}


def check_seeds(seeds: Iterable[int]) -> None:
    """Raise a ``ValueError`` unless every seed is at least 0 and below ``SEEDS``."""
    for seed in seeds:
        require(0 <= seed < SEEDS, "seed", seed, "0 to below 2^32, for every image")


@dataclass(frozen=True)
class SamplingOptions:
    """Images.

    Attributes:
        n: Number of images, 1 to 10,000,000.
        seed: Seed of the first image; image k has seed + k. All are below 2^32.
        classes: Names or numbers of the classes to generate; by default all.
        cfg: Guidance scale, at least 0; 1 is no guidance. Two values are those of the low and the
            high frequencies of the image, and need cfg_cutoff.
        cfg_cutoff: Frequency that separates low from high, fraction of the pixels' Nyquist, up to
            sqrt(2).
        cfg_range: First and last time at which guidance acts, in [0, 1]; by default always.
        cfg_rescale: How far to restore the contrast of the estimate without guidance, 0 (not) to 1
            (fully).
        guide: Checkpoint of a weaker model to guide away from (autoguidance), given as ckpt; by
            default the model itself without the class.
        solver: ddpm, ddim, dpmpp, sde-dpmpp, unipc or heun, or module:function of your own.
        steps: Steps of the solver, 1 to 1000.
        precision: Precision of the network; bf16-mixed and 16-mixed are faster where the device
            supports them.
        batch_size: Images computed at once, at least 1.
    """

    n: int = 16
    seed: int = 0
    classes: list[str] | None = None
    cfg: float | list[float] = 1.0
    cfg_cutoff: float | None = None
    cfg_range: tuple[float, float] = (0.0, 1.0)
    cfg_rescale: float = 0.0
    guide: str | None = None
    solver: str = "dpmpp"
    steps: int = 25
    precision: Precision = "32-true"
    batch_size: int = 64

    def __post_init__(self) -> None:
        """Validate what decides how much memory is taken."""
        require(1 <= self.n <= MAX_IMAGES, "n", self.n, f"1 to {MAX_IMAGES:,}")
        require(self.batch_size >= 1, "batch_size", self.batch_size, "at least 1")
        check_seeds((self.seed, self.seed + self.n - 1))


@dataclass(frozen=True)
class ModelOptions:
    """Model.

    Attributes:
        ckpt: Checkpoint, .safetensors file, official .pth file or directory. last is the newest
            below runs/, pretrained the CIFAR-10 model of the package, hf://user/name a model on the
            Hub.
        vae: Autoencoder of a latent model: directory or Hub name; by default that of the training.
        img_size: Image size (pixels, or latents), if it differs from the trained one.
        num_heads: Attention heads; needed for official weights of an unpublished width.
        schedule: Noise schedule of official weights; by default the published one.
        device: auto, cpu, cuda or mps.
        devices: Processes that share the images, each with a device; by default 1, or the number
            that torchrun started.
    """

    ckpt: str = "pretrained"
    vae: str | None = None
    img_size: int | None = None
    num_heads: int | None = None
    schedule: Schedule | None = None
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: int | None = None


def split_options(given: dict[str, Any], *groups: type) -> list[Any]:
    """Instances of some dataclasses of options, each with the given values that are its own.

    Raises:
        TypeError: If a value belongs to none of them.
    """
    names = [{f.name for f in fields(group)} for group in groups]
    if unknown := given.keys() - set().union(*names):
        accepted = ", ".join(sorted(set().union(*names)))
        raise TypeError(f"unknown option {', '.join(sorted(unknown))}; accepted: {accepted}")
    return [
        group(**{name: value for name, value in given.items() if name in own})
        for group, own in zip(groups, names, strict=True)
    ]


RECOMMENDABLE = (
    *(f.name for f in fields(SkipOptions) if f.name != "preset"),
    *("cfg", "cfg_cutoff", "cfg_range", "cfg_rescale", "solver", "steps"),
)
"""Options that a model card may recommend."""


def is_recommendable(options: Any) -> bool:
    """Whether this is a dictionary of options that a model card may recommend, each of its type."""
    hints = get_type_hints(SkipOptions) | get_type_hints(SamplingOptions)
    return isinstance(options, dict) and all(
        name in RECOMMENDABLE and fits(value, hints[name]) for name, value in options.items()
    )


def fits(value: Any, hint: Any) -> bool:
    """Whether a value of plain data is of a type.

    A finite number of any kind is a ``float``, and a list may be a tuple.
    """
    origin, members = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(fits(value, member) for member in members)
    if origin is Literal:
        return value in members
    if origin in (list, tuple):
        if type(value) not in (list, tuple):
            return False
        kinds = members if origin is tuple and ... not in members else members[:1] * len(value)
        return len(value) == len(kinds) and all(map(fits, value, kinds))
    if hint is float:
        return type(value) in (int, float) and abs(value) < math.inf
    return type(value) is hint


def fill_in(options: Options, others: Options, keep: Container[str] = ()) -> Options:
    """Options with the values of others in the place of those that are the default.

    Args:
        options: An instance of a dataclass of options.
        others: Another of the same class.
        keep: Names of options that stay as they are.
    """
    default = type(options)()
    own = {f.name: getattr(options, f.name) for f in fields(options)}
    empty = [n for n, value in own.items() if value == getattr(default, n) and n not in keep]
    return replace(options, **{name: getattr(others, name) for name in empty})


@dataclass(frozen=True)
class Cell:
    """One combination of a grid.

    Attributes:
        values: Option and value; None is as trained.
    """

    values: tuple[tuple[str, Any], ...]

    def apply(self, options: Any) -> Any:
        """Options with the values of this cell that are theirs."""
        own = {f.name for f in fields(options)}
        return replace(options, **{name: v for name, v in self.values if name in own})

    def stem(self) -> str:
        """Name of its files."""
        parts = [
            value if isinstance(value, str) else name + str(value).removesuffix(".0")
            for name, value in self.values
            if value is not None
        ]
        return "_".join(parts) or "as_trained"

    def title(self) -> str:
        """Its values, to read."""
        given = [
            f"{name} as trained" if value is None else f"{name} = {value}"
            for name, value in self.values
        ]
        return ", ".join(given) or "as trained"

    def unchanged(self, cells: "Container[Cell]") -> "Cell | None":
        """The cell to compare with: s = 1, b = 1, cfg = 1, else as trained; None if absent."""
        for s, b in product((1.0, None), (1.0, None)):
            neutral = {"s": s, "b": b, "preset": None, "cfg": 1.0}
            candidate = Cell(tuple((name, neutral.get(name, v)) for name, v in self.values))
            if candidate in cells:
                return candidate
        return None


Trained = Literal["trained"]


@dataclass(frozen=True)
class GridOptions:
    """Grid: one or several values of each option, with commas.

    Attributes:
        s: Skip scales; trained is the value of the training.
        b: Backbone scales; trained is the value of the training.
        filter: Low-passes; trained is that of the training, else the step.
        cutoff: Cutoffs; trained is that of the training.
        preset: Presets; trained is none.
        cfg: Guidance scales; 1 is no guidance.
        solver: Solvers.
        steps: Numbers of steps.
    """

    s: list[float | Trained] = field(default_factory=lambda: ["trained"])
    b: list[float | Trained] = field(default_factory=lambda: ["trained"])
    filter: list[Filter | Trained] = field(default_factory=lambda: ["trained"])
    cutoff: list[float | Trained] = field(default_factory=lambda: ["trained"])
    preset: list[Preset | Trained] = field(default_factory=lambda: ["trained"])
    cfg: list[float] = field(default_factory=lambda: [1.0])
    solver: list[str] = field(default_factory=lambda: ["dpmpp"])
    steps: list[int] = field(default_factory=lambda: [25])

    def cells(self) -> "list[Cell]":
        """Every combination of s, b, filter and cutoff where given, and of what has several values.

        None is as trained.
        """
        axes = {
            name: [None if value == "trained" else value for value in values]
            for name, values in asdict(self).items()
            if len(values) > 1 or (name in ("s", "b", "filter", "cutoff") and values != ["trained"])
        }
        return [Cell(tuple(zip(axes, values, strict=True))) for values in product(*axes.values())]

    def fixed(self, options: Any) -> Any:
        """Options with the preset, cfg, solver and steps that have one value."""
        single = {
            name: None if values[0] == "trained" else values[0]
            for name, values in asdict(self).items()
            if len(values) == 1 and name in ("preset", "cfg", "solver", "steps")
        }
        return Cell(tuple(single.items())).apply(options)


@dataclass(frozen=True)
class DirectoryOptions:
    """Files.

    Attributes:
        out: Directory below which the results get a directory of their own.
    """

    out: Path = Path("samples")


DISTANCES = {"fid", "kid", "precision_recall"}
"""Metrics that compare two sets of images."""

METRICS = ("fid", "kid", "precision_recall", "detail", "classes")
"""All metrics of the command evaluate."""


@dataclass(frozen=True)
class ReferenceOptions:
    """Real images to compare with.

    Attributes:
        metrics: fid, kid, precision_recall, detail or classes, or several with commas.
        features: inception, efficientnet-lite0, or module:attribute.
        data: cifar10, cifar100, folder or shapes; by default that of the training.
        data_root: Directory of the data; by default that of the training.
        split: Part of the data to compare with.
        stats: An npz file with mu and sigma as pytorch-fid writes it, instead of data.
        save_stats: npz file to write the statistics of the data to.
        inception_weights: Local file of the Inception weights.

    Raises:
        ValueError: If a metric is unknown, or the options do not fit each other.
    """

    metrics: list[str] = field(default_factory=lambda: ["kid", "detail"])
    features: str = "inception"
    data: DataName | None = None
    data_root: str | None = None
    split: Literal["train", "test"] = "train"
    stats: Path | None = None
    save_stats: Path | None = None
    inception_weights: Path | None = None

    def __post_init__(self) -> None:
        """Refuse metrics that are unknown, or that the other options leave without their needs."""
        for metric in self.metrics:
            require_choice("metrics", metric, METRICS)
        if not DISTANCES & set(self.metrics) and (self.stats or self.save_stats):
            raise InputError(
                "stats and save_stats are of no use to detail and classes; accepted with: fid, "
                "kid, precision_recall"
            )
        if "classes" in self.metrics and self.stats:
            raise InputError("stats has no images with classes; accepted with classes: --data")
