"""Change the level of detail of a photograph.

    uvit-lit edit photo.png --label cat --s 0.5 --b 1.3

The command finds the noise from which the model makes the image (DDIM inversion). From this noise
it reconstructs the image as trained, and generates it again with the new settings. The PNG shows
image, reconstruction, mask and result side by side; the command prints the errors.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from uvit_lit.cli.options import Parser, checked_input
from uvit_lit.cli.sample import stem_of
from uvit_lit.errors import InputError, require
from uvit_lit.files import free_stem, write, write_png
from uvit_lit.options import ModelOptions, SkipOptions

if TYPE_CHECKING:  # heavy: imported after the options are read
    from torch import Tensor

ZOOM_TO = 128
"""Images smaller than this are enlarged in the picture, by a whole factor."""


@dataclass(frozen=True)
class EditOptions:
    """The edit.

    Attributes:
        label: Class of the image, by name or number; by default none.
        mask: Image that is white where the photograph may change, at the resolution of the tokens.
        steps: Solver steps each way, 1 to 1000.
        t_min: Time, in (0, 1), at which the inversion starts, as if the image were that noisy.
        out: Directory for the picture and its parameters.
    """

    label: str | None = None
    mask: Path | None = None
    steps: int = 100
    t_min: float = 0.03
    out: Path = Path("samples")


def build_parser() -> Parser:
    """Options of the command."""
    parser = Parser("edit", __doc__, EditOptions, SkipOptions, ModelOptions)
    parser.add_argument("image", type=Path, help="the image; it is resized and centre-cropped")
    return parser


def read_image(path: Path, size: int) -> "Tensor":
    """An image as (1, 3, size, size) uint8.

    Raises:
        ValueError: If there is none, or it cannot be decoded.
    """
    import torch

    from uvit_lit.data.folder import try_decode

    if not path.exists():
        raise InputError(f"{path} does not exist")
    pixels, error = try_decode(path, size)
    if error:
        raise InputError(f"{path} is {error}")
    return torch.from_numpy(pixels.copy())[None]


def token_mask(path: Path, size: int, patch: int) -> "Tensor":
    """Mask (1, 1, size, size): 1 on tokens of which at least half is white, else 0.

    Raises:
        ValueError: If there is no such image, or it cannot be decoded.
    """
    from torch.nn.functional import avg_pool2d

    grey = read_image(path, size).float().mean(1, keepdim=True) / 255
    tokens = (avg_pool2d(grey, patch) >= 0.5).float()
    return tokens.repeat_interleave(patch, 2).repeat_interleave(patch, 3)


def psnr(one: "Tensor", other: "Tensor") -> float:
    """Peak signal-to-noise ratio of uint8 images, in dB."""
    from torchmetrics.functional.image import peak_signal_noise_ratio

    return float(peak_signal_noise_ratio(one.float(), other.float(), data_range=(0.0, 255.0)))


def main(arguments: list[str] | None = None) -> None:
    """Edit.

    Args:
        arguments: The command line; None takes that of the process.
    """
    parser = build_parser()
    edit, skips, options = parser.read(arguments)
    source = parser.values.image

    import torch

    from uvit_lit.distributed import choose_device
    from uvit_lit.generation import choose_labels, describe, find_autoencoder, open_model
    from uvit_lit.latents import check_latents
    from uvit_lit.progress import progress
    from uvit_lit.sampling import check_steps, invert, regenerate, to_uint8

    with checked_input(parser.values.debug):
        check_steps(edit.steps)
        require(0 < edit.t_min < 1, "t_min", edit.t_min, "between 0 and 1")
        device = choose_device(options.device)
        model = open_model(options, device)
        vae = find_autoencoder(model, options.vae, device)
        check_latents(vae, model.image_shape[0])
        factor = 1 if vae is None else vae.factor
        denoiser, size = model.denoiser, model.image_shape[-1] * factor
        labels = None if edit.label is None else choose_labels(model, [edit.label], 1)
        with model.skips(skips):  # validates the settings before the work begins
            parameters = {
                **describe(model, skips),
                **{**asdict(edit), "out": None, "mask": edit.mask and edit.mask.name},
                "image": source.name,
                "solver": "ddim",
            }
        image = read_image(source, size)
        mask = None
        if edit.mask is not None:
            mask = token_mask(edit.mask, size, model.arguments.get("patch_size", 1) * factor)
        stem = free_stem(edit.out, stem_of(model.name, skips, source.stem))

        def to_pixels(x: torch.Tensor) -> torch.Tensor:
            return to_uint8(x.cpu() if vae is None else vae.decode(x))

        x0 = image / 127.5 - 1 if vae is None else vae.encode(image)[:, 0]  # the mean
        x0 = x0.to(device)
        y = None if labels is None else torch.tensor(labels, device=device)
        with progress(total=3 * edit.steps, unit="step") as bar:
            path = invert(denoiser, x0, y, edit.steps, edit.t_min, bar)
            reconstruction = to_pixels(regenerate(denoiser, path, y, edit.t_min, bar))
            area = None if mask is None else mask[..., ::factor, ::factor].to(device)
            with model.skips(skips):
                result = to_pixels(regenerate(denoiser, path, y, edit.t_min, bar, area))
        if mask is not None and vae is not None:  # an autoencoder changes what it decodes
            result = torch.where(mask.bool(), result, image)

        errors = {"reconstruction_psnr_db": psnr(reconstruction, image)}
        difference = (result.float() - image.float()).abs()
        errors["mean_change_grey_levels"] = float(difference.mean())
        if mask is not None:
            outside = (difference * (1 - mask)).sum() / (3 * (1 - mask).sum()).clamp_min(1)
            errors["mean_change_outside_mask_grey_levels"] = float(outside)
        masks = [] if mask is None else [(mask * 255).byte().expand_as(image)]
        row = torch.cat([image, reconstruction, *masks, result])
        zoom = max(1, ZOOM_TO // size)
        row = row.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
        row = torch.nn.functional.pad(row, (2, 2, 2, 2), value=255)
        picture = stem.with_name(stem.name + ".png")
        parameters |= errors
        write_png(picture, row.permute(2, 0, 3, 1).flatten(1, 2).contiguous().numpy(), parameters)
        write(stem.with_name(stem.name + ".json"), json.dumps(parameters, indent=2).encode())
    for name, value in errors.items():
        print(f"{name}: {value:.2f}")
    print(picture)
