"""How long a person waits: for the help, and from the start of the process to 16 images on disk.

The second is split: importing torch and a solver of diffusers is what no program on them avoids.

    python benchmarks/startup.py
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import timing

ROOT = Path(__file__).parents[1]


def command(*arguments):
    """A case that runs a python command."""
    call = [sys.executable, *map(str, arguments)]
    return timing.timed(lambda: subprocess.run(call, cwd=ROOT, check=True, capture_output=True))


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        sample = ("sample.py", "--n", 16, "--out", directory)
        cases = {
            "sample.py --help": command("sample.py", "--help"),
            "import torch": command("-c", "import torch"),
            "import torch and a solver": command(
                "-c", "import torch; from diffusers import DPMSolverMultistepScheduler"
            ),
            "sample.py --n 16 --steps 1": command(*sample, "--steps", 1),
            "sample.py --n 16": command(*sample),
        }
        seconds = timing.alternate(cases, args.rounds)
    print(f"{timing.machine('diffusers')}, {args.rounds} rounds\n| command | s |\n|---|---|")
    for name, values in seconds.items():
        print(f"| `{name}` | {timing.spread(values)} |")


if __name__ == "__main__":
    main()
