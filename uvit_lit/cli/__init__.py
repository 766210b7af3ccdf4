"""The commands: ``uvit-lit NAME``, each a module of this package with ``main``."""

import importlib
import sys

COMMANDS = {
    "train": "train or fine-tune a U-ViT",
    "sample": "generate images",
    "play": "turn the settings of the long skips on a page of this machine",
    "sweep": "draw a grid over the settings of the long skips",
    "evaluate": "measure samples against real images",
    "edit": "change the level of detail of a photograph",
    "export": "write weights for other programs, or share them",
    "compare": "tables and a figure of finished runs",
    "plot": "draw the filters",
}


def main() -> None:
    """Run the command that the first argument names."""
    name, arguments = (sys.argv[1:2] or ["--help"])[0], sys.argv[2:]
    if name in COMMANDS:
        sys.argv = [f"uvit-lit {name}", *arguments]
        importlib.import_module(f"uvit_lit.cli.{name}").main()
        return
    lines = [f"  {command:10}{summary}" for command, summary in COMMANDS.items()]
    usage = "\n".join(
        [
            "usage: uvit-lit COMMAND [options]",
            "",
            *lines,
            "",
            "uvit-lit COMMAND --help lists the options of a command.",
        ]
    )
    if name in ("-h", "--help"):
        print(usage)
        return
    print(f"error: no command {name!r}; accepted: {', '.join(COMMANDS)}", file=sys.stderr)
    sys.exit(2)
