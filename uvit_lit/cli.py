"""What the commands share: one clear line for a mistake, lists with commas."""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn


def fail(message: object, status: int) -> NoReturn:
    """Print one line on stderr and leave: status 2 for a mistake, 1 for a failed operation."""
    line = " ".join(str(message).split())
    print(f"error: {line}", file=sys.stderr)
    sys.exit(status)


class Parser(argparse.ArgumentParser):
    """Argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Report a mistake on the command line."""
        fail(message, 2)


@contextmanager
def checked_input() -> Iterator[None]:
    """Turn what bad input raises into one line: values status 2, files and network status 1."""
    try:
        yield
    except ValueError as error:
        fail(error, 2)
    except OSError as error:
        fail(error, 1)


def comma_list(convert: Callable) -> Callable[[str], list]:
    """Argparse type of a list with commas: ``comma_list(float)("1,0.5")`` is [1.0, 0.5]."""

    def parse(text: str) -> list:
        return [convert(item.strip()) for item in text.split(",")]

    parse.__name__ = f"comma-separated {convert.__name__}"
    return parse
