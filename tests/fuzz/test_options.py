"""Every option of every command with values from inside and outside its type.

``FUZZ_CASES`` sets the number of values for an option (1), ``FUZZ_SEED`` the seed (0).
"""

import importlib
import os
import random
import string

import pytest

COMMANDS = ("sample", "sweep", "evaluate", "edit", "export", "plot", "compare")
POSITIONAL = {
    "edit": ["photo.png"],
    "export": ["out.safetensors"],
    "plot": ["families", "out.png"],
    "compare": ["runs/a"],
}
CASES = int(os.environ.get("FUZZ_CASES", "1"))
STRANGE = [
    *("", " ", "-1", "0", "1", "-0.0", "1e308", "1e999", "nan", "-inf", "9" * 40, "3.5", "0x10"),
    *("1_0", "true", "null", "~", "[1", "{a: 1}", "[[1]]", "!!python/object:os.system", "a: b"),
    *("&a [*a]", "1,2", "1,,2", ",", "0.5,trained", "trained", "all", "inner", "2,3", "step"),
    *("cat,ship", "\u00fcn\u00efcode", "\x00", "a\nb", "'", '"', "\\", "%s", "$HOME", "../.."),
    *("/dev/null", "--n", "-", "@file", "a" * 5000),
]


def values(rng):
    """Strange values, and text at random."""
    for _ in range(CASES):
        yield rng.choice(STRANGE)
        length = rng.randrange(1, 12)
        yield "".join(rng.choice(string.printable) for _ in range(length))


def status_of(parser, arguments):
    """Status that a command line ends with, None where it is accepted."""
    try:
        parser.read(arguments)
    except SystemExit as stopped:
        return stopped.code
    return None


@pytest.mark.parametrize("command", COMMANDS)
def test_an_option_is_read_or_refused_in_one_line(command, capsys):
    rng = random.Random(f"{os.environ.get('FUZZ_SEED', '0')} {command}")
    parser = importlib.import_module(f"uvit_lit.cli.{command}").build_parser()
    positional = POSITIONAL.get(command, [])
    outcomes = set()
    for name in parser.hints:
        for value in values(rng):
            for typed in ([f"--{name}={value}"], [f"--{name}", value]):
                status = status_of(parser, [*positional, *typed])
                lines = capsys.readouterr().err.splitlines()
                outcomes.add(status)
                if status is None:
                    assert lines == [], typed
                    continue
                assert (status, len(lines)) == (2, 1), typed
                assert lines[0].startswith("error: "), typed
                assert "Expected a" not in lines[0], typed
                assert "Parser key" not in lines[0], typed
    # compare has paths alone, and any text is one
    assert outcomes == ({None} if command == "compare" else {None, 2})


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_option_is_named(command, capsys):
    parser = importlib.import_module(f"uvit_lit.cli.{command}").build_parser()
    for typed in ("--wrong", "--wrong=3", "-x", "--s+=1", "--help_me", "--config=x.yaml"):
        with pytest.raises(SystemExit) as stopped:
            parser.read([*POSITIONAL.get(command, []), typed])
        assert stopped.value.code == 2, typed
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: "), typed
