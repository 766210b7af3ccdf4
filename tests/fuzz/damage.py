"""What may be wrong with a file: bytes, sizes, values inside, another file altogether."""

import math
import pickle
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import torch
from conftest import Payload


def damaged(content: bytes, rng: Random, canary: Path) -> tuple[str, bytes]:
    """Bytes of a file with damage, and the damage in words."""
    kind = rng.choice(["flipped", "cut", "forged", "zeroed", "repeated", "inserted", "other"])
    data, size = bytearray(content), len(content)
    place = rng.choice([rng.randrange(size), rng.randrange(min(size, 400)), max(size - 99, 0)])
    if kind == "flipped":
        for _ in range(rng.choice([1, 1, 1, 3, 30])):
            data[rng.randrange(size) if rng.random() < 0.5 else place] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del data[place:]
    elif kind == "forged":
        width, order = rng.choice([2, 4, 8]), rng.choice(["little", "big"])
        number = rng.choice([0, 1, 2 ** (8 * width) - 1, 2 ** (8 * width - 1), rng.getrandbits(12)])
        data[place : place + width] = (number % 2 ** (8 * width)).to_bytes(width, order)
    elif kind == "zeroed":
        length = rng.choice([1, 16, 1000])
        data[place : place + length] = bytes(len(data[place : place + length]))
    elif kind == "repeated":
        length = rng.choice([1, 16, 1000])
        data[place:place] = data[place : place + length]
    elif kind == "inserted":
        data[place:place] = rng.randbytes(rng.choice([1, 7, 500]))
    else:
        data = bytearray(rng.choice(others(rng, canary)))
    return f"{kind} at {place} of {size}", bytes(data)


def others(rng: Random, canary: Path) -> list[bytes]:
    """Files that are none of those that are read."""
    return [
        b"",
        b"\n",
        b"hello\n",
        b"{}",
        b"null",
        b"\xff\xfe",
        b"PK\x03\x04",
        b"\x80\x02.",
        rng.randbytes(500),
        bytes(500),
        b"[" * 5000,
        b"\x93NUMPY",
        b"\x89PNG\r\n\x1a\n",
        pickle.dumps(Payload(canary)),
        pickle.dumps({"state_dict": Payload(canary)}),
    ]


def nested(depth: int = 60) -> list:
    """Lists in lists that take 2^depth characters to write down."""
    value: list = []
    for _ in range(depth):
        value = [value, value]
    return value


def values(rng: Random) -> Any:
    """A value that hardly belongs where it is put."""
    return rng.choice(
        [
            None,
            True,
            False,
            0,
            1,
            -1,
            2,
            3,
            7,
            1000,
            2**31,
            2**63,
            10**30,
            -(10**30),
            0.0,
            0.5,
            -0.5,
            32.0,
            1e308,
            math.inf,
            -math.inf,
            math.nan,
            "",
            "x",
            "none",
            "step",
            "1",
            "\0",
            "x" * 10_000,
            [],
            [1],
            ["x"],
            {},
            {"x": 1},
            {"0": 0},
            [[]],
        ]
    )


def odd_objects(rng: Random, canary: Path) -> Any:
    """A value that a file of torch can hold as well."""
    return rng.choice(
        [
            values(rng),
            values(rng),
            nested(),
            (1, 2),
            {1: 2},
            torch.zeros(0),
            torch.zeros(()),
            torch.zeros(3),
            torch.full((4,), math.nan),
            torch.tensor([1, 2]),
            torch.tensor(1j),
            torch.zeros(1).expand(2**40),
            torch.zeros(2, device="meta"),
            torch.zeros(3).to_sparse(),
            torch.float16,
            torch.Size([2**40]),
            Payload(canary),
        ]
    )


def places(content: Any) -> Iterator[tuple[Any, Any]]:
    """Containers and keys of all entries of a nested structure, the upper ones as often as all."""
    if isinstance(content, dict | list):
        for key in list(content) if isinstance(content, dict) else range(len(content)):
            yield content, key
            yield from places(content[key])


def replace_some(content: Any, rng: Random, value: Any) -> str:
    """Replace, take away or add an entry at a place at random; what was done, in words."""
    level, name = content, []
    while True:  # every level is as likely as the ones above it together
        keys = list(level) if isinstance(level, dict) else list(range(len(level)))
        key = rng.choice(keys)
        name.append(str(key))
        if not (isinstance(level[key], dict | list) and level[key] and rng.random() < 0.75):
            break
        level = level[key]
    action = rng.choice(["replaced", "replaced", "replaced", "removed", "added"])
    if action == "replaced":
        level[key] = value
    elif action == "removed":
        del level[key]
    elif isinstance(level, dict):
        level[rng.choice(["x", "in_blocks", "in_blocks.9.x", "long_skips.0.learned.s.raw"])] = value
    else:
        level.append(value)
    return f"{action} {'.'.join(name)}"
