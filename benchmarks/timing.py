"""Time things side by side: rounds of A, B, A, B, medians, quartiles, and the machine's limit."""

import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

MM_SIZE, MM_REPEATS = 2048, 10


def timed(call: Callable[[], Any], repeats: int = 1) -> Callable[[], float]:
    """The call as a case of ``alternate``: it returns its seconds, the mean of some repeats."""

    def case() -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - start) / repeats

    return case


def alternate(cases: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every case in every round; a first round warms up and does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for count in tqdm(range(rounds + 1), unit="round"):
        for name, case in cases.items():
            value = case()
            if count:
                seconds[name].append(value)
    return seconds


def spread(values: list[float], digits: int = 2) -> str:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def ratios(above: list[float], below: list[float]) -> list[float]:
    """Ratio in each round."""
    return [a / b for a, b in zip(above, below, strict=True)]


class Process:
    """A case in a process of its own, with its own allocator, threads and imports.

    Args:
        build: Function at the top of a module that returns what is timed, and what to tell.
        *arguments: Its arguments.

    Attributes:
        told: What ``build`` told.
    """

    def __init__(self, build: Callable[..., tuple[Callable[[], Any], Any]], *arguments: Any):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        context.Process(target=_serve, args=(theirs, build, arguments), daemon=True).start()
        theirs.close()
        self.told = self._pipe.recv()

    def __call__(self) -> float:
        """Seconds of one call; the other processes wait."""
        self._pipe.send(None)
        return self._pipe.recv()


def _serve(pipe: Connection, build: Callable[..., Any], arguments: tuple) -> None:
    call, told = build(*arguments)
    case = timed(call)
    pipe.send(told)
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        pipe.send(case())


def mm() -> Callable[[], float]:
    """The limit as a case: products of large float32 matrices, nothing else."""
    a, b, product = torch.randn(3, MM_SIZE, MM_SIZE)
    return timed(lambda: torch.mm(a, b, out=product), MM_REPEATS)


def mm_rates(seconds: list[float]) -> list[float]:
    """FLOP per second of each round of ``mm``."""
    return [2 * MM_SIZE**3 / value for value in seconds]


def machine(*packages: str) -> str:
    """Processor, threads and versions, in one line."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = (line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        cpu = next((value.strip() for name, value in lines if name.startswith("model name")), cpu)
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", *packages))
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{cpu} ({capability}), {torch.get_num_threads()} threads, {versions}"
