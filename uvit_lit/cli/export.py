"""Write a model for other programs, or share it.

    uvit-lit export model.safetensors --ckpt last

A .safetensors file stores the complete model: weights, architecture, filters, schedule, classes. A
directory, or hf://user/name on the Hugging Face Hub, gets such a file and a model card. A .pth file
has the layout of the official U-ViT code, which loads it; it cannot store filters. A .onnx file is
the denoiser for other programs, with s, b and the cutoff of every long skip as inputs. With
--format web a directory gets a page that runs the model in a browser.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from uvit_lit.cli.options import Parser, checked_input
from uvit_lit.errors import InputError
from uvit_lit.options import Schedule


@dataclass(frozen=True)
class ExportOptions:
    """The file.

    Attributes:
        ckpt: Checkpoint; last is the newest below runs/.
        num_heads: Attention heads; needed for official weights of an unpublished width.
        schedule: Noise schedule of such weights; by default the published one.
        dtype: Type of the tensors; float16 halves the file, and every command reads it. int8 is
            only for .onnx and web.
        format: Content of a directory: weights with their card, or a static page with the model.
        onnxruntime_web: For web: directory or .tgz of the npm package onnxruntime-web; by default
            npm downloads it.
        data: Name of the data set, if the run read it from a folder; evaluate compares with it.
        skips: Long skips that a single s or b acts on: all, inner, outer, split or numbers, 0
            the outermost; by default those of the model.
        licence: Licence of the weights, such as cc-by-4.0.
        results: Markdown with measured figures for the model card, such as the results.md of
            evaluate.
    """

    ckpt: str = "last"
    num_heads: int | None = None
    schedule: Schedule | None = None
    dtype: Literal["float32", "float16", "int8"] = "float32"
    format: Literal["weights", "web"] = "weights"
    onnxruntime_web: Path | None = None
    data: Literal["cifar10", "cifar100"] | None = None
    skips: str | None = None
    licence: str | None = None
    results: Path | None = None


def build_parser() -> Parser:
    """Options of the command."""
    parser = Parser("export", __doc__, ExportOptions)
    parser.add_argument(
        "out",
        type=str,
        help="file to write, .safetensors, .pth or .onnx; a directory; or hf://user/name",
    )
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Export.

    Args:
        arguments: The command line; None takes that of the process.
    """
    parser = build_parser()
    (args,) = parser.read(arguments)
    target = parser.values.out

    import torch

    from uvit_lit.files import replacing_path
    from uvit_lit.model import HUB, hub_errors, load_model
    from uvit_lit.onnx import export_onnx
    from uvit_lit.web import export_web
    from uvit_lit.weights import write_official, write_safetensors

    with checked_input(parser.values.debug):
        out = Path(target)
        suffixes = (".safetensors", ".pth", ".onnx", "")
        if not target.startswith(HUB) and out.suffix not in suffixes:
            raise InputError(
                f"out is {out}; accepted: a name with .safetensors, .pth or .onnx, a directory (no "
                f"suffix), or {HUB}user/name"
            )
        web = args.format == "web"
        if web and (out.suffix or target.startswith(HUB)):
            raise InputError(f"out is {target}; accepted with --format web: a directory")
        if args.dtype == "int8" and not web and out.suffix != ".onnx":
            raise InputError("dtype is int8; accepted here: float32, float16")
        if out.exists():
            raise InputError(f"{out} exists already")
        results = ""
        if args.results is not None:
            if not args.results.is_file():
                raise InputError(f"results {args.results} is not a file")
            try:
                results = args.results.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                raise InputError(
                    f"results {args.results} is not in UTF-8; accepted: Markdown"
                ) from None
        model = load_model(args.ckpt, num_heads=args.num_heads, schedule=args.schedule)
        model.licence = args.licence or model.licence
        model.data = {**model.data, **({"name": args.data} if args.data else {})}
        model.default_skips = args.skips or model.default_skips
        model.choose_skips()
        if web:
            print(export_web(model, out, args.dtype, args.onnxruntime_web))
            return
        if out.suffix == ".onnx":
            export_onnx(model, out, args.dtype)
            print(out)
            return
        model.denoiser.to(getattr(torch, args.dtype))
        card = {"results": results}
        if target.startswith(HUB):
            with hub_errors(target):
                print(model.push_to_hub(target.removeprefix(HUB), model_card_kwargs=card))
        elif not out.suffix:
            with replacing_path(out) as partial:
                model.save_pretrained(partial, model_card_kwargs=card)
            print(out)
        else:
            write = write_official if out.suffix == ".pth" else write_safetensors
            write(model.weights, out)
            print(out)
