"""What sampling costs and how far it is from the 1,000-step reference, by solver, steps and reuse.

Every round times the first steps of DDIM and of DDPM, then every case, all with the same images; a
ratio is taken within a round, so that a change of the machine's speed hits both. The 1,000 steps of
the references are not timed whole: their time is that of SHORT steps, plus the time per step,
(T(LONG) - T(SHORT)) / (LONG - SHORT), times the rest. Decoding of latents and files are not in it.

The difference is the relative L2 distance, ||x - r|| / ||r||, of images in [-1, 1] to those of
1,000 steps of DDIM with the same seeds, which are run whole, of fewer images. Stochastic solvers
make other images, so they have none.

    python benchmarks/sampling.py --ckpt last
    python benchmarks/sampling.py --cases dpmpp:25:1,dpmpp:25:2 --reference_images 0    # times only
"""

import argparse
import platform
import statistics
import time

import torch
from tqdm import tqdm

from uvit_lit import load_model
from uvit_lit.cli import comma_list
from uvit_lit.devices import choose_device
from uvit_lit.generation import choose_labels
from uvit_lit.sampler import STOCHASTIC, count_calls, sample

STEPS, SHORT, LONG = 1000, 3, 9
REFERENCES = ("ddim", "ddpm")
CASES = (
    "ddim:100:1,ddim:100:2,ddim:25:1,dpmpp:25:1,dpmpp:25:2,dpmpp:25:3,dpmpp:16:1,dpmpp:12:1,"
    "unipc:10:1,heun:10:1"
)


def parse_case(text):
    """Solver, steps and reuse from solver:steps:reuse."""
    solver, steps, reuse = text.split(":")
    return solver, int(steps), int(reuse)


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ckpt", default="last", help="checkpoint (default: newest under runs/)")
    parser.add_argument("--cases", type=comma_list(parse_case), default=CASES,
                        help=f"solver:steps:reuse (default: {CASES})")  # fmt: skip
    parser.add_argument("--n", type=int, default=64, help="images, one batch (default: 64)")
    parser.add_argument("--rounds", type=int, default=7, help="0: differences only")
    parser.add_argument("--reference_images", type=int, default=8, help="0: times only")
    args = parser.parse_args()
    device = choose_device("auto")
    model = load_model(args.ckpt, device)

    def run(n, solver, steps, reuse=1):
        return sample(
            model.denoiser, model.image_shape, list(range(n)), choose_labels(model, None, n),
            solver=solver, steps=steps, reuse=reuse, batch_size=n, device=device, progress=False,
        )  # fmt: skip

    def timed(*case):
        start = time.perf_counter()
        run(args.n, *case)  # ends on the CPU
        return time.perf_counter() - start

    seconds = {case: [] for case in (*REFERENCES, *args.cases)}
    for case in args.cases if args.rounds else ():
        run(args.n, case[0], 2, case[2])
    for _ in tqdm(range(args.rounds), unit="round"):
        for solver in REFERENCES:
            short, long = timed(solver, SHORT), timed(solver, LONG)
            per_step = (long - short) / (LONG - SHORT)
            seconds[solver].append(short + (STEPS - SHORT) * per_step)
        for case in args.cases:
            seconds[case].append(timed(*case))

    differences = {}
    if args.reference_images:
        reference = run(args.reference_images, "ddim", STEPS).clamp(-1, 1)
        for case in args.cases:
            if case[0] not in STOCHASTIC:
                images = run(args.reference_images, *case).clamp(-1, 1)
                differences[case] = float((images - reference).norm() / reference.norm())

    def row(case, name, steps, reuse):
        cells = [name, steps, reuse, count_calls(model.denoiser, name, steps)]
        if args.rounds:
            ratios = [r / s for r, s in zip(seconds["ddim"], seconds[case], strict=True)]
            cells += [f"{statistics.median(seconds[case]):.2f}", f"{statistics.median(ratios):.1f}",
                      f"{min(ratios):.1f} to {max(ratios):.1f}"]  # fmt: skip
        else:
            cells += ["", "", ""]
        cells.append(f"{differences[case]:.4f}" if case in differences else "")
        print("| " + " | ".join(map(str, cells)) + " |")

    print(f"{platform.processor() or platform.machine()}, {device}, torch {torch.__version__}, "
          f"{torch.get_num_threads()} threads, float32, {model.name}, {model.training}, "
          f"{args.n} images, {args.rounds} rounds; differences of {args.reference_images} images; "
          f"ddim and ddpm with {STEPS} steps: time per step times steps plus overhead")  # fmt: skip
    print("| solver | steps | reuse | calls | seconds | times faster than ddim, 1000 | range | "
          "difference |\n|---|---|---|---|---|---|---|---|")  # fmt: skip
    for solver in REFERENCES if args.rounds else ():
        row(solver, solver, STEPS, 1)
    for case in args.cases:
        row(case, *case)


if __name__ == "__main__":
    main()
