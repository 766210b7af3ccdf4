"""What the commands share: one clear line for a mistake, lists with commas, options."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from uvit_lit.errors import InputError
from uvit_lit.options import PRESETS


def fail(message: object, status: int) -> NoReturn:
    """Print one line on stderr and leave: status 2 for a mistake, 1 for a failed operation.

    Processes that share the work all find a mistake; the first one reports it.
    """
    line = " ".join(str(message).split())
    if status != 2 or os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"error: {line}", file=sys.stderr)
    sys.exit(status)


class Parser(argparse.ArgumentParser):
    """Argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Report a mistake on the command line."""
        fail(message, 2)


@contextmanager
def checked_input() -> Iterator[None]:
    """Turn what bad input raises into one line: values status 2, the machine's limits status 1."""
    try:
        yield
    except InputError as error:
        fail(error, 2)
    except OSError as error:
        fail(error, 1)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch is not imported here
            raise
        fail("out of memory: choose a smaller batch size", 1)


def comma_list(convert: Callable) -> Callable[[str], list]:
    """Argparse type of a list with commas: ``comma_list(float)("1,0.5")`` is [1.0, 0.5]."""

    def parse(text: str) -> list:
        return [convert(item.strip()) for item in text.split(",")]

    parse.__name__ = f"comma-separated {convert.__name__}"
    return parse


def add_weights_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of what official weights do not say."""
    add = parser.add_argument
    add("--num_heads", type=int, help="heads, of official weights that are no published model's")
    add("--schedule", help="vp, linear, cosine or sd, of such weights (default: the published)")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of everything that runs a trained model with other skips."""
    add = parser.add_argument
    add("--ckpt", default="pretrained", help="checkpoint, .safetensors file, official .pth file or "
        "directory; 'last': the newest under runs/; 'pretrained' (default): the model of CIFAR-10 "
        "that comes with uvit_lit")  # fmt: skip
    add("--vae", help="autoencoder of a latent model: directory with a diffusers AutoencoderKL, or "
        "Hub name (default: the one it was trained with)")  # fmt: skip
    add("--img_size", type=int, help="another image size than the trained one (pixels, or latents)")
    add_weights_options(parser)
    add("--skips", help="long skips that s, b, the filter and so on act on: all, inner (the "
        "innermost one), outer (the outermost one), or numbers with commas, 0 the outermost "
        "(default: as the model's file says, else all; a list of values acts on all)")  # fmt: skip
    add("--order", type=int, help="order of butterworth, chebyshev and chebyshev2, 1 to 12")
    add("--ripple", type=float, help="passband ripple of chebyshev in dB, 0.05 to 6")
    add("--attenuation", type=float, help="stopband attenuation of chebyshev2 in dB, 10 to 80")
    add(
        "--b_channels",
        type=float,
        help="fraction of channels that b amplifies (default: as trained)",
    )
    add("--t_range", type=comma_list(float), help="first,last t in [0, 1] at which s and b act; "
        "1 is noise")  # fmt: skip
    add("--t_fade", type=float, default=0.0, help="width in t of a smooth edge of t_range "
        "(default: 0, a switch)")  # fmt: skip
    add("--device", default="auto", help="auto (default), cpu, cuda or mps")
    add("--out", type=Path, default=Path("samples"), help="directory (default: samples/)")


def add_skip_options(parser: argparse.ArgumentParser) -> None:
    """Add s, b, filter and cutoff of one setting, each with a value per long skip if wanted."""
    add, floats = parser.add_argument, comma_list(float)
    named = "; ".join(
        f"{name}: {', '.join(f'{key} {value}' for key, value in settings.items())}"
        for name, settings in PRESETS.items()
    )
    add("--preset", help=f"settings by name ({named}, cutoff one frequency); other options come "
        "before them")  # fmt: skip
    add("--s", type=floats, help="skip scale, at least 0; 1 is no change (default: as trained); a "
        "list is one value per long skip, outermost first, or per skip of --skips")  # fmt: skip
    add("--b", type=floats, help="backbone scale, at least 0; 1 is no change (default: as trained)")
    add("--filter", help="low-pass that s scales: step, butterworth, chebyshev, chebyshev2, "
        "freeu_box, or none (default: as trained, else step)")  # fmt: skip
    add("--cutoff", type=floats, help="edge of the filter, fraction of Nyquist, up to sqrt(2)")


def add_sampling_options(parser: argparse.ArgumentParser, n: int) -> None:
    """Add the options of everything that samples; ``n`` is the default number of images."""
    add_model_options(parser)
    add = parser.add_argument
    add("--classes", type=comma_list(str), help="class names or numbers (default: all); "
        "evaluate.py draws one for each image, the others cycle through them")  # fmt: skip
    add("--cfg", type=float, default=1.0, help="guidance scale; 1 (default): no guidance")
    add("--n", type=int, default=n, help=f"number of images (default: {n})")
    add("--seed", type=int, default=0, help="seed of the first image (default: 0)")
    add("--solver", default="dpmpp", help="ddpm, ddim, dpmpp (default), sde-dpmpp, unipc or heun")
    add("--steps", type=int, default=25, help="solver steps, 1 to 1000 (default: 25)")
    add("--precision", default="32-true", help="32-true (default), bf16-mixed or 16-mixed: faster "
        "where the device has such products")  # fmt: skip
    add("--batch_size", type=int, default=64, help="images computed at once (default: 64)")
    add("--devices", type=int, help="processes that share the images, each with a device "
        "(default: 1, or what torchrun started)")  # fmt: skip


def scale(text: str) -> float | None:
    """A number, or None for ``trained``."""
    return None if text == "trained" else float(text)


def add_cell_options(parser: argparse.ArgumentParser, s: str, b: str) -> None:
    """Add the options of a grid over the settings of the skips.

    Args:
        parser: Where to add them.
        s: Skip scales by default, as on the command line.
        b: Backbone scales likewise.
    """
    add, floats = parser.add_argument, comma_list(float)
    for name, default, what in (("--s", s, "skip scales"), ("--b", b, "backbone scales")):
        add(name, type=comma_list(scale), default=default,
            help=f"{what}, or trained (default: {default})")  # fmt: skip
    add("--filter", type=comma_list(str), default=[None], help="low-passes (default: as trained, "
        "else step)")  # fmt: skip
    add("--cutoff", type=floats, default=[None], help="cutoffs (default: as trained)")
