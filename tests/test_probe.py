"""The probe that says which class an image looks like."""

import dataclasses

import pytest
import torch

from uvit_lit.data.datamodule import ImageData
from uvit_lit.data.folder import Images
from uvit_lit.distributed import Devices
from uvit_lit.evaluation.features import Features
from uvit_lit.evaluation.probe import Probe, fit
from uvit_lit.evaluation.reference import labelled_images

CLASSES = 4


def clouds(count, seed=0):
    """Features of separable classes, on scales that differ by a factor of 10,000, and labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    centres = 8 * torch.randn(CLASSES, 6, generator=torch.Generator().manual_seed(9))
    points = centres[labels] + torch.randn(count, 6, generator=generator)
    return points * torch.logspace(-2, 2, 6) + 5, labels


def share(features, labels, tried, truth):
    probe = Probe(*fit(features, labels, CLASSES), torch.empty(0), truth)
    return float(probe.agrees(tried, truth).float().mean())


def test_separable_classes_are_told_apart_and_labels_at_random_are_guessed():
    features, labels = clouds(800)
    tried, truth = clouds(800, seed=1)
    assert share(features, labels, tried, truth) == 1
    noise, other = torch.randn(2, 800, 6, generator=torch.Generator().manual_seed(0))
    assert share(noise, labels, other, truth) == pytest.approx(1 / CLASSES, abs=0.06)


def test_the_probe_is_tried_on_images_that_it_was_not_trained_on():
    """Noise that is learned by heart is not known again."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (80, 3, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.arange(80) % 2
    extract = Features(
        "pixels", lambda images: images.float().flatten(1), Devices(torch.device("cpu"))
    )
    images = Images(pixels, labels, ["a", "b"])
    known = Probe.build(extract, images, images, batch_size=7)
    assert known.right.all()
    new = Images(pixels[torch.randperm(80, generator=generator)].flip(-1), labels, ["a", "b"])
    assert 0.2 < Probe.build(extract, images, new, batch_size=7).right.float().mean() < 0.8


def test_without_a_test_split_a_fifth_is_held_out(folder):
    data = ImageData("folder", str(folder), image_size=16, cache=str(folder.parent / "cache"))
    data.setup()
    train, held_out, source = labelled_images(data, ["cat", "ship"])
    assert (len(train.labels), len(held_out.labels), source) == (24, 8, "test split")
    data.validation = None
    train, held_out, source = labelled_images(data, ["cat", "ship"])
    assert (len(train.labels), len(held_out.labels)) == (19, 5)
    assert source.startswith("a fifth of the train split")
    both = torch.cat([train.pixels, held_out.pixels]).flatten(1)
    assert len(both.unique(dim=0)) == len(data.train.pixels.flatten(1).unique(dim=0)) == 24


def test_classes_of_other_names_are_refused(folder):
    data = ImageData("folder", str(folder), image_size=16, cache=str(folder.parent / "cache"))
    data.setup()
    with pytest.raises(ValueError, match="the model has the classes dog, ship, the data cat, ship"):
        labelled_images(data, ["dog", "ship"])
    data.train = dataclasses.replace(data.train, class_names=[])
    with pytest.raises(ValueError, match="the data has no classes"):
        labelled_images(data, ["cat", "ship"])
