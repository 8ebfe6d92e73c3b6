"""The benchmark's picture: one bar a run, as long as it is slower than the physical limit."""

from __future__ import annotations

from html import escape

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
