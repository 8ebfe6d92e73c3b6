"""The benchmarks' pictures: one bar a run, as long as it is slower than the physical limit;
and cost against size."""

from __future__ import annotations

from html import escape
from math import log10

_COLOURS = ("#2a6fb0", "#c0392b", "#2e8b57", "#8e5ea2", "#d2891b", "#444444")
_WIDTH, _LABEL, _ROW = 900, 330, 22


def bars(rows: list[tuple[str, float]]) -> str:
    """An SVG of (name, times the limit)."""
    largest = max((ratio for _, ratio in rows), default=1.0)
    scale = (_WIDTH - _LABEL - 70) / max(largest, 1.0)
    height = _ROW * len(rows) + 40
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        f'<text x="{_LABEL}" y="16">times the limit L + C/B (shorter is better)</text>',
    ]
    for i, (name, ratio) in enumerate(rows):
        y = 26 + i * _ROW
        colour = "#999999" if "unpack" in name else "#2a6fb0"
        out += [
            f'<text x="{_LABEL - 8}" y="{y + 13}" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{_LABEL}" y="{y}" width="{ratio * scale:.1f}" height="{_ROW - 6}" '
            f'fill="{colour}"/>',
            f'<text x="{_LABEL + ratio * scale + 5:.1f}" y="{y + 13}">{ratio:.2f}</text>',
        ]
    one = _LABEL + scale
    out.append(
        f'<line x1="{one:.1f}" y1="22" x2="{one:.1f}" y2="{height - 10}" stroke="#c0392b" '
        'stroke-dasharray="4 3"/>'
    )
    return "\n".join([*out, "</svg>", ""])


def lines(series: dict[str, list[tuple[float, float]]]) -> str:
    """An SVG of cost against size, both logarithmic: what is proportional to the size rises as the
    dashed line does."""
    points = [point for curve in series.values() for point in curve]
    if not points:
        return ""
    decades_x = max(1.0, log10(max(x for x, _ in points)))
    low = min(log10(max(y, 1e-4)) for _, y in points)
    high = max(log10(max(y, 1e-4)) for _, y in points)
    unit = min((_WIDTH - 260) / decades_x, 420 / max(1.0, high - low))
    height = (high - low) * unit + 60

    def place(x: float, y: float) -> str:
        return f"{40 + log10(x) * unit:.1f},{height - 30 - (log10(max(y, 1e-4)) - low) * unit:.1f}"

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height:.0f}" '
        'font-family="sans-serif" font-size="12">',
        '<text x="40" y="16">seconds against size; dashed: proportional</text>',
        f'<polyline points="{place(1, 10**low)} {place(10 ** (high - low), 10**high)}" '
        'fill="none" stroke="#999999" stroke-dasharray="4 3"/>',
    ]
    for index, (name, curve) in enumerate(series.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        drawn = " ".join(place(x, y) for x, y in curve)
        if not curve:
            continue
        end = place(*curve[-1]).split(",")
        out += [
            f'<polyline points="{drawn}" fill="none" stroke="{colour}" stroke-width="2"/>',
            f'<text x="{float(end[0]) + 5:.1f}" y="{end[1]}" fill="{colour}">{escape(name)}</text>',
        ]
    return "\n".join([*out, "</svg>", ""])
