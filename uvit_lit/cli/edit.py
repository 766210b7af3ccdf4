"""Change the level of detail of a real image.

The image is followed back to the noise that makes it (DDIM inversion) and reconstructed from there,
both with the model as trained, and generated again at another s and b. With --mask, a picture that
is white where the image may change, the rest stays as it is; the mask is read on the grid of the
tokens. The PNG shows image, reconstruction, (mask) and result side by side; the errors are printed.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from uvit_lit.cli.options import Parser, add_model_options, add_skip_options, checked_input
from uvit_lit.errors import InputError
from uvit_lit.files import free_stem, write, write_png

if TYPE_CHECKING:  # heavy: imported after the arguments are parsed
    from torch import Tensor

ZOOM_TO = 128
"""Images smaller than this are enlarged in the picture, by a whole factor."""


def build_parser() -> argparse.ArgumentParser:
    """Options of edit.py."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path, help="the image; it is resized and centre-cropped")
    parser.add_argument("--label", help="its class, name or number (default: no class)")
    parser.add_argument("--mask", type=Path, help="image that is white where it may change")
    parser.add_argument("--steps", type=int, default=100, help="steps each way (default: 100)")
    parser.add_argument("--t_min", type=float, default=0.03, help="t in (0, 1) that the image is "
                        "taken to be at (default: 0.03)")  # fmt: skip
    add_skip_options(parser)
    add_model_options(parser)
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
    args = build_parser().parse_args(arguments)

    import torch
    from tqdm import tqdm

    from uvit_lit.distributed import choose_device
    from uvit_lit.generation import choose_labels, describe, find_autoencoder, set_skips, stem_of
    from uvit_lit.latents import check_latents
    from uvit_lit.model import load_model
    from uvit_lit.sampling import check_steps, invert, regenerate, to_uint8

    with checked_input():
        check_steps(args.steps)
        if not 0 < args.t_min < 1:
            raise InputError(f"t_min is {args.t_min}; accepted: between 0 and 1")
        device = choose_device(args.device)
        model = load_model(
            args.ckpt, device,
            img_size=args.img_size, num_heads=args.num_heads, schedule=args.schedule,
        )  # fmt: skip
        vae = find_autoencoder(model, args.vae, device)
        check_latents(vae, model.image_shape[0])
        factor = 1 if vae is None else vae.factor
        denoiser, size = model.denoiser, model.image_shape[-1] * factor
        labels = None if args.label is None else choose_labels(model, [args.label], 1)
        set_skips(model, args)  # tried before the work begins
        image = read_image(args.image, size)
        mask = None
        if args.mask is not None:
            mask = token_mask(args.mask, size, model.arguments.get("patch_size", 1) * factor)
        stem = free_stem(args.out, stem_of(model, args, args.image.stem))

    def to_pixels(x: torch.Tensor) -> torch.Tensor:
        return to_uint8(x.cpu() if vae is None else vae.decode(x))

    x0 = image / 127.5 - 1 if vae is None else vae.encode(image)[:, 0]  # the mean
    x0 = x0.to(device)
    y = None if labels is None else torch.tensor(labels, device=device)
    with checked_input(), tqdm(total=3 * args.steps, unit="step") as bar:
        denoiser.set_skips()
        path = invert(denoiser, x0, y, args.steps, args.t_min, bar)
        reconstruction = to_pixels(regenerate(denoiser, path, y, args.t_min, bar))
        set_skips(model, args)
        area = None if mask is None else mask[..., ::factor, ::factor].to(device)
        result = to_pixels(regenerate(denoiser, path, y, args.t_min, bar, area))
        if mask is not None and vae is not None:  # which does not keep what it decodes
            result = torch.where(mask.bool(), result, image)

    errors = {"reconstruction_psnr_db": psnr(reconstruction, image)}
    difference = (result.float() - image.float()).abs()
    errors["mean_change_grey_levels"] = float(difference.mean())
    if mask is not None:
        errors["mean_change_outside_mask_grey_levels"] = float(
            (difference * (1 - mask)).sum() / (3 * (1 - mask).sum()).clamp_min(1)
        )
    shown = [
        image,
        reconstruction,
        *([] if mask is None else [(mask * 255).byte().expand_as(image)]),
    ]
    row = torch.cat([*shown, result])
    zoom = max(1, ZOOM_TO // size)
    row = row.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    row = torch.nn.functional.pad(row, (2, 2, 2, 2), value=255)
    parameters = {**describe(model, args), "image": args.image.name, "label": args.label,
                  "solver": "ddim", "steps": args.steps, "t_min": args.t_min, **errors}  # fmt: skip
    with checked_input():
        picture = stem.with_name(stem.name + ".png")
        write_png(picture, row.permute(2, 0, 3, 1).flatten(1, 2).contiguous().numpy(), parameters)
        write(stem.with_name(stem.name + ".json"), json.dumps(parameters, indent=2).encode())
    for name, value in errors.items():
        print(f"{name}: {value:.2f}")
    print(picture)


if __name__ == "__main__":
    main()
