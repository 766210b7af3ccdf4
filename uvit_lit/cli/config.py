"""The configuration of a run: which file, and that it says everything once and in full."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

from uvit_lit.errors import InputError, require_choice

PACKAGE = Path(__file__).parents[1]
CONFIGS = next(d for d in (PACKAGE / "configs", PACKAGE.parent / "configs") if d.is_dir())
"""The configurations: in the wheel inside the package, in the repository beside it."""


TRAIN_HELP = """usage: uvit-lit train [options]

Train or fine-tune a U-ViT, or a U-Net.

    uvit-lit train --filter butterworth                     # a filter that learns, on CIFAR-10
    uvit-lit train --data.name folder --data.root PATH      # your own images
    uvit-lit train --config configs/cifar10_uvit_small.yaml
    uvit-lit train --filter butterworth --s 1 --model.init_from PATH
    uvit-lit train --ckpt_path last

  --config FILE     a complete configuration, such as those in configs/; by default the one below
  --ckpt_path PATH  checkpoint to resume from; last is the newest below runs/
  --help_all        every option with its type, those of Lightning's Trainer too

Every line of the configuration is an option by its full name, such as --model.lr 1e-3 or
--trainer.max_steps 600. The default:
"""


def train_help() -> str:
    """Help of ``train``: examples, and the default configuration, whose comments explain it."""
    text = default_config("uvit").read_text(encoding="utf-8")
    entries = text[re.search("^[a-z]", text, re.MULTILINE).start() :]  # type: ignore[union-attr]
    return f"{TRAIN_HELP}\n{entries}"


def default_config(backbone: str) -> Path:
    """The configuration of a command line that names none."""
    return CONFIGS / f"cifar10_{backbone}_tiny.yaml"


MAX_CHARACTERS, MAX_DEPTH = 100_000, 20
"""Of a configuration; those of the package have 4,000 and 4."""

STRICT = "strict_yaml"
"""Name of the reader below where jsonargparse takes one."""

Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(text: str) -> Any:
    """Read YAML as jsonargparse does, of which no value is hidden and none grows when it is read.

    Raises:
        YAMLError: If it is none, names a key twice, refers to another part of itself (``*name``,
            of which a few lines can make billions of values), or is long or deep beyond use.
    """
    if len(text) > MAX_CHARACTERS:
        raise yaml.YAMLError(f"it has {len(text)} characters; accepted: {MAX_CHARACTERS}")
    depth = 0
    for event in yaml.parse(text, Loader=Loader):
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError(f"it has the alias *{event.anchor}; accepted: none")
        if isinstance(event, yaml.ScalarEvent) and "\0" in event.value:
            raise yaml.YAMLError("it has a character of code 0")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise yaml.YAMLError(f"it is nested deeper than {MAX_DEPTH}")
    for key in _repeated(yaml.compose(text, Loader=Loader)):
        raise yaml.YAMLError(f"it has the key {key} twice")
    return get_loader("yaml")(text)


set_loader(STRICT, read_yaml, exceptions=(yaml.YAMLError,))


def _repeated(node: Any) -> Iterator[str]:
    """Keys that a mapping at or below a node has more than once."""
    if isinstance(node, yaml.MappingNode):
        keys = [str(key.value) for key, _ in node.value]
        yield from {key for key in keys if keys.count(key) > 1}
        for _, value in node.value:
            yield from _repeated(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _repeated(value)


def read_config(path: Path) -> dict[str, Any]:
    """Entries of a configuration file.

    Raises:
        ValueError: If there is no such file, or ``read_yaml`` refuses it.
        OSError: If it cannot be read.
    """
    if not path.is_file():
        raise InputError(f"configuration {path} does not exist")
    try:
        content = read_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:  # of a text that is no UTF-8, or of a value
        raise InputError(f"configuration {path} is refused: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"configuration {path} is refused: it holds no entries")
    return content


def find_config(name: str) -> str:
    """A file here, else the one of that name that comes with the package: ``configs/NAME.yaml``."""
    packaged = CONFIGS / name.removeprefix("configs/")
    return str(packaged) if not Path(name).exists() and packaged.is_file() else name


def choose_config(backbones: tuple[str, ...]) -> str:
    """Find the backbone and the configurations, the default one where a command line names none.

    Args:
        backbones: Accepted backbones; the first is the default.

    Returns:
        The backbone of the command line, else of the last configuration that names one.

    Raises:
        ValueError: If ``read_config`` refuses a configuration, the option is abbreviated (a file
            that is not known here would be merged over the default one), or there is no such
            backbone.
    """
    named, chosen, words, arguments = [], [], [], iter(sys.argv[1:])
    for word in arguments:
        if word in ("--config", "--backbone"):
            word = f"{word}={next(arguments, '')}"
        option, _, value = word.partition("=")
        if option == "--config":
            named.append(find_config(value))
            word = f"--config={named[-1]}"
        elif option == "--backbone":
            chosen.append(value)
        elif word.startswith("-c") or (len(option) > 2 and "--config".startswith(option)):
            raise InputError(f"option {option} is unknown; accepted: --config FILE")
        words.append(word)
    contents = [read_config(Path(name)) for name in named]
    configured = [content["backbone"] for content in contents if "backbone" in content]
    backbone = [backbones[0], *configured, *chosen][-1]
    require_choice("backbone", backbone, backbones)
    if not named:
        words.insert(0, f"--config={default_config(backbone)}")
    sys.argv[1:] = words
    return str(backbone)


def flatten(entries: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Entries of a configuration by their full names: ``model.lr``."""
    flat: dict[str, Any] = {}
    for name, value in entries.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
