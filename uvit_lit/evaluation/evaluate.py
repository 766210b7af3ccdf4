"""Measure the images of a generation against real ones."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from uvit_lit.detail import Estimate, estimate, measure_detail
from uvit_lit.errors import InputError, note, shorten
from uvit_lit.evaluation.distances import NEIGHBOURS, Blocks, Distances
from uvit_lit.evaluation.features import load_features
from uvit_lit.evaluation.reference import (
    data_spectrum,
    find_data,
    labelled_images,
    load_probe,
    load_reference,
    split_pixels,
)
from uvit_lit.files import write_torch
from uvit_lit.generation import Generation
from uvit_lit.options import DISTANCES, ReferenceOptions
from uvit_lit.reading import difference, load

SAVE_EVERY = 8  # batches


class Evaluation:
    """What the images of a generation are measured by: real images, features and a probe.

    Args:
        generation: A launched generation, whose labels are drawn at random.
        options: Metrics, features and real images.

    Attributes:
        real: Values of the real images themselves, and the words for these images.
        key: Plain data that decides the values, beside what decides the images.

    Raises:
        ValueError: If the options do not fit each other, the model or the data.
        OSError: If data or weights cannot be read or downloaded.
    """

    def __init__(self, generation: Generation, options: ReferenceOptions) -> None:
        self.generation, self.options = generation, options
        self.metrics = set(options.metrics)
        names = generation.model.class_names
        self._check(names)
        self.real: dict[str, Any] = {}
        self.key: dict[str, Any] = {"metrics": sorted(self.metrics)}
        self.extract = self.reference = self.probe = None
        batch_size = generation.options.batch_size
        if self.metrics != {"detail"}:  # a wrong name is refused before the data are loaded
            self.extract = load_features(
                options.features, generation.devices, options.inception_weights
            )
        data = find_data(options, generation, self.metrics)
        pixels = None if data is None else split_pixels(data, options.split)
        self.spectrum = {}
        if "detail" in self.metrics and pixels is not None:
            self.spectrum = data_spectrum(pixels)
            self.key["reference"] = [options.data, options.data_root, options.split]
        if self.extract is None:
            return
        labelled = None
        if "classes" in self.metrics:
            assert data is not None
            labelled = labelled_images(data, names)
        self.key["features"] = options.features
        if self.metrics & DISTANCES:
            self.reference, key = load_reference(options, self.extract, pixels, batch_size)
            self.key["reference_sha256"] = key
            Distances(self.reference, self.metrics)  # refuses a reference that lacks something
            if options.save_stats is not None and generation.devices.is_main:
                self.reference.write(options.save_stats)
        if labelled is not None:
            train, held_out, source = labelled
            probe, key = load_probe(options, self.extract, train, held_out, batch_size)
            self.probe, self.key["probe_sha256"] = probe, key
            asked = torch.isin(probe.labels, torch.tensor(generation.labels))
            samples = self._by_class(probe.right[asked], probe.labels[asked])
            shares = {name: plain(estimate(*v)) for name, v in samples.items() if len(v[0])}
            self.real = {"images": source, "values": shares}

    def _check(self, class_names: list[str]) -> None:
        """Refuse metrics that the model or the number of images leaves without their needs."""
        n = self.generation.options.n
        if "classes" in self.metrics and not class_names:
            raise InputError("this model has no classes; accepted: other metrics than classes")
        if "precision_recall" in self.metrics and n <= NEIGHBOURS:
            raise InputError(f"n is {n}; accepted with precision_recall: more than {NEIGHBOURS}")

    def measure(
        self, generation: Generation, state: Path, bar: tqdm
    ) -> tuple[dict[str, Any], dict[str, list[Tensor]]]:
        """Measure the images of a generation.

        Args:
            generation: The one of this evaluation, or one with other options.
            state: File of what is measured so far; an interrupted evaluation goes on from it.
            bar: Its progress bar.

        Returns:
            Values by name, as plain data, and the samples of one number per image that they are
            estimates of. Both are empty in all processes but the main one.
        """
        distances = None if self.reference is None else Distances(self.reference, self.metrics)
        numbers = self._stream(generation, distances, state, bar)
        if not generation.devices.is_main:
            return {}, {}
        computed = distances.compute() if distances else {}
        measured = {name_of(name, self.options.features): v for name, v in computed.items()}
        if self.probe is not None:
            right = numbers.pop("class_accuracy")
            measured |= self._by_class(right, torch.tensor(generation.labels))
        measured |= {name: [v] for name, v in numbers.items()}
        values: dict[str, Any] = {}
        for name, value in measured.items():
            values[name] = plain(estimate(*value) if isinstance(value, list) else value)
            if name in self.spectrum:
                above = estimate(*value, -self.spectrum[name])
                values[f"{name}, above the data"] = plain(above)
        return values, {name: v for name, v in measured.items() if isinstance(v, list)}

    def _read(
        self, state: Path, generation: Generation, distances: Distances | None
    ) -> dict[str, Any] | None:
        """Content of a file of ``measure``; None, with a note, where it is damaged."""
        try:
            stored = load(state)
            images = stored.get("images")
            if type(images) is not int or not 0 < images <= generation.options.n:
                raise InputError(f"images is {shorten(images)}")
            size = generation.image_size
            like: dict[str, Tensor] = {}
            if "detail" in self.metrics:
                like = measure_detail(torch.zeros(1, 3, size, size, dtype=torch.uint8))
            if self.probe is not None:
                like["class_accuracy"] = self.probe.right[:1]
            example = {
                "images": images,
                "per_image": {name: tensor.expand(images) for name, tensor in like.items()},
                "distances": distances and distances.example_state(images),
            }
            if problem := difference(stored, example):
                raise InputError(problem)
            if distances is not None and stored["distances"]["count"] != images:
                raise InputError("it counts other images")
            return {**stored, "per_image": {name: stored["per_image"][name] for name in like}}
        except InputError as error:
            note(f"{state} is measured anew: {error}")
            return None

    def _stream(
        self, generation: Generation, distances: Distances | None, state: Path, bar: tqdm
    ) -> dict[str, Tensor]:
        """Numbers of every image by name, (images,); the main process alone measures."""
        devices, total = generation.devices, generation.options.n
        batches: list[dict[str, Tensor]] = []
        first, stored = 0, None
        if devices.is_main and state.exists():
            stored = self._read(state, generation, distances)
        if stored is not None:
            first, batches = stored["images"], [stored["per_image"]]
            if distances is not None:
                distances.load_state_dict(stored["distances"])
        first = devices.decide(first)
        bar.update(devices.share(first) * generation.calls)
        for number, images in enumerate(generation.stream(bar, first), start=1):
            done = first + len(images)
            features = None if self.extract is None else self.extract(images)
            if devices.is_main:
                if distances is not None and features is not None:
                    distances.update(features)
                numbers = measure_detail(images) if "detail" in self.metrics else {}
                if self.probe is not None and features is not None:
                    assert generation.labels is not None
                    labels = torch.tensor(generation.labels[first:done])
                    numbers["class_accuracy"] = self.probe.agrees(features, labels)
                batches.append(numbers)
                if number % SAVE_EVERY == 0 or done == total:
                    batches = [{name: torch.cat([b[name] for b in batches]) for name in numbers}]
                    content = {
                        "images": done,
                        "per_image": batches[0],
                        "distances": None if distances is None else distances.state_dict(),
                    }
                    write_torch(state, content)
            first = done
        return batches[0] if batches else {}

    def _by_class(self, right: Tensor, labels: Tensor) -> dict[str, list[Tensor]]:
        """Whether each image is put into its class: of all images, and of those of each class."""
        name = name_of("class_accuracy", self.options.features)
        names = self.generation.model.class_names
        return {name: [right]} | {
            f"{name}, {names[k]}": [right[labels == k]] for k in labels.unique().tolist()
        }


def name_of(metric: str, features: str) -> str:
    """Name of a value: only Inception's Frechet distance is called FID."""
    if metric == "fid" and features != "inception":
        metric = "frechet_distance"
    return f"{metric}_{features}"


def plain(value: float | Estimate | Blocks) -> Any:
    """A number or several for JSON, which has no nan: None."""
    if isinstance(value, tuple):
        return {name: plain(number) for name, number in value._asdict().items()}
    return value if math.isfinite(value) else None
