"""What must hold of every call with hostile input, in this process."""

import io
import resource
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple, Protocol

SECONDS = 60
"""That a call may take; one usually takes a hundredth."""

MEMORY = 2**31
"""Bytes that a call may take beside what the process has."""


class Case(NamedTuple):
    """One call.

    Attributes:
        damage: What was done to the input, in words.
        call: Does what a command does with it, and may end with ``SystemExit``.
    """

    damage: str
    call: Callable[[], object]


class Target(Protocol):
    """Something that reads what comes from outside: a file, or the options of a command."""

    name: str

    def case(self, seed: str, canary: Path) -> Case:
        """A case, a function of the seed; what it hides in the input would create ``canary``."""


class Overtime(BaseException):
    """A call took too long."""


@contextmanager
def bounded() -> Iterator[None]:
    """Bound time and memory."""

    def stop(*_: object) -> None:
        raise Overtime

    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def tree(root: Path, output: Path) -> dict[Path, tuple[int, int]]:
    """Size and time of every file below a directory that is not below ``output``."""
    files = (path for path in root.rglob("*") if output not in path.parents)
    return {
        path: (path.stat().st_size, path.stat().st_mtime_ns) for path in files if path != output
    }


def problem(case: Case, root: Path, output: Path, canary: Path) -> str | None:
    """What a case did that no call may do; None where all is well.

    It succeeds, or prints one line and ends with status 1 or 2, in bounded time and memory;
    nothing in the input is executed, and no file outside of ``output`` changes.
    """
    before, status, error = tree(root, output), 0, io.StringIO()
    try:
        with redirect_stderr(error), redirect_stdout(io.StringIO()), bounded():
            case.call()
    except SystemExit as stopped:
        status = stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
    except Overtime:
        return f"takes longer than {SECONDS} s: {traceback.format_exc()[-1500:]}"
    except BaseException:
        return traceback.format_exc()[-3000:]
    text = error.getvalue()
    lines = [line for line in text.splitlines() if line.startswith("error:")]
    if canary.exists():
        return "executed what the input said"
    if status not in (0, 1, 2) or len(lines) != (status != 0) or "Traceback" in text:
        return f"status {status} and {len(lines)} lines: {text[-1500:]}"
    if changed := {*before.items()} ^ {*tree(root, output).items()}:
        return f"changed {sorted(str(path) for path, _ in changed)[:3]}"
    return None


def findings(
    target: Target, seed: int, cases: range, root: Path, output: Path
) -> Iterator[tuple[int, str]]:
    """Numbers of the cases that did what no call may do, and what it was."""
    canary = output / "executed"
    for number in cases:
        case = target.case(f"{seed} {target.name} {number}", canary)
        if found := problem(case, root, output, canary):
            canary.unlink(missing_ok=True)
            yield number, f"{target.name}, seed {seed}, case {number} ({case.damage}): {found}"
