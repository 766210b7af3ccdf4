"""A trained model: from a path, from the package or from the Hub, and back."""

import re
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import (
    ModelCard,
    ModelHubMixin,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from uvit_lit.card import CARD, describe_weights, read_header
from uvit_lit.classes import class_names
from uvit_lit.diffusion import Denoiser
from uvit_lit.errors import InputError
from uvit_lit.options import BEST, SamplingOptions, SkipOptions, fill_in, split_options
from uvit_lit.reading import read_weights
from uvit_lit.settings import choose_b_skips, choose_skips, skips_in_words
from uvit_lit.skips import SkipModulation
from uvit_lit.svg import Curve, line_chart, shades
from uvit_lit.weights import (
    Card,
    Weights,
    check_tensors,
    published_schedule,
    resize_positions,
    write_safetensors,
)


def gain_chart(long_skips: Sequence[SkipModulation]) -> str:
    """Gain over frequency of long skips, the outermost first, as in force: an SVG element."""
    curves: dict[str, Curve] = {}
    for number, skip in enumerate(long_skips):
        chosen = skip.settings
        name = f"skip {number}: s {chosen.s:.3g}, b {chosen.b:.3g}"
        frequency, gain = skip.gain_curve(200)
        curves[name] = frequency.tolist(), gain.tolist()
    label = "frequency (fraction of the tokens' Nyquist)"
    highest = 1.05 * max(1.0, *(max(gains) for _, gains in curves.values()))
    return line_chart(curves, shades(len(curves)), label, "gain of the skip", 0.0, highest)


HUB = "hf://"
"""Prefix of a name on the Hugging Face Hub where a path is accepted: hf://user/name."""

PRETRAINED = "pretrained"
"""Name of the model that comes with the package where a path is accepted."""

HUB_FILE, OFFICIAL_FILE = "model.safetensors", "nnet_ema.pth"
"""Names of the weights in a directory of the Hub, and of the official code's training."""

PRETRAINED_FILE = Path(__file__).parent / "weights" / "cifar10_uvit_tiny" / HUB_FILE
"""The weights of that model; its card lies beside them."""


@dataclass(kw_only=True)
class Model(Card, ModelHubMixin, library_name="uvit_lit"):
    """A trained denoiser and what is known about it, the attributes of ``Card``.

    ``Model.from_pretrained("user/name")`` takes it from the Hugging Face Hub or a directory,
    ``save_pretrained`` and ``push_to_hub`` write it there as safetensors with a model card; with
    ``model_card_kwargs={"results": text}`` the card has measured figures too.

    Attributes:
        denoiser: In evaluation mode, with the averaged weights.
        path: The file that it came from.
    """

    denoiser: Denoiser
    path: Path

    def __post_init__(self) -> None:
        """Keep the mixin from writing a configuration: the safetensors file has it inside."""
        self._hub_mixin_config = None

    def choose_skips(self, skips: str | None = None) -> dict[str, list[int]]:
        """Numbers of the long skips that each of s, cutoff and b acts on.

        Args:
            skips: As ``uvit_lit.settings.choose_skips`` takes it; None is the default of the model.

        Raises:
            ValueError: If there is no such long skip, or one is named twice.
        """
        chosen = self.default_skips if skips is None else skips
        count = len(self.denoiser.backbone.long_skips)
        filtered = choose_skips(chosen, count)
        return {"s": filtered, "cutoff": filtered, "b": choose_b_skips(chosen, count)}

    def resolve(
        self, skips: SkipOptions, sampling: SamplingOptions, keep: Container[str] = ()
    ) -> tuple[SkipOptions, SamplingOptions]:
        """Put what the model card recommends in the place of the preset ``best``.

        Args:
            skips: Its settings come before those of the card, where they are not the default.
            sampling: The same.
            keep: Names of options that stay as they are.

        Raises:
            ValueError: If the card recommends nothing.
        """
        if skips.preset != BEST:
            return skips, sampling
        if not self.recommended:
            raise InputError(
                f"preset is {BEST}, but the card of {self.name} recommends nothing; accepted: "
                "another preset"
            )
        skips = replace(skips, preset=None)
        named_skips, named_sampling = split_options(self.recommended, SkipOptions, SamplingOptions)
        return fill_in(skips, named_skips, keep), fill_in(sampling, named_sampling, keep)

    def resolve_skips(self, options: SkipOptions) -> dict[str, Any]:
        """Arguments of ``Denoiser.skips`` for some options; ``skips`` is always among them.

        Raises:
            ValueError: If a preset is not known, or is best and nothing is recommended.
        """
        options, _ = self.resolve(options, SamplingOptions())
        settings = options.settings(self.denoiser.backbone.long_skips[-1].grid[0])
        lists = any(
            isinstance(value, list | tuple) and len(value) > 1
            for name, value in settings.items()
            if name not in ("t_range", "skips")
        )
        settings.setdefault("skips", "all" if lists else self.default_skips)
        return settings

    @contextmanager
    def skips(self, options: SkipOptions | None = None, **changes: Any) -> Iterator[None]:
        """Sample with other settings of the long skips inside a ``with`` block.

            with model.skips(s=0.5, b=1.3):
                images = generate(model)

        Args:
            options: What acts on the long skips; None is as trained. Where neither it nor its
                preset says which skips, a list of values acts on all of them, and a single value
                on ``default_skips``.
            **changes: Fields of ``SkipOptions`` that differ from ``options``.

        Raises:
            ValueError: If a value is outside its range or a list has the wrong length.
        """
        settings = self.resolve_skips(replace(options or SkipOptions(), **changes))
        with self.denoiser.skips(**settings):
            yield

    @property
    def name(self) -> str:
        """Name of the run that trained it, of the model on the Hub, or of the file."""
        path = self.path.absolute()
        if path.parent.name == "checkpoints" and len(path.parents) > 2:
            return path.parents[2].name
        if path.name not in (HUB_FILE, OFFICIAL_FILE):
            return path.stem
        cached = [part for part in path.parts if part.startswith("models--")]  # the Hub's cache
        return cached[-1].split("--")[-1] if cached else path.parent.stem

    @property
    def ckpt(self) -> str:
        """What ``--ckpt`` takes for it."""
        return PRETRAINED if self.path == PRETRAINED_FILE else str(self.path)

    @property
    def training(self) -> str:
        """How long it was trained, in words."""
        return "training steps unknown" if self.step is None else f"{self.step} training steps"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        backbone = self.denoiser.backbone
        return backbone.in_chans, backbone.img_size, backbone.img_size

    @property
    def weights(self) -> Weights:
        """What a file of this model holds; of paths of its data the last part alone."""
        tensors = {name: v.cpu() for name, v in self.denoiser.backbone.state_dict().items()}
        data = {name: self.data[name] for name in ("name", "autoencoder") if self.data.get(name)}
        if "autoencoder" in data and Path(data["autoencoder"]).exists():
            data["autoencoder"] = Path(data["autoencoder"]).name
        return Weights(tensors=tensors, **{**self.card(), "data": data})

    def _repr_html_(self) -> str:
        """Sizes, classes and filters, for a notebook."""
        count = sum(parameter.numel() for parameter in self.denoiser.parameters())
        channels, height, width = self.image_shape
        rows = {
            "Parameters": f"{count:,}",
            "Input": f"{channels} x {height} x {width}",
            "Classes": ", ".join(self.class_names[:20]) or "none",
            "Training": self.training,
            "Long skips": f"{len(self.denoiser.backbone.long_skips)}; a single s or b acts on "
            f"{skips_in_words(self.default_skips)}",
        }
        chart = gain_chart(self.denoiser.backbone.long_skips)
        cells = "".join(
            f"<tr><th style='text-align:left'>{name}</th>"
            f"<td style='text-align:left'>{escape(value)}</td></tr>"
            for name, value in rows.items()
        )
        return (
            f"<div><b>{escape(self.name)}</b><table>{cells}</table>"
            f"<div style='max-width:420px'>{chart}</div></div>"
        )

    def _save_pretrained(self, save_directory: Path) -> None:
        write_safetensors(self.weights, save_directory / HUB_FILE)

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, device: torch.device | str = "cpu", **options: Any
    ) -> "Model":
        if Path(model_id).is_dir():
            return load_model(Path(model_id) / HUB_FILE, device)
        names = ("revision", "cache_dir", "force_download", "local_files_only", "token")
        chosen = {name: options[name] for name in names if name in options}
        return load_model(hf_hub_download(model_id, HUB_FILE, **chosen), device)

    def generate_model_card(self, results: str = "", **_: Any) -> ModelCard:
        """Model card: what the weights are, how to use them, and results as Markdown."""
        skips = [long_skip.settings for long_skip in self.denoiser.backbone.long_skips]
        return ModelCard(describe_weights(self.weights, skips, results))


@contextmanager
def hub_errors(name: str) -> Iterator[None]:
    """Raise an ``OSError`` for whatever the network or the Hub refuses."""
    try:
        yield
    except Exception as error:  # the network library beneath differs between versions
        reason = " ".join(str(error).split())
        raise OSError(f"{name}: {reason or type(error).__name__}") from None


PATIENCE = 10
"""Seconds that the Hub has to answer."""


def _download(path: str) -> Path:
    """The weights of ``hf://user/name``: those of the Hub now, or, without it, those of last time.

    ``hf://user/name@revision`` is one commit, branch or tag; a commit is the same for ever.

    Raises:
        ValueError: If it is no such name.
        OSError: If they cannot be downloaded.
    """
    name, *given = path.removeprefix(HUB).split("@", 1)
    revision = given[0] if given else None
    try:
        validate_repo_id(name)
        is_name = name.count("/") == 1 and revision != ""
    except HFValidationError:
        is_name = False
    if not is_name:
        raise InputError(
            f"{path} is no model of the Hugging Face Hub; accepted: {HUB}user/name, "
            f"or {HUB}user/name@revision"
        )
    with hub_errors(path):
        try:  # a single time, where the download itself tries for half a minute
            get_hf_file_metadata(hf_hub_url(name, HUB_FILE, revision=revision), timeout=PATIENCE)
        except Exception:
            if isinstance(stored := try_to_load_from_cache(name, HUB_FILE, revision=revision), str):
                return Path(stored)
            raise
        return Path(hf_hub_download(name, HUB_FILE, revision=revision))


def find_checkpoint(path: str, runs: Path = Path("runs")) -> Path:
    """Resolve what a user types for a checkpoint.

    Args:
        path: ``pretrained`` for the model that comes with the package, ``last`` for the newest
            checkpoint below ``runs``, a file, a directory with ``model.safetensors`` or
            ``nnet_ema.pth``, or ``hf://user/name`` on the Hugging Face Hub.
        runs: Directory of the training runs.

    Returns:
        Path of an existing file.

    Raises:
        ValueError: If there is no such file, or no checkpoint yet.
        OSError: If it cannot be downloaded.
    """
    if path.startswith(HUB):
        return _download(path)
    if path == PRETRAINED:
        return PRETRAINED_FILE
    if path != "last":
        given = [Path(path)]
        if given[0].is_dir():
            given = [given[0] / name for name in (HUB_FILE, OFFICIAL_FILE)]
        found = [file for file in given if file.is_file()]
        if not found:
            lacks = f"has no {HUB_FILE} or {OFFICIAL_FILE}" if given[1:] else "does not exist"
            if not given[1:] and given[0].exists():
                lacks = "is no file"
            raise InputError(f"checkpoint {path} {lacks}; accepted: a file, pretrained or last")
        return found[0]
    found = sorted(runs.glob("*/version_*/checkpoints/*.ckpt"), key=lambda p: p.stat().st_mtime)
    if not found:
        raise InputError(f"no checkpoint below {runs}/: train a model first, or name a file")
    return found[-1]


def load_model(
    path: Path | str = PRETRAINED,
    device: torch.device | str = "cpu",
    *,
    img_size: int | None = None,
    num_heads: int | None = None,
    schedule: str | None = None,
) -> Model:
    """Build the denoiser of a file of weights.

    Args:
        path: What ``find_checkpoint`` takes: by default the model that comes with the package; a
            checkpoint of train.py, a safetensors file, an official U-ViT state dict or training
            directory; hf://user/name; or ``last`` for the newest checkpoint below runs/.
        device: Where to put the weights.
        img_size: Another image size than the trained one; the positions are interpolated.
        num_heads: Attention heads of official weights that are no published model's.
        schedule: Noise schedule of such weights; by default that of the published model.

    Returns:
        The model, with the averaged weights, as trained; ``Model.skips`` overrides s and b.

    Raises:
        ValueError: If the file is damaged, holds code, or its tensors do not fit.
    """
    path = find_checkpoint(str(path))
    weights = read_weights(path)
    if path.name in (HUB_FILE, OFFICIAL_FILE):  # a directory, whose card can be edited
        read_header(path.with_name(CARD), weights)
    complete(weights, path, num_heads, schedule)
    check_tensors(weights, path)
    if img_size is not None:
        resize_positions(weights, img_size)
    return build(weights, path, device)


def complete(
    weights: Weights, path: Path, num_heads: int | None = None, schedule: str | None = None
) -> None:
    """Fill in what the official layout does not say: heads, schedule, prediction, class names.

    All published models predict the noise.

    Args:
        weights: Changed in place.
        path: Where they are from.
        num_heads: Attention heads, where the file does not say.
        schedule: Noise schedule, where the file does not say.

    Raises:
        ValueError: If something stays unknown, or the file says otherwise.
    """
    arguments = weights.arguments
    dim, heads = (arguments.get(name) for name in ("embed_dim", "num_heads"))  # None of a U-Net
    for name, given, said in (
        ("num_heads", num_heads, None if weights.schedule is None else heads),
        ("schedule", schedule, weights.schedule),
    ):
        if given is not None and said not in (None, given):
            raise InputError(f"{name} is {given}, but {path} has {said}")
    if weights.schedule is None:  # the official layout
        arguments["num_heads"] = num_heads or heads
    if weights.backbone == "uvit" and arguments["num_heads"] is None:
        raise InputError(
            f"{path} does not say its number of heads, and no published model has {dim} channels: "
            "give --num_heads"
        )
    weights.schedule = weights.schedule or schedule or published_schedule(arguments["embed_dim"])
    weights.prediction = weights.prediction or "eps"
    count, names = arguments["num_classes"], weights.class_names
    is_imagenet = len(names) == 1000 and all(re.fullmatch(r"n\d{8}", name) for name in names)
    if is_imagenet or not names:  # ImageNet's folders are in the order of its classes
        weights.class_names = class_names(count)
    elif count and len(names) != count:
        raise InputError(f"{path} has {count} classes and {len(names)} names")


def build(weights: Weights, path: Path, device: torch.device | str = "cpu") -> Model:
    """Build the model of complete weights.

    Raises:
        ValueError: If an argument or a tensor does not fit.
    """
    assert weights.schedule is not None
    assert weights.prediction is not None
    denoiser = Denoiser(weights.build(), weights.schedule, weights.prediction)
    denoiser.backbone.load_state_dict(weights.tensors)
    model = Model(denoiser=denoiser.eval().to(device), path=path, **weights.card())
    if weights.arguments["num_classes"] == 0:
        model.class_names, model.can_guide = [], False
    try:
        model.choose_skips()
    except ValueError as error:
        raise InputError(f"the default of {path} is refused: {error}") from None
    return model
