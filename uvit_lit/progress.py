"""One look for the progress bars of all commands."""

from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress(items: Iterable[Any] | None = None, *, show: bool = True, **options: Any) -> tqdm:
    """A bar with the remaining time, on a terminal alone.

    Args:
        items: What to go through; None moves the bar by ``update``.
        show: Whether this process shows it.
        **options: Of ``tqdm``: total, unit, desc, ...
    """
    return tqdm(items, disable=None if show else True, dynamic_ncols=True, **options)
