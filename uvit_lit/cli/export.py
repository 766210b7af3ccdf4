"""Write the averaged weights of a checkpoint into a file for others.

A .safetensors file has the architecture, the filters, the schedule, the class names and the licence
inside, and every command takes it as --ckpt. A directory gets such a file and a model card beside
it, as on the Hub. A .pth file has the layout of the official U-ViT code, which loads it; it has no
place for filters. A .onnx file is the denoiser for other programs, with s, b and the cutoff of
every long skip as inputs. With --format web a directory gets a page that draws in a browser.
"""

import argparse
from pathlib import Path

from uvit_lit.cli.options import Parser, add_weights_options, checked_input
from uvit_lit.errors import InputError


def build_parser() -> argparse.ArgumentParser:
    """Options of this command."""
    parser = Parser(prog="uvit-lit export", description=__doc__)
    add = parser.add_argument
    add("out", help="file to write: .safetensors, .pth for the official layout, or .onnx; or a "
        "directory; or hf://user/name to share it on the Hugging Face Hub")  # fmt: skip
    add("--format", choices=("weights", "web"), default="weights", help="what a directory gets: "
        "weights (default) and their card, or a static page with the model")  # fmt: skip
    add("--ckpt", default="last", help="checkpoint; 'last' (default): the newest under runs/")
    add_weights_options(parser)
    add("--dtype", choices=("float32", "float16", "int8"), default="float32",
        help="of the tensors; float16 halves the file, and every command reads it; int8 is for "
        ".onnx and web alone")  # fmt: skip
    add("--onnxruntime_web", type=Path, help="the npm package onnxruntime-web for a page, a folder "
        "or .tgz (default: npm downloads it)")  # fmt: skip
    add("--data", choices=("cifar10", "cifar100"), help="what the data were, if the run read them "
        "from a folder: evaluate.py will compare with it")  # fmt: skip
    add("--skips", help="long skips that a single s or b acts on when nobody says which: all, "
        "inner, outer or numbers with commas, 0 the outermost (default: as the model)")  # fmt: skip
    add("--licence", help="licence of the weights, such as cc-by-4.0")
    add("--results", type=Path, help="Markdown with measured figures for the model card, such as "
        "the results.md of evaluate.py")  # fmt: skip
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Export.

    Args:
        arguments: The command line; None takes that of the process.
    """
    args = build_parser().parse_args(arguments)

    import torch

    from uvit_lit.model import HUB, hub_errors, load_model
    from uvit_lit.onnx import export_onnx
    from uvit_lit.web import export_web
    from uvit_lit.weights import write_official, write_safetensors

    with checked_input():
        out = Path(args.out)
        suffixes = (".safetensors", ".pth", ".onnx", "")
        if not args.out.startswith(HUB) and out.suffix not in suffixes:
            raise InputError(
                f"out is {out}; accepted: a name with .safetensors, .pth or .onnx, a directory (no "
                f"suffix), or {HUB}user/name"
            )
        web = args.format == "web"
        if web and (out.suffix or args.out.startswith(HUB)):
            raise InputError(f"out is {args.out}; accepted with --format web: a directory")
        if args.dtype == "int8" and not web and out.suffix != ".onnx":
            raise InputError("dtype is int8; accepted here: float32, float16")
        if out.exists():
            raise InputError(f"{out} exists already")
        if args.results is not None and not args.results.is_file():
            raise InputError(f"results {args.results} is not a file")
        model = load_model(args.ckpt, num_heads=args.num_heads, schedule=args.schedule)
        model.licence = args.licence or model.licence
        model.data = {**model.data, **({"name": args.data} if args.data else {})}
        model.skips = model.skips if args.skips is None else args.skips
        model.choose_skips()
        if web:
            print(export_web(model, out, args.dtype, args.onnxruntime_web))
            return
        if out.suffix == ".onnx":
            export_onnx(model, out, args.dtype)
            print(out)
            return
        model.denoiser.to(getattr(torch, args.dtype))
        card = {"results": args.results.read_text() if args.results else ""}
        if args.out.startswith(HUB):
            with hub_errors(args.out):
                print(model.push_to_hub(args.out.removeprefix(HUB), model_card_kwargs=card))
        elif not out.suffix:
            model.save_pretrained(out, model_card_kwargs=card)
            print(out)
        else:
            write = write_official if out.suffix == ".pth" else write_safetensors
            write(model.weights, out)
            print(out)


if __name__ == "__main__":
    main()
