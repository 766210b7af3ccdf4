"""Every file that the project reads, and what a command does with it."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from conftest import make_folder, train_arguments
from damage import damaged, odd_objects, replace_some, values
from harness import Case
from lightning.pytorch import Trainer
from PIL import Image
from safetensors.torch import load as read_safetensors
from safetensors.torch import save as write_safetensors
from test_evaluate import moments

from uvit_lit.cli import train
from uvit_lit.cli.edit import read_image
from uvit_lit.cli.export import main as export_main
from uvit_lit.cli.options import checked_input
from uvit_lit.cli.sweep import draw
from uvit_lit.data.folder import load_folder
from uvit_lit.evaluation.distances import Distances, Reference
from uvit_lit.evaluation.evaluate import Evaluation
from uvit_lit.generation import Generation, generate
from uvit_lit.model import load_model
from uvit_lit.options import ModelOptions, ReferenceOptions, SamplingOptions, SkipOptions
from uvit_lit.settings import SkipSettings
from uvit_lit.training.module import DiffusionModule

LEARNED = SkipSettings("butterworth", s=0.9)
SIZES = {"img_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}


class DamagedFile:
    """A file with damage, of its bytes or of what is inside.

    Args:
        name: Of the target.
        valid: A whole file.
        path: Where the damaged one is put.
        call: What is done with it.
        inside: Damages the content; gives words and bytes. None knows bytes alone.
    """

    def __init__(
        self,
        name: str,
        valid: Path,
        path: Path,
        call: Callable[[Path], object],
        inside: Callable[[bytes, Random, Path], tuple[str, bytes]] | None = None,
    ) -> None:
        self.name, self.path, self.call, self.inside = name, path, call, inside
        self.valid = valid.read_bytes()

    def case(self, seed: str, canary: Path) -> Case:
        """See ``harness.Target``."""
        rng = Random(seed)
        change = self.inside if self.inside is not None and rng.random() < 0.6 else damaged
        words, content = change(self.valid, rng, canary)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_bytes(content)
        return Case(words, lambda: self.call(self.path))


def inside_torch(valid: bytes, rng: Random, canary: Path) -> tuple[str, bytes]:
    """Another value somewhere in a file of torch."""
    import io

    content = torch.load(io.BytesIO(valid), weights_only=True)
    words = replace_some(content, rng, odd_objects(rng, canary))
    out = io.BytesIO()
    torch.save(content, out, pickle_protocol=4)
    return words, out.getvalue()


def inside_safetensors(valid: bytes, rng: Random, canary: Path) -> tuple[str, bytes]:
    """Another value in the card, or in the header, where shapes and places of the tensors are."""
    (size,) = struct.unpack("<Q", valid[:8])
    header = json.loads(valid[8 : 8 + size])
    if rng.random() < 0.6:
        card = json.loads(header["__metadata__"]["uvit_lit"])
        words = "card: " + replace_some(card, rng, values(rng))
        text = rng.choice(
            [json.dumps(card)] * 9 + ["null", "[]", "3", "[" * 10**5, "{", "9" * 5000]
        )
        return words, write_safetensors(read_safetensors(valid), {"uvit_lit": text})
    header["__metadata__"].pop("sha256", None)
    words = "header: " + replace_some(header, rng, values(rng))
    text = json.dumps(header).encode()
    claimed = rng.choice([len(text)] * 9 + [2**40, 2**63, 0, len(text) + 1])
    return words, struct.pack("<Q", claimed) + text + valid[8 + size :]


BOMB = "\n".join(f"{b}: &{b} [*{a}, *{a}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True))


def inside_yaml(valid: bytes, rng: Random, canary: Path) -> tuple[str, bytes]:
    """Another value, another line, or a bomb."""
    lines = valid.decode().splitlines()
    number = rng.choice([k for k, line in enumerate(lines) if ":" in line])
    key = lines[number].partition(":")[0]
    kind = rng.choice(["value", "value", "value", "removed", "twice", "added", "moved"])
    if kind == "value":
        code = ["!!python/object/apply:os.system [touch x]", "{class_path: os.system}"]
        value = rng.choice([json.dumps(values(rng)), *code, "&a [*a]", "1e3", "~", "2001-1-1"])
        lines[number] = f"{key}: {value}"
    elif kind == "removed":
        del lines[number]
    elif kind == "twice":
        lines.insert(number, lines[number])
    elif kind == "added":
        lines.insert(
            number, rng.choice([BOMB, "x: 1", "- 1", "\t", "---", "%YAML 9", "? [", "a: b: c"])
        )
    else:
        lines[number] = "  " + lines[number]
    return f"{kind} {key.strip()}", "\n".join(lines).encode()


def inside_npz(valid: bytes, rng: Random, canary: Path) -> tuple[str, bytes]:
    """Other arrays, or sizes that are not theirs."""
    import io

    arrays = dict(np.load(io.BytesIO(valid)))
    name = rng.choice(list(arrays))
    array = arrays[name]
    others = [
        array[:-1],
        array[..., None],
        array.T[:1],
        array.ravel(),
        np.zeros(0),
        np.zeros(()),
        np.array(["x"]),
    ]
    if array.dtype.kind != "U":
        with np.errstate(all="ignore"):
            others += [-array, array * np.nan, array * np.inf, array + 1j, array * 1e300]
            others += [array.astype(kind) for kind in ("f2", "i4", "S3", bool)]
    other = rng.choice(others)
    out = io.BytesIO()
    np.savez(out, **{**arrays, name: other})
    content = out.getvalue()
    if rng.random() < 0.4:
        old = str(other.shape).encode()
        new = str(tuple(rng.choice([10**14, 2**62, -1, 0, 1]) for _ in other.shape)).encode()
        content = content.replace(old, new[: len(old)].ljust(len(old)), 1)
    return f"{name} is {other.dtype} {other.shape}", content


def all_targets(root: Path, output: Path) -> list[DamagedFile]:
    """Every file that is read; whole ones lie below ``root``, and what is made below ``output``."""
    valid = root / "valid"
    valid.mkdir(parents=True)
    torch.manual_seed(0)
    module = DiffusionModule(**SIZES, num_classes=2, skip=LEARNED)
    torch.save(
        {
            "state_dict": module.state_dict(),
            "hyper_parameters": dict(module.hparams),
            "global_step": 7,
            "ImageData": {"class_names": ["cat", "ship"]},
            "datamodule_hyper_parameters": {"name": "folder", "root": "data"},
        },
        valid / "model.ckpt",
    )
    export_main([str(valid / "model.safetensors"), "--ckpt", str(valid / "model.ckpt")])
    backbone = DiffusionModule(**SIZES).denoiser.backbone
    torch.save(backbone.state_dict(), valid / "model.pth")
    generator = np.random.default_rng(0)
    features = generator.normal(size=(30, 6))
    np.savez(valid / "stats.npz", mu=features.mean(0), sigma=np.cov(features.T), features=features)
    pixels = generator.integers(0, 256, (12, 14, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[274] = 6
    for suffix, mode in (("png", "P"), ("jpg", "RGB"), ("tif", "F"), ("gif", "P"), ("webp", "RGB")):
        image = Image.fromarray(pixels).convert(mode)
        if mode == "F":
            image = Image.fromarray(np.asarray(image) / 255)
        image.save(valid / f"image.{suffix}", exif=exif) if suffix != "gif" else image.save(
            valid / "image.gif"
        )
    good = root / "folder" / "good.png"
    good.parent.mkdir()
    Image.fromarray(pixels).save(good)
    data = make_folder(root / "data")
    runs = train_arguments(
        data,
        trainer__max_steps=2,
        model__embed_dim=16,
        model__depth=2,
        data__cache=output / "cache",
        trainer__logger__init_args__save_dir=root / "runs",
    )
    train.main(runs)
    last = root / "runs" / "tiny" / "version_0" / "checkpoints" / "last.ckpt"
    config = (root / "runs" / "tiny" / "version_0" / "config.yaml").read_text()
    (valid / "config.yaml").write_text(config)
    cache_files = root / "cached" / "a.png"
    cache_files.parent.mkdir()
    Image.fromarray(pixels).save(cache_files)
    load_folder(cache_files.parent, 8, output / "fresh")
    (cached,) = (output / "fresh").iterdir()

    def weights(path: Path, **options: Any) -> None:
        with checked_input():
            model = load_model(path, **options)
        generate(model, 1, steps=1, progress=False)

    def start(path: Path) -> None:
        with checked_input():
            DiffusionModule(
                **SIZES, num_classes=2, skip=SkipSettings("butterworth", s=0.9), init_from=str(path)
            )

    def resume(path: Path) -> None:
        train.main(
            [
                *runs,
                "--trainer.max_steps=3",
                f"--ckpt_path={path}",
                f"--trainer.logger.init_args.save_dir={output / 'runs'}",
            ]
        )

    def configure(path: Path) -> None:
        fit, claim = Trainer.fit, train.claim_version
        Trainer.fit = lambda *_, **__: None
        train.claim_version = lambda _: None  # a run goes where its configuration says
        try:
            train.main(
                [
                    f"--config={path}",
                    f"--data.root={data}",
                    f"--data.cache={output}/cache",
                    "--trainer.accelerator=cpu",
                    "--trainer.devices=1",
                ]
            )
        finally:
            Trainer.fit, train.claim_version = fit, claim

    def statistics(path: Path) -> None:
        with checked_input():
            distances = Distances(Reference.read(path), {"fid", "kid"})
        distances.update(torch.randn(20, len(distances.reference.mu)))
        distances.compute()

    def edit(path: Path) -> None:
        with checked_input():
            assert read_image(path, 8).shape == (1, 3, 8, 8)

    def folder(path: Path) -> None:
        with checked_input():
            assert len(load_folder(path.parent, 8, output / "cache").pixels) in (1, 2)

    def cache(path: Path) -> None:
        with checked_input():
            assert load_folder(cache_files.parent, 8, path.parent).pixels.shape == (1, 3, 8, 8)

    rows = moments(torch.from_numpy(generator.integers(0, 256, (30, 3, 8, 8), dtype=np.uint8)))
    own = {"mu": rows.mean(0), "sigma": rows.T.cov(), "features": rows}
    np.savez(valid / "own.npz", **{name: value.numpy() for name, value in own.items()})
    sampling = SamplingOptions(n=2, steps=1, batch_size=2)
    options = ModelOptions(str(valid / "model.ckpt"), device="cpu")
    generation = Generation.load(options, sampling, drawn_labels=True)
    generation.launch()
    measured = ReferenceOptions(
        ["fid", "kid", "detail"], "test_evaluate:moments", stats=valid / "own.npz"
    )
    evaluation = Evaluation(generation, measured)

    def state(path: Path) -> Any:
        with checked_input(), generation.bar(show=False) as bar:
            return evaluation.measure(generation, path, bar)

    def cell(path: Path) -> Any:
        with checked_input(), generation.bar(show=False) as bar:
            return draw(generation, SkipOptions(), path, bar)

    whole = state(valid / "whole.state")[0], cell(valid / "whole.png")

    def same_state(path: Path) -> None:
        assert state(path)[0] == whole[0]

    def same_cell(path: Path) -> None:
        assert torch.equal(cell(path), whole[1])

    into = output / "input"
    return [
        DamagedFile("ckpt", valid / "model.ckpt", into / "a.ckpt", weights, inside_torch),
        DamagedFile("init_from", valid / "model.ckpt", into / "b.ckpt", start, inside_torch),
        DamagedFile(
            "safetensors",
            valid / "model.safetensors",
            into / "a.safetensors",
            weights,
            inside_safetensors,
        ),
        DamagedFile(
            "pth",
            valid / "model.pth",
            into / "a.pth",
            lambda p: weights(p, num_heads=2),
            inside_torch,
        ),
        DamagedFile("resume", last, into / "c.ckpt", resume, inside_torch),
        DamagedFile("yaml", valid / "config.yaml", into / "a.yaml", configure, inside_yaml),
        DamagedFile("stats", valid / "stats.npz", into / "a.npz", statistics, inside_npz),
        DamagedFile("cache", cached, output / "fresh" / cached.name, cache, inside_npz),
        DamagedFile("state", valid / "whole.state", into / "a.state", same_state, inside_torch),
        DamagedFile("cell", valid / "whole.png", into / "a.png", same_cell),
        *(
            DamagedFile(f"edit {s}", valid / f"image.{s}", into / f"a.{s}", edit)
            for s in ("png", "jpg", "tif", "gif", "webp")
        ),
        DamagedFile("folder", valid / "image.png", good.with_name("bad.png"), folder),
    ]


SHARES = {"resume": 0.4, "yaml": 0.8, "folder": 0.5}
"""Cases of slow targets, beside 1 for each of the others."""
