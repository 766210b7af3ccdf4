"""Line charts as SVG text, for pages: sharp at any width, on light and on dark."""

import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 40

Curve = tuple[Sequence[float], Sequence[float]]
"""Abscissae and ordinates, equally many."""


def ticks(low: float, high: float) -> list[float]:
    """Round numbers between two ends, three to seven of them.

    >>> ticks(0, 1.5)
    [0.0, 0.5, 1.0, 1.5]
    """
    step = 10 ** math.floor(math.log10((high - low) / 2))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (factor * step) < 6)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(step * k, 9) for k in range(first, last + 1)]


def line_chart(
    curves: dict[str, Curve],
    colours: Sequence[str],
    x_label: str,
    y_label: str,
    low: float | None = None,
    high: float | None = None,
) -> str:
    """Draw curves over one axis; text and lines have the colour of the text around.

    Args:
        curves: Name to the points, at least one curve of at least two points.
        colours: CSS colour of each.
        x_label: What the abscissae are.
        y_label: What the ordinates are.
        low: Lower end of the ordinates; by default the least one.
        high: Upper end; by default the largest one.

    Returns:
        An ``svg`` element with its legend below.
    """
    xs = [x for abscissae, _ in curves.values() for x in abscissae]
    ys = [y for _, ordinates in curves.values() for y in ordinates]
    x0, x1 = min(xs), max(xs)
    y0 = min(ys) if low is None else low
    y1 = max(max(ys) if high is None else high, y0 + 1e-6)

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)
        return across, HEIGHT - BOTTOM - (y - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM)

    parts = []
    for y in ticks(y0, y1):
        _, at = place(x0, y)
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" '
            'stroke="currentColor" stroke-opacity=".15"/>'
            f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{y:g}</text>'
        )
    for x in ticks(x0, x1):
        at, _ = place(x, y0)
        parts.append(
            f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{x:g}</text>'
        )
    for k, (name, (abscissae, ordinates)) in enumerate(curves.items()):
        width = 2 + 4 * (len(curves) - 1 - k) / max(1, len(curves) - 1)  # equal ones stay visible
        pairs = zip(abscissae, ordinates, strict=True)
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*pair) for pair in pairs))
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colours[k]}" '
            f'stroke-width="{width:.1f}">'
            f"<title>{escape(name)}</title></polyline>"
        )
    middle = (TOP + HEIGHT - BOTTOM) / 2
    legend = "".join(
        '<span style="white-space:nowrap;margin-right:1em"><span style="display:inline-block;'
        f"width:1.2em;border-top:3px solid {colour};vertical-align:middle;margin-right:.4em"
        f'"></span>{escape(name)}</span> '
        for name, colour in zip(curves, colours, strict=True)
    )
    return (
        f'<figure style="margin:0;max-width:{WIDTH * 1.5:g}px">'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(y_label)}" '
        'style="width:100%;height:auto;font:12px system-ui,sans-serif" fill="currentColor">'
        f"{''.join(parts)}"
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">'
        f"{escape(x_label)}</text>"
        f'<text transform="translate(12 {middle}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text></svg>"
        f'<figcaption style="font-size:.8em;line-height:1.5">{legend}</figcaption></figure>'
    )


def shades(count: int) -> list[str]:
    """Colours of an ordered row, from blue to orange, readable on white and on black."""
    return [f"hsl({round(250 - 220 * k / max(1, count - 1)) % 360} 65% 52%)" for k in range(count)]
