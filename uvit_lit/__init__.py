"""U-ViT diffusion models with frequency filters on their long skip connections.

    from uvit_lit import generate, load_model

    model = load_model()  # the CIFAR-10 model that comes with the package, or a path
    images = generate(model, 16, s=0.5, b=1.3)  # (16, 3, 32, 32) uint8

The names below are the public surface; each is imported when it is first used.
"""

import importlib
from typing import Any

_HOMES = {
    "Denoiser": "diffusion",
    "LowPass": "filters",
    "Model": "model",
    "SkipModulation": "skips",
    "UViT": "uvit",
    "generate": "generation",
    "load_model": "model",
    "measure_detail": "detail",
    "modulate": "attach",
    "plot_gains": "plots",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name from its module."""
    if name not in _HOMES:
        raise AttributeError(f"uvit_lit has no {name!r}; it has {', '.join(_HOMES)}")
    return getattr(importlib.import_module(f"uvit_lit.{_HOMES[name]}"), name)
