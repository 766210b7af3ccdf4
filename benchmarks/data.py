"""How fast batches come: ours, torchvision's data set with a DataLoader, and what training eats.

Both give batches of mirrored float images in [-1, 1] with labels, of 50,000 generated images.

    python benchmarks/data.py
"""

import argparse
import itertools
import statistics

import timing
import torch
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import CIFAR10
from training import ours

from uvit_lit.data.datamodule import ImageData, TrainBatches
from uvit_lit.data.folder import Images

COUNT = 50_000


class Generated(CIFAR10):
    """torchvision's CIFAR10 with pixels that need no download."""

    def __init__(self, pixels, labels, transform):
        self.data, self.targets = pixels.permute(0, 2, 3, 1).numpy(), labels.tolist()
        self.transform, self.target_transform = transform, None


def our_batches(images, batch):
    """Batches as the training step gets them."""
    data = ImageData("shapes", batch_size=batch)
    for item in TrainBatches(images, batch, seed=0):
        yield data.on_after_batch_transfer(item, 0)


def torchvision_batches(images, batch, workers):
    """Batches of the usual recipe, epoch after epoch."""
    transform = transforms.Compose(
        [
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )
    data = Generated(images.pixels, images.labels, transform)
    loader = DataLoader(
        data,
        batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    while True:
        yield from loader


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--batches", type=int, default=50, help="in each round")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    pixels = torch.randint(256, (COUNT, 3, 32, 32), dtype=torch.uint8)
    images = Images(pixels, torch.arange(COUNT) % 10, [])
    streams = {
        "ours": our_batches(images, args.batch),
        "torchvision": torchvision_batches(images, args.batch, 0),
        "torchvision, 2 workers": torchvision_batches(images, args.batch, 2),
    }

    def take(stream):
        return timing.timed(lambda: list(itertools.islice(stream, args.batches)))

    cases = {name: take(stream) for name, stream in streams.items()}
    step, _ = ours("tiny", args.batch)
    seconds = timing.alternate({**cases, "training step": timing.timed(step)}, args.rounds)
    print(
        f"{timing.machine('torchvision')}, batch {args.batch}, {args.batches} batches a round, "
        f"{args.rounds} rounds"
    )
    print(
        "| batches | images/s | speed of ours over it | batches in a training step |\n"
        "|---|---|---|---|"
    )
    steps = [args.batches * value for value in seconds.pop("training step")]
    for name, values in seconds.items():
        rate = args.batches * args.batch / statistics.median(values)
        print(
            f"| {name} | {rate:,.0f} | {timing.spread(timing.ratios(values, seconds['ours']), 1)}"
            f" | {timing.spread(timing.ratios(steps, values), 0)} |"
        )


if __name__ == "__main__":
    main()
