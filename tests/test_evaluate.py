"""Distances and the evaluation around them."""

import json
import math
import pickle
import re
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import Payload, error_line, train_arguments
from torchmetrics.image.fid import NoTrainInceptionV3
from torchvision.transforms.functional import gaussian_blur

from uvit_lit.cli import compare, evaluate, train
from uvit_lit.data.folder import load_folder
from uvit_lit.data.shapes import draw_shapes
from uvit_lit.detail import band_decibels, estimate
from uvit_lit.distributed import Devices
from uvit_lit.errors import InputError
from uvit_lit.evaluation.distances import KEPT, Distances, Reference
from uvit_lit.evaluation.features import Features, load_features
from uvit_lit.generation import Generation, draw_labels
from uvit_lit.model import load_model
from uvit_lit.sampling import to_uint8

CPU = Devices(torch.device("cpu"))
METRICS = "fid,kid,detail,classes"


def moments(images):
    """Features that need no weights: mean and deviation of every channel, and of a few rows."""
    values = images.float() / 255
    rows = values.mean(dim=(1, 3))[:, :4]
    return torch.cat([values.mean(dim=(2, 3)), values.std(dim=(2, 3)), rows], dim=1)


def vectors(count, shift=0.0, seed=0, size=6):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, size, generator=generator) + shift


def reference(features):
    return Reference(features.double().mean(0), torch.cov(features.double().T), features)


def distances(real, generated, metrics=("fid", "kid", "precision_recall"), batch=37):
    stream = Distances(reference(real), set(metrics))
    for part in generated.split(batch):
        stream.update(part)
    return stream.compute()


def test_the_frechet_distance_of_shifted_gaussians():
    """Equal covariances: it is the squared distance of the means."""
    real = vectors(4000)
    values = distances(real, real + 0.5, ["fid"])
    assert values["fid"] == pytest.approx(6 * 0.25, rel=1e-6)
    assert distances(real, real, ["fid"])["fid"] == pytest.approx(0, abs=1e-9)


def test_kid_is_zero_for_equal_distributions_and_grows_with_the_damage():
    real, alike = vectors(2000), vectors(2000, seed=1)
    mean, low, high = estimate(*distances(real, alike, ["kid"])["kid"])
    assert low < 0 < high
    near, far = (
        estimate(*distances(real, vectors(2000, shift, 2), ["kid"])["kid"]) for shift in (0.3, 0.6)
    )
    assert mean < near.low
    assert near.high < far.low


def test_batches_do_not_change_kid():
    real, generated = vectors(1000), vectors(1100, 0.2, 1)
    whole, parts = (distances(real, generated, ["kid"], batch) for batch in (1100, 64))
    for one, other in zip(whole["kid"], parts["kid"], strict=True):
        assert torch.equal(one, other)
    assert whole["kid_blocks"] == parts["kid_blocks"]
    assert whole["kid_blocks"].mean == pytest.approx(estimate(*whole["kid"]).mean, rel=0.2)


def test_precision_and_recall_of_a_mode_that_is_missing():
    real = torch.cat([vectors(300), vectors(300, 20.0, 1)])
    values = distances(real, vectors(300, seed=2), ["precision_recall"])
    assert values["precision"] > 0.9
    assert values["recall"] == pytest.approx(0.5, abs=0.1)


def test_a_stream_that_is_interrupted_goes_on():
    real, generated = vectors(700), vectors(1300, 0.1, 1)
    whole = distances(real, generated)
    stream = Distances(reference(real), {"fid", "kid", "precision_recall"})
    stream.update(generated[:601])
    other = Distances(reference(real), {"fid", "kid", "precision_recall"})
    other.load_state_dict(stream.state_dict())
    other.update(generated[601:])
    resumed = other.compute()
    for one, two in zip(whole.pop("kid"), resumed.pop("kid"), strict=True):
        assert torch.equal(one, two)
    assert resumed == pytest.approx(whole, rel=1e-9)


def test_memory_does_not_grow_with_the_samples():
    stream = Distances(reference(vectors(700)), {"fid", "kid"})
    for seed in range(25):
        stream.update(vectors(450, seed=seed))
        assert len(stream.kept) <= KEPT
    assert stream.count == 11_250


def test_statistics_have_the_layout_of_pytorch_fid(tmp_path):
    images = torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8)
    extract = Features("moments", moments, CPU)
    built = Reference.build(extract, images, batch_size=16)
    features = moments(images).double().numpy()
    built.write(tmp_path / "ours.npz")
    with np.load(tmp_path / "ours.npz") as stored:
        np.testing.assert_allclose(stored["mu"], features.mean(0), atol=1e-6)
        np.testing.assert_allclose(stored["sigma"], np.cov(features.T), atol=1e-6)
    np.savez(tmp_path / "theirs.npz", mu=features.mean(0), sigma=np.cov(features.T))
    theirs = Reference.read(tmp_path / "theirs.npz")
    torch.testing.assert_close(theirs.sigma, built.sigma, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="kid and precision_recall need"):
        Distances(theirs, {"kid"})


@pytest.fixture
def run(trained, tmp_path, capsys, monkeypatch):
    """Run evaluate.py on the small model; its results."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        evaluate.main(
            [
                "--ckpt",
                str(trained),
                "--steps",
                "2",
                "--n",
                "12",
                "--batch_size",
                "5",
                "--out",
                "out",
                "--features",
                "test_evaluate:moments",
                *arguments,
            ]
        )
        return json.loads((tmp_path / capsys.readouterr().out.splitlines()[-1]).read_text())

    return call


def test_the_column_of_a_single_setting_is_not_called_as_trained(run, tmp_path):
    for options, title in (((), "as trained"), (("--skips", "0", "--preset", "mild"), "as set")):
        run("--metrics", "detail", *options)
        newest = max(tmp_path.rglob("results.md"), key=lambda path: path.stat().st_mtime_ns)
        assert newest.read_text().startswith(f"| | {title} |")


def test_names_say_the_features_and_differences_are_paired(run):
    report = run("--s", "0.2,1", "--metrics", "fid,kid,precision_recall,detail")
    low, neutral = (result["values"] for result in report["results"])
    assert report["results"][0]["cell"]["s"] == 0.2
    names = {"frechet_distance", "kid", "precision", "recall"}
    assert {f"{name}_test_evaluate:moments" for name in names} <= low.keys()
    assert not any(name.startswith("fid") for name in low)
    difference = low["total_variation, difference"]["mean"]
    expected = low["total_variation"]["mean"] - neutral["total_variation"]["mean"]
    assert difference == pytest.approx(expected)
    kid = "kid_test_evaluate:moments"
    difference = low[f"{kid}, difference"]
    assert difference["mean"] == pytest.approx(low[kid]["mean"] - neutral[kid]["mean"])
    assert difference["low"] < difference["mean"] < difference["high"]
    sampling = report["results"][0]["sampling"]
    assert (sampling["n"], sampling["seed"], sampling["steps"]) == (12, 0, 2)
    assert report["results"][0]["skips"]["s"] == 0.2
    assert len(report["checkpoint_sha256"]) == 64


def test_each_result_says_what_it_was_drawn_with(run):
    results = run("--metrics", "detail", "--steps", "1,2", "--solver", "ddim,dpmpp")["results"]
    drawn = [(result["sampling"]["solver"], result["sampling"]["steps"]) for result in results]
    assert sorted(drawn) == [("ddim", 1), ("ddim", 2), ("dpmpp", 1), ("dpmpp", 2)]


def test_compare_takes_the_evaluation_as_trained_of_the_most_images(run, trained, tmp_path, capsys):
    for options in (
        ["--n", "12"],
        ["--n", "15"],
        ["--n", "20", "--s", "0.5"],
        ["--n", "20", "--cfg", "2"],
        ["--n", "20", "--preset", "medium"],
    ):
        report = run("--metrics", "kid,detail", *options)
        if options == ["--n", "15"]:
            expected = report["results"][0]["values"]
    directory, results = str(trained.parents[2]), ["--results", str(tmp_path / "out")]
    figure = tmp_path / "figure.png"
    compare.main([directory, *results, "--figure", str(figure)])
    table = capsys.readouterr().out
    for name in ("kid_test_evaluate:moments", "total_variation"):
        assert f"| {name} | {expected[name]['mean']:.4g} |" in table
    assert "data" not in table  # no differences from the real images
    assert figure.read_bytes().startswith(b"\x89PNG")
    status, line = error_line(capsys, compare.main, [directory, "--results", "gone"])
    assert status == 2
    assert "results is gone, which is no directory" in line
    path = next(tmp_path.rglob("results.json"))
    path.write_text('{"images": 3')
    status, line = error_line(capsys, compare.main, [directory, *results])
    assert status == 2
    assert f"{path} is no report of evaluate.py" in line


def test_without_s_and_b_the_model_is_measured_as_it_was_trained(run, folder):
    train.main(train_arguments(folder, filter="step", s=0.3, trainer__max_steps=1))
    last = folder.parent / "runs" / "tiny" / "version_0" / "checkpoints" / "last.ckpt"
    (plain,) = run("--ckpt", str(last), "--metrics", "detail")["results"]
    assert plain["cell"] == {}
    report = run("--ckpt", str(last), "--s", "trained,0.3,1", "--metrics", "detail")
    trained, same, without = (result["values"] for result in report["results"])
    assert trained["total_variation"] == plain["values"]["total_variation"]
    assert trained["total_variation"] == same["total_variation"] != without["total_variation"]
    difference = trained["total_variation"]["mean"] - without["total_variation"]["mean"]
    assert trained["total_variation, difference"]["mean"] == pytest.approx(difference)


def test_the_power_of_a_band_is_compared_with_that_of_the_data(run, trained):
    root = trained.parents[4]
    data = load_folder(root / "images" / "train", 16, root / "cache").pixels
    of_data = estimate(band_decibels(data)["power_0.75-1.41_db"])
    (result,) = run("--metrics", "detail")["results"]
    values = result["values"]
    own, above = (values[f"power_0.75-1.41_db{end}"] for end in ("", ", above the data"))
    assert above["mean"] == pytest.approx(own["mean"] - of_data.mean)
    widths = [own["high"] - own["low"], of_data.high - of_data.low]
    assert max(widths) < above["high"] - above["low"] < sum(widths)  # of both samples


def test_detail_can_do_without_the_data(run, trained):
    (trained.parents[4] / "images").rename(trained.parents[4] / "gone")
    try:
        (result,) = run("--metrics", "detail")["results"]
    finally:
        (trained.parents[4] / "gone").rename(trained.parents[4] / "images")
    assert not any("above the data" in name for name in result["values"])


def test_one_image_has_no_interval_and_the_report_is_strict_json(run, tmp_path):
    report = run("--n", "1", "--metrics", "fid,kid,detail")
    assert report["results"][0]["values"]["saturation"]["low"] is None
    text = next(tmp_path.rglob("results.json")).read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_other_statistics_under_the_same_name_are_measured_anew(run, tmp_path):
    values = []
    for shift in (0.0, 0.2):
        mu = np.full(10, shift)
        np.savez(tmp_path / "stats.npz", mu=mu, sigma=np.eye(10))
        (result,) = run("--metrics", "fid", "--stats", "stats.npz")["results"]
        values.append(result["values"]["frechet_distance_test_evaluate:moments"])
    assert values[0] != values[1]


def test_other_skips_are_another_evaluation(run):
    given = (["--skips", "inner"], ["--skips", "0,1"], [])
    inner, both, default = (run("--metrics", "detail", "--s", "0.2", *skips) for skips in given)
    assert default["default_skips"] == "all"
    (inner,), (both,), (default,) = (report["results"] for report in (inner, both, default))
    chosen = (inner["skips"]["skips"], both["skips"]["skips"], default["skips"]["skips"])
    assert chosen == ("inner", "0,1", None)
    assert both["values"] == default["values"] != inner["values"]


def test_an_interrupted_evaluation_goes_on(run, monkeypatch, tmp_path):
    whole = run("--metrics", METRICS, "--n", "20")
    monkeypatch.setattr("uvit_lit.evaluation.evaluate.SAVE_EVERY", 1)
    original, firsts = Generation.stream, []

    def interrupted(self, bar, first):
        for number, images in enumerate(original(self, bar, first)):
            if len(firsts) == 0 and number == 2:
                firsts.append(first)
                raise KeyboardInterrupt
            yield images
        firsts.append(first)

    monkeypatch.setattr(Generation, "stream", interrupted)
    for path in (tmp_path / "out").rglob("*.state"):
        path.unlink()
    with pytest.raises(KeyboardInterrupt):
        run("--metrics", METRICS, "--n", "20")
    assert run("--metrics", METRICS, "--n", "20") == whole
    assert firsts == [0, 10]


@pytest.mark.parametrize(
    "pattern", ["out/*/*.state", "data/cache/reference_*.npz", "data/cache/probe_*.pt"]
)
def test_what_was_kept_and_is_damaged_is_computed_again(run, tmp_path, pattern):
    whole = run("--metrics", "fid,detail,classes")
    (path,) = tmp_path.glob(pattern)
    path.write_bytes(path.read_bytes()[:300])
    assert run("--metrics", "fid,detail,classes") == whole


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("images", 9999),
        ("images", -1),
        ("images", "all"),
        ("images", 5),
        ("per_image", {}),
        ("per_image", torch.zeros(3)),
        ("distances", None),
        ("distances", {"frechet": {}, "kept": torch.zeros(12, 10), "count": 12}),
        ("foreign", 1),
    ],
)
def test_a_state_that_says_something_else_is_measured_anew(run, tmp_path, name, value):
    whole = run("--metrics", "fid,detail,classes")
    (path,) = tmp_path.glob("out/*/*.state")
    content = {**torch.load(path, weights_only=True), name: value}
    torch.save({"foreign": 1} if name == "foreign" else content, path)
    assert run("--metrics", "fid,detail,classes") == whole
    assert torch.load(path, weights_only=True)["images"] == 12


def test_a_damaged_state_is_told(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["--ckpt", str(trained), "--steps", "1", "--n", "2", "--metrics", "detail"]
    evaluate.main([*arguments, "--out", "out"])
    (path,) = tmp_path.glob("out/*/*.state")
    torch.save({"images": 9999}, path)
    capsys.readouterr()
    evaluate.main([*arguments, "--out", "out"])
    notes = [line for line in capsys.readouterr().err.splitlines() if "state is measured" in line]
    assert len(notes) == 1
    assert "images is 9999" in notes[0]


def test_the_class_of_an_image_depends_on_its_seed_alone(trained):
    """Whatever its place and the batch; every class comes about equally often."""
    model = load_model(trained)
    labels = draw_labels(model, None, range(2000))
    assert labels[700:800] == draw_labels(model, None, range(700, 800))
    assert sum(labels) == pytest.approx(1000, abs=90)  # four standard deviations
    assert set(draw_labels(model, ["ship"], range(20))) == {1}
    assert draw_labels(replace(model, class_names=[]), None, range(3)) is None


def test_the_share_that_is_put_into_its_class(run, trained):
    """Overall and by class, beside real images; differences are paired by seed."""
    report = run("--s", "0.2,1", "--metrics", "classes,detail", "--n", "40")
    name = "class_accuracy_test_evaluate:moments"
    low, neutral = (result["values"] for result in report["results"])
    labels = draw_labels(load_model(trained), None, range(40))
    of_each = [low[f"{name}, {kind}"]["mean"] for kind in ("cat", "ship")]
    overall = (labels.count(0) * of_each[0] + labels.count(1) * of_each[1]) / 40
    assert low[name]["mean"] == pytest.approx(overall)
    difference = low[f"{name}, difference"]["mean"]
    assert difference == pytest.approx(low[name]["mean"] - neutral[name]["mean"])
    assert report["real"]["images"] == "test split"
    assert report["real"]["values"].keys() == {name, f"{name}, cat", f"{name}, ship"}
    assert report["results"][0]["cell"]["s"] == 0.2
    assert run("--metrics", "classes", "--classes", "cat")["real"]["values"].keys() == {
        name,
        f"{name}, cat",
    }


def test_a_finished_evaluation_is_shown_again(run):
    assert run("--metrics", METRICS) == run("--metrics", METRICS)


def test_numbers_that_are_nearly_equal_are_other_cells(run):
    results = run("--metrics", "detail", "--s", "0.5", "--cutoff", "0.5,0.5000001")["results"]
    one, two = (result["values"]["total_variation"] for result in results)
    assert one != two


def test_the_directory_of_other_data_is_not_taken(run, trained, monkeypatch):
    roots = []

    def stub(name, root, **_):
        roots.append(root)
        raise InputError("no data")

    monkeypatch.setattr("uvit_lit.evaluation.reference.ImageData", stub)
    for arguments in ([], ["--data", "cifar10"]):
        with pytest.raises(SystemExit):
            run("--metrics", "fid", *arguments)
    assert roots == [str(trained.parents[4] / "images"), "data"]


def test_the_reference_is_built_once(run, tmp_path, monkeypatch):
    first = run("--metrics", "fid")
    assert len(list((tmp_path / "data" / "cache").glob("reference_*.npz"))) == 1
    monkeypatch.setattr(Reference, "build", lambda *_: pytest.fail("built again"))
    run("--metrics", "fid", "--n", "13", "--save_stats", "saved.npz")
    again = run("--metrics", "fid", "--stats", "saved.npz")
    name = "frechet_distance_test_evaluate:moments"
    values = [report["results"][0]["values"][name] for report in (first, again)]
    assert values[0] == pytest.approx(values[1], rel=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metrics", "is"], "metrics is 'is'; accepted: fid, kid"),
        (["--features", "vgg"], "features is 'vgg'; accepted"),
        (["--features", "nowhere:net"], "nowhere"),
        (["--features", "inception", "--inception_weights", "gone.pth"], "gone.pth is not a file"),
        (["--stats", "gone.npz"], "gone.npz cannot be read"),
        (["--data", "mnist"], "mnist"),
        (["--data", "folder", "--data_root", "gone"], "gone is not a directory"),
        (["--s", "-1"], "s is -1.0"),
        (["--metrics", "detail", "--save_stats", "x.npz"], "save_stats are of no use"),
        (["--metrics", "precision_recall", "--n", "3"], "n is 3; accepted"),
        (["--features", "math:pi"], "features math:pi are a float"),
        (
            ["--features", "math:pi", "--data", "folder", "--data_root", "gone"],
            "features math:pi are a float",
        ),
        (["--stats", __file__], "cannot be read"),
        (["--metrics", "classes,fid", "--stats", "x.npz"], "stats has no images with classes"),
        (["--metrics", "classes", "--data", "shapes"], "the model has the classes cat, ship, the"),
        (["--seed", "4294967293"], "seed is 4294967296; accepted: 0 to below 2^32"),
    ],
)
def test_mistakes_are_one_line(run, capsys, trained, tmp_path, arguments, message):
    base = [
        "--ckpt",
        str(trained),
        "--n",
        "4",
        "--out",
        "out",
        "--metrics",
        "fid",
        "--features",
        "test_evaluate:moments",
    ]
    status, line = error_line(capsys, evaluate.main, [*base, *arguments])
    assert status == 2
    assert message in line
    assert not (tmp_path / "out").exists()


def test_an_unconditional_model_has_no_classes_to_measure(trained, capsys, monkeypatch):
    model = replace(load_model(trained), class_names=[])
    monkeypatch.setattr("uvit_lit.generation.load_model", lambda *_, **__: model)
    arguments = ["--ckpt", str(trained), "--metrics", "classes"]
    status, line = error_line(capsys, evaluate.main, arguments)
    assert status == 2
    assert "this model has no classes; accepted: other metrics" in line


def test_the_offline_features_are_real(tmp_path):
    """Deterministic, of the stated size, and blind to nothing as plain as a blur."""
    extract = load_features("efficientnet-lite0", CPU)
    assert extract.num_features == 1280
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    features = extract(images)
    assert torch.equal(features, extract(images))
    torch.testing.assert_close(extract(images[2:3])[0], features[2], atol=1e-4, rtol=1e-3)
    assert not torch.allclose(extract(images // 2), features, atol=0.01)


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    """Weights in the layout of torch-fidelity, as they were drawn at random, and the network."""
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save({}, path)
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NoTrainInceptionV3, "load_state_dict", lambda *_: None)
        network = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(path))
    torch.save(network.state_dict(), path)
    return path, network


@pytest.mark.slow
def test_fid_from_a_local_file_of_inception_weights(run, inception_file):
    path, network = inception_file
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    extract = load_features("inception", CPU, path)
    torch.testing.assert_close(extract(images), network(images))
    report = run("--metrics", "fid", "--features", "inception", "--inception_weights", str(path))
    assert report["results"][0]["values"].keys() == {"fid_inception"}


@pytest.mark.parametrize("wrong", [RuntimeError("invalid hash value"), OSError("no network")])
def test_downloaded_inception_weights_have_their_checksum(monkeypatch, wrong):
    pytest.importorskip("torch_fidelity")
    asked = {}

    def fetch(url, **options):
        asked.update(options)
        raise wrong

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fetch)
    with pytest.raises(OSError, match=f"cannot download the Inception weights .{wrong}"):
        load_features("inception", CPU)
    assert asked["check_hash"]
    assert asked["weights_only"]


def test_code_in_inception_weights_is_refused_and_not_run(tmp_path):
    victim = tmp_path / "executed"
    torch.save({"fc.weight": Payload(victim)}, tmp_path / "weights.pth")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Payload(victim)))
    for name in ("weights.pth", "bare.pth"):
        with pytest.raises(ValueError, match="are not those of torch-fidelity"):
            load_features("inception", CPU, tmp_path / name)
    assert not victim.exists()


@pytest.mark.slow
def test_kid_of_real_features_is_zero_for_real_images_and_grows_with_the_damage():
    extract = load_features("efficientnet-lite0", CPU)
    images, _ = draw_shapes(3000, 32, seed=0)  # of which the classes take turns
    images = images[torch.randperm(3000, generator=torch.Generator().manual_seed(0))]
    real, others = images[:300], images[300:600]

    def blurred(sigma):
        return to_uint8(gaussian_blur(others / 127.5 - 1, 9, sigma))

    def noisy(sigma):
        noise = torch.randn(others.shape, generator=torch.Generator().manual_seed(0))
        return (others + sigma * noise).round().clamp(0, 255).to(torch.uint8)

    measured = Reference.build(extract, real, batch_size=100)

    def kid(damaged):
        stream = Distances(measured, {"kid"})
        stream.update(extract(damaged))
        return estimate(*stream.compute()["kid"])

    mean, low, high = kid(others)
    assert low < 0 < high
    for damage in ([blurred(0.5), blurred(1.0), blurred(2.0)], [noisy(5), noisy(15), noisy(45)]):
        values = [mean, *(kid(images).mean for images in damage)]
        assert values == sorted(values)
        assert values[2] > high


def test_without_a_network_the_message_says_what_to_do(monkeypatch):
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("torchmetrics.image.fid.NoTrainInceptionV3.__init__", offline)
    with pytest.raises(OSError, match="--inception_weights, or use --features efficientnet-lite0"):
        load_features("inception", CPU)


def test_features_of_a_wrong_shape_are_refused():
    with pytest.raises(ValueError, match="accepted: a tensor \\(images, features\\)"):
        Features("flat", lambda images: images.float().mean(dim=(1, 2, 3)), CPU)
    assert math.isnan(distances(vectors(10), vectors(1), ["fid"])["fid"])


def forged(path, shape):
    """An npz file of a few bytes whose mu says it has this shape."""
    header = str({"descr": "<f8", "fortran_order": False, "shape": shape}).encode() + b"\n"
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(48)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mu.npy", content)
        archive.writestr("sigma.npy", content)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"sigma": -np.eye(6)}, "sigma has the eigenvalue -1, so it is no covariance"),
        ({"sigma": np.triu(np.ones((6, 6)))}, "sigma is not symmetric"),
        ({"sigma": np.eye(5)}, "(6,), (5, 5), (0, 6), which do not fit each other"),
        ({"mu": np.zeros((6, 1))}, "which do not fit each other"),
        ({"mu": np.zeros(0), "sigma": np.zeros((0, 0))}, "which do not fit each other"),
        ({"mu": np.zeros(6) + 1j}, "mu has other than finite real numbers"),
        ({"mu": np.full(6, np.nan)}, "mu has other than finite real numbers"),
        ({"mu": np.full(6, 1e300)}, "mu has numbers above 1e+10"),
        ({"mu": np.array(["a"] * 6)}, "mu has other than finite real numbers"),
        ({"features": np.full((9, 6), np.inf)}, "features has other than finite"),
        ({"features": np.zeros((9, 5))}, "(9, 5), which do not fit each other"),
        ({"features": np.zeros(6)}, "which do not fit each other"),
        ({"features": np.array([None] * 6)}, "cannot be read"),
        ((10**14,), "mu is larger than the file"),
        ((2**62, 4), "mu is larger than the file"),
        ((-1,), "cannot be read"),
    ],
    ids=str,
)
def test_statistics_that_cannot_be_are_refused(tmp_path, arrays, message):
    path = tmp_path / "stats.npz"
    if isinstance(arrays, tuple):
        forged(path, arrays)
    else:
        np.savez(path, **{"mu": np.zeros(6), "sigma": np.eye(6), **arrays})
    with pytest.raises(InputError, match=re.escape(message)):
        Reference.read(path)


def test_statistics_of_fewer_images_than_features_are_taken(tmp_path):
    """Their covariance is singular, and rounding gives it eigenvalues a little below 0."""
    features = vectors(10, size=40)
    path = tmp_path / "stats.npz"
    np.savez_compressed(path, mu=features.mean(0).numpy(), sigma=np.cov(features.T).astype("f4"))
    assert Reference.read(path).sigma.shape == (40, 40)


def not_finite(images):
    """Features that are none."""
    return torch.full((len(images), 4), torch.nan)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torch.nn:Linear", "are a class that needs arguments"),
        ("math:pi", "are a float; accepted: a function"),
        ("builtins:len", "give a int of shape () for two images; accepted: a tensor (images"),
        ("torch.nn:Identity", "give a Tensor of shape (2, 3, 32, 32)"),
        ("test_evaluate:not_finite", "of a black image are not finite"),
        ("gone:x", "there is no module gone; accepted: inception"),
        ("", "features is ''; accepted: inception"),
    ],
)
def test_features_of_a_wrong_kind_are_refused(name, message):
    with pytest.raises(InputError, match=re.escape(message)):
        load_features(name, CPU)


def test_what_features_raise_themselves_keeps_its_traceback():
    with pytest.raises(KeyError, match="my own"):
        Features("mine", lambda images: {}["my own"], CPU)
