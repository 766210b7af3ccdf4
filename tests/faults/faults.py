"""What may happen to a command, at random moments."""

import os
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random
from typing import NamedTuple

from commands import Command
from process import Outcome, Process, drop_privileges

DAYS = 86_400


class Case(NamedTuple):
    """A command in a directory of its own, and what is known of its undisturbed run.

    Attributes:
        directory: Its working directory.
        command: What runs there.
        rng: Decides everything at random.
        seconds: That the undisturbed run takes.
        largest: Bytes of its largest file.
    """

    directory: Path
    command: Command
    rng: Random
    seconds: float
    largest: int

    def start(self, before: Callable[[], object] | None = None) -> Process:
        """Start the command."""
        return Process(self.directory, self.command.arguments(self.directory), before)

    def moment(self) -> float:
        """Seconds from the start, up to a little after the end."""
        return self.rng.uniform(0, 1.05) * self.seconds

    def folders(self) -> list[Path]:
        """Directories that the command writes into, as far as they exist."""
        roots = [self.directory / name for name in self.command.outputs]
        below = [path for root in roots for path in root.rglob("*") if path.is_dir()]
        return [path for path in [*roots, *below] if path.is_dir()]


Ends = Iterable[tuple[Outcome, set[int]]]
"""How processes ended, and how they may: with 0, a status, or minus a signal."""


def signalled(number: int, status: int) -> Callable[[Case], tuple[str, Ends]]:
    """A signal."""

    def fault(case: Case) -> tuple[str, Ends]:
        moment, process = case.moment(), case.start()
        process.wait_until(moment)
        process.send(number)
        return f"after {moment:.2f} s", [(process.outcome(), {0, status})]

    return fault


def twice(case: Case) -> tuple[str, Ends]:
    """Two signals one after the other, as an impatient user sends them."""
    moment, later, process = case.moment(), case.rng.uniform(0, 0.3), case.start()
    for end in (moment, moment + later):
        process.wait_until(end)
        process.send(signal.SIGINT)
    ends = {0, 130, -signal.SIGINT}
    return f"after {moment:.2f} s and {later:.2f} s", [(process.outcome(), ends)]


def full_disk(case: Case) -> tuple[str, Ends]:
    """No file may be larger than some bytes; stdout and stderr are none."""
    limit = int(case.largest ** case.rng.uniform(0, 1.05))
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    process = case.start(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard)))
    return f"files of {limit} bytes", [(process.outcome(), {0, 1})]


def read_only(case: Case) -> tuple[str, Ends]:
    """A directory that may not be written any more; also root obeys, without its capabilities."""
    for name in case.command.outputs:
        (case.directory / name).mkdir(parents=True, exist_ok=True)
    moment = case.rng.choice([0, case.moment()])
    process = None
    if moment:
        process = case.start(drop_privileges)
        process.wait_until(moment)
    folder = case.rng.choice(case.folders())
    folder.chmod(0o555)
    process = process or case.start(drop_privileges)
    outcome = process.outcome()
    if folder.exists():  # a temporary one has its last name by now
        folder.chmod(0o755)
    name = folder.relative_to(case.directory)
    return f"{name} after {moment:.2f} s", [(outcome, {0, 1})]


def two_at_once(case: Case) -> tuple[str, Ends]:
    """The same command twice; one may be killed."""
    first = case.start()
    later = case.rng.choice([0, case.moment()])
    first.wait_until(later)
    second = case.start()
    killed = case.rng.choice([None, first, second])
    words = f"the second after {later:.2f} s"
    ends = {0} | case.command.second
    if killed is not None:
        moment = case.moment()
        killed.wait_until(moment)
        killed.send(signal.SIGKILL)
        words += f", the {'first' if killed is first else 'second'} killed {moment:.2f} s old"
    return words, [
        (process.outcome(), ends | ({-signal.SIGKILL} if process is killed else set()))
        for process in (first, second)
    ]


def clock(case: Case) -> tuple[str, Ends]:
    """The clock jumps, the process is killed, and the files are of the past or the future."""
    jump, when, moment = (
        case.rng.uniform(-3000, 3000) * DAYS,
        case.moment(),
        case.moment(),
    )
    at, now = time.monotonic() + when, time.time

    def set_clock() -> None:
        time.time = lambda: now() + (jump if time.monotonic() > at else 0)

    process = case.start(set_clock)
    process.wait_until(moment)
    process.send(signal.SIGKILL)
    outcome = process.outcome()
    for path in case.directory.rglob("*"):
        if case.command.name.startswith("train") and "version_" not in str(path):
            continue  # other times of the data are other data
        # Another run stays the older one: --ckpt_path last goes by the time.
        shifted = 0 if "before" in path.parts else now() + case.rng.uniform(-3000, 3000) * DAYS
        os.utime(path, (shifted, shifted))
    words = f"{jump / DAYS:.0f} days after {when:.2f} s, killed after {moment:.2f} s"
    return words, [(outcome, {0, -signal.SIGKILL})]


def vanishes(case: Case) -> tuple[str, Ends]:
    """A directory of the output is removed."""
    moment, process = case.moment(), case.start()
    process.wait_until(moment)
    # Without the configuration of its run a checkpoint has to be named to go on from it, as has
    # one where another run changes later.
    folders = [
        path
        for path in case.folders()
        if not any(path.rglob("config.yaml")) and "before" not in path.parts
    ]
    folder = case.rng.choice(folders) if folders else None
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    name = folder and folder.relative_to(case.directory)
    return f"{name} after {moment:.2f} s", [(process.outcome(), {0, 1})]


FAULTS: dict[str, Callable[[Case], tuple[str, Ends]]] = {
    "kill -9": signalled(signal.SIGKILL, -signal.SIGKILL),
    "SIGTERM": signalled(signal.SIGTERM, 143),
    "SIGINT": signalled(signal.SIGINT, 130),
    "SIGINT twice": twice,
    "disk full": full_disk,
    "read-only directory": read_only,
    "two processes": two_at_once,
    "clock jumps": clock,
    "directory vanishes": vanishes,
}
