"""How long a person waits: for the help, and from the start of the process to 16 images on disk.

The second is split: importing torch and a solver of diffusers is what no program on them avoids.

python benchmarks/startup.py                 # an untrained tiny model, which takes as long
python benchmarks/startup.py --ckpt PATH
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import timing
from training import MODELS

from uvit_lit.layouts import Weights, uvit_arguments, write_safetensors
from uvit_lit.uvit import UViT

ROOT = Path(__file__).parents[1]


def command(*arguments):
    """A case that runs a python command."""
    call = [sys.executable, *map(str, arguments)]
    return timing.timed(lambda: subprocess.run(call, cwd=ROOT, check=True, capture_output=True))


def write_untrained(path):
    """Write a tiny model as it starts."""
    tensors = UViT(**MODELS["tiny"]).state_dict()
    names = [str(k) for k in range(MODELS["tiny"]["num_classes"])]
    arguments = uvit_arguments(MODELS["tiny"])
    write_safetensors(Weights(tensors, arguments, "cosine", "x0", names, True, 0, {}, None), path)


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ckpt", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = args.ckpt and args.ckpt.absolute()
        if checkpoint is None:
            checkpoint = Path(directory) / "untrained.safetensors"
            write_untrained(checkpoint)
        sample = ("sample.py", "--ckpt", checkpoint, "--n", 16, "--out", directory)
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
