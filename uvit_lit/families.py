"""The low-pass families by name; a new one is one line here.

Nothing here imports torch or scipy before a filter is designed.
"""

from collections.abc import Callable
from typing import Any


def design(function: str, *numbers: str, **fixed: Any) -> Callable[[Any], tuple]:
    """Design by a function of ``scipy.signal``.

    Args:
        function: Name of a function that gives zeros, poles and gain of the analog low-pass of
            cutoff 1.
        *numbers: Fields of ``uvit_lit.filters.LowPass`` that are its arguments.
        **fixed: Further arguments of it.
    """

    def prototype(low_pass: Any) -> tuple:
        from scipy import signal

        return getattr(signal, function)(*(getattr(low_pass, name) for name in numbers), **fixed)

    return prototype


PROTOTYPES: dict[str, Callable[[Any], tuple]] = {
    "butterworth": design("buttap", "order"),
    "chebyshev": design("cheb1ap", "order", "ripple"),
    "chebyshev2": design("cheb2ap", "order", "attenuation"),
}
"""Families designed by ``scipy.signal``. Their responses are smooth in the cutoff, so training can
learn it."""

FILTERS = ("none", "step", *PROTOTYPES, "freeu_box", "flat")
"""Names of the filters; ``none`` leaves the skip as it is, ``flat`` passes every frequency."""

LEARNED: dict[str, tuple[str, ...]] = {**dict.fromkeys(PROTOTYPES, ("s", "cutoff")), "flat": ("s",)}
"""What training learns of a filter."""
