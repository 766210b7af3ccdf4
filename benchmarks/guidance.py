"""What guidance and the settings of the long skips buy and cost, on the same seeds.

    python benchmarks/guidance.py --n 500
    python benchmarks/guidance.py --only "cfg 2" "cfg 3" --guide runs/NAME/.../step=2000.ckpt

The table has a row per setting: the KID, its difference to the model as trained, paired by seed,
the share of samples that a linear probe puts into the class that was asked for (each with its 95 %
interval), precision, recall, the change of the power above 3/4 of Nyquist, and the processor's time
per image relative to none. The real images are those of the test split. --guide
names the weak model of autoguidance, which is left out without it.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from uvit_lit import load_model
from uvit_lit.data.datamodule import ImageData
from uvit_lit.detail import band_decibels, estimate
from uvit_lit.distributed import Devices, choose_device
from uvit_lit.evaluation.distances import Distances
from uvit_lit.evaluation.features import load_features
from uvit_lit.evaluation.reference import labelled_images, load_probe, load_reference
from uvit_lit.generation import draw_labels
from uvit_lit.guidance import Guided, WithSkips
from uvit_lit.options import ReferenceOptions, preset_settings
from uvit_lit.sampling import sample, to_uint8
from uvit_lit.skips import override_skips

Around = Callable[[Any], Any]
"""What is put around a denoiser."""


def cfg(weight: float | tuple[float, float], **options: Any) -> Around:
    """Classifier-free guidance."""
    return partial(Guided, weight=weight, **options)


def guided_by_skips(weight: float, **settings: Any) -> Around:
    """Guidance away from the same network with other long skips."""
    return lambda denoiser: Guided(denoiser, weight, WithSkips(denoiser, **settings))


GUIDANCE: dict[str, Around] = {
    "cfg 1.5": cfg(1.5),
    "cfg 2": cfg(2),
    "cfg 3": cfg(3),
    "cfg 3, rescale 0.7": cfg(3, rescale=0.7),
    "cfg 2, t 0 to 0.5": cfg(2, t_range=(0, 0.5)),
    "cfg 2, t 0.25 to 0.75": cfg(2, t_range=(0.25, 0.75)),
    "cfg 2, t 0.5 to 1": cfg(2, t_range=(0.5, 1)),
    "cfg low 1, high 2": cfg((1, 2), cutoff=0.3),
    "cfg low 2, high 1": cfg((2, 1), cutoff=0.3),
    "cfg low 2, high 1.2": cfg((2, 1.2), cutoff=0.3),
    "away from s = 0.5 inner, w = 2": guided_by_skips(2, skips="inner", s=0.5),
}
AUTOGUIDANCE = "away from --guide, w = {}"
WEIGHTS = (1.5, 2)


def skip_settings(grid: int, count: int) -> dict[str, dict[str, Any]]:
    """Settings of the long skips by name.

    Args:
        grid: Side of the token grid.
        count: How many long skips there are.
    """
    return {
        "Skip-Tuning, s = 0.95": {"filter": "flat", "s": 0.95},
        "Skip-Tuning, s = 0.9": {"filter": "flat", "s": 0.9},
        "ScaleLong, s = 0.95^i": {"filter": "flat", "s": [0.95**i for i in range(count)]},
        "FreeU 1 (preset)": preset_settings("freeu_v1", grid),
        "FreeU 2 (preset)": preset_settings("freeu_v2", grid),
        "step s = 0.5, b = 1.3 inner": {"s": 0.5, "b": 1.3, "skips": "inner"},
        "b = 1.1 all": {"b": 1.1},
        "step s = 0.5 all, mean left alone": {"s": 0.5, "keep_mean": True},
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ckpt", default="pretrained", help="default: the one in the package")
    parser.add_argument("--guide", help="checkpoint to guide away from")
    parser.add_argument("--only", nargs="+", help="some of the settings, by name")
    parser.add_argument("--n", type=int, default=500, help="images of a setting (default: 500)")
    parser.add_argument("--steps", type=int, default=12, help="of dpmpp (default: 12)")
    parser.add_argument("--precision", default="bf16-mixed", help="default: bf16-mixed")
    parser.add_argument("--batch_size", type=int, default=100)
    parser.add_argument("--data", default="folder", help="default: folder")
    parser.add_argument("--data_root", default="data/cifar10-jpeg")
    parser.add_argument("--features", default="efficientnet-lite0", help="as evaluate.py's")
    args = parser.parse_args()

    device = choose_device("auto")
    model = load_model(args.ckpt, device)
    denoiser, names = model.denoiser, model.class_names
    long_skips = denoiser.backbone.long_skips
    data = ImageData(args.data, args.data_root, image_size=model.image_shape[-1])
    data.setup()
    assert data.validation is not None
    extract = load_features(args.features, Devices(device))
    train, held_out, _ = labelled_images(data, names)
    options = ReferenceOptions(features=args.features)
    reference, _ = load_reference(options, extract, data.validation.pixels, args.batch_size)
    probe, _ = load_probe(options, extract, train, held_out, args.batch_size)

    nothing: dict[str, Any] = {}
    settings: dict[str, tuple[dict[str, Any], Around | None]] = {"none": (nothing, None)}
    settings |= {name: (nothing, around) for name, around in GUIDANCE.items()}
    if args.guide:
        weak = load_model(args.guide, device).denoiser
        settings |= {AUTOGUIDANCE.format(w): (nothing, cfg(w, weak=weak)) for w in WEIGHTS}
    of_skips = skip_settings(denoiser.backbone.grid[0], len(long_skips))
    settings |= {name: (given, None) for name, given in of_skips.items()}
    chosen = {n: v for n, v in settings.items() if not args.only or n in ("none", *args.only)}

    seeds = list(range(args.n))
    labels = draw_labels(model, None, seeds)
    assert labels is not None
    heads = [
        "setting",
        "KID",
        "KID - none",
        "class share",
        "precision",
        "recall",
        "power above 0.75, dB",
        "time",
    ]
    print(f"real images: class share {interval(estimate(probe.right))}\n")
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|", flush=True)
    base: dict[str, Any] = {}
    draw = partial(
        sample,
        shape=model.image_shape,
        steps=args.steps,
        precision=args.precision,
        batch_size=args.batch_size,
        device=device,
    )
    draw(denoiser, seeds=seeds[: args.batch_size], labels=labels[: args.batch_size])  # not timed
    for name, (given, around) in chosen.items():
        override_skips(long_skips, **given)
        sampler = denoiser if around is None else around(denoiser)
        start = time.process_time()
        images = to_uint8(draw(sampler, seeds=seeds, labels=labels))
        seconds = time.process_time() - start
        features = torch.cat([extract(some) for some in images.split(args.batch_size)])
        distances = Distances(reference, {"kid", "precision_recall"})
        distances.update(features)
        values = distances.compute()
        *_, power = band_decibels(images).values()
        mine = {"kid": values["kid"], "power": power, "seconds": seconds}
        base = base or mine
        paired = [x - y for x, y in zip(mine["kid"], base["kid"], strict=True)]
        cells = [
            name,
            interval(estimate(*mine["kid"])),
            "" if mine is base else interval(estimate(*paired), "+"),
            interval(estimate(probe.agrees(features, torch.tensor(labels)))),
            f"{values['precision']:.3f}",
            f"{values['recall']:.3f}",
            f"{float((power - base['power']).mean()):+.2f}",
            f"{seconds / base['seconds']:.2f}" if base is not mine else f"{seconds / args.n:.3f} s",
        ]
        print("| " + " | ".join(cells) + " |", flush=True)


def interval(value: Any, sign: str = "") -> str:
    """An estimate with its 95 % interval."""
    mean, low, high = (f"{number:{sign}.3f}" for number in value)
    return f"{mean} [{low}, {high}]"


if __name__ == "__main__":
    main()
