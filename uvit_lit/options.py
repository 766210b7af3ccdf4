"""Settings of the long skips that have a name."""

from typing import Any

from uvit_lit.errors import InputError

PRESETS: dict[str, dict[str, Any]] = {
    # no change at all
    "neutral": {"s": 1.0, "b": 1.0},
    # half of the next
    "mild": {"s": 0.8, "b": 1.1},
    # the middle of the paper's Figure 4, and its corner
    "medium": {"s": 0.6, "b": 1.2},
    "strong": {"s": 0.2, "b": 1.4},
    # FreeU's box, channels, and the s and b of its first stage, which is the innermost; the cutoff
    # is its threshold of one frequency, which depends on the grid
    "freeu": {"filter": "freeu_box", "s": 0.9, "b": 1.2, "b_channels": 0.5, "skips": "inner"},
    # the same stage of FreeU 1 and 2: a constant b, and the structure-aware map, with the numbers
    # of its demo and those that its README gives for Stable Diffusion 2.1
    "freeu_v1": {
        "filter": "freeu_box",
        "s": 0.9,
        "b": 1.2,
        "b_channels": 0.5,
        "b_map": "constant",
        "skips": "inner",
    },
    "freeu_v2": {"filter": "freeu_box", "s": 0.9, "b": 1.4, "b_channels": 0.5, "skips": "inner"},
}
"""Name of each preset and what it sets, on the skips that the model names unless it says which;
what is named beside a preset comes before it. docs/detail.md has what they do to a model."""


def preset_settings(name: str, tokens: int) -> dict[str, Any]:
    """Settings of a preset.

    Args:
        name: One of ``PRESETS``.
        tokens: Side of the model's token grid.

    Raises:
        ValueError: If there is no such preset.
    """
    if name not in PRESETS:
        raise InputError(f"preset is {name!r}; accepted: {', '.join(PRESETS)}")
    one_frequency = {"cutoff": 2 / tokens} if name.startswith("freeu") else {}
    return {**PRESETS[name], **one_frequency}
