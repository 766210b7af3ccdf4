"""A command in a process that starts at once: a fork of this one, which has imported everything."""

import atexit
import ctypes
import fcntl
import os
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from uvit_lit import cli

SECONDS = 120
"""After which a command hangs; one takes two."""


class Outcome(NamedTuple):
    """How a command ended: minus the signal, or its status; what it wrote."""

    status: int
    out: str
    err: str


class Process:
    """A command in a directory.

    Args:
        directory: Its working directory; temporary files go into ``tmp`` below it.
        arguments: Of ``uvit-lit``.
        before: What is done in the process first.
    """

    def __init__(
        self, directory: Path, arguments: list[str], before: Callable[[], object] | None = None
    ) -> None:
        pipes, (ready, begins) = (os.pipe(), os.pipe()), os.pipe()
        for _, end in pipes:
            fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, 2**20)  # read after the end
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            for (_, end), number in zip(pipes, (1, 2), strict=True):
                os.dup2(end, number)
            _run(directory, arguments, before, begins)
        self.ends = [end for end, _ in pipes]
        for end in (*(end for _, end in pipes), begins):
            os.close(end)
        os.read(ready, 1)  # no signal comes before the command begins
        os.close(ready)
        self.descriptor = os.pidfd_open(self.pid)
        self.started = time.monotonic()

    def wait_until(self, seconds: float) -> bool:
        """Wait until that long after the start; whether the process runs still."""
        left = self.started + seconds - time.monotonic()
        return not select.select([self.descriptor], [], [], max(left, 0))[0]

    def send(self, number: int) -> None:
        """Send a signal; a process that has ended does not mind."""
        signal.pidfd_send_signal(self.descriptor, number)

    def outcome(self) -> Outcome:
        """Wait for the end."""
        hangs = self.wait_until(SECONDS)
        if hangs:
            self.send(signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        self.seconds = time.monotonic() - self.started
        texts = []
        for end in [*self.ends, self.descriptor]:
            if end != self.descriptor:
                with open(end, "rb") as file:
                    texts.append(file.read().decode(errors="replace"))
        os.close(self.descriptor)
        if hangs:
            texts[1] += f"Traceback: it hung for {SECONDS} s"
        return Outcome(os.waitstatus_to_exitcode(status), *texts)


def _run(
    directory: Path, arguments: list[str], before: Callable[[], object] | None, begins: int
) -> None:
    """What the child does: the command, and what an interpreter does at its end."""
    status: object = 0
    try:
        atexit._clear()  # type: ignore[attr-defined]  # of the parent
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.chdir(directory)
        temporary = directory / "tmp"
        temporary.mkdir(exist_ok=True)
        tempfile.tempdir = str(temporary)
        sys.stdin = open(os.devnull)  # noqa: SIM115
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        sys.argv = ["uvit-lit", *arguments]
        if before is not None:
            before()
        os.close(begins)
        cli.main()
    except SystemExit as stopped:
        status = stopped.code
    except BaseException:
        traceback.print_exc()
        status = 1
    try:
        atexit._run_exitfuncs()  # type: ignore[attr-defined]
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    os._exit(status if isinstance(status, int) else int(status is not None))


def drop_privileges() -> None:
    """Obey the permissions of files also as root: give up all capabilities."""
    header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(header, nothing):
        raise OSError(ctypes.get_errno(), "capset")
