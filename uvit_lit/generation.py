"""A trained model and how its images are drawn: ``generate``, and what the commands share."""

import hashlib
import json
import math
from collections.abc import Container, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from uvit_lit.classes import find_class
from uvit_lit.distributed import Devices, choose_device, count_devices
from uvit_lit.errors import InputError
from uvit_lit.files import file_hash, png
from uvit_lit.guidance import Guided
from uvit_lit.imports import source_hash
from uvit_lit.latents import Autoencoder, check_latents, load_autoencoder
from uvit_lit.model import Model, load_model
from uvit_lit.options import (
    Cell,
    ModelOptions,
    SamplingOptions,
    SkipOptions,
    check_seeds,
    split_options,
)
from uvit_lit.progress import progress
from uvit_lit.sampling import (
    autocast,
    call_times_of,
    check_steps,
    count_calls,
    find_solver,
    sample,
    to_uint8,
)
from uvit_lit.settings import Window

LABELS = 1
"""Sets the random numbers of the labels apart from others of the same seed."""


PICTURE_SIZE = 64
"""Images smaller than this are enlarged in a picture, by a whole factor."""


class Images(Tensor):
    """Images that a notebook shows: a tensor whose operations give plain tensors.

    (images, 3, height, width) uint8.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def _repr_png_(self) -> bytes:
        """The images side by side, at most 64 of them."""
        return png(picture(self.as_subclass(Tensor)[:64]))


def picture(
    pixels: Tensor, labels: Sequence[int] | None = None, columns: int | None = None
) -> np.ndarray:
    """Images side by side.

    Args:
        pixels: (images, 3, H, W) uint8.
        labels: Label of each image.
        columns: Images in a row; by default one column a class where that fills the rows.

    Returns:
        (height, width, 3) uint8.
    """
    from torchvision.utils import make_grid

    zoom = max(1, PICTURE_SIZE // pixels.shape[-1])
    enlarged = pixels.cpu().repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    classes = len(set(labels or [0]))
    fills = classes > 1 and len(pixels) % classes == 0
    columns = columns or (classes if fills else math.ceil(math.sqrt(len(pixels))))
    return make_grid(enlarged, nrow=columns).permute(1, 2, 0).numpy()


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


def open_model(options: ModelOptions, device: torch.device | str = "cpu") -> Model:
    """The model of some options.

    Raises:
        ValueError: As ``load_model``.
    """
    of_file = {name: getattr(options, name) for name in ("img_size", "num_heads", "schedule")}
    return load_model(options.ckpt, device, **of_file)


@dataclass
class Generation:
    """A model with everything that decides its images but the settings of the long skips.

    Attributes:
        model: The trained model.
        options: How many images, from which seed, by which solver.
        labels: Label of each image; None for a model without classes.
        devices: The processes that share the images.
        autoencoder: Decodes the latents of a latent model.
        guide: The weaker model of autoguidance.

    Raises:
        ValueError: If an option is outside its range, or the model cannot do it.
    """

    model: Model
    options: SamplingOptions
    labels: list[int] | None
    devices: Devices
    autoencoder: Autoencoder | None = None
    guide: Model | None = None

    def __post_init__(self) -> None:
        """Validate the options."""
        options = self.options
        find_solver(options.solver)
        check_steps(options.steps)
        check_latents(self.autoencoder, self.model.image_shape[0])
        autocast(self.devices.device, options.precision)  # refuses an unknown one
        if options.guide is None and options.cfg != 1 and not self.model.can_guide:
            raise InputError(
                f"cfg is {options.cfg}, but this model was trained without class dropout"
            )
        self.guided = Guided(
            self.model.denoiser,
            options.cfg,
            None if self.guide is None else self.guide.denoiser,
            cutoff=options.cfg_cutoff,
            rescale=options.cfg_rescale,
            t_range=options.cfg_range,
        )
        if options.cfg_range != (0.0, 1.0):
            self._check_window("cfg_range", options.cfg_range)

    @classmethod
    def load(
        cls, model_options: ModelOptions, options: SamplingOptions, drawn_labels: bool = False
    ) -> "Generation":
        """Load a model with what it needs to sample.

        Args:
            model_options: Which model, on which devices.
            options: What to draw.
            drawn_labels: Whether labels are drawn at random; else they cycle through the classes.

        Raises:
            ValueError: If an option is outside its range or does not fit the model.
        """
        device = choose_device(model_options.device)
        devices = Devices(device, count_devices(device, model_options.devices))
        model = open_model(model_options)
        autoencoder = find_autoencoder(model, model_options.vae)
        if drawn_labels:
            seeds = range(options.seed, options.seed + options.n)
            labels = draw_labels(model, options.classes, seeds)
        else:
            labels = choose_labels(model, options.classes, options.n)
        guide = None if options.guide is None else load_model(options.guide)
        return cls(model, options, labels, devices, autoencoder, guide)

    def resolve(
        self, skips: SkipOptions, keep: Container[str] = ()
    ) -> tuple["Generation", SkipOptions]:
        """The generation and the settings with what ``Model.resolve`` puts in the place of best."""
        skips, options = self.model.resolve(skips, self.options, keep)
        return replace(self, options=options), skips

    def launch(self) -> None:
        """Start all devices; call after the options are validated.

        Raises:
            ValueError: If the processes have read different files, as ``last`` may change.
        """
        self.devices.launch()
        self.guided.to(self.devices.device)
        if self.autoencoder is not None:
            self.autoencoder.to(self.devices.device)
        if self.devices.count > 1:
            content = file_hash(self.model.path)
            if self.devices.decide(content) != content:
                raise InputError(f"{self.model.path} changed meanwhile; name a checkpoint")

    @property
    def sampling(self) -> dict[str, Any]:
        """The options that decide the images, which the batch size does not, as plain data."""
        return {name: v for name, v in asdict(self.options).items() if name != "batch_size"}

    def identity(self) -> dict[str, Any]:
        """Everything that decides the images but the settings of the long skips, as plain data.

        Two runs with the same identity draw the same images.
        """
        autoencoder = self.autoencoder
        return {
            "checkpoint_sha256": file_hash(self.model.path),
            "arguments": self.model.arguments,
            "schedule": self.model.schedule,
            "prediction": self.model.prediction,
            "guide_sha256": None if self.guide is None else file_hash(self.guide.path),
            "autoencoder_sha256": None if autoencoder is None else autoencoder.fingerprint,
            "sampling": self.sampling,
            "solver_sha256": source_hash(self.options.solver),
            "labels": self.labels,
        }

    def directory(self, out: Path, kind: str, key: Any) -> Path:
        """Directory below ``out`` for what this generation and ``key``, plain data, decide."""
        digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:8]
        path = out / f"{kind}_{self.model.name}_{digest}"
        path.mkdir(parents=True, exist_ok=True)
        return path

    @property
    def seeds(self) -> list[int]:
        """Seed of each image."""
        return list(range(self.options.seed, self.options.seed + self.options.n))

    @property
    def image_size(self) -> int:
        """Height and width of the images in pixels."""
        factor = 1 if self.autoencoder is None else self.autoencoder.factor
        return self.model.image_shape[-1] * factor

    @property
    def calls(self) -> int:
        """How often the solver calls the network for one image."""
        schedule = self.model.denoiser.schedule
        return count_calls(schedule, self.options.solver, self.options.steps)

    def check_skips(self, options: SkipOptions) -> None:
        """Refuse settings of the long skips that ``Model.skips`` does not take, or without effect.

        Raises:
            ValueError: If a setting is outside its range, or its window has no call of the solver.
        """
        if options.t_range is not None:
            self._check_window("t_range", options.t_range, options.t_fade)
        with self.model.skips(options):
            pass

    def over(
        self, cells: Sequence[Cell], skips: SkipOptions
    ) -> dict[Cell, tuple["Generation", SkipOptions]]:
        """This generation and some settings at each cell of a grid, all validated.

        Raises:
            ValueError: If a cell has a value that is not accepted.
        """
        each = {}
        for cell in cells:
            own = replace(self, options=cell.apply(self.options))
            at_cell, chosen = each[cell] = own.resolve(cell.apply(skips), keep=dict(cell.values))
            at_cell.check_skips(chosen)
        return each

    def _check_window(self, name: str, t_range: tuple[float, float], fade: float = 0.0) -> None:
        """Refuse a window in which the solver does not call the network."""
        options, schedule = self.options, self.model.denoiser.schedule
        times = call_times_of(schedule, options.solver, options.steps)
        if times is not None and not Window(*t_range, fade).strength(times).any():
            raise InputError(
                f"{name} is {t_range[0]:g},{t_range[1]:g}, where {options.solver} with "
                f"{options.steps} steps calls the network at no time; accepted: a window with one "
                f"of {', '.join(f'{t:.3f}' for t in times[:3].tolist())}, ..., {times[-1]:.3f}"
            )

    def bar(self, calls: int | None = None, show: bool = True, **options: Any) -> tqdm:
        """Progress bar over all images, counted in network calls per image.

        Every process moves its own by its share of the images; the main one's is shown, on a
        terminal.

        Args:
            calls: Network calls for each image; None takes those of one run of the solver.
            show: Whether the main process shows it.
            **options: Of the bar.
        """
        devices = self.devices
        total = devices.share(self.options.n) * (self.calls if calls is None else calls)
        scale = devices.count if devices.count > 1 else False
        show = show and devices.is_main
        return progress(total=total, unit="img step", unit_scale=scale, show=show, **options)

    def stream(self, bar: tqdm, first: int = 0) -> Iterator[Tensor]:
        """Generate the images from number ``first`` on, a batch of all devices at a time.

        Yields:
            (images, channels, height, width) uint8, in every process.
        """
        size = self.options.batch_size * self.devices.count
        for start in range(first, self.options.n, size):
            yield self._draw(list(range(start, min(start + size, self.options.n))), bar)

    def run(self, bar: tqdm) -> Tensor:
        """Generate the images: (images, channels, height, width) uint8, in every process."""
        return torch.cat(list(self.stream(bar)))

    def _draw(self, numbers: list[int], bar: tqdm) -> Tensor:
        """Images of some numbers."""
        options = self.options

        def some(indices: list[int]) -> Tensor:
            chosen = [numbers[k] for k in indices]
            images = sample(
                self.guided,
                self.model.image_shape,
                [options.seed + k for k in chosen],
                None if self.labels is None else [self.labels[k] for k in chosen],
                solver=options.solver,
                steps=options.steps,
                precision=options.precision,
                batch_size=options.batch_size,
                device=self.devices.device,
                bar=bar,
            )
            if self.autoencoder is not None:
                images = self.autoencoder.decode(images)
            return to_uint8(images)

        return self.devices.map(some, len(numbers))

    def parameters(self, skips: SkipOptions) -> dict[str, Any]:
        """Everything that a picture says about itself, as plain data.

        Args:
            skips: The options in force; ``acts_on`` and ``long_skips`` say where and how.
        """
        parameters = {
            **describe(self.model, skips),
            **self.sampling,
            "labels": self.labels,
            "class_names": self.model.class_names,
        }
        return json.loads(json.dumps(parameters))  # as they are read from a picture


def describe(model: Model, skips: SkipOptions) -> dict[str, Any]:
    """A model and the settings of its long skips in force, as plain data."""
    long_skips = model.denoiser.backbone.long_skips
    return {
        "ckpt": model.ckpt,
        "checkpoint_sha256": file_hash(model.path),
        "training_steps": model.step,
        "img_size": model.image_shape[-1],
        "num_heads": model.arguments.get("num_heads"),
        "schedule": model.schedule,
        "prediction": model.prediction,
        **asdict(skips),
        "acts_on": [number for number, skip in enumerate(long_skips) if skip.override],
        "long_skips": [vars(long_skip.settings) for long_skip in long_skips],
    }


def generate(
    model: Model, n: int = 16, *, progress: bool = True, vae: str | None = None, **options: Any
) -> Images:
    """Generate images from Python, as the command ``sample`` does.

    Args:
        model: From ``load_model``. Its settings are afterwards as they were.
        n: Number of images, at least 1.
        progress: Whether to show a bar on a terminal.
        vae: Directory or Hub name of the autoencoder of a latent model; None is the trained one.
        **options: Fields of ``SamplingOptions`` (seed, classes, cfg, solver, steps, ...) and of
            ``SkipOptions`` (s, b, filter, cutoff, skips, preset, ...). Without any of the latter
            the settings of the model in force act: as trained, or those of ``Model.skips``.

    Returns:
        (n, channels, height, width) uint8, a tensor that a notebook shows as a picture.

    Raises:
        ValueError: If a value is outside its range or does not fit the model.
        TypeError: If there is no such option.
    """
    sampling, skips = split_options({"n": n, **options}, SamplingOptions, SkipOptions)
    skips, sampling = model.resolve(skips, sampling)
    devices = Devices(next(model.denoiser.parameters()).device)
    labels = choose_labels(model, sampling.classes, n)
    autoencoder = find_autoencoder(model, vae, devices.device)
    guide = None if sampling.guide is None else load_model(sampling.guide, devices.device)
    generation = Generation(model, sampling, labels, devices, autoencoder, guide)
    given = options.keys() & {field.name for field in fields(SkipOptions)}
    if given:
        generation.check_skips(skips)
    with model.skips(skips) if given else nullcontext(), generation.bar(show=progress) as bar:
        return generation.run(bar).as_subclass(Images)
