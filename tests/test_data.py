"""Order, flips, folders, shapes and data sets of one's own."""

import itertools
import os
import resource
import signal
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from conftest import ROOT, make_folder
from PIL import Image

from uvit_lit.data import shapes
from uvit_lit.data.datamodule import ImageData, TrainBatches, ValidationBatches
from uvit_lit.data.folder import Images, load_folder, try_decode
from uvit_lit.data.shapes import CLASSES, draw_shapes
from uvit_lit.errors import InputError, Note
from uvit_lit.files import RESERVED, free_stem, write, write_png, write_torch


def numbered(count):
    """Images whose pixels are all equal to their index."""
    pixels = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    return Images(pixels, torch.arange(count), [])


def indices(batch):
    return batch["pixels"][:, 0, 0, 0].tolist()


@pytest.mark.parametrize(("count", "batch_size", "world_size"), [(10, 4, 1), (12, 3, 2), (5, 7, 3)])
def test_every_image_appears_once_per_epoch(count, batch_size, world_size):
    ranks = [
        TrainBatches(numbered(count), batch_size, seed=1, rank=r, world_size=world_size)
        for r in range(world_size)
    ]
    order = [i for n in range(20) for rank in ranks for i in indices(rank[n])]
    epochs = [order[k : k + count] for k in range(0, len(order) - count + 1, count)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_the_stream_resumes_anywhere():
    images = numbered(10)
    whole = iter(TrainBatches(images, 4, seed=3))
    batches = [next(whole) for _ in range(30)]
    for start in (0, 1, 13, 29):
        resumed = next(iter(TrainBatches(images, 4, seed=3, start=start)))
        for name, value in batches[start].items():
            assert torch.equal(torch.as_tensor(resumed[name]), torch.as_tensor(value))


def test_seeds_differ_between_steps_ranks_and_runs():
    seeds = {
        TrainBatches(numbered(8), 2, seed=seed, rank=rank, world_size=2)[n]["seed"]
        for seed in range(3)
        for rank in range(2)
        for n in range(10)
    }
    assert len(seeds) == 60


def test_half_of_the_images_are_flipped_if_asked():
    flips = torch.cat([TrainBatches(numbered(8), 8, seed=0)[n]["flip"] for n in range(100)])
    assert 0.45 < flips.float().mean() < 0.55
    assert not TrainBatches(numbered(8), 8, seed=0, flip=False)[0]["flip"].any()


def test_a_flipped_image_is_mirrored_to_the_bit():
    pixels = torch.randint(256, (6, 3, 4, 64), dtype=torch.uint8, generator=torch.Generator())
    flip = torch.tensor([True, False, True, True, False, False])
    batch = {"pixels": pixels, "flip": flip, "label": None, "seed": 0}
    images = ImageData("shapes").on_after_batch_transfer(batch, 0)["image"]
    for image, plain, mirrored in zip(images, pixels, flip, strict=True):
        assert torch.equal(image, (plain.flip(-1) if mirrored else plain) / 127.5 - 1)


def test_flips_are_independent_of_the_times():
    """The step draws its times first from the seed of the batch, on the CPU as the flips are."""
    flips, times = [], []
    for n in range(100):
        batch = TrainBatches(numbered(8), 8, seed=0)[n]
        flips.append(batch["flip"].float())
        times.append(torch.rand(8, generator=torch.Generator().manual_seed(batch["seed"])))
    correlation = torch.corrcoef(torch.stack([torch.cat(flips), torch.cat(times)]))[0, 1]
    assert abs(correlation) < 0.15


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_validation_covers_every_image_once(world_size):
    images = numbered(11)
    seen = [
        i
        for rank in range(world_size)
        for batch in ValidationBatches(images, 4, seed=0, rank=rank, world_size=world_size)
        for i in indices(batch)
    ]
    assert sorted(seen) == list(range(11))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_limit_on_the_validation_counts_all_devices(world_size):
    seen = [
        i
        for rank in range(world_size)
        for batch in ValidationBatches(numbered(40), 4, 0, rank, world_size, limit=6)
        for i in indices(batch)
    ]
    alone = [i for b in ValidationBatches(numbered(40), 4, 0, limit=6) for i in indices(b)]
    assert sorted(seen) == sorted(alone)
    assert len(alone) == 24


def test_a_part_of_the_validation_images_has_all_classes():
    labels = torch.arange(1000) // 100  # sorted, as a folder is
    images = Images(torch.zeros(1000, 3, 2, 2, dtype=torch.uint8), labels, [])
    batch = next(iter(ValidationBatches(images, 100, seed=3)))
    assert set(batch["label"].tolist()) == set(range(10))
    again = next(iter(ValidationBatches(images, 100, seed=4)))
    assert torch.equal(batch["label"], again["label"])


def test_a_folder_is_read_resized_and_cropped(folder, tmp_path):
    images = load_folder(folder / "train", 16, tmp_path / "cache")
    assert images.pixels.shape == (24, 3, 16, 16)
    assert images.class_names == ["cat", "ship"]
    assert images.labels.tolist() == [0] * 12 + [1] * 12


def test_images_of_the_right_size_are_kept_as_they_are(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    (tmp_path / "images").mkdir()
    Image.fromarray(pixels).save(tmp_path / "images" / "a.png")
    images = load_folder(tmp_path / "images", 16, tmp_path / "cache")
    assert np.array_equal(images.pixels[0].permute(1, 2, 0).numpy(), pixels)
    assert images.class_names == []


def test_a_folder_is_decoded_once_and_again_when_it_changes(folder, tmp_path):
    cache = tmp_path / "cache"
    first = load_folder(folder / "train", 16, cache)
    (stored,) = cache.iterdir()
    time = stored.stat().st_mtime_ns
    assert torch.equal(load_folder(folder / "train", 16, cache).pixels, first.pixels)
    assert stored.stat().st_mtime_ns == time
    (folder / "train" / "cat" / "00.png").unlink()
    assert len(load_folder(folder / "train", 16, cache).pixels) == 23


def test_corrupt_files_are_named_every_time(folder, tmp_path):
    (folder / "train" / "cat" / "text.png").write_text("not an image")
    whole = (folder / "train" / "ship" / "00.png").read_bytes()
    (folder / "train" / "ship" / "cut.png").write_bytes(whole[: len(whole) // 2])
    for _ in range(2):
        with pytest.warns(Note) as caught:
            images = load_folder(folder / "train", 16, tmp_path / "cache")
        error = " ".join(str(warning.message) for warning in caught)
        assert "text.png" in error
        assert "cut.png" in error
        assert "2 of 26 files left out" in error
        assert len(images.pixels) == len(images.labels) == 24


@pytest.mark.parametrize("content", [None, "text"])
def test_a_folder_without_images(tmp_path, content):
    (tmp_path / "images").mkdir()
    if content:
        (tmp_path / "images" / "a.png").write_text(content)
    with pytest.raises(ValueError, match=r"images below|can be decoded"):
        load_folder(tmp_path / "images", 16, tmp_path / "cache")


def test_loose_images_beside_class_folders_are_refused(folder, tmp_path):
    (folder / "train" / "cat" / "00.png").rename(folder / "train" / "loose.png")
    with pytest.raises(ValueError, match=r"loose\.png"):
        load_folder(folder / "train", 16, tmp_path / "cache")


def test_shapes_are_a_function_of_the_seed():
    one, labels = draw_shapes(40, 32, seed=5)
    again, _ = draw_shapes(40, 32, seed=5)
    other, _ = draw_shapes(40, 32, seed=6)
    assert one.shape == (40, 3, 32, 32)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert labels.bincount().tolist() == [4] * len(CLASSES)


def test_shapes_are_the_same_however_many_are_drawn_at_once(monkeypatch):
    """All of them at 256 pixels would take 66 GB."""
    whole, _ = draw_shapes(41, 32, seed=0)
    drawn, render = [], shapes._render
    monkeypatch.setattr(shapes, "_render", lambda *a: drawn.append(len(a[0])) or render(*a))
    monkeypatch.setattr(shapes, "PIXELS_AT_ONCE", 7 * 32**2)
    assert torch.equal(draw_shapes(41, 32, seed=0)[0], whole)
    assert drawn == [7] * 5 + [6]


def test_shapes_have_low_and_high_frequencies():
    """Both the lowest and the highest quarter of the spectrum hold more than rounding noise."""
    images, _ = draw_shapes(200, 32, seed=0)
    power = torch.fft.fft2(images.float() / 127.5 - 1, norm="ortho").abs().square().mean((0, 1))
    frequency = torch.fft.fftfreq(32).abs() * 2
    radius = torch.hypot(frequency[:, None], frequency[None, :])
    rounding = (2 / 255) ** 2 / 12
    assert power[(radius > 0) & (radius < 0.25)].mean() > 1.0
    assert power[(radius > 0.75) & (radius <= 1)].mean() > 100 * rounding


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": "mnist"}, "mnist.*cifar10"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"workers": -1}, "workers is -1"),
        ({"name": "shapes", "validation": "a:b"}, "validation is 'a:b'; accepted: module:attr"),
        ({"name": "a:b", "validation": "folder"}, "validation is 'folder'"),
        ({"name": "a:b", "autoencoder": "x"}, "needs data.name folder"),
        ({"name": "cifar10", "image_size": 64}, "32 pixels"),
    ],
)
def test_wrong_arguments(wrong, message):
    with pytest.raises(ValueError, match=message):
        ImageData(**wrong)


def test_cifar_without_a_network(tmp_path, monkeypatch):
    def no_network(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    with pytest.raises(OSError, match=r"--data.name shapes.*--data.name folder"):
        ImageData("cifar10", root=str(tmp_path)).prepare_data()


PICTURES = '''
import random
import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset


class Pictures(Dataset):
    """Ten images that say their number, with noise from every generator there is."""
    classes = ("cat", "ship")

    def __init__(self, count=10, noise=True):
        self.count, self.noise = count, noise

    def __len__(self):
        return self.count

    def __getitem__(self, k):
        image = torch.full((3, 16, 16), k, dtype=torch.uint8)
        if self.noise:
            draws = torch.randint(256, ()), np.random.randint(256), random.randrange(256)
            image[0, 0, :3] = torch.tensor(draws)
        return image, k % 2


class Unnamed(Pictures):
    classes = ()


class One(Dataset):
    item = None
    def __len__(self):
        return 1
    def __getitem__(self, k):
        return self.item


train = Pictures()


def held_out():
    return Pictures(6, noise=False)


def one(**content):
    return type("Changed", (One,), content)()


pil = one(item=(Image.new("L", (20, 30), 7), 0))
wide = one(item=(torch.zeros(3, 16, 20), 0))
negative = one(item=(-torch.ones(3, 16, 16), 0))
image_alone = one(item=torch.zeros(16, 16))
no_label = one(item=(torch.zeros(3, 16, 16), 2), classes=["cat", "ship"])
word = one(item=(torch.zeros(3, 16, 16), "cat"), classes=["cat", "ship"])
fraction = one(item=(torch.zeros(3, 16, 16), 0.5), classes=["cat", "ship"])
tensor = one(item=(torch.zeros(3, 16, 16), torch.tensor(1)), classes=["cat", "ship"])
half = one(item=(torch.full((3, 16, 16), 0.5), 0))
number = 3
'''


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """A module with data sets in the working directory."""
    (tmp_path / "my_pictures.py").write_text(PICTURES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    sys.modules.pop("my_pictures", None)


def own_data(name, **options):
    data = ImageData(f"my_pictures:{name}", image_size=16, **options)
    data.prepare_data()
    data.setup()
    return data


@pytest.mark.usefixtures("pictures")
def test_a_data_set_of_ones_own_has_its_images_labels_and_classes():
    data = own_data("train", validation="my_pictures:held_out")
    assert data.class_names == ["cat", "ship"]
    batch = TrainBatches(data.train, 10, seed=3)[0]
    numbers = batch["pixels"][:, 1, 5, 5]
    assert sorted(numbers.tolist()) == list(range(10))
    assert torch.equal(batch["label"], numbers.long() % 2)
    (held_out,) = ValidationBatches(data.validation, 10, seed=3)
    assert sorted(held_out["pixels"][:, 0, 0, 0].tolist()) == list(range(6))
    assert own_data("Pictures").class_names == ["cat", "ship"]


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize(("name", "value"), [("pil", 7), ("half", 128)])
def test_images_are_pil_or_float_too(name, value):
    pixels, labels = own_data(name).train.take(torch.tensor([0, 0]), seed=0)
    assert (pixels == value).all()
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (2, 3, 16, 16)
    assert labels.tolist() == [0, 0]


@pytest.mark.usefixtures("pictures")
def test_a_label_may_be_a_tensor():
    assert own_data("tensor").train.take(torch.tensor([0, 0]), seed=0)[1].tolist() == [1, 1]


@pytest.mark.usefixtures("pictures")
def test_workers_make_the_same_batches_and_leave_the_random_numbers_alone():
    """Those of the data set come from the seed, the step and the rank, and so from any start."""
    images = own_data("train").train
    torch.manual_seed(0)
    before = torch.get_rng_state()
    streams = [TrainBatches(images, 4, seed=1, workers=workers) for workers in (0, 2)]
    whole, parallel = (list(itertools.islice(stream, 6)) for stream in streams)
    assert torch.equal(torch.get_rng_state(), before)
    resumed = itertools.islice(TrainBatches(images, 4, seed=1, start=3, workers=2), 3)
    for one, other in zip([*whole, *whole[3:]], [*parallel, *resumed], strict=True):
        assert all(torch.equal(torch.as_tensor(one[k]), torch.as_tensor(other[k])) for k in one)
    noise = torch.cat([batch["pixels"][:, 0, 0, :3] for batch in whole])
    assert all(len(column.unique()) > 12 for column in noise.T)  # of 24 draws
    for other in (TrainBatches(images, 4, seed=2), TrainBatches(images, 4, seed=1, rank=1)):
        assert not torch.equal(other[0]["pixels"], whole[0]["pixels"])
    seen = [ValidationBatches(images, 4, seed=1, workers=workers) for workers in (0, 2)]
    for one, other in zip(*seen, strict=True):
        assert torch.equal(one["pixels"], other["pixels"])


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone", "my_pictures has no gone"),
        ("number", "a int; accepted: a data set"),
        ("wide", r"is \(3, 16, 20\); accepted: a PIL image, or a tensor \(3, 16, 16\)"),
        ("negative", "from -1 to -1; accepted: uint8, or float from 0 to 1"),
        ("image_alone", r"is no pair; accepted: \(image, label\)"),
        ("no_label", "has the label 2; accepted: a whole number from 0 to 1"),
        ("word", "has the label 'cat'; accepted: a whole number from 0 to 1"),
        ("fraction", r"has the label 0\.5; accepted: a whole number from 0 to 1"),
    ],
)
def test_what_is_wrong_with_a_data_set_is_said_at_once(name, message):
    with pytest.raises(InputError, match=message):
        own_data(name)


@pytest.mark.usefixtures("pictures")
def test_splits_of_different_classes_are_refused():
    with pytest.raises(InputError, match="have different classes"):
        own_data("train", validation="my_pictures:Unnamed")


def decoded(path, size=16):
    """What a folder makes of an image: (3, size, size) uint8."""
    pixels, error = try_decode(path, size)
    assert not error
    return pixels


def test_sixteen_bits_and_real_numbers_keep_their_brightness(tmp_path):
    """Of a grey ramp the 8-bit image is rounded."""
    ramp = np.linspace(0, 1, 256).reshape(16, 16)
    Image.fromarray((ramp * 255).round().astype(np.uint8)).save(tmp_path / "8.png")
    Image.fromarray((ramp * 65535).round().astype(np.uint16)).save(tmp_path / "16.png")
    Image.fromarray((ramp * 65535).round().astype(np.int32)).save(tmp_path / "32.tif")
    Image.fromarray(ramp.astype(np.float32)).save(tmp_path / "float.tif")
    expected = decoded(tmp_path / "8.png")
    assert expected.max() == 255
    for name in ("16.png", "32.tif", "float.tif"):
        assert np.abs(decoded(tmp_path / name).astype(int) - expected).max() <= 1, name
    Image.fromarray((ramp * 300).astype(np.float32)).save(tmp_path / "large.tif")
    assert "numbers outside 0 to 1" in try_decode(tmp_path / "large.tif", 16)[1]


def test_an_image_is_turned_as_its_camera_says(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[274] = 6  # Orientation: the top is on the right
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(decoded(tmp_path / "turned.png"), np.rot90(pixels, -1).transpose(2, 0, 1))


def huge_png(side):
    """A PNG file of a few bytes that says it has side x side pixels."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(1000))), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_giants_and_pipes_are_left_out_at_once(tmp_path):
    for name, side in (("giant.png", 2**31 - 1), ("large.png", 10_000)):
        (tmp_path / name).write_bytes(huge_png(side))
        assert "not a readable image" in try_decode(tmp_path / name, 16)[1]
    os.mkfifo(tmp_path / "pipe.png")
    assert "no file" in try_decode(tmp_path / "pipe.png", 16)[1]


def test_names_that_are_no_utf8(tmp_path):
    folder = make_folder(tmp_path / "images") / "train"
    (folder / "cat").rename(os.fsdecode(bytes(folder) + b"/caf\xe9"))
    images = load_folder(folder, 16, tmp_path / "cache")
    assert len(images.pixels) == 24
    assert images.class_names == [os.fsdecode(b"caf\xe9"), "ship"]


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "text", "other", "short", "lies"])
def test_a_damaged_cache_is_built_anew(folder, tmp_path, damage):
    first = load_folder(folder / "train", 16, tmp_path / "cache").pixels
    (stored,) = (tmp_path / "cache").iterdir()
    content = stored.read_bytes()
    if damage == "other":
        np.savez(stored, a=np.zeros(3))
    elif damage == "short":
        np.savez(stored, pixels=first[1:].numpy(), errors=np.array([""] * 24))
    elif damage == "lies":
        place = content.index(b"(24, 3, 16, 16)")
        stored.write_bytes(content[:place] + b"(24, 3, 16, 99)" + content[place + 15 :])
    else:
        middle = len(content) // 2
        stored.write_bytes(
            {
                "empty": b"",
                "cut": content[:middle],
                "text": b"hello",
                "flipped": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
            }[damage]
        )
    again = load_folder(folder / "train", 16, tmp_path / "cache").pixels
    assert torch.equal(first, again)
    assert stored.read_bytes()[:2] == b"PK"
    assert torch.equal(load_folder(folder / "train", 16, tmp_path / "cache").pixels, first)


WRITES = """
import os, sys, time
from pathlib import Path
from uvit_lit.files import replacing
with replacing(Path(sys.argv[1])) as file:
    file.write(b"half")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_left_goes_and_what_another_writes_stays(tmp_path):
    command = [sys.executable, "-c", WRITES, str(tmp_path / "a.npz")]
    killed, alive = (subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) for _ in range(2))
    for process in (killed, alive):
        process.stdout.readline()
    killed.kill()
    killed.wait()
    assert len(list(tmp_path.iterdir())) == 2
    write(tmp_path / "b.npz", b"whole")
    (partial,) = tmp_path.glob("*.partial")
    assert str(alive.pid) in partial.name
    alive.kill()
    alive.wait()


def test_a_name_that_a_killed_process_has_reserved_is_free(tmp_path):
    (tmp_path / "image.json").write_text(f"{RESERVED}{2**30}")  # no process has that number
    (tmp_path / "other.json").write_text("{}")
    assert free_stem(tmp_path, "image") == tmp_path / "image"
    assert free_stem(tmp_path, "image") == tmp_path / "image-2"
    assert free_stem(tmp_path, "other") == tmp_path / "other-2"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_end_of_a_write(tmp_path, monkeypatch, number):
    """In the middle torch would say that the file cannot be written."""
    came, save = [], torch.save
    monkeypatch.setattr(
        "torch.save", lambda *a: (signal.raise_signal(number), save(*a), came.append("saved"))
    )
    before = signal.signal(number, lambda *_: came.append("signal"))
    try:
        write_torch(tmp_path / "a.pt", {"x": 1})
    finally:
        signal.signal(number, before)
    assert came == ["saved", "signal"]
    assert torch.load(tmp_path / "a.pt") == {"x": 1}


def test_a_full_disk_names_the_file(tmp_path):
    """A limit on the size of files stands for it."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        for action in (
            lambda: write(tmp_path / "a.bin", bytes(100_000)),
            lambda: write_png(
                tmp_path / "a.png",
                np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8),
                {},
            ),
            lambda: write_torch(tmp_path / "a.pt", torch.zeros(100_000)),
        ):
            with pytest.raises(
                OSError, match=r"^\[Errno 27\] File too large: '[^']*a\.(bin|png|pt)'$"
            ):
                action()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_what_is_saved_keeps_its_traceback(tmp_path):
    class Mine:
        def __reduce__(self):
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        write_torch(tmp_path / "a.pt", Mine())
    assert list(tmp_path.iterdir()) == []


RESERVES = """
import sys
from pathlib import Path
from uvit_lit.files import free_stem, write
sys.stdin.readline()
for k in range(40):
    stem = free_stem(Path(sys.argv[1]), "image")
    write(stem.with_name(stem.name + ".png"), sys.argv[2].encode())
    write(stem.with_name(stem.name + ".json"), sys.argv[2].encode())
free_stem(Path(sys.argv[1]), "image")
"""


def test_two_processes_never_take_the_same_name(tmp_path):
    """What they write stays when they end: a short text, and one longer than a reservation."""
    contents = ("a", 200 * "b")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RESERVES, str(tmp_path), name], cwd=ROOT, stdin=subprocess.PIPE
        )
        for name in contents
    ]
    for process in processes:
        process.stdin.write(b"\n")
        process.stdin.flush()
    assert [process.wait(60) for process in processes] == [0, 0]
    pictures, texts = (sorted(tmp_path.glob(f"*.{end}")) for end in ("png", "json"))
    assert [p.stem for p in pictures] == [p.stem for p in texts]
    assert [p.read_text() for p in pictures] == [p.read_text() for p in texts]
    assert sorted(p.read_text() for p in pictures) == [c for c in contents for _ in range(40)]
