"""The settings of a picture: as Python, and read from the picture itself."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from uvit_lit.cli.options import Parser
from uvit_lit.errors import InputError
from uvit_lit.files import read_png
from uvit_lit.options import ModelOptions, SamplingOptions, SkipOptions


def python_code(model: ModelOptions, skips: SkipOptions, sampling: SamplingOptions) -> str:
    """Python that draws the same images."""
    groups: dict[str, list[str]] = {"load": [], "generate": []}
    for name, given in (("load", model), ("generate", skips), ("generate", sampling)):
        for field in fields(given):
            value = getattr(given, field.name)
            if value != field.default and field.name not in ("ckpt", "n", "vae", "devices"):
                groups[name].append(f"{field.name}={value!r}")
    if model.ckpt != ModelOptions.ckpt:
        groups["load"].insert(0, repr(model.ckpt))
    if model.vae is not None:
        groups["generate"].append(f"vae={model.vae!r}")
    drawn = ", ".join(["model", str(sampling.n), *groups["generate"]])
    return (
        "from uvit_lit import generate, load_model\n\n"
        f"model = load_model({', '.join(groups['load'])})\n"
        f"images = generate({drawn})\n"
    )


def read_parameters(path: Path) -> tuple[SkipOptions, SamplingOptions, dict[str, Any]]:
    """The options that a picture carries, and everything else that it says.

    Raises:
        ValueError: If it carries none, or a value is not of its kind.
    """
    found = read_png(path)
    if found is None or not isinstance(found[1], dict):
        raise InputError(
            "this picture carries no settings; accepted: a PNG written by uvit-lit sample, sweep, "
            "edit or this page"
        )
    parser = Parser("play", None, SkipOptions, SamplingOptions, n=8)
    options = []
    for group in parser.dataclasses:
        own = {f.name: found[1][f.name] for f in fields(group) if f.name in found[1]}
        try:
            values = parser.parse_object(own)
        except Exception as error:  # of argparse or jsonargparse, which have several
            reason = " ".join(str(error).split())[:80]
            raise InputError(f"a setting of this picture is not accepted: {reason}") from None
        options.append(group(**{field.name: values[field.name] for field in fields(group)}))
    return options[0], options[1], found[1]
