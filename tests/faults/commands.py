"""The commands that work for a while, small, and what they leave behind."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from conftest import make_folder, train_arguments
from PIL import Image
from process import Process
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_latent import make_autoencoder

STEPS = 12


class Command(NamedTuple):
    """A command.

    Attributes:
        name: Of the command, as the table shows it.
        arguments: Its command line, in the directory as it is.
        result: What it has made there, as plain data: equal to the bit if it is the same.
        outputs: Directories that it writes into.
        second: Statuses beside 0 of the same command given again.
    """

    name: str
    arguments: Callable[[Path], list[str]]
    result: Callable[[Path], Any]
    outputs: tuple[str, ...]
    second: frozenset[int] = frozenset()


def bits(content: Any) -> Any:
    """Nested data in which tensors are their bytes."""
    if isinstance(content, dict):
        return {key: bits(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [bits(value) for value in content]
    if isinstance(content, torch.Tensor):
        return str(content.dtype), tuple(content.shape), content.numpy().tobytes()
    return content


def trained(directory: Path) -> Any:
    """The checkpoint that has come furthest, and the losses of its run by step."""
    paths = list(directory.glob("runs/faults/version_*/checkpoints/last.ckpt"))
    if not paths:
        return None
    contents = {path: torch.load(path, weights_only=True) for path in paths}
    path = max(paths, key=lambda path: contents[path]["global_step"])
    content = contents[path]
    loops = content["loops"]["fit_loop"]
    for name in [name for name in loops if "val_loop" in name]:
        del loops[name]  # counts of the batches that were validated
    events = EventAccumulator(str(path.parents[1])).Reload()
    losses = {
        tag: {event.step: event.value for event in events.Scalars(tag)}
        for tag in ("train/loss", "val/loss")
        if tag in events.Tags()["scalars"]
    }
    return bits(content), losses


def train(*options: str) -> Callable[[Path], list[str]]:
    """Arguments of a training that goes on where it can."""

    def arguments(directory: Path) -> list[str]:
        started = any(directory.glob("runs/faults/version_*/checkpoints/last.ckpt"))
        return ["train", *options, *(["--ckpt_path", "last"] if started else [])]

    return arguments


def files(*patterns: str) -> Callable[[Path], Any]:
    """Content of all files of some names; those that are equal count once."""

    def result(directory: Path) -> Any:
        paths = [path for pattern in patterns for path in directory.glob(pattern)]
        return {(path.suffix, path.read_bytes()) for path in paths if path.is_file()}

    return result


def all_commands(inputs: Path) -> list[Command]:
    """Every command that works for a while; writes what they read into a new directory."""
    make_folder(inputs / "images")
    pixels = np.random.default_rng(1).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(inputs / "photo.png")
    make_autoencoder(inputs / "vae")
    small = {
        "model__embed_dim": 16,
        "model__depth": 2,
        "data__batch_size": 4,
        "data__cache": "cache",
        "trainer__max_steps": STEPS,
        "trainer__log_every_n_steps": 1,  # a run that is stopped logs its last step in any case
        "checkpoints__every_n_steps": 2,
        "checkpoints__keep_every_n_steps": 5,
        "skips__every_n_steps": 6,
        "samples__every_n_steps": 6,
        "trainer__logger__init_args__save_dir": "runs",
        "trainer__logger__init_args__name": "faults",
        "filter": "butterworth",
    }
    folder = train_arguments(Path("images"), **small)
    latent = train_arguments(
        Path("images"),
        **{**small, "filter": "none"},
        data__autoencoder="vae",
        model__img_size=8,
        model__in_chans=4,
    )
    short = {**small, "trainer__max_steps": 2, "trainer__logger__init_args__name": "before"}
    first = Process(inputs, ["train", *train_arguments(Path("images"), **short)]).outcome()
    assert first.status == 0, first.err
    shutil.rmtree(inputs / "cache")
    (inputs / "model.ckpt").write_bytes(
        (inputs / "runs" / "before" / "version_0" / "checkpoints" / "last.ckpt").read_bytes()
    )
    model = ["--ckpt", "model.ckpt", "--s", "0.5"]
    few = ["--n", "10", "--steps", "3", "--batch_size", "3"]
    reference = ["--features", "test_evaluate:moments", "--metrics", "fid,kid,detail,classes"]
    data = ["--data", "folder", "--data_root", "images"]

    def once(*arguments: str) -> Callable[[Path], list[str]]:
        return lambda directory: list(arguments)

    export = once("export", "out/exported", *model[:2])
    return [
        Command("train", train(*folder), trained, ("runs", "cache")),
        Command("train, latents", train(*latent), trained, ("runs", "cache")),
        Command(
            "sample",
            once("sample", *model, *few, "--images", "--npz"),
            files("samples/*"),
            ("samples",),
        ),
        Command(
            "sweep",
            lambda _: ["sweep", *model[:2], *few, "--s", "0.5,1", "--b", "1,1.2", "--out", "out"],
            files("out/*/*.png", "out/*/*.csv", "out/*/cells/*"),
            ("out",),
        ),
        Command(
            "evaluate",
            lambda _: [
                "evaluate",
                *model[:2],
                *few,
                *reference,
                *data,
                "--s",
                "0.5,1",
                "--out",
                "out",
            ],
            files("out/*/results.*"),
            ("out",),
        ),
        Command(
            "edit",
            once("edit", "photo.png", *model, "--steps", "4", "--out", "out"),
            files("out/*"),
            ("out",),
        ),
        Command("export", export, files("out/exported/*"), ("out",), frozenset({1, 2})),
    ]
