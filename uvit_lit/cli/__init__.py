"""The commands: ``uvit-lit NAME``, each a module of this package with ``main``."""

import importlib
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

COMMANDS = {
    "train": "train or fine-tune a U-ViT",
    "sample": "generate images",
    "play": "set the level of detail with sliders, on a page of this machine",
    "sweep": "draw a grid over the settings of the long skips",
    "evaluate": "measure samples against real images",
    "edit": "change the level of detail of a photograph",
    "export": "write weights for other programs, or share them",
    "compare": "compare finished training runs",
    "plot": "draw the filters",
}


class Terminated(KeyboardInterrupt):
    """SIGTERM: the command ends as it does with Ctrl-C, but for the word and the status."""


def _stop(number: int, _: Any) -> None:
    """Raise the exception of a signal; a second signal ends the process at once."""
    signal.signal(number, signal.SIG_DFL)
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


def _in_thread(failed: threading.ExceptHookArgs) -> None:
    """Leave an ``OSError`` of TensorBoard's thread to the main one, where it is raised again."""
    if not issubclass(failed.exc_type, OSError):
        threading.__excepthook__(failed)


@contextmanager
def orderly() -> Iterator[None]:
    """End with one line on Ctrl-C and SIGTERM, and with the statuses of a shell for them."""
    signals = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) != signal.SIG_IGN]
    threading.excepthook = _in_thread
    try:
        for number in signals:
            signal.signal(number, _stop)
        yield
    except Terminated:
        print("error: terminated", file=sys.stderr)
        sys.exit(143)
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)
    finally:  # the work is done, or given up
        for number in signals:
            signal.signal(number, signal.SIG_DFL)


def main(name: str | None = None) -> None:
    """Run a command.

    Args:
        name: Of the command; None takes the first argument of the process.
    """
    with orderly():
        if name is None:
            name, arguments = (sys.argv[1:2] or ["--help"])[0], sys.argv[2:]
            if name not in COMMANDS:
                _help(name)
                return
            sys.argv = [f"uvit-lit {name}", *arguments]
        if name == "train" and not {"-h", "--help"}.isdisjoint(sys.argv):
            from uvit_lit.cli.config import train_help

            print(train_help())
            return
        importlib.import_module(f"uvit_lit.cli.{name}").main()


def _help(name: str) -> None:
    """Show the commands, where the name is none of them."""
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
