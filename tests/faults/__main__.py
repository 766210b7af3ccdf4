"""Faults by hand: ``make faults``; some: ``python tests/faults --command train --fault SIGINT``."""

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from itertools import cycle, islice, product
from pathlib import Path
from random import Random
from signal import SIGINT, SIGKILL
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["PYTHONPATH"] = f"{ROOT / 'tests'}:{os.environ.get('PYTHONPATH', '')}"

from commands import Command, all_commands  # noqa: E402
from faults import FAULTS, Case  # noqa: E402
from process import Outcome, Process  # noqa: E402

from uvit_lit.cli import COMMANDS  # noqa: E402

for module in (*(f"cli.{name}" for name in COMMANDS), "evaluation.evaluate", "web"):
    import_module(f"uvit_lit.{module}")  # once, for all processes


def content(directory: Path) -> dict[Path, bytes]:
    """All files below a directory."""
    paths = [path for path in directory.rglob("*") if path.is_file()]
    return {path.relative_to(directory): path.read_bytes() for path in paths}


def unclear(outcome: Outcome, allowed: set[int]) -> str | None:
    """What is wrong with how a process ended; None where it is as it must be."""
    status, _, err = outcome
    errors = sum(line.startswith("error:") for line in err.splitlines())
    lines = errors if status == -SIGINT else int(status > 0)  # a second one may come after the line
    noise = any(word in err for word in ("Traceback", "Exception ignored", "Warning", "enforce"))
    if status in allowed and errors == lines and not noise:
        return None
    return f"status {status}, {errors} lines: {err[-2500:]}"


class Trial:
    """All commands, their inputs and their undisturbed runs.

    Args:
        root: An empty directory.
        names: Of the commands; None is all.
    """

    def __init__(self, root: Path, name: str | None) -> None:
        self.root = root
        self.inputs = root / "inputs"
        commands = all_commands(self.inputs)
        self.before = content(self.inputs)
        self.commands = [c for c in commands if name in (None, c.name)]
        self.whole: dict[str, tuple[Any, float, int]] = {}
        for command in self.commands:
            directory = self.copy()
            process = Process(directory, command.arguments(directory))
            outcome = process.outcome()
            assert unclear(outcome, {0}) is None, outcome
            sizes = [len(v) for k, v in content(directory).items() if k not in self.before]
            self.whole[command.name] = command.result(directory), process.seconds, max(sizes)
            shutil.rmtree(directory)

    def copy(self) -> Path:
        """A new directory with the inputs."""
        directory = Path(tempfile.mkdtemp(dir=self.root)) / "work"
        shutil.copytree(self.inputs, directory)
        return directory

    def findings(self, command: Command, fault: str, seed: str) -> Iterator[str]:
        """What went wrong in one case."""
        result, seconds, largest = self.whole[command.name]
        directory = self.copy()
        case = Case(directory, command, Random(seed), seconds, largest)
        begun = case.rng.random() < 0.35
        if begun:  # of what was done before nothing may be lost
            moment, process = case.moment(), case.start()
            process.wait_until(moment)
            process.send(SIGKILL)
            process.outcome()
        words, ends = FAULTS[fault](case)
        if begun:
            words += f", begun by one killed after {moment:.2f} s"
        found = [
            problem for end, allowed in ends if (problem := unclear(end, allowed | command.second))
        ]
        again = Process(directory, command.arguments(directory)).outcome()
        refused = (
            {2} if fault == "two processes" and "has no checkpoint yet" in again.err else set()
        )
        if problem := unclear(again, {0} | command.second | refused):
            found.append(f"repeated: {problem}")
        own = command.result(directory)
        if command.name.startswith("train") and own is not None:
            if fault == "directory vanishes":
                own = own[0], result[1]  # the losses may have vanished
            else:  # what is logged after a save may be lost with the process
                own = own[0], {k: {**v, **own[1].get(k, {})} for k, v in result[1].items()}
        if own != result:
            found.append(f"another result: {different(result, own)}")
        after = content(directory)
        damaged = [str(k) for k, v in self.before.items() if after.get(k) != v]
        if damaged and fault != "directory vanishes":
            found.append(f"damaged: {damaged}")
        left = [
            str(path.relative_to(directory))
            for path in directory.rglob("*")
            if ".partial" in path.name
            or "tmp" in path.parts[-2:-1]
            or (path.is_file() and path.stat().st_size == 0)
        ]
        if left:
            found.append(f"left: {left}")
        shutil.rmtree(directory.parent)
        yield from (f"{command.name}, {fault} {words}: {text}" for text in found)


def different(one: Any, other: Any, place: str = "") -> str:
    """The first places at which two results differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        found = [f"{place}: lacks {key!r}" for key in one if key not in other]
        found += [f"{place}: has {key!r} more" for key in other if key not in one]
        both = [k for k in one if k in other and one[k] != other[k]]
        found += [different(one[k], other[k], f"{place}/{k}") for k in both]
        return "; ".join(found[:3])
    if isinstance(one, tuple | list) and isinstance(other, tuple | list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return "; ".join([different(a, b, f"{place}/{i}") for i, (a, b) in pairs if a != b][:3])
    if isinstance(one, set) and isinstance(other, set):
        lacks, more = ([(a, len(b)) for a, b in x] for x in (one - other, other - one))
        return f"{place}: lacks {lacks}, has {more} more"
    return f"{place}: {str(one)[:99]} is {str(other)[:99]}"


def main() -> None:
    """Run cases until the count is reached; print what was found, and how much was tried."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=100, help="of all commands and faults")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--command", help="one alone")
    parser.add_argument("--fault", choices=FAULTS, help="one alone")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    args = parser.parse_args()
    started, tried, failed, number = time.monotonic(), Counter(), Counter(), 0
    with tempfile.TemporaryDirectory() as directory:
        trial = Trial(Path(directory), args.command)
        pairs = [
            (command, fault)
            for command, fault in product(trial.commands, FAULTS)
            if args.fault in (None, fault)
        ]
        Random(0).shuffle(pairs)  # a few cases have something of everything
        chosen = islice(cycle(pairs), args.first, args.first + args.cases)
        for number, (command, fault) in enumerate(chosen, args.first):
            key = command.name, fault
            tried[key] += 1
            for text in trial.findings(command, fault, f"{args.seed} {number}"):
                failed[key] += 1
                print(f"case {number}: {text}", end="\n\n", flush=True)
    for command, fault in sorted(tried):
        key = command, fault
        print(f"{command:16} {fault:20} {tried[key]:5} cases {failed[key]:3} findings")
    seconds = time.monotonic() - started
    counts = f"{sum(tried.values())} cases, {sum(failed.values())} findings"
    print(f"seed {args.seed}: {counts}, {seconds:.0f} s")
    sys.exit(bool(failed))


main()
