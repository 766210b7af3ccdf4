"""One device or several: images are shared out over the ranks of Lightning Fabric."""

import atexit
import ctypes
import os
import platform
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from uvit_lit.errors import InputError

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Of malloc.h."""


def keep_memory() -> None:
    """Keep freed memory in this process, for the next tensors (with the GNU C library).

    By default large blocks go back to the system, which clears their pages anew for the next
    step: some 50,000 page faults in a training step on a CPU.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def choose_device(name: str) -> torch.device:
    """Torch device by name; ``auto`` takes an accelerator where there is one.

    Raises:
        ValueError: If the name is unknown or this machine has no such device.
    """
    if name == "auto":
        name = next((n for n in ("cuda", "mps") if getattr(torch, n).is_available()), "cpu")
    if name not in ("cpu", "cuda", "mps") or (
        name != "cpu" and not getattr(torch, name).is_available()
    ):
        raise InputError(f"device is {name!r}, accepted: auto, cpu, or cuda or mps where present")
    return torch.device(name)


def count_devices(device: torch.device, asked: int | None) -> int:
    """Number of processes that share the work.

    Args:
        device: Kind of device.
        asked: What the user asked for; None takes what torchrun started, else 1.

    Raises:
        ValueError: If there are not so many devices, or torchrun started other ones.
    """
    started = int(os.environ.get("LOCAL_WORLD_SIZE", 0))  # by torchrun
    count = started or 1 if asked is None else asked
    present = {"cpu": os.cpu_count(), "cuda": torch.cuda.device_count()}.get(device.type) or 1
    if not 1 <= count <= present:
        raise InputError(f"devices is {count}; accepted here: 1 to {present} ({device.type})")
    if started and (started != count or os.environ.get("WORLD_SIZE") != str(started)):
        raise InputError(
            f"devices is {count}, but torchrun started {os.environ.get('WORLD_SIZE')} processes, "
            f"{started} on this machine; accepted: as many, on one machine"
        )
    return count


@contextmanager
def _all_alive() -> Iterator[None]:
    """Raise an ``OSError`` where another process has gone, which has said why."""
    try:
        yield
    except RuntimeError as error:
        # NCCL's errors have a class; gloo's have the place in its source: "[.../tcp/pair.cc:561]".
        has_class = isinstance(error, torch.distributed.DistError)
        if not (has_class or re.search(r"\[\S*gloo/transport/", str(error))):
            raise
        raise OSError("another process has stopped") from None


class Devices:
    """The processes that share the work, each with a device; one process until ``launch``.

    All processes run the same program. Each computes its share of the images and then has all of
    them; the main one alone writes, and decides what depends on the files that are there.

    Args:
        device: Device of this process, or its kind where several processes share the work.
        count: Number of processes, from ``count_devices``.
    """

    def __init__(self, device: torch.device, count: int = 1) -> None:
        self.device, self.count, self.rank = device, count, 0
        self._fabric: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def launch(self) -> None:
        """Start the other processes, unless torchrun did, and give each its device."""
        keep_memory()
        if self.count == 1:
            return
        from lightning.fabric import Fabric  # takes seconds

        self._fabric = Fabric(accelerator=self.device.type, strategy="ddp", devices=self.count)
        self._fabric.launch()
        atexit.register(torch.distributed.destroy_process_group)
        self.device, self.rank = self._fabric.device, self._fabric.global_rank

    def share(self, n: int) -> int:
        """How many of n images a process computes; the last images may be computed twice."""
        return -(-n // self.count)

    def map(self, function: Callable[[list[int]], Tensor], n: int) -> Tensor:
        """Compute n rows, every process its share of them.

        Args:
            function: Gives the rows of a tensor for indices below n.
            n: Number of rows, at least 1.

        Returns:
            The n rows in order, on the CPU, the same in every process.
        """
        if self._fabric is None:
            return function(list(range(n)))
        first = self.rank * self.share(n)
        rows = function([min(first + k, n - 1) for k in range(self.share(n))]).to(self.device)
        parts = [torch.empty_like(rows) for _ in range(self.count)]
        with _all_alive():
            torch.distributed.all_gather(parts, rows)
        return torch.cat(parts)[:n].cpu()

    def decide(self, value: Any) -> Any:
        """The main process's value, in every process, which wait for it here."""
        if self._fabric is None:
            return value
        with _all_alive():
            return self._fabric.broadcast(value)
