"""From a command line to dataclasses of options; one clear line for a mistake."""

import json
import os
import re
import shlex
import sys
import traceback
import types
import warnings
from argparse import SUPPRESS, Action, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from uvit_lit.errors import InputError, Note


def fail(message: object, status: int) -> NoReturn:
    """Print one line on stderr and leave: status 2 for a mistake, 1 for a failed operation.

    Processes that share the work all find a mistake; the first one reports it.
    """
    line = " ".join(str(message).split())
    if status != 2 or os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"error: {line}", file=sys.stderr)
    sys.exit(status)


@contextmanager
def checked_input(debug: bool = False, batch_size: str = "batch size") -> Iterator[None]:
    """Turn a mistake into one line and status 2, a failed operation into one and status 1.

    Args:
        debug: Whether to print the traceback of a mistake first.
        batch_size: What the user makes smaller where memory is lacking.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", Note)
            warnings.showwarning = _note(warnings.showwarning)
            yield
    except InputError as error:
        if debug:
            traceback.print_exc()
        fail(error, 2)
    except BrokenPipeError:  # the reader of the output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        fail(error, 1)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError" and "can't allocate memory" not in str(error):
            raise
        fail(f"out of memory: choose a smaller {batch_size}", 1)


def _note(show: Callable[..., None]) -> Callable[..., None]:
    """Show the package's own warnings as one line, others as before."""

    def show_note(message: Any, category: type[Warning], *rest: Any, **options: Any) -> None:
        if issubclass(category, Note):
            print(f"note: {message}", file=sys.stderr)
        else:
            show(message, category, *rest, **options)

    return show_note


class _Help(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Help without the types and defaults that say nothing to a user."""

    def _get_help_string(self, action: Action) -> str:
        text = action.help or ""
        shown = not any(action.default is value for value in (None, SUPPRESS, False))
        return f"{text} (default: {_typed(action.default)})" if shown else text

    def _format_action_invocation(self, action: Action) -> str:
        return ", ".join(
            self._with_metavar(action, option)
            for option in action.option_strings
            if not option.endswith("+")
        ) or str(action.metavar or action.dest)

    def _with_metavar(self, action: Action, option: str) -> str:
        return option if action.nargs == 0 or not action.metavar else f"{option} {action.metavar}"


def _typed(value: Any) -> str:
    """A value as it is typed on the command line."""
    if isinstance(value, list | tuple):
        return ",".join(_typed(item) for item in value)
    return "trained" if value is None else str(value).removesuffix(".0")


def command_line(command: str, *groups: Any) -> str:
    """The line that a shell takes for options: those that are not the default.

    Args:
        command: Name of the command.
        groups: Instances of dataclasses of options.

    Returns:
        A line that ``Parser.read`` reads back to the same options.
    """
    given = {
        field.name: value
        for group in groups
        for field in fields(group)
        if (value := getattr(group, field.name)) != _default(field)
    }
    words = ["uvit-lit", command]
    for name, value in given.items():
        is_flag = isinstance(value, bool)
        words += [f"--{name}={value}".lower()] if is_flag else [f"--{name}", _typed(value)]
    return shlex.join(words)


def _default(field: Field) -> Any:
    """Default of a field of a dataclass."""
    return field.default if field.default_factory is MISSING else field.default_factory()


def _members(hint: Any) -> list[Any]:
    """The types of a union but None, or the type itself."""
    if get_origin(hint) in (Union, types.UnionType):
        return [member for member in get_args(hint) if member is not type(None)]
    return [hint]


def _is_choice(hint: Any) -> bool:
    return get_origin(hint) is Literal


def _is_list(hint: Any) -> bool:
    return any(get_origin(member) in (list, tuple) for member in _members(hint))


def _accepted(hint: Any) -> str:
    """What a type accepts, in words."""
    words = {
        int: "a whole number",
        float: "a number",
        str: "text",
        Path: "a path",
        bool: "true or false",
    }
    members = _members(hint)
    if len(members) > 1 and all(get_origin(member) is not list for member in members):
        return " or ".join(_accepted(member) for member in members)
    member = members[-1]
    if _is_choice(member):
        return ", ".join(map(str, get_args(member)))
    if get_origin(member) is tuple:
        return f"{len(get_args(member))} numbers with a comma between them"
    if get_origin(member) is list:
        item = get_args(member)[0]
        single = _accepted(item)
        return f"{single}, or several with commas"
    return words.get(member, str(member))


def _metavar(hint: Any) -> str:
    """How a value of a type is written in the help."""
    member = _members(hint)[-1]
    if _is_choice(member):
        return "{" + ",".join(map(str, get_args(member))) + "}"
    if get_origin(member) is tuple:
        return ",".join("X" * len(get_args(member)))
    if get_origin(member) is list:
        items = _members(get_args(member)[0])
        words = [w for m in items for w in (get_args(m) if _is_choice(m) else [_metavar(m)])]
        return f"{'|'.join(words)}[,...]"
    return {int: "N", float: "X", str: "NAME", Path: "PATH"}.get(member, "")


class Parser(ArgumentParser):
    """Options of a command: the fields of some dataclasses, each a group of the help.

    Lists are typed with commas; an option may not be abbreviated.

    Args:
        command: Name of the command.
        description: Text above the options.
        groups: Dataclasses whose fields are options, documented by their docstrings. Of two fields
            of the same name the first is the option, and the other keeps its default.
        defaults: Other defaults than those of the dataclasses.
    """

    def __init__(
        self, command: str, description: str | None, *groups: type, **defaults: Any
    ) -> None:
        super().__init__(
            prog=f"uvit-lit {command}",
            usage=f"uvit-lit {command} [options]",
            description=description,
            exit_on_error=False,
            allow_abbrev=False,
            default_env=False,
            formatter_class=_Help,
        )
        self.dataclasses = groups
        self.hints: dict[str, Any] = {}
        for group in groups:
            self.add_class_arguments(group, skip=set(self.hints))
            self.hints = {**get_type_hints(group), **self.hints}
        self.set_defaults(defaults)
        self.add_argument("--debug", action="store_true", help="show the traceback of a mistake")
        for action in self._actions:
            if action.dest in self.hints:
                action.metavar = _metavar(self.hints[action.dest])

    def read(self, arguments: Sequence[str] | None = None) -> list[Any]:
        """One instance of each dataclass from a command line; None takes that of the process.

        A mistake prints one line and leaves with status 2.
        """
        given = self._join(sys.argv[1:] if arguments is None else list(arguments))
        try:
            values = self.parse_args(given)
        except Exception as error:  # of argparse or jsonargparse, which have several
            fail(self._explain(str(error), given), 2)
        self.values = values
        taken: set[str] = set()
        instances = []
        for group in self.dataclasses:
            own = {field.name for field in fields(group)} - taken
            try:
                instances.append(group(**{name: values[name] for name in own}))
            except InputError as error:
                fail(error, 2)
            taken |= own
        return instances

    def _join(self, arguments: list[str]) -> list[str]:
        """Join every option with its value, so that it may begin with a minus, and mark lists."""
        joined = []
        items = iter(arguments)
        for item in items:
            name, equals, value = item.partition("=")
            field = name.removeprefix("--")
            if name.startswith("--") and name.endswith("+"):  # of jsonargparse, to append to a list
                fail(f"unknown option {item}; see --help", 2)
            if not name.startswith("--") or field not in self.hints:
                joined.append(item)
                continue
            if bool in _members(self.hints[field]):
                joined.append(item if equals else f"{name}=true")
                continue
            if not equals:
                following = next(items, None)
                if following is None or following.partition("=")[0] in self._option_string_actions:
                    fail(f"{name} has no value; accepted: {_accepted(self.hints[field])}", 2)
                value = following
            joined.append(f"{name}={self._quoted(self.hints[field], value)}")
        return joined

    @staticmethod
    def _quoted(hint: Any, value: str) -> str:
        """A list with commas as JSON."""
        if not _is_list(hint):
            return value
        members = _members(hint)
        if len(members) > 1 and "," not in value:
            return value
        items = [item.strip() for item in value.split(",")]
        is_text = get_args(members[-1])[0] is str
        quoted = [json.dumps(item) if is_text or not _is_number(item) else item for item in items]
        return f"[{','.join(quoted)}]"

    def _explain(self, message: str, given: list[str]) -> str:
        """One line for an error of jsonargparse."""
        key = re.search(r'(?:Parser key|argument) "?(?:--)?(\w+)', message)
        if key is None or key[1] not in self.hints:
            unknown = re.search(r"unrecognized arguments: (.*)", message, re.DOTALL)
            return f"unknown option {unknown[1]}; see --help" if unknown else message
        name = key[1]
        typed = [item.split("=", 1)[1] for item in given if item.startswith(f"--{name}=")]
        value = typed[-1].strip("[]").replace('"', "")
        return f"{name} is {value!r}; accepted: {_accepted(self.hints[name])}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
