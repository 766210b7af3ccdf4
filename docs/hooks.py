"""Hooks of MkDocs: the options of the commands, and links to files of the repository.

The pages are Markdown that reads as well on GitHub. Two things differ on the site: the marker on
the page of options becomes tables, made from the code, and a link to a file outside docs/ becomes
the name of that file.
"""

import importlib
import posixpath
import re
from argparse import SUPPRESS
from collections.abc import Iterator
from typing import Any

import yaml

MARKER = "<!-- options -->"
"""Where the tables go."""

TRAIN_GROUPS = {
    "": "The long skips, and the run",
    "model": "model: network and optimisation",
    "data": "data",
    "ema": "ema: moving average of the weights",
    "samples": "samples: pictures during training",
    "skips": "skips: figures of the long skips during training",
    "checkpoints": "checkpoints",
}
"""Prefix and title of the options of the command train. Those of the trainer are Lightning's."""


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in the options, and name the files of the repository that a page links to."""
    if MARKER in markdown:
        markdown = markdown.replace(MARKER, "\n".join(options()))
    folder = posixpath.dirname(posixpath.join("docs", page.file.src_uri))

    def name(link: re.Match) -> str:
        text, target = link.groups()
        path = posixpath.normpath(posixpath.join(folder, target))
        if "://" in target or target.startswith("#") or path.startswith("docs/"):
            return link[0]
        return f"`{path}`" if text.strip("`") == path else f"{text} (`{path}`)"

    return re.sub(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)", name, markdown)


def options() -> Iterator[str]:
    """Markdown of every command and its options."""
    from uvit_lit.cli import COMMANDS

    for command, summary in COMMANDS.items():
        yield f"\n## {command}\n\n{summary[0].upper() + summary[1:]}.\n"
        if command == "train":
            yield from train_options()
            continue
        parser = importlib.import_module(f"uvit_lit.cli.{command}").build_parser()
        for group in parser._action_groups:
            rows = [row(action, _value(action.default)) for action in group._group_actions]
            yield from table(group.title or "", [r for r in rows if r])


def train_options() -> Iterator[str]:
    """Markdown of the options of train, with the defaults of the default configuration."""
    from uvit_lit.cli.train import DEFAULT_CONFIGS, TrainCLI

    class Found(Exception):
        """The parser is built."""

    class ParserOnly(TrainCLI):
        def parse_arguments(self, parser: Any, args: Any) -> None:
            raise Found(parser)

    try:
        ParserOnly("uvit", run=False, auto_configure_optimizers=False)
    except Found as found:
        parser = found.args[0]
    defaults = yaml.safe_load(DEFAULT_CONFIGS["uvit"].read_text())
    rows: dict[str, list[str]] = {prefix: [] for prefix in TRAIN_GROUPS}
    for action in parser._actions:
        prefix, _, name = action.dest.rpartition(".")
        if prefix not in rows or action.dest in (*TRAIN_GROUPS, "trainer"):
            continue
        section = defaults if not prefix else defaults[prefix]
        rows[prefix].append(row(action, _value(section.get(name, action.default))))
    for prefix, title in TRAIN_GROUPS.items():
        yield from table(title, [r for r in rows[prefix] if r])


def row(action: Any, default: str) -> str:
    """Row of one option; empty where it has no help, or is one of every command."""
    text = " ".join((action.help or "").split())
    if action.help == SUPPRESS or not text or action.dest in ("help", "debug"):
        return ""
    names = [option for option in action.option_strings if not option.endswith("+")]
    name = "<br>".join(f"`{name}`" for name in names) or f"`{action.dest}`"
    text = re.sub(r" ?\(?(?:required, )?(?:type|default): .*", "", text).rstrip(".")
    text = f"{text[:1].upper()}{text[1:]}."
    choices = str(action.metavar or "")
    if choices.startswith("{") and choices != "{true,false}":
        text += f" One of {choices.strip('{}').replace(',', ', ')}."
    return f"| {name} | {text.replace('|', chr(92) + '|')} | {default} |"


def table(title: str, rows: list[str]) -> Iterator[str]:
    """A titled table; nothing without rows."""
    if rows:
        yield f"\n### {title}\n\n| option | meaning | default |\n|---|---|---|"
        yield from rows


def _value(value: Any) -> str:
    """A default, to read."""
    if value is None or value is SUPPRESS or value is False or value == "":
        return "" if value is not False else "off"
    if isinstance(value, list | tuple):
        return ", ".join(_value(item) for item in value)
    return "on" if value is True else f"`{value}`"
