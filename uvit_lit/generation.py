"""What a command line overrides on the long skips: how it is set, named and written down."""

import argparse
import hashlib
import json
import math
from collections.abc import Container, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from uvit_lit.distributed import Devices, choose_device, count_devices
from uvit_lit.errors import InputError
from uvit_lit.files import file_hash
from uvit_lit.guidance import Guided
from uvit_lit.latents import Autoencoder, check_latents, load_autoencoder
from uvit_lit.model import Model, load_model
from uvit_lit.sampling import (
    autocast,
    check_seeds,
    check_steps,
    count_calls,
    find_solver,
    sample,
    to_uint8,
)
from uvit_lit.weights import find_class


def set_skips(model: Model, args: argparse.Namespace, **settings: Any) -> None:
    """Override what acts on the long skips: by a preset, by the options, by ``settings``.

    Raises:
        ValueError: If a value is outside its range or a list has the wrong length.
    """
    names = ("skips", "s", "b", "filter", "cutoff", "order", "ripple", "attenuation", "b_channels")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.t_range and len(args.t_range) != 2:
        raise InputError(f"t_range has {len(args.t_range)} values; accepted: two, first and last")
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
        "num_heads": model.arguments.get("num_heads"),
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


LABELS = 1
"""Sets the random numbers of the labels apart from others of the same seed."""


def find_labels(model: Model, classes: Sequence[str | int] | None) -> list[int]:
    """Labels of the chosen classes, by name or number; of all by default.

    Returns:
        At least one label; none of a model without classes.

    Raises:
        ValueError: If the model lacks one of the classes.
    """
    known = model.class_names
    if classes and not known:
        raise InputError(
            f"this model has no classes: {', '.join(map(str, classes))} cannot be chosen"
        )
    return [find_class(name, known) for name in classes] if classes else list(range(len(known)))


def choose_labels(model: Model, classes: Sequence[str | int] | None, n: int) -> list[int] | None:
    """Label of each image: cycles through the chosen classes; None for a model without classes.

    Raises:
        ValueError: If the model lacks one of the classes.
    """
    labels = find_labels(model, classes)
    return [labels[k % len(labels)] for k in range(n)] if labels else None


def draw_labels(
    model: Model, classes: Sequence[str | int] | None, seeds: Sequence[int]
) -> list[int] | None:
    """Label of each image: drawn from the chosen classes, a function of its seed alone.

    Images of such labels are independent of each other, as the intervals of their figures suppose.

    Raises:
        ValueError: If the model lacks one of the classes, or a seed is outside its range.
    """
    check_seeds(seeds)
    labels = find_labels(model, classes)
    if not labels:
        return None
    return [labels[np.random.default_rng([LABELS, seed]).integers(len(labels))] for seed in seeds]


def find_autoencoder(
    model: Model, name: str | None, device: torch.device | str = "cpu"
) -> Autoencoder | None:
    """The autoencoder by name, or the one that the model was trained with; None for pixels.

    Raises:
        ValueError: If there is none in that directory, or a damaged one.
        OSError: If it cannot be downloaded.
    """
    name = name or model.data.get("autoencoder")
    return None if name is None else load_autoencoder(name, device)


@dataclass
class Generation:
    """Everything that decides an image but the settings of the skips.

    Attributes:
        model: The trained model.
        seeds: One per image, 0 to below 2^32.
        labels: One per image; None for a model without classes.
        cfg: Guidance scale; 1 is no guidance.
        solver: One of ``uvit_lit.sampling.SOLVERS``.
        steps: Steps of the solver, 1 to 1000.
        batch_size: Images that a device computes at once.
        devices: What shares the images out.
        autoencoder: What makes images of the latents of a latent model.
        precision: Of the network, one of ``uvit_lit.sampling.PRECISIONS``.
    """

    model: Model
    seeds: list[int]
    labels: list[int] | None
    cfg: float
    solver: str
    steps: int
    batch_size: int
    devices: Devices
    autoencoder: Autoencoder | None = None
    precision: str = "32-true"

    def __post_init__(self) -> None:
        """Refuse what has no meaning, and what the model cannot do."""
        find_solver(self.solver)
        check_steps(self.steps)
        for name, number in (("n", len(self.seeds)), ("batch_size", self.batch_size)):
            if number < 1:
                raise InputError(f"{name} is {number}; accepted: at least 1")
        check_seeds(self.seeds)
        if not (math.isfinite(self.cfg) and self.cfg >= 0):
            raise InputError(f"cfg is {self.cfg}; accepted: a number of at least 0")
        check_latents(self.autoencoder, self.model.image_shape[0])
        autocast(self.devices.device, self.precision)  # refuses an unknown one
        if self.cfg != 1 and not self.model.can_guide:
            raise InputError(
                f"cfg is {self.cfg:g}, but this model was trained without class dropout"
            )

    @classmethod
    def from_options(cls, args: argparse.Namespace, drawn_labels: bool = False) -> "Generation":
        """Load the model that the options of ``uvit_lit.cli.options.add_sampling_options`` name.

        Args:
            args: The options.
            drawn_labels: Whether labels are drawn at random; else they cycle through the classes.

        Raises:
            ValueError: If an option is outside its range or does not fit the model.
        """
        device = choose_device(args.device)
        devices = Devices(device, count_devices(device, args.devices))
        model = load_model(
            args.ckpt, img_size=args.img_size, num_heads=args.num_heads, schedule=args.schedule
        )
        seeds = list(range(args.seed, args.seed + args.n))
        labels = (
            draw_labels(model, args.classes, seeds)
            if drawn_labels
            else choose_labels(model, args.classes, args.n)
        )
        return cls(
            model, seeds, labels, args.cfg, args.solver, args.steps, args.batch_size, devices,
            find_autoencoder(model, args.vae), args.precision,
        )  # fmt: skip

    def launch(self) -> None:
        """Start all devices, when what the options can have wrong was checked.

        Raises:
            ValueError: If the processes have read different files, as ``last`` may change.
        """
        self.devices.launch()
        self.model.denoiser.to(self.devices.device)
        if self.autoencoder is not None:
            self.autoencoder.to(self.devices.device)
        if self.devices.count > 1:
            content = file_hash(self.model.path)
            if self.devices.decide(content) != content:
                raise InputError(f"{self.model.path} changed meanwhile; name a checkpoint")

    def identity(self) -> dict[str, Any]:
        """Everything that decides an image but its seed, its label and the settings of the skips.

        Returns:
            Plain data with hashes of the weights: two runs with equal ones draw the same.
        """
        autoencoder = self.autoencoder
        return {
            "checkpoint_sha256": file_hash(self.model.path),
            "uvit": self.model.arguments,
            "schedule": self.model.denoiser.schedule.name,
            "prediction": self.model.denoiser.prediction,
            "autoencoder_sha256": None if autoencoder is None else autoencoder.fingerprint,
            **self._sampling,
        }

    @property
    def _sampling(self) -> dict[str, Any]:
        names = ("cfg", "solver", "steps", "precision")
        return {name: getattr(self, name) for name in names}

    def directory(self, out: Path, kind: str, key: Any) -> Path:
        """Directory below ``out`` of what this generation and ``key``, plain data, decide."""
        digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:8]
        path = out / f"{kind}_{self.model.name}_{digest}"
        path.mkdir(parents=True, exist_ok=True)
        return path

    @property
    def image_size(self) -> int:
        """Height and width of the images in pixels."""
        factor = 1 if self.autoencoder is None else self.autoencoder.factor
        return self.model.image_shape[-1] * factor

    def cells(self, args: argparse.Namespace) -> list[Cell]:
        """Cells of a grid of settings, every one of them tried.

        Raises:
            ValueError: If one is outside its range.
        """
        cells = [Cell(*c) for c in product(args.filter, args.cutoff, args.s, args.b)]
        for cell in cells:
            set_skips(self.model, args, **cell._asdict())
        return cells

    def bar(self, cells: int, show: bool = True, **options: Any) -> tqdm:
        """Progress bar over all images of some cells, counted in network calls per image.

        Every process moves its own by its share of the images; the main one's is shown.
        """
        devices, count = self.devices, len(self.seeds)
        total = cells * devices.share(count) * self.calls
        scale = devices.count if devices.count > 1 else False
        show = show and devices.is_main
        return tqdm(total=total, unit="img step", unit_scale=scale, disable=not show, **options)

    @property
    def calls(self) -> int:
        """How often the solver calls the network for one image."""
        return count_calls(self.model.denoiser.schedule, self.solver, self.steps)

    def run(self, bar: tqdm) -> Tensor:
        """Generate the images: (images, channels, height, width) uint8, in every process."""
        denoiser = self.model.denoiser

        def some(indices: list[int]) -> Tensor:
            labels = None if self.labels is None else [self.labels[k] for k in indices]
            images = sample(
                denoiser if self.cfg == 1 else Guided(denoiser, self.cfg),
                self.model.image_shape,
                [self.seeds[k] for k in indices],
                labels,
                solver=self.solver,
                steps=self.steps,
                precision=self.precision,
                batch_size=self.batch_size,
                device=self.devices.device,
                bar=bar,
            )
            if self.autoencoder is not None:
                images = self.autoencoder.decode(images)
            return to_uint8(images)

        return self.devices.map(some, len(self.seeds))

    def parameters(self, args: argparse.Namespace) -> dict[str, Any]:
        """What an image of this generation carries, with the settings of the skips in force."""
        return {
            **describe(self.model, args),
            "vae": args.vae,
            "seeds": self.seeds,
            "labels": self.labels,
            "class_names": self.model.class_names,
            **self._sampling,
        }


def generate(
    model: Model,
    n: int = 16,
    *,
    seed: int = 0,
    classes: Sequence[str | int] | None = None,
    cfg: float = 1.0,
    solver: str = "dpmpp",
    steps: int = 25,
    precision: str = "32-true",
    batch_size: int = 64,
    progress: bool = True,
    preset: str | None = None,
    vae: str | None = None,
    **settings: Any,
) -> Tensor:
    """Generate images from Python, as sample.py does.

    Args:
        model: From ``load_model``.
        n: Number of images, at least 1.
        seed: Seed of the first; the next have the next ones, all below 2^32.
        classes: Names or numbers of classes, in turn; None for all.
        cfg: Guidance scale; 1 is no guidance.
        solver: One of ``uvit_lit.sampling.SOLVERS``.
        steps: Steps of the solver, 1 to 1000.
        precision: Of the network: 32-true, bf16-mixed or 16-mixed.
        batch_size: Images computed at once.
        progress: Whether to show a bar.
        vae: Directory or Hub name of the autoencoder of a latent model; None is the trained one.
        preset: One of ``uvit_lit.options.PRESETS``, from which ``settings`` may differ.
        **settings: skips, s, b, filter, cutoff, t_range and so on, as ``Model.set_skips`` takes
            them; what is not named is as trained.

    Returns:
        (n, channels, height, width) uint8.

    Raises:
        ValueError: If a value is outside its range or does not fit the model.
    """
    model.set_skips(preset, **settings)
    labels = choose_labels(model, classes, n)
    devices = Devices(next(model.denoiser.parameters()).device)
    seeds = list(range(seed, seed + n))
    autoencoder = find_autoencoder(model, vae, devices.device)
    generation = Generation(
        model, seeds, labels, cfg, solver, steps, batch_size, devices, autoencoder,
        precision,
    )  # fmt: skip
    with generation.bar(1, show=progress) as bar:
        return generation.run(bar)
