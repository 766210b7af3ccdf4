"""Settings of the long skips that have a name."""

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    # no change at all
    "neutral": {"s": 1.0, "b": 1.0},
    # as far as a weakly trained model goes before its layout breaks, judged by eye
    "mild": {"s": 0.8, "b": 1.1},
    # the middle of the paper's Figure 4, and its corner
    "medium": {"s": 0.6, "b": 1.2},
    "strong": {"s": 0.2, "b": 1.4},
    # FreeU's box, channels, and the s and b of its first stage, on every skip; the cutoff is its
    # threshold of one frequency on a grid of 8 x 8 tokens
    "freeu": {"filter": "freeu_box", "cutoff": 0.25, "s": 0.9, "b": 1.2, "b_channels": 0.5},
}
"""Name of each preset and what it sets; what is named beside a preset comes before it."""


def preset_settings(name: str) -> dict[str, Any]:
    """Settings of a preset.

    Raises:
        ValueError: If there is no such preset.
    """
    if name not in PRESETS:
        raise ValueError(f"preset is {name!r}; accepted: {', '.join(PRESETS)}")
    return PRESETS[name]
