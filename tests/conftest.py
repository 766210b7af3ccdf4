"""A folder of small images and a model trained on it for a few steps."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # train.py and sample.py

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@pytest.fixture(scope="session")
def browser():
    """Chromium; a process can drive only one."""
    api = pytest.importorskip("playwright.sync_api", reason="the extra browser is not installed")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def make_folder(root: Path) -> Path:
    """Two classes, 12 training and 4 test images each, 20 x 24 pixels of noise."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for name in ("cat", "ship"):
            directory = root / split / name
            directory.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(directory / f"{i:02}.png")
    return root


def train_arguments(folder: Path, **options: object) -> list[str]:
    """Command line of a run that takes a second: sizes, and whatever is overridden."""
    defaults = {
        "data.name": "folder",
        "data.root": folder,
        "data.cache": folder.parent / "cache",
        "data.batch_size": 4,
        "model.img_size": 16,
        "model.embed_dim": 32,
        "model.depth": 4,
        "model.num_heads": 2,
        "model.num_classes": 2,
        "model.lr": 1e-3,
        "model.warmup_steps": 3,
        "model.skips": "all",
        "model.cooldown": 0,  # a run of another length is another run
        "samples.every_n_steps": 4,
        "samples.count": 4,
        "samples.steps": 2,
        "checkpoints.every_n_steps": 100,
        "trainer.accelerator": "cpu",
        "trainer.devices": 1,
        "trainer.log_every_n_steps": 2,
        "trainer.val_check_interval": 4,
        "trainer.enable_progress_bar": "false",
        "trainer.enable_model_summary": "false",
        "trainer.logger.init_args.save_dir": folder.parent / "runs",
        "trainer.logger.init_args.name": "tiny",
    }
    options = {name.replace("__", "."): value for name, value in options.items()}
    return [f"--{name}={value}" for name, value in {**defaults, **options}.items()]


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "images")


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Checkpoint of a run of eight steps."""
    from uvit_lit.cli.train import main

    root = tmp_path_factory.mktemp("trained")
    argv = sys.argv
    try:
        main(train_arguments(make_folder(root / "images"), trainer__max_steps=8))
    finally:
        sys.argv = argv
    return root / "runs" / "tiny" / "version_0" / "checkpoints" / "last.ckpt"


def error_line(capsys, call, *arguments) -> tuple[int, str]:
    """Run a command that must fail; its status and the one line that it printed on stderr."""
    with pytest.raises(SystemExit) as stopped:
        call(*arguments)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    return stopped.value.code, lines[0]


class Payload:
    """Pickled, it would create a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")
