"""Generate images with a trained U-ViT at any level of detail.

s scales the low frequencies of the long skips, b amplifies the backbone features that meet them;
without --s and --b the model samples as it was trained. Image k has the seed SEED + k and is the
same picture whatever --n and --batch_size are. A list has commas: --s 0.9,0.7,0.5,0.5 gives one
value per long skip, from the outermost pair of blocks to the innermost.
"""

import argparse
import json
import math
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uvit_lit.cli import Parser, checked_input, comma_list, fail
from uvit_lit.files import replacing

if TYPE_CHECKING:  # heavy: imported after the arguments are parsed
    from torch import Tensor

    from uvit_lit.checkpoint import Model

GRID_IMAGE_SIZE = 64
"""Images smaller than this are enlarged in the grid, by a whole factor."""


def build_parser() -> argparse.ArgumentParser:
    """Options of sample.py."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    floats, names = comma_list(float), comma_list(str)
    add("--ckpt", default="last", help="checkpoint file; 'last' (default): the newest under runs/")
    add("--s", type=floats, help="skip scale, at least 0; 1 is no change (default: as trained)")
    add("--b", type=floats, help="backbone scale, at least 0; 1 is no change (default: as trained)")
    add("--b_channels", type=float, help="fraction of channels that b amplifies (default: all)")
    add("--filter", help="low-pass that s scales: step, butterworth, chebyshev, chebyshev2, "
        "freeu_box, or none (default: as trained, else step)")  # fmt: skip
    add("--cutoff", type=floats, help="end of the passband, fraction of Nyquist, up to sqrt(2)")
    add("--order", type=int, help="order of butterworth, chebyshev and chebyshev2, 1 to 12")
    add("--ripple", type=float, help="passband ripple of chebyshev in dB, 0.05 to 6")
    add("--attenuation", type=float, help="stopband attenuation of chebyshev2 in dB, 10 to 80")
    add("--t_range", type=floats, help="first,last t in [0, 1] at which s and b act; 1 is noise")
    add("--classes", type=names, help="class names or numbers, in turn (default: all)")
    add("--cfg", type=float, default=1.0, help="guidance scale; 1 (default): no guidance")
    add("--n", type=int, default=16, help="number of images (default: 16)")
    add("--seed", type=int, default=0, help="seed of the first image (default: 0)")
    add("--solver", default="dpmpp", help="ddpm, ddim, dpmpp (default), sde-dpmpp, unipc or heun")
    add("--steps", type=int, default=25, help="solver steps, 1 to 1000 (default: 25)")
    add("--batch_size", type=int, default=64, help="images computed at once (default: 64)")
    add("--device", default="auto", help="auto (default), cpu, cuda or mps")
    add("--out", type=Path, default=Path("samples"), help="directory (default: samples/)")
    add("--images", action="store_true", help="also write every image as a PNG file")
    add("--npz", action="store_true", help="also write all images into one npz file")
    return parser


def choose_device(name: str) -> Any:
    """Torch device by name; ``auto`` takes an accelerator where there is one."""
    import torch

    if name == "auto":
        name = next((n for n in ("cuda", "mps") if getattr(torch, n).is_available()), "cpu")
    if name not in ("cpu", "cuda", "mps") or (
        name != "cpu" and not getattr(torch, name).is_available()
    ):
        raise ValueError(f"device is {name!r}, accepted: auto, cpu, or cuda or mps where present")
    return torch.device(name)


def choose_labels(model: "Model", classes: list[str] | None, n: int) -> list[int] | None:
    """Label of each image: the chosen classes, by name or number, take turns."""
    known = model.class_names
    if not known:
        if classes:
            raise ValueError("this model has no classes; leave out --classes")
        return None
    labels = []
    for name in classes or known:
        if name in known:
            labels.append(known.index(name))
        elif name.isdecimal() and int(name) < len(known):
            labels.append(int(name))
        else:
            raise ValueError(f"no class {name!r}; accepted: {', '.join(known)}")
    return [labels[k % len(labels)] for k in range(n)]


def check_numbers(args: argparse.Namespace) -> None:
    """Refuse numbers that have no meaning."""
    for name, least in (("n", 1), ("seed", 0), ("batch_size", 1)):
        if getattr(args, name) < least:
            raise ValueError(f"{name} is {getattr(args, name)}; accepted: at least {least}")
    if args.seed + args.n > 2**63:
        raise ValueError(f"seed is {args.seed}; accepted: below 2^63, for every image")
    if not (math.isfinite(args.cfg) and args.cfg >= 0):
        raise ValueError(f"cfg is {args.cfg}; accepted: a number of at least 0")
    if args.t_range and len(args.t_range) != 2:
        raise ValueError(f"t_range has {len(args.t_range)} values; accepted: two, first and last")


def free_stem(args: argparse.Namespace, model: "Model") -> Path:
    """Path without a suffix that no output below --out has yet; makes the directory."""
    path = model.path.resolve()
    in_a_run = path.parent.name == "checkpoints" and len(path.parents) > 2
    parts = [path.parents[2].name if in_a_run else path.stem]
    for knob in ("s", "b"):
        if values := getattr(args, knob):
            parts.append(knob + "-".join(f"{value:g}" for value in values))
    stem = "_".join([*parts, f"seed{args.seed}"])
    args.out.mkdir(parents=True, exist_ok=True)
    existing = [path.name for path in args.out.iterdir()]

    def is_taken(name: str) -> bool:
        return any(file.startswith((f"{name}.", f"{name}_image")) for file in existing)

    candidates = (stem if k == 1 else f"{stem}-{k}" for k in count(1))
    return args.out / next(name for name in candidates if not is_taken(name))


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with replacing(path) as file:
        file.write(content)


def write_png(path: Path, pixels: "Tensor", parameters: dict[str, Any]) -> None:
    """Write (3, H, W) uint8 pixels as a PNG that carries its parameters as text."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("parameters", json.dumps(parameters))
    buffer = BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(buffer, "PNG", pnginfo=info)
    write(path, buffer.getvalue())


def save(args: argparse.Namespace, stem: Path, pixels: "Tensor", parameters: dict) -> Path:
    """Write the grid, its parameters, and on request the images; return the grid's path."""
    import numpy as np
    from torchvision.utils import make_grid

    zoom = max(1, GRID_IMAGE_SIZE // pixels.shape[-1])
    enlarged = pixels.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    classes = len(set(parameters["labels"] or [0]))
    columns = classes if classes > 1 and args.n % classes == 0 else math.ceil(math.sqrt(args.n))
    grid = stem.with_name(stem.name + ".png")
    write_png(grid, make_grid(enlarged, nrow=columns), parameters)
    write(stem.with_name(stem.name + ".json"), json.dumps(parameters, indent=2).encode())
    if args.images:
        for k, image in enumerate(pixels):
            seed, label = args.seed + k, (parameters["labels"] or [None] * args.n)[k]
            name = f"{stem.name}_image{seed}.png"
            write_png(stem.with_name(name), image, {**parameters, "seed": seed, "label": label})
    if args.npz:
        buffer = BytesIO()
        np.savez(buffer, images=pixels.permute(0, 2, 3, 1).numpy(),
                 labels=np.array(parameters["labels"] or []))  # fmt: skip
        write(stem.with_name(stem.name + ".npz"), buffer.getvalue())
    return grid


def main(arguments: list[str] | None = None) -> None:
    """Sample.

    Args:
        arguments: The command line; None takes that of the process.
    """
    args = build_parser().parse_args(arguments)

    import torch

    from uvit_lit.checkpoint import find_checkpoint, load_model
    from uvit_lit.denoiser import Guided
    from uvit_lit.sampler import check_solver, sample, to_uint8

    with checked_input():
        check_numbers(args)
        device = choose_device(args.device)
        model = load_model(find_checkpoint(args.ckpt), device)
        denoiser = model.denoiser
        denoiser.set_skips(
            s=args.s,
            b=args.b,
            filter=args.filter,
            cutoff=args.cutoff,
            order=args.order,
            ripple=args.ripple,
            attenuation=args.attenuation,
            b_channels=args.b_channels,
            t_range=tuple(args.t_range) if args.t_range else None,
        )
        labels = choose_labels(model, args.classes, args.n)
        if args.cfg != 1 and not model.can_guide:
            raise ValueError(
                f"cfg is {args.cfg:g}, but this model was trained without class dropout"
            )
        guided = denoiser if args.cfg == 1 else Guided(denoiser, args.cfg)
        check_solver(args.solver, args.steps)
        stem = free_stem(args, model)

    seeds = list(range(args.seed, args.seed + args.n))
    try:
        images = sample(
            guided,
            model.image_shape,
            seeds,
            labels,
            solver=args.solver,
            steps=args.steps,
            batch_size=args.batch_size,
            device=device,
        )
    except torch.OutOfMemoryError:
        fail(f"out of memory: choose a smaller --batch_size than {args.batch_size}", 1)
    parameters = {
        "ckpt": str(model.path),
        "training_steps": model.step,
        "long_skips": [vars(long_skip.settings) for long_skip in denoiser.backbone.long_skips],
        "t_range": args.t_range,
        "seeds": seeds,
        "labels": labels,
        "class_names": model.class_names,
        "cfg": args.cfg,
        "solver": args.solver,
        "steps": args.steps,
    }
    with checked_input():
        print(save(args, stem, to_uint8(images), parameters))


if __name__ == "__main__":
    main()
