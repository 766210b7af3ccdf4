"""Training: exact resumption, checkpoints that survive, what TensorBoard holds, clear errors."""

import os
import random
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
import warnings
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, error_line, make_folder, train_arguments
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import FSDPStrategy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader

from uvit_lit.cli import train
from uvit_lit.errors import Note
from uvit_lit.families import FILTERS, PROTOTYPES
from uvit_lit.model import load_model
from uvit_lit.settings import SkipSettings
from uvit_lit.training import callbacks
from uvit_lit.training.callbacks import LossByTime, MovingAverage, averaged_weights
from uvit_lit.training.module import DiffusionModule, parameter_groups
from uvit_lit.training.saving import AtomicCheckpointIO
from uvit_lit.uvit import UViT


@pytest.fixture(autouse=True)
def restore_argv(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])


def run(folder, steps, name, **options):
    """Train up to a step; the checkpoint it leaves."""
    options = {"trainer.logger.init_args.name": name, **options}
    train.main(train_arguments(folder, trainer__max_steps=steps, **options))
    return folder.parent / "runs" / name / "version_0" / "checkpoints" / "last.ckpt"


def differences(one, other, path=""):
    """Places at which two nested structures are not equal to the bit."""
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [path]
        return [d for k in one for d in differences(one[k], other[k], f"{path}/{k}")]
    if isinstance(one, list | tuple):
        pairs = enumerate(zip(one, other, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, f"{path}/{i}")]
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, other) else [path]
    return [] if one == other else [path]


def load(path):
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"filter": "step", "b": 1.2},
        {"filter": "freeu_box"},
        {"filter": "butterworth", "s": 0.8},
        {"filter": "chebyshev", "model.train": "filters"},
        {"trainer.accumulate_grad_batches": 2},
        {"model.optimizer": "adamw", "filter": "butterworth"},
    ],
    ids=["none", "step", "box", "learned", "filters", "accumulation", "adamw"],
)
def test_a_resumed_run_equals_the_uninterrupted_one(folder, options):
    whole = load(run(folder, 9, "whole", **options))
    run(folder, 4, "parts", **options)
    parts = load(run(folder, 9, "parts", ckpt_path="last", **options))
    assert whole["global_step"] == 9
    assert differences(whole, parts) == []
    assert differences(whole["state_dict"], whole["current_model_state"]) != []


def test_a_run_on_a_data_set_of_ones_own_resumes_with_any_number_of_workers(folder, monkeypatch):
    (folder.parent / "resumed_pictures.py").write_text(
        "import torch\n"
        "class Noise(torch.utils.data.Dataset):\n"
        "    classes = ['cat', 'ship']\n"
        "    def __len__(self):\n"
        "        return 10\n"
        "    def __getitem__(self, k):\n"
        "        return torch.rand(3, 16, 16), k % 2\n"
    )
    monkeypatch.chdir(folder.parent)
    monkeypatch.setattr(sys, "path", [*sys.path])
    name = "resumed_pictures:Noise"
    options = {"data.name": name, "data.validation": name}
    whole = load(run(folder, 6, "whole", **options))
    run(folder, 3, "parts", **options, **{"data.workers": 2})
    parts = load(run(folder, 6, "parts", ckpt_path="last", **options, **{"data.workers": 1}))
    assert whole["ImageData"]["class_names"] == ["cat", "ship"]
    for content in (whole, parts):
        del content["datamodule_hyper_parameters"]["workers"]
    assert differences(whole, parts) == []


@pytest.mark.parametrize("filter", ["none", "butterworth"])
def test_a_run_of_an_older_version_goes_on(folder, filter):
    """Its checkpoint has the settings of the skips beside the other arguments, and no backbone."""
    whole = load(run(folder, 6, "whole", filter=filter))
    path = run(folder, 3, "parts", filter=filter)
    content = load(path)
    content["hyper_parameters"] |= {
        **content["hyper_parameters"].pop("skip"),
        "s": 0.9,
        "learn_b": False,
    }
    del content["hyper_parameters"]["backbone"]
    torch.save(content, path)
    parts = load(run(folder, 6, "parts", ckpt_path="last", filter=filter))
    assert differences(whole, parts) == []


def test_a_run_that_cools_down_resumes(folder):
    path = run(folder, 8, "whole", **{"model.cooldown": 0.5, "checkpoints.keep_every_n_steps": 5})
    whole = load(path)
    run(folder, 8, "whole", ckpt_path=path.with_name("step=5.ckpt"), **{"model.cooldown": 0.5})
    branch = folder.parent / "runs/whole/version_1/checkpoints/last.ckpt"
    assert differences(whole, load(branch)) == []


@pytest.mark.slow
def test_fifty_resumes_equal_the_uninterrupted_run(folder):
    whole = load(run(folder, 200, "whole"))
    stops = sorted(random.Random(0).sample(range(1, 200), 50))
    run(folder, stops[0], "parts")
    for stop in [*stops[1:], 200]:
        path = run(folder, stop, "parts", ckpt_path="last")
    assert differences(whole, load(path)) == []


def test_a_resumed_run_continues_in_its_own_directory(folder):
    keep = {"checkpoints.keep_every_n_steps": 2}  # written at the same step as the last one
    run(folder, 2, "one", **keep)
    run(folder, 4, "one", ckpt_path="last", **keep, **{"model.grad_checkpoint": "true"})
    assert [p.name for p in (folder.parent / "runs" / "one").iterdir()] == ["version_0"]


def test_a_run_goes_on_without_the_weights_that_it_started_from(folder, trained, tmp_path):
    start = tmp_path / "start.ckpt"
    shutil.copy(trained, start)
    run(folder, 2, "one", **{"model.init_from": start})
    start.unlink()
    path = run(folder, 3, "one", ckpt_path="last", **{"model.init_from": start})
    assert load(path)["global_step"] == 3


def test_an_older_checkpoint_branches_off_and_keeps_the_newer(folder):
    path = run(folder, 6, "one", **{"checkpoints.keep_every_n_steps": 3})
    before = path.read_bytes()
    older = path.with_name("step=3.ckpt")
    run(folder, 4, "one", ckpt_path=older)
    assert path.read_bytes() == before
    assert load(folder.parent / "runs/one/version_1/checkpoints/last.ckpt")["global_step"] == 4


def test_a_run_whose_directory_was_renamed_branches_off(folder):
    path = run(folder, 2, "one")
    old = path.parents[1].rename(path.parents[2] / "version_0_old")
    before = snapshot(old)
    run(folder, 3, "one", ckpt_path=old / "checkpoints" / "last.ckpt")
    assert snapshot(old) == before
    assert load(old.parent / "version_1" / "checkpoints" / "last.ckpt")["global_step"] == 3


def test_two_runs_that_start_at_once_have_directories_of_their_own(tmp_path):
    loggers = [TensorBoardLogger(tmp_path, "run") for _ in range(3)]
    assert {logger.version for logger in loggers} == {0}  # as each of them sees it
    for logger in loggers:
        train.claim_version(logger)
    assert [logger.version for logger in loggers] == [0, 1, 2]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "version_0",
        "version_1",
        "version_2",
    ]


def test_a_run_that_is_stopped_early_saves(folder):
    path = run(folder, 1000, "timed", **{"trainer.max_time": "00:00:00:02"})
    assert 0 < load(path)["global_step"] < 1000


def test_the_run_leaves_what_it_promises(trained):
    version = trained.parent.parent
    assert (version / "config.yaml").exists()
    events = EventAccumulator(str(version), size_guidance={"images": 0}).Reload()
    tags = events.Tags()
    quarters = ("0.00-0.25", "0.25-0.50", "0.50-0.75", "0.75-1.00")
    for tag in (
        *(f"{stage}/loss_t_{quarter}" for stage in ("train", "val") for quarter in quarters),
        "train/loss",
        "val/loss",
        "lr-Muon/decay",
        "train/images_per_second",
        "train/gradient_norm",
        "skips/s_0",
        "skips/b_1",
    ):
        assert tag in tags["scalars"], tag
    assert [image.step for image in events.Images("samples")] == [4, 8]
    assert "config/text_summary" in tags["tensors"]
    assert (
        "embed_dim: 32"
        in events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    )
    assert "hparams" in str(events.SummaryMetadata("_hparams_/experiment"))
    rates = [e.value for e in events.Scalars("lr-Muon/decay")]
    assert rates[-1] == pytest.approx(1e-3)


def test_the_checkpoint_holds_the_averaged_weights(trained):
    content = load(trained)
    raw, averaged = content["current_model_state"], content["state_dict"]
    assert differences(raw, averaged) != []
    assert content["callbacks"]["MovingAverage"]["latest_update_step"] == 8
    assert content["ImageData"]["class_names"] == ["cat", "ship"]


@pytest.mark.parametrize("warmup", [True, False])
def test_the_average_follows_its_formula(warmup):
    class Weights(LightningModule):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

    module, average = Weights(), MovingAverage(0.5, warmup)
    average.setup(None, module, "fit")
    expected = 1.0  # the first update copies
    for n in range(12):
        module.weight.data.fill_(n + 1)
        average.update(module)
        decay = min(0.5, (1 + n) / (10 + n)) if warmup else 0.5
        expected += (n + 1 - expected) * (1 - decay) if n else 0.0
        assert float(average._average_model.module.weight) == pytest.approx(expected)


def test_the_validation_loss_is_averaged_over_images_and_in_each_quarter_of_t():
    """Over batches of any size and those of another process, which has an image at t = 0.3.

    The last quarter has t = 1 too, the third nothing.
    """
    logged, elsewhere = {}, torch.zeros(2, 4)
    elsewhere[:, 1] = torch.tensor([7.0, 1.0])
    module = SimpleNamespace(
        device="cpu", log=lambda name, value, **_: logged.__setitem__(name, value)
    )
    strategy = SimpleNamespace(reduce=lambda sums, reduce_op: sums + elsewhere)
    trainer = SimpleNamespace(strategy=strategy)
    losses = LossByTime()
    losses.on_validation_epoch_start(trainer, module)
    for values, times in (
        ([1.0, 2.0, 6.0], [0.1, 0.2, 0.8]),
        ([6.0, 5.0], [0.0, 0.3]),
        ([8.0], [1.0]),
    ):
        outputs = {"losses": torch.tensor(values), "t": torch.tensor(times)}
        losses.on_validation_batch_end(trainer, module, outputs)
    losses.on_validation_epoch_end(trainer, module)
    expected = {"": 5.0, "_t_0.00-0.25": 3.0, "_t_0.25-0.50": 6.0, "_t_0.75-1.00": 7.0}
    assert logged == {f"val/loss{name}": value for name, value in expected.items()}


def test_samples_in_training_have_its_precision(folder, monkeypatch):
    seen = set()
    original = UViT.forward

    def spy(self, *arguments, **options):
        seen.add((torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")))
        return original(self, *arguments, **options)

    monkeypatch.setattr(UViT, "forward", spy)
    run(folder, 1, "half", **{"trainer.precision": "bf16-mixed"})
    assert seen == {(False, True), (True, True)}


def test_samples_in_training_come_from_the_averaged_weights(folder, monkeypatch):
    """The grid is drawn with the weights that the checkpoint of that step calls averaged."""
    seen = {}
    original = train.SampleGrid._sample

    def spy(self, trainer, module):
        seen[trainer.global_step] = {k: v.clone() for k, v in module.state_dict().items()}
        return original(self, trainer, module)

    monkeypatch.setattr("uvit_lit.training.callbacks.SampleGrid._sample", spy)
    path = run(folder, 4, "spy")
    assert differences(seen[4], load(path)["state_dict"]) == []


def test_training_times_follow_the_chosen_distribution():
    """log(alpha / sigma) is normal: mean and deviation of 4,096 draws, to four standard errors."""
    module = DiffusionModule(**SMALL, schedule="cosine", prediction="x0", log_ratio=(-0.4, 0.8))
    images = torch.zeros(4096, 3, 16, 16)
    module.denoiser.loss = lambda x0, eps, t, y: t  # what is looked at is the times
    batch = {"image": images, "label": torch.zeros(4096, dtype=torch.long), "seed": 7}
    _, t = module._losses(batch, 0.0, module.log_ratio)
    alpha, sigma = module.denoiser.schedule.alpha_sigma(t)
    ratio = (alpha / sigma).log()
    assert ratio.mean() == pytest.approx(-0.4, abs=4 * 0.8 / 64)
    assert ratio.std() == pytest.approx(0.8, abs=4 * 0.8 / 64 / 2**0.5)


def test_speed_does_not_count_the_time_of_sampling(folder, monkeypatch):
    now, step = [0.0], DiffusionModule.training_step

    def takes(seconds, result):
        now[0] += seconds
        return result

    clock = SimpleNamespace(perf_counter=lambda: now[0])
    monkeypatch.setattr("uvit_lit.training.callbacks.time", clock)
    monkeypatch.setattr(DiffusionModule, "training_step", lambda *x: takes(1, step(*x)))
    monkeypatch.setattr(
        "uvit_lit.training.callbacks.SampleGrid._sample",
        lambda *_: takes(100, torch.zeros(4, 3, 16, 16)),
    )
    path = run(folder, 8, "speed", **{"trainer.log_every_n_steps": 4})
    events = EventAccumulator(str(path.parent.parent)).Reload()
    rates = [event.value for event in events.Scalars("train/images_per_second")]
    assert rates == [4, 4]  # a batch of four a second


def test_a_failure_while_sampling_puts_the_raw_weights_back():
    class Average(MovingAverage):
        swaps = 0

        def _swap_models(self, module):
            self.swaps += 1

    average = Average()
    trainer = type("Trainer", (), {"callbacks": [average]})()
    with pytest.raises(RuntimeError, match="boom"), averaged_weights(trainer, None):
        raise RuntimeError("boom")
    assert average.swaps == 2


SMALL = {"img_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 3}


def test_weight_decay_spares_biases_norms_embeddings_positions_and_filters():
    model = DiffusionModule(**SMALL, skip=SkipSettings("butterworth", s=0.9))
    names = {id(p): n for n, p in model.named_parameters()}
    groups = parameter_groups(model.denoiser, 1e-3, 0.03, filter_lr=5.0)
    assert [g["weight_decay"] for g in groups] == [0.03, 0.0, 0.0]
    assert [g["lr"] for g in groups] == [1e-3, 1e-3, 5e-3]
    decayed, spared, filters = ({names[id(p)] for p in group["params"]} for group in groups)
    assert decayed | spared | filters == set(names.values())
    assert len(decayed) + len(spared) + len(filters) == len(names)
    prefix = "denoiser.backbone.long_skips.0.learned"
    assert filters == {f"{prefix}.{name}.raw" for name in ("s", "cutoff")}
    assert all(n.endswith(".weight") and "norm" not in n for n in decayed)
    assert {n for n in spared if n.endswith(("pos_embed", "label_emb.weight"))}


LIKE_TRAINED = {
    "img_size": 16,
    "patch_size": 4,
    "embed_dim": 32,
    "depth": 4,
    "num_heads": 2,
    "num_classes": 2,
    "schedule": "cosine",
    "prediction": "x0",
}


def moved(path, other):
    """Names of the weights in which two checkpoints differ."""
    one, two = (load(p)["current_model_state"] for p in (path, other))
    names = one.keys() & two.keys()
    return {n.removeprefix("denoiser.backbone.") for n in names if not torch.equal(one[n], two[n])}


def test_fine_tuning_with_a_filter_at_s_1_starts_at_the_pretrained_function(trained):
    pretrained = load_model(trained).denoiser
    for filter in PROTOTYPES:
        start = DiffusionModule(**LIKE_TRAINED, skip=SkipSettings(filter), init_from=str(trained))
        x, t, y = torch.randn(2, 3, 16, 16), torch.tensor([0.1, 0.8]), torch.tensor([0, 1])
        assert torch.equal(start.denoiser(x, t, y), pretrained(x, t, y))


def test_what_was_learned_starts_as_it_was_where_it_fits(folder):
    path = run(folder, 6, "first", filter="butterworth", b=1.1, **{"model.filter_lr": 300})
    before = load_model(path).denoiser
    x, t, y = torch.randn(2, 3, 16, 16), torch.tensor([0.1, 0.8]), torch.tensor([0, 1])
    expected = before(x, t, y)
    learned = before.backbone.long_skips[0].settings
    assert abs(learned.s - 0.9) > 1e-3

    def difference(skip):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            start = DiffusionModule(**LIKE_TRAINED, init_from=str(path), skip=skip).denoiser
        notes = sum(issubclass(warning.category, Note) for warning in caught)
        return float((start(x, t, y) - expected).abs().max()), notes

    assert difference(SkipSettings("butterworth", b=1.1)) == (0, 0)
    family = SkipSettings("chebyshev", s=0.9)
    other = DiffusionModule(**LIKE_TRAINED, skip=family, init_from=str(path)).denoiser
    assert other.backbone.long_skips[0].settings.s == pytest.approx(0.9)
    for other in (
        SkipSettings("butterworth", b=1.1, b_map="constant"),
        SkipSettings("butterworth", b=1.1, order=5),
        SkipSettings("butterworth"),
        SkipSettings("chebyshev", b=1.1),
        SkipSettings(),
    ):
        changed, notes = difference(other)
        assert changed > 1e-5
        assert notes == 1


def test_what_the_checkpoint_decides_cannot_change_on_resuming(folder, capsys):
    options = {"filter": "butterworth", "model.train": "filters"}
    run(folder, 2, "one", **options)
    for other, message in (
        ({"model.train": "all"}, "train is all here and filters in the checkpoint"),
        ({"model.filter_lr": 3}, "filter_lr is 3.0 here and 10.0"),
        ({"model.lr": 1}, "lr is 1.0 here and 0.001"),
        ({"order": 2}, "order is 2 here and 3"),
        ({"s": 0.5}, "s is 0.5 here and 0.9"),
        ({"model.depth": 6}, "depth is 6 here and 4 in the checkpoint"),
    ):
        wrong = {"trainer.logger.init_args.name": "one", "ckpt_path": "last", **options, **other}
        arguments = train_arguments(folder, trainer__max_steps=4, **wrong)
        status, line = error_line(capsys, train.main, arguments)
        assert status == 2
        assert message in line


def failure(capsys, folder, steps, **options):
    """Status and the one line of a run that must fail."""
    arguments = train_arguments(folder, trainer__max_steps=steps, **options)
    return error_line(capsys, train.main, arguments)


def snapshot(directory):
    """Content of all files below a directory."""
    return {p: p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def test_last_never_goes_on_with_another_run(folder, capsys):
    """A finished run, and another that was killed before its first checkpoint."""
    path = run(folder, 3, "one")
    other = path.parents[2] / "version_1"
    other.mkdir()
    before = snapshot(folder.parent / "runs")
    os.utime(other, (time.time() + 10, time.time() + 10))
    name = {"trainer.logger.init_args.name": "one"}
    status, line = failure(capsys, folder, 6, ckpt_path="last", **name)
    assert (status, f"{other} has no checkpoint yet" in line, str(path) in line) == (2, True, True)
    other.rmdir()
    for option, value in (
        ("data.batch_size", 3),
        ("ema.decay", 0.5),
        ("seed_everything", 7),
        ("trainer.gradient_clip_val", 3.0),
        ("model.warmup_steps", 1),
    ):
        status, line = failure(capsys, folder, 6, ckpt_path="last", **name, **{option: value})
        assert (status, f"error: {option} is {value} here and" in line) == (2, True), line
    assert snapshot(folder.parent / "runs") == before
    run(folder, 4, "one", ckpt_path=path, **{"data.batch_size": 3})
    assert load(path)["global_step"] == 4


def test_a_finished_run_says_so_and_stays(folder, capsys):
    path = run(folder, 3, "one")
    before = snapshot(folder.parent / "runs")
    for name in ("last", path):
        run(folder, 3, "one", ckpt_path=name)
        assert (
            f"note: {path} is already at step 3; trainer.max_steps is 3" in capsys.readouterr().err
        )
    assert snapshot(folder.parent / "runs") == before


def change(content, place, value):
    """Put a value at a place of a nested structure; of None take the entry away."""
    *parents, last = place
    for key in parents:
        content = content[key]
    if value is None:
        del content[last]
    else:
        content[last] = value


STEPS = (
    "loops",
    "fit_loop",
    "epoch_loop.automatic_optimization.optim_progress",
    "optimizer",
    "step",
    "total",
    "completed",
)
WEIGHT = "denoiser.backbone.norm.weight"


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (["optimizer_states"], None, "optimizer_states is missing"),
        (["optimizer_states"], [], "optimizer_states is a list"),
        (["optimizer_states", 0, "state", 3], None, "optimizer_states.0.state.3 is missing"),
        (["optimizer_states", 0, "state", 3, "momentum"], torch.zeros(2), "3.momentum is a Te"),
        (["optimizer_states", 0, "param_groups", 0, "lr"], "0.1", "param_groups.0.lr is '0.1'"),
        (["lr_schedulers"], None, "lr_schedulers is missing"),
        (["lr_schedulers", 0, "last_epoch"], "x", "last_epoch is 'x'"),
        (["callbacks"], None, "callbacks is missing"),
        (["callbacks", "MovingAverage", "latest_update_step"], 2, "its MovingAverage of 2"),
        (["loops"], None, "loops is missing"),
        (["loops", "fit_loop"], {}, "loops.fit_loop.state_dict is missing"),
        (STEPS, 2, "it is of step 3, its loops of 2"),
        (STEPS, -1, "completed is -1"),
        (["global_step"], "3", "global_step is '3'"),
        (["averaging_state", "n_averaged"], torch.tensor(0.5), "n_averaged is a Tensor, not of"),
        (["state_dict", WEIGHT], torch.full((32,), torch.nan), f"{WEIGHT} is not finite"),
        (["current_model_state", WEIGHT], torch.full((32,), torch.inf), f"{WEIGHT} is not finite"),
        (["current_model_state"], None, "current_model_state is missing"),
        (["state_dict", WEIGHT], None, f"{WEIGHT} is missing"),
        (["pytorch-lightning_version"], "new", "it names no version"),
        (["hyper_parameters"], [1], "was not written by train.py"),
        (["hyper_parameters", "lr"], torch.zeros(3), "lr is 0.001 here and a Tensor"),
        (["datamodule_hyper_parameters"], "x", "was not written by train.py"),
    ],
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, list) else "",
)
def test_a_damaged_checkpoint_is_refused_before_anything_is_written(
    folder, trained_alike, tmp_path, capsys, place, value, message
):
    content = load(trained_alike)
    change(content, place, value)
    torch.save(content, tmp_path / "damaged.ckpt")
    status, line = failure(capsys, folder, 6, ckpt_path=tmp_path / "damaged.ckpt")
    assert (status, message in line) == (2, True), line
    assert not (folder.parent / "runs").exists()


@pytest.fixture(scope="module")
def trained_alike(tmp_path_factory):
    """Checkpoint of three steps of a run like those of the tests here."""
    folder = make_folder(tmp_path_factory.mktemp("alike") / "images")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py"])
        return run(folder, 3, "one")


def at_step(monkeypatch, step, action):
    """Do something in a training step, once."""
    original = DiffusionModule.training_step

    def step_and_act(self, *arguments):
        if self.trainer.global_step == step - 1:
            action(self)
        return original(self, *arguments)

    monkeypatch.setattr(DiffusionModule, "training_step", step_and_act)


def resumed(line):
    """Arguments of the command that a line offers."""
    return shlex.split(line.partition("to go on: ")[2])[2:]


def test_a_terminated_run_saves_and_goes_on_to_the_same_bits(folder, capsys, monkeypatch):
    whole = load(run(folder, 7, "whole"))
    with monkeypatch.context() as patch:
        at_step(patch, 5, lambda _: os.kill(os.getpid(), signal.SIGTERM))
        name = {"trainer.logger.init_args.name": "parts"}
        status, line = failure(capsys, folder, 7, **name)
    assert (status, "terminated at step 5; step 5 is saved" in line) == (143, True), line
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    train.main(resumed(line))
    path = folder.parent / "runs" / "parts" / "version_0" / "checkpoints" / "last.ckpt"
    assert differences(whole, load(path)) == []


@pytest.mark.parametrize(
    ("program", "command"),
    [
        ("train.py", "python train.py"),
        ("/home/my user/train.py", "python '/home/my user/train.py'"),
        ("uvit-lit train", "uvit-lit train"),
    ],
)
def test_the_command_that_goes_on_names_the_program(program, command):
    line = train.resume_command([program, "--filter=step", "--ckpt_path", "old"], Path("a.ckpt"))
    assert line == f"{command} --filter=step --ckpt_path a.ckpt"


def test_ctrl_c_is_one_line(folder, capsys, monkeypatch):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    at_step(monkeypatch, 5, lambda _: os.kill(os.getpid(), signal.SIGINT))
    status, line = failure(capsys, folder, 7, **{"checkpoints.every_n_steps": 2})
    assert (status, "interrupted at step 4; step 4 is saved; to go on: " in line) == (130, True)
    monkeypatch.undo()
    monkeypatch.setattr(sys, "argv", ["train.py"])
    train.main(resumed(line))


@pytest.mark.parametrize("what", ["loss", "gradients", "weights", "data"])
def test_numbers_that_go_wrong_stop_the_run_and_keep_the_last_good_checkpoint(
    folder, capsys, monkeypatch, what
):
    def spoil(module):
        if what == "weights":
            module.denoiser.backbone.long_skips.requires_grad_(False)
            with torch.no_grad():  # of no use to the loss of this step
                module.denoiser.backbone.label_emb.weight[1] = torch.nan
        elif what == "gradients":
            weight = next(module.denoiser.backbone.parameters())
            weight.register_hook(lambda gradient: gradient * torch.inf)
        elif what == "data":
            module.losses = module._losses
            module._losses = lambda batch, *rest: module.losses(
                {**batch, "image": batch["image"].index_fill(0, torch.tensor(1), torch.inf)}, *rest
            )
        else:
            module.velocity = module.denoiser.velocity_weight
            module.denoiser.velocity_weight = lambda t: module.velocity(t) * torch.nan

    at_step(monkeypatch, 5, spoil)
    options = {
        "checkpoints.every_n_steps": 2,
        "trainer.log_every_n_steps": 100,
        "samples.every_n_steps": 100,
        "model.class_dropout": 0.0,
    }
    status, line = failure(capsys, folder, 20, **options)
    assert status == 1
    assert "training diverged: the loss is not finite at step" in line
    assert "step 4 is saved; to go on: python train.py" in line
    path = folder.parent / "runs" / "tiny" / "version_0" / "checkpoints" / "last.ckpt"
    content = load(path)
    assert content["global_step"] == 4
    assert all(v.isfinite().all() for v in content["current_model_state"].values())


def test_a_spike_of_the_loss_between_two_logged_steps_shows(folder, monkeypatch):
    original = DiffusionModule._losses

    def spiking(self, batch, *rest, **options):
        losses, t = original(self, batch, *rest, **options)
        return losses * (1000 if self.training and self.trainer.global_step == 4 else 1), t

    monkeypatch.setattr(DiffusionModule, "_losses", spiking)
    path = run(folder, 9, "spike", **{"trainer.log_every_n_steps": 3})
    events = EventAccumulator(str(path.parents[1])).Reload()
    losses, largest = ([e.value for e in events.Scalars(f"train/loss{x}")] for x in ("", "_max"))
    assert max(losses) < 20
    assert [value > 20 for value in largest] == [False, True, False]


def test_the_moving_average_follows_the_model_to_its_device():
    """Its count stays on the CPU, where no step has to wait for it."""
    module = DiffusionModule(**SMALL)
    average = MovingAverage()
    average.setup(None, module, "fit")
    average.on_fit_start(None, module.to("meta"))
    assert {p.device.type for p in average._average_model.module.parameters()} == {"meta"}
    assert average._average_model.n_averaged.device.type == "cpu"
    average.update(module)
    assert int(average._average_model.n_averaged) == 1


def test_no_step_asks_the_device_for_a_number(folder, monkeypatch):
    """Between two logged steps nothing turns a tensor into a number, which waits for a device.

    But the optimiser its own counts, which are on the CPU.
    """
    asked = []
    original = torch.Tensor.item
    monkeypatch.setattr(torch.Tensor, "item", lambda x: asked.append(id(x)) or original(x))
    counts = {}
    training_step = DiffusionModule.training_step

    def count(self, *arguments):
        own = {id(state["step"]) for state in self.optimizers().optimizer.state.values()}
        counts[self.trainer.global_step] = sum(number not in own for number in asked)
        asked.clear()
        return training_step(self, *arguments)

    monkeypatch.setattr(DiffusionModule, "training_step", count)
    run(
        folder,
        12,
        "quiet",
        **{
            "trainer.log_every_n_steps": 100,
            "model.optimizer": "adamw",
            "trainer.val_check_interval": 100,
            "samples.every_n_steps": 100,
            "trainer.enable_progress_bar": "true",
        },
    )
    assert [counts[step] for step in range(3, 12)] == [0] * 9


@pytest.mark.parametrize("filter", ["none", "butterworth"])
def test_a_diverged_run_stops_with_one_line(folder, capsys, filter):
    options = {"filter": filter, "model.lr": 1e30, "trainer.log_every_n_steps": 1}
    arguments = train_arguments(folder, trainer__max_steps=30, **options)
    status, line = error_line(capsys, train.main, arguments)
    assert status == 1
    assert "training diverged" in line


def test_a_lack_of_memory_is_one_line(folder, capsys, monkeypatch):
    def lacks(*_):
        raise torch.OutOfMemoryError("20 GiB")

    monkeypatch.setattr(DiffusionModule, "training_step", lacks)
    status, line = error_line(capsys, train.main, train_arguments(folder, trainer__max_steps=2))
    assert (status, "choose a smaller --data.batch_size" in line) == (1, True)


def test_the_rates_warm_up():
    model = DiffusionModule(
        **SMALL, skip=SkipSettings("butterworth"), warmup_steps=4, lr=1.0, filter_lr=2.0
    )
    (optimizer,), (schedule,) = model.configure_optimizers()
    rates = []
    for _ in range(5):
        rates.append({g["name"]: g["lr"] for g in optimizer.param_groups})
        optimizer.step()
        schedule["scheduler"].step()
    assert [r["filters"] for r in rates] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert [r["decay"] for r in rates] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_only_the_filters_move(folder):
    options = {"filter": "butterworth", "model.train": "filters"}
    path = run(folder, 4, "one", **options, **{"checkpoints.keep_every_n_steps": 2})
    names = moved(path.with_name("step=2.ckpt"), path)
    assert names == {f"long_skips.{i}.learned.{n}.raw" for i in (0, 1) for n in ("s", "cutoff")}


def test_training_recovers_a_filter_of_a_uvit():
    """By U-ViT, optimiser and moving average: a student of the same weights finds s and cutoff.

    It starts at the default settings, and its loss compares it with the network that has the filter
    to find.
    """
    sizes = {"img_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 2}

    def module(s, cutoff):
        torch.manual_seed(0)
        skip = SkipSettings("butterworth", s=s, cutoff=cutoff)
        module = DiffusionModule(
            skip=skip,
            train="filters",
            lr=0.01,
            betas=(0.9, 0.99),
            warmup_steps=0,
            cooldown=0.8,
            **sizes,
        )
        with torch.no_grad():
            for weight in module.denoiser.backbone.parameters():
                if weight.ndim > 1:
                    weight.normal_(std=0.1)
        return module

    teacher, student = module(0.35, 0.8), module(0.9, 0.3)

    def loss(x0, eps, t, y):
        x_t = student.denoiser.add_noise(x0, eps, t)
        with torch.no_grad():
            wanted = teacher.denoiser.predict(x_t, t, y)
        return (student.denoiser.predict(x_t, t, y) - wanted).square().flatten(1).mean(1)

    student.denoiser.loss = loss
    generator = torch.Generator().manual_seed(0)
    batches = [
        {
            "image": torch.randn(8, 3, 16, 16, generator=generator),
            "label": torch.tensor([0, 1] * 4),
            "seed": seed,
        }
        for seed in range(150)
    ]
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=150,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[MovingAverage(0.9)],
    )
    trainer.fit(
        student, DataLoader(batches, batch_size=None)
    )  # at its end the model has the averaged weights
    (long_skip,) = student.denoiser.backbone.long_skips
    assert long_skip.settings.s == pytest.approx(0.35, rel=0.01)
    assert long_skip.settings.cutoff == pytest.approx(0.8, rel=0.01)


def test_tensorboard_shows_what_the_filters_learn(folder, capsys):
    path = run(
        folder,
        6,
        "filters",
        filter="butterworth",
        **{"model.filter_lr": 3000, "skips.every_n_steps": 3, "trainer.log_every_n_steps": 1},
    )
    events = EventAccumulator(str(path.parent.parent), size_guidance={"images": 0}).Reload()
    tags = events.Tags()
    assert {"skips/cutoff_0", "skips/s_1", "skips/b_1", "lr-Muon/filters"} <= set(tags["scalars"])
    assert len({e.value for e in events.Scalars("skips/cutoff_0")}) > 1
    for tag in ("skips/gain", "skips/spectra"):
        assert [image.step for image in events.Images(tag)] == [3, 6]
    lines = capsys.readouterr().err.splitlines()
    warnings = [line for line in lines if line.startswith("warning: the cutoff of long skip 0")]
    assert len(warnings) == 1
    assert "bound" in warnings[0]


def test_the_spectra_are_drawn_in_evaluation_mode(folder, monkeypatch):
    """Without dropout; the next step trains again."""
    seen, original = [], callbacks.plot_spectra

    def spy(denoiser, *arguments):
        seen.append(denoiser.training)
        return original(denoiser, *arguments)

    monkeypatch.setattr(callbacks, "plot_spectra", spy)
    at_step(monkeypatch, 2, lambda module: seen.append(module.denoiser.training))
    run(folder, 2, "one", **{"skips.every_n_steps": 1})
    assert seen == [False, True, False]


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path):
    io, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint({"step": 1}, path)
    with pytest.raises((AttributeError, TypeError)):
        io.save_checkpoint({"step": 2, "not plain": lambda: None, "generator": iter([])}, path)
    assert load(path) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path):
    """A limit on the size of files stands for the full disk."""
    io, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint({"step": 1}, path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(OSError, match=r"last\.ckpt"):
            io.save_checkpoint({"x": torch.zeros(1_000_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert load(path) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


KILLED_WHILE_SAVING = """
import sys, torch
from uvit_lit.training.saving import AtomicCheckpointIO
from uvit_lit.uvit import UViT
step = 0
while True:
    step += 1
    AtomicCheckpointIO().save_checkpoint({"step": step, "x": torch.zeros(3_000_000)}, sys.argv[1])
"""


@pytest.mark.slow
def test_a_killed_save_leaves_a_loadable_checkpoint(tmp_path):
    path, interrupted = tmp_path / "last.ckpt", 0
    for attempt in range(12):
        process = subprocess.Popen([sys.executable, "-c", KILLED_WHILE_SAVING, path], cwd=ROOT)
        try:
            while not path.exists():
                time.sleep(0.05)
            time.sleep(0.3 + 0.0137 * attempt)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        interrupted += any(path.parent.glob("*.partial"))
        content = load(path)
        assert content["x"].shape == (3_000_000,)
        path.unlink()
    assert interrupted > 0  # at least one kill hit a save


@pytest.mark.slow
@pytest.mark.parametrize("filter", PROTOTYPES)
def test_two_processes_train_and_resume(folder, filter):
    """DDP on two CPU processes: runs, logs once, resumes to the bit, learns a filter."""
    options = {"trainer.devices": 2, "trainer.strategy": "ddp", "filter": filter}

    def launch(name, steps, **more):
        more = {"trainer.logger.init_args.name": name, **options, **more}
        command = train_arguments(folder, trainer__max_steps=steps, **more)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "train.py", *command],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return folder.parent / "runs" / name / "version_0" / "checkpoints" / "last.ckpt"

    whole = load(launch("whole", 6))
    launch("parts", 3)
    parts = load(launch("parts", 6, ckpt_path="last"))
    assert differences(whole, parts) == []
    events = EventAccumulator(str(folder.parent / "runs" / "whole" / "version_0")).Reload()
    steps = [[e.step for e in events.Scalars(f"val/loss{by}")] for by in ("", "_t_0.75-1.00")]
    assert steps[0] == steps[1] != []
    single = load(run(folder, 6, "single", filter=filter))
    assert differences(whole["state_dict"], single["state_dict"]) != []


@pytest.mark.slow
def test_a_compiled_run_resumes_and_equals_one_that_is_not(folder, monkeypatch):
    """Without the C++ compiler, which takes minutes; ``test_a_run_is_compiled`` has it."""
    compiled, compile = [], torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda f: compiled.append(f.__name__) or compile(f, backend="aot_eager")
    )
    options = {"filter": "butterworth", "model.optimizer": "adamw"}
    plain = load(run(folder, 6, "plain", **options))
    assert compiled == []
    options["compile"] = "true"
    whole = load(run(folder, 6, "whole", **options))
    run(folder, 3, "parts", **options)
    parts = load(run(folder, 6, "parts", ckpt_path="last", **options))
    assert compiled == ["loss"] * 3
    assert differences(whole, parts) == []
    for name in ("state_dict", "current_model_state"):
        assert whole[name].keys() == plain[name].keys()
        for key, value in whole[name].items():
            torch.testing.assert_close(value, plain[name][key], atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_a_run_is_compiled(folder):
    options = {"filter": "butterworth", "trainer.limit_val_batches": 0}
    plain = load(run(folder, 2, "plain", **options))["current_model_state"]
    compiled = load(run(folder, 2, "compiled", **options, compile="true"))["current_model_state"]
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, atol=1e-4, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_two_processes_take_the_steps_of_one_with_both_batches(folder, optimizer):
    """The noise and the times of an image here depend on its number alone, not on its batch."""
    (folder.parent / "twice.py").write_text(BY_IMAGE)
    states = []
    for name, devices, size in (("one", 1, 8), ("two", 2, 4)):
        options = {
            "model.optimizer": optimizer,
            "filter": "butterworth",
            "data.batch_size": size,
            "data.flip": "false",
            "trainer.devices": devices,
            "trainer.strategy": "ddp",
            "trainer.logger.init_args.name": name,
        }
        done = subprocess.run(
            [
                sys.executable,
                folder.parent / "twice.py",
                *train_arguments(folder, trainer__max_steps=4, **options),
            ],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        path = folder.parent / "runs" / name / "version_0" / "checkpoints" / "last.ckpt"
        states.append(load(path))
    for name in ("state_dict", "current_model_state"):
        for key, one in states[0][name].items():
            torch.testing.assert_close(one, states[1][name][key], atol=2e-5, rtol=1e-4)
    assert states[0]["global_step"] == states[1]["global_step"] == 4


BY_IMAGE = """
import torch
from uvit_lit.cli import train
from uvit_lit.training.module import DiffusionModule

def losses(self, batch, *_, **__):
    x0, y = batch["image"], batch["label"]
    own = x0.flatten(1).mean(1)
    t = own.sin().abs()
    eps = torch.sin(1000 * own[:, None] + torch.arange(x0[0].numel())).view_as(x0)
    return self.denoiser.loss(x0, eps, t, y), t

DiffusionModule._losses = losses
train.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("filter", FILTERS)
def test_bfloat16_training_runs(folder, filter):
    path = run(folder, 4, "bf16", **{"trainer.precision": "bf16-mixed", "filter": filter})
    weights = load(path)["state_dict"]
    assert all(v.dtype == torch.float32 and v.isfinite().all() for v in weights.values())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"filter": "boxcar"}, "boxcar"),
        ({"s": 0.5}, "s is 0.5 without a filter; accepted"),
        ({"filter": "step", "s": -1}, "s is -1.0; accepted"),
        ({"filter": "step", "s": ".nan"}, "s is nan; accepted"),
        ({"filter": "step", "cutoff": 0}, "cutoff is 0.0; accepted"),
        ({"filter": "step", "cutoff": 2}, "cutoff is 2.0; accepted"),
        ({"model.patch_size": 5}, "img_size is 16; accepted"),
        ({"model.num_classes": 7}, "the data has 2 classes, the model 7"),
        ({"data.name": "gone:train"}, "data.name is 'gone:train': there is no module gone"),
        ({"model.lr": "fast"}, "model.lr"),
        ({"model.lr": 0}, "lr is 0"),
        ({"model.embed_dim": "null"}, "model.embed_dim is null; accepted: of type int"),
        ({"samples.every_n_steps": "null"}, "samples.every_n_steps is null; accepted: of type int"),
        ({"trainer.strategy": "gone"}, "the options of trainer are refused"),
        ({"model.weight_decay": -1}, "weight_decay is -1"),
        ({"model.betas": "[1.0, 0.999]"}, "betas are"),
        ({"model.cfg_range": "0.5"}, "model.cfg_range is 0.5; accepted: two numbers"),
        ({"model.cfg_range": "[0.5]"}, "model.cfg_range is [0.5]; accepted: two numbers"),
        ({"model.mlp_ratio": -1}, "mlp_ratio is -1"),
        ({"model.in_chans": 1}, "the network has 1 channels"),
        ({"samples.columns": 0}, "columns 0"),
        ({"model.schedule": "exp"}, "'exp'; accepted: vp"),
        ({"model.prediction": "score"}, "'score'; accepted: eps"),
        ({"samples.solver": "euler"}, "'euler'; accepted: ddpm"),
        ({"data.name": "mnist"}, "'mnist'; accepted: cifar10"),
        ({"data.root": "/nonexistent"}, "/nonexistent is not a directory"),
        ({"data.batch_size": 0}, "batch_size is 0; accepted"),
        (
            {"trainer.devices": 2, "data.batch_size": 8},
            "the 8 images of the validation make 1 batches of 8; accepted: at least 1 for each of "
            "the 2 devices",
        ),
        ({"trainer.max_steps": -1}, "set --trainer.max_steps"),
        ({"trainer.max_epochs": 3}, "max_epochs 3"),
        ({"trainer.limit_train_batches": 2}, "limit_train_batches would repeat"),
        ({"trainer.accumulate_grad_batches": 0}, "accumulate_grad_batches is 0"),
        ({"trainer.val_check_interval": 0}, "val_check_interval is 0"),
        ({"samples.seed": 2**32 - 1}, "seed is 4294967296; accepted: 0 to below 2^32"),
        ({"trainer.precision": "bf16-true"}, "precision is bf16-true; accepted: 32-true"),
        ({"ckpt_path": "gone.ckpt"}, "gone.ckpt does not exist"),
        ({"ckpt_path": "last"}, "no checkpoint below"),
        ({"seed_everything": -1}, "seed_everything is -1; accepted: 0 to below 2^32"),
        ({"seed_everything": 2**32}, "seed_everything is 4294967296; accepted: 0 to below 2^32"),
        ({"config": "gone.yaml"}, "gone.yaml does not exist"),
        ({"conf": "gone.yaml"}, "option --conf is unknown; accepted: --config FILE"),
        ({"trainer.devices": -5}, "trainer.devices is -5; accepted: a number of at least 1"),
        ({"trainer.devices": "x"}, "trainer.devices is x; accepted: a number of at least 1"),
        ({"trainer.gradient_clip_val": -1}, "trainer.gradient_clip_val is -1; accepted: at least"),
        ({"trainer.log_every_n_steps": -1}, "trainer.log_every_n_steps is -1; accepted: at least"),
        (
            {"trainer.limit_val_batches": 0.5},
            "trainer.limit_val_batches is 0.5; accepted: a number",
        ),
        ({"model.embed_dim": 100_000_000}, "the network would have"),
        ({"model.depth": 10**9}, "depth is 1000000000; accepted: up to 1000"),
        ({"model.num_heads": 0}, "num_heads is 0; accepted: a divisor of 32"),
        ({"model.img_size": 10**6}, "the network would have"),
        ({"model.size": 3}, "model.size"),
        ({"filter": "butterworth", "order": 0}, "order is 0; accepted: 1 to 12"),
        ({"filter": "butterworth", "order": 2.5}, "order"),
        ({"filter": "chebyshev", "ripple": 9}, "ripple is 9.0; accepted: 0.05 to 6.0, dB"),
        ({"filter": "chebyshev2", "attenuation": 5}, "attenuation is 5.0; accepted: 10"),
        ({"filter": "butterworth", "s": 0}, "s is 0.0; accepted where it is learned"),
        ({"filter": "butterworth", "cutoff": 0.1}, "cutoff is 0.1; accepted where it is"),
        ({"model.train": "some"}, "train is 'some'; accepted: all, filters"),
        ({"model.train": "filters"}, "the long skips learn nothing"),
        ({"ema.decay": 1}, "decay is 1.0; accepted: from 0 to below 1"),
        ({"model.filter_lr": 0}, "filter_lr is 0"),
        ({"model.loss_weight": "snr"}, "loss_weight is 'snr'; accepted: plain, velocity"),
        ({"model.log_ratio": "[0,0]"}, "log_ratio is (0.0, 0.0); accepted: a mean and a standard"),
        ({"model.cfg": 0.5}, "cfg is 0.5; accepted: 1 or more"),
        ({"model.cfg": 2, "model.class_dropout": 0}, "cfg is 2.0; accepted: 1, or a model of"),
        ({"model.cfg_range": "[0.8,0.2]"}, "the range of t is 0.8,0.2; accepted: two times"),
        ({"skips.every_n_steps": 0}, "every_n_steps is 0"),
        ({"model.init_from": "gone.ckpt"}, "gone.ckpt does not exist"),
    ],
)
def test_mistakes_are_one_line(folder, capsys, wrong, message):
    options = {"trainer.max_steps": 2, **wrong}
    status, line = error_line(capsys, train.main, train_arguments(folder, **options))
    assert status == 2
    assert message in line
    assert not (folder.parent / "runs").exists()


BOMB = "a: &a [1, 1]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in pairwise("abcdefghij"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model:\n  lr: 1\n  lr: 2\n", "it has the key lr twice"),
        ("data: {name: shapes}\nmodel: {}\ndata: {}\n", "it has the key data twice"),
        (BOMB, "it has the alias *a; accepted: none"),
        ("a: &a [*a]", "it has the alias *a; accepted: none"),
        ("[" * 100_000, "is refused"),
        ("a: " * 50, "mapping values are not allowed"),
        ("[" * 1000, "it is nested deeper than 20"),
        ("- 1\n", "it holds no entries"),
        ('a: "\\0"\n', "it has a character of code 0"),
        ("", "it holds no entries"),
        ("a: !!python/object/apply:os.system ['touch executed']", "could not determine"),
        (b"\xff\xfe\x00", "is refused"),
        ("a: 1\n" * 20_001, "it has 100005 characters"),
    ],
)
def test_a_bad_configuration_is_one_line(tmp_path, capsys, text, message):
    path = tmp_path / "bad.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    status, line = error_line(capsys, train.main, [f"--config={path}"])
    assert (status, message in line, str(path) in line) == (2, True, True), line


def test_an_abbreviated_option_is_refused(tmp_path, capsys):
    (tmp_path / "part.yaml").write_text("model: {lr: 1}")
    for command in (
        ["-c", str(tmp_path / "part.yaml")],
        [f"-c{tmp_path}/part.yaml"],
        ["--conf", str(tmp_path / "part.yaml")],
        ["--model.l", "1"],
    ):
        status, line = error_line(capsys, train.main, command)
        assert (status, command[0][:2] in line) == (2, True), line


@pytest.mark.slow
def test_a_configuration_of_the_package_is_found_anywhere_and_keeps_whole_numbers(tmp_path):
    """Whichever library has first named a whole number or a fraction, and in which order."""
    program = (
        "import typing; typing.Optional[typing.Union[float, int]]\n"
        "from uvit_lit.cli.train import main\n"
        "main(['--config', 'configs/quickstart.yaml', '--print_config'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "  limit_val_batches: 16\n" in done.stdout
    assert "  name: quickstart\n" in done.stdout


def test_strategies_that_cut_the_weights_are_refused():
    """Lightning itself refuses fsdp on a CPU, so the command line cannot show it here."""
    trainer = SimpleNamespace(
        max_steps=1,
        max_epochs=-1,
        limit_train_batches=1.0,
        accumulate_grad_batches=1,
        val_check_interval=1,
        strategy=FSDPStrategy(),
    )
    with pytest.raises(ValueError, match=r"cuts the weights .*; accepted: auto, ddp"):
        train.check_run(SimpleNamespace(trainer=trainer, model=None, datamodule=None))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"model.depth": 6}, "depth is 6 here and 4 in"),
        ({"model.embed_dim": 64}, "embed_dim is 64 here and 32 in"),
        ({"model.prediction": "v"}, "prediction is v here and x0 in"),
        ({"model.num_heads": 4}, "num_heads is 4 here and 2 in"),
    ],
)
def test_weights_of_another_model_are_refused(folder, trained, capsys, other, message):
    options = {"trainer.max_steps": 9, "model.init_from": trained, **other}
    status, line = error_line(capsys, train.main, train_arguments(folder, **options))
    assert status == 2
    assert message in line


def test_a_directory_that_cannot_be_written_is_one_line(folder, capsys):
    blocker = folder.parent / "file"
    blocker.write_text("")
    options = {"trainer.max_steps": 2, "trainer.logger.init_args.save_dir": blocker}
    status, line = error_line(capsys, train.main, train_arguments(folder, **options))
    assert status == 1
    assert str(Path(blocker).name) in line


def test_the_learning_rate_cools_down_to_the_end_of_the_run(folder):
    options = {
        "model.warmup_steps": 2,
        "model.cooldown": 0.5,
        "model.lr": 1.0,
        "trainer.log_every_n_steps": 1,
        "model.optimizer": "muon",
    }
    path = run(folder, 8, "cool", **options)
    events = EventAccumulator(str(path.parent.parent)).Reload()
    rates = [e.value for e in events.Scalars("lr-Muon/decay")]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25])
