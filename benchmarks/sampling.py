"""What sampling costs and how far it is from 1,000 steps, by solver, steps and precision.

Every round times the first steps of DDIM and of DDPM, then every case, all with the same images.
The 1,000 steps of the references are not timed whole: their time is that of SHORT steps, plus the
time per step, (T(LONG) - T(SHORT)) / (LONG - SHORT), times the rest. Decoding of latents and files
are not in it.

The difference is the relative L2 distance, ||x - r|| / ||r||, of images in [-1, 1] to those of
1,000 steps of DDIM with the same seeds, which are run whole, of fewer images. Stochastic solvers
make other images, so they have none.

    python benchmarks/sampling.py
    python benchmarks/sampling.py --cases dpmpp:25,dpmpp:16 --reference_images 0    # times only
"""

import argparse
from functools import partial

import timing

from uvit_lit import load_model
from uvit_lit.distributed import choose_device, keep_memory
from uvit_lit.generation import choose_labels
from uvit_lit.sampling import STOCHASTIC, count_calls, sample

STEPS, SHORT, LONG = 1000, 3, 9
REFERENCES = ("ddim", "ddpm")
CASES = "ddim:100,ddim:25,dpmpp:25,dpmpp:25:bf16-mixed,dpmpp:16,dpmpp:12,unipc:10,heun:10"


def parse_case(text):
    """Solver, steps and precision from solver:steps[:precision]."""
    solver, steps, precision = (text + ":32-true").split(":")[:3]
    return solver, int(steps), precision


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ckpt", default="pretrained", help="default: the one in the package")
    parser.add_argument(
        "--cases",
        type=lambda text: list(map(parse_case, text.split(","))),
        default=CASES,
        help=f"solver:steps[:precision] (default: {CASES})",
    )
    parser.add_argument("--n", type=int, default=64, help="images, one batch (default: 64)")
    parser.add_argument("--rounds", type=int, default=7, help="0: differences only")
    parser.add_argument("--reference_images", type=int, default=8, help="0: times only")
    args = parser.parse_args()
    keep_memory()
    device = choose_device("auto")
    model = load_model(args.ckpt, device)

    def run(n, solver, steps, precision):
        return sample(
            model.denoiser,
            model.image_shape,
            list(range(n)),
            choose_labels(model, None, n),
            solver=solver,
            steps=steps,
            precision=precision,
            batch_size=n,
            device=device,
        )

    plain = "32-true"
    parts = [(name, steps, plain) for name in REFERENCES for steps in (SHORT, LONG)]
    calls = {case: timing.timed(partial(run, args.n, *case)) for case in (*parts, *args.cases)}
    seconds = timing.alternate(calls, args.rounds) if args.rounds else {}
    for name in REFERENCES if args.rounds else ():
        pairs = zip(seconds[name, SHORT, plain], seconds[name, LONG, plain], strict=True)
        seconds[name] = [a + (STEPS - SHORT) * (b - a) / (LONG - SHORT) for a, b in pairs]

    differences = {}
    if args.reference_images:
        reference = run(args.reference_images, "ddim", STEPS, plain).clamp(-1, 1)
        for case in args.cases:
            if case[0] not in STOCHASTIC:
                images = run(args.reference_images, *case).clamp(-1, 1)
                differences[case] = float((images - reference).norm() / reference.norm())

    def row(case, name, steps, precision):
        cells = [name, steps, precision, count_calls(model.denoiser.schedule, name, steps)]
        if args.rounds:
            ratios = timing.ratios(seconds["ddim"], seconds[case])
            cells += [timing.spread(seconds[case]), timing.spread(ratios, 1)]
        else:
            cells += ["", ""]
        cells.append(f"{differences[case]:.4f}" if case in differences else "")
        print("| " + " | ".join(map(str, cells)) + " |")

    print(
        f"{timing.machine('diffusers')}, {device}, {model.name}, {model.training}, "
        f"{args.n} images, {args.rounds} rounds; differences of {args.reference_images} images; "
        f"ddim and ddpm with {STEPS} steps: time per step times steps plus overhead"
    )
    print(
        "| solver | steps | precision | calls | seconds | times faster than ddim, 1000 | "
        "difference |\n|---|---|---|---|---|---|---|"
    )
    for solver in REFERENCES if args.rounds else ():
        row(solver, solver, STEPS, plain)
    for case in args.cases:
        row(case, *case)


if __name__ == "__main__":
    main()
