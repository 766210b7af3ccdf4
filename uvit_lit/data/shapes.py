"""A data set that the package draws: ten shapes, edges and textures at several scales.

It exists so that the whole path, from training to a picture, runs in minutes anywhere with no
download. The class is the shape; position, size, rotation, colours and texture are random, so low
frequencies (backgrounds, fills) and high ones (outlines, stripes of 2 to 16 pixels) both matter.
"""

import math
from types import SimpleNamespace

import torch
from torch import Tensor

PIXELS_AT_ONCE = 2**22
"""Pixels that are computed at the same time, which takes about 100 bytes for each of them."""

CLASSES = (
    "disc",
    "ring",
    "square",
    "frame",
    "diamond",
    "triangle",
    "cross",
    "bar",
    "hexagon",
    "star",
)


def _polygon(x: Tensor, y: Tensor, sides: int, inner: float = 1.0) -> Tensor:
    """Signed distance (roughly) to a regular polygon of circumradius 1, or to a star.

    ``inner`` below 1 draws every other corner at that radius: a star with ``sides / 2`` tips.
    """
    radius, angle = torch.hypot(x, y), torch.atan2(x, y)
    sector = 2 * math.pi / sides
    k = torch.floor(angle / sector)
    r0 = torch.where(k % 2 == 0, 1.0, inner)
    r1 = torch.where(k % 2 == 0, inner, 1.0)
    a = angle - k * sector
    # Where the ray at angle a meets the edge from (r0, 0) to (r1, sector).
    edge = r0 * r1 * math.sin(sector) / (r0 * torch.sin(a) + r1 * torch.sin(sector - a))
    return radius - edge


def _distance(shape: str, x: Tensor, y: Tensor) -> Tensor:
    """Negative inside the shape of size 1, positive outside, slope about 1 at the outline."""
    if shape == "disc":
        return torch.hypot(x, y) - 1
    if shape == "ring":
        return (torch.hypot(x, y) - 0.75).abs() - 0.25
    if shape == "square":
        return torch.maximum(x.abs(), y.abs()) - 0.8
    if shape == "frame":
        return (torch.maximum(x.abs(), y.abs()) - 0.65).abs() - 0.2
    if shape == "diamond":
        return x.abs() / 0.6 + y.abs() - 1
    if shape == "triangle":
        return _polygon(x, y, 3)
    if shape == "cross":
        arm = torch.minimum(
            torch.maximum(x.abs() - 0.3, y.abs() - 1), torch.maximum(y.abs() - 0.3, x.abs() - 1)
        )
        return arm
    if shape == "bar":
        return torch.maximum(x.abs() - 1.1, y.abs() - 0.3)
    if shape == "hexagon":
        return _polygon(x, y, 6)
    return _polygon(x, y, 10, inner=0.45)


def draw_shapes(count: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw images.

    Args:
        count: Number of images.
        size: Height and width in pixels.
        seed: The same seed draws the same images.

    Returns:
        Images (count, 3, size, size) uint8 and labels (count,) int64, the index in ``CLASSES``;
        the classes take turns.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(count, *shape, 1, 1, generator=generator) * (high - low) + low

    drawn = {  # in this order, which decides the images
        "direction": uniform(0, 2 * math.pi),
        "first": uniform(0.1, 0.9, 3),
        "second": uniform(0.1, 0.9, 3),
        "angle": uniform(0, math.pi),
        "octave": uniform(2, 5),
        "checker": uniform(0, 1) < 0.4,
        "contrast": uniform(0.05, 0.3, 1),
        "turn": uniform(-0.4, 0.4),
        "scale": uniform(0.45, 0.75),
        "right": uniform(-0.25, 0.25),
        "down": uniform(-0.25, 0.25),
        "distinct": uniform(0.3, 0.5, 3),
        "textured_inside": (uniform(0, 1) < 0.5)[:, None],
    }
    labels = torch.arange(count) % len(CLASSES)
    images = torch.empty(count, 3, size, size, dtype=torch.uint8)
    at_once = max(1, PIXELS_AT_ONCE // size**2)
    for start in range(0, count, at_once):
        some = slice(start, start + at_once)
        numbers = SimpleNamespace(**{name: values[some] for name, values in drawn.items()})
        images[some] = _render(labels[some], size, numbers)
    return images, labels


def _render(labels: Tensor, size: int, drawn: SimpleNamespace) -> Tensor:
    """Images (batch, 3, size, size) uint8 from labels and random numbers (batch, ..., 1, 1)."""
    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    y, x = axis[None, :, None], axis[None, None, :]

    # Background: a colour that changes linearly across the image.
    slope = (x * drawn.direction.cos() + y * drawn.direction.sin())[:, None] / 2
    background = drawn.first + (drawn.second - drawn.first) * (slope + 0.5)

    # Texture: stripes, or their product (a checkerboard), 2 to 16 pixels wide, on a random side.
    wavelength = 2**drawn.octave / size * 2
    along = torch.sin(2 * math.pi * (x * drawn.angle.cos() + y * drawn.angle.sin()) / wavelength)
    across = torch.sin(2 * math.pi * (y * drawn.angle.cos() - x * drawn.angle.sin()) / wavelength)
    wave = torch.where(drawn.checker, along * across * 2, along).clamp(-1, 1)[:, None]
    texture = drawn.contrast * wave

    # The shape, in a frame of its own.
    dx, dy = x - drawn.right, y - drawn.down
    u = (dx * drawn.turn.cos() + dy * drawn.turn.sin()) / drawn.scale
    v = (dy * drawn.turn.cos() - dx * drawn.turn.sin()) / drawn.scale
    distance = torch.empty(len(labels), size, size)
    for label, shape in enumerate(CLASSES):
        of_class = labels == label
        distance[of_class] = _distance(shape, u[of_class], -v[of_class])
    pixel = 2 / size / drawn.scale
    inside = (0.5 - distance / pixel).clamp(0, 1)[:, None]  # one pixel of antialiasing

    fill = (drawn.first + drawn.second) / 2
    fill = (fill + torch.where(fill > 0.5, -1.0, 1.0) * drawn.distinct).clamp(0, 1)
    image = torch.where(
        drawn.textured_inside,
        background * (1 - inside) + (fill + texture) * inside,
        (background + texture) * (1 - inside) + fill * inside,
    )
    return image.clamp(0, 1).mul(255).round().to(torch.uint8)
