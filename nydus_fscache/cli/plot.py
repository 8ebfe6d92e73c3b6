"""A picture of points over time, with axes: SVG, or PNG by Pillow.

Both are drawn by the same steps on a ``_Canvas``; x grows to the right and y downwards, in
pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any, Protocol

from nydus_fscache.errors import UsageError
from rafs_v6.values import dataclass

WIDTH, HEIGHT = 960, 480
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 30, 46, 60
_TICKS = 8
_TICK_LENGTH = 5
SUFFIXES = (".svg", ".png")


@dataclass(frozen=True, slots=True)
class Point:
    x: float
    y: float
    name: str


@dataclass(frozen=True, slots=True)
class Plot:
    """``right``, ``top``: where the axes end at least; both begin at 0."""

    title: str
    x_label: str
    y_label: str
    points: Sequence[Point]
    right: float
    top: float


class _Canvas(Protocol):
    def line(self, x1: float, y1: float, x2: float, y2: float, colour: str) -> None: ...
    def text(self, x: float, y: float, text: str, anchor: str, *, upright: bool = False) -> None:
        """``anchor``: "start", "middle" or "end" of the text is at x; y is its middle."""
        ...

    def dot(self, x: float, y: float, name: str) -> None: ...


def check_suffix(file: Path) -> None:
    """Raises ``UsageError``, before work is done for a picture that cannot be written."""
    if file.suffix.lower() not in SUFFIXES:
        raise UsageError(
            f"{file} is not the name of an SVG or PNG file", hint="name it FILE.svg or FILE.png"
        )
    if file.suffix.lower() == ".png":
        _pillow()


def write(plot: Plot, file: Path) -> None:
    canvas: _Svg | _Png = _Svg() if file.suffix.lower() == ".svg" else _Png()
    _draw(plot, canvas)
    file.write_bytes(canvas.data())


def steps(end: float) -> Iterator[float]:
    """Round numbers from 0 to ``end``, some eight of them."""
    raw = max(end, 1e-9) / _TICKS
    size = 10 ** math.floor(math.log10(raw))
    step = next(size * n for n in (1, 2, 5, 10) if size * n >= raw * 0.999)
    for n in range(int(end / step + 1e-9) + 1):
        yield n * step


def _draw(plot: Plot, canvas: _Canvas) -> None:
    across, down = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM
    bottom = HEIGHT - _BOTTOM

    def x_of(value: float) -> float:
        return _LEFT + across * value / plot.right

    def y_of(value: float) -> float:
        return bottom - down * value / plot.top

    for value in steps(plot.right):
        x = x_of(value)
        canvas.line(x, _TOP, x, bottom, "#e4e4e4")
        canvas.line(x, bottom, x, bottom + _TICK_LENGTH, "#444444")
        canvas.text(x, bottom + 16, f"{value:g}", "middle")
    for value in steps(plot.top):
        y = y_of(value)
        canvas.line(_LEFT, y, WIDTH - _RIGHT, y, "#e4e4e4")
        canvas.line(_LEFT - _TICK_LENGTH, y, _LEFT, y, "#444444")
        canvas.text(_LEFT - 9, y, f"{value:g}", "end")
    canvas.line(_LEFT, _TOP, _LEFT, bottom, "#444444")
    canvas.line(_LEFT, bottom, WIDTH - _RIGHT, bottom, "#444444")
    canvas.text(WIDTH / 2, 20, plot.title, "middle")
    canvas.text(_LEFT + across / 2, HEIGHT - 18, plot.x_label, "middle")
    canvas.text(18, _TOP + down / 2, plot.y_label, "middle", upright=True)
    for point in plot.points:
        canvas.dot(x_of(point.x), y_of(point.y), point.name)


class _Svg:
    def __init__(self) -> None:
        self._out = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
            'font-family="sans-serif" font-size="12">',
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        ]

    def line(self, x1: float, y1: float, x2: float, y2: float, colour: str) -> None:
        self._out.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'
        )

    def text(self, x: float, y: float, text: str, anchor: str, *, upright: bool = False) -> None:
        turned = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if upright else ""
        self._out.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" dominant-baseline="middle"'
            f"{turned}>{_printable(text)}</text>"
        )

    def dot(self, x: float, y: float, name: str) -> None:
        self._out.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="#2a6fb0" fill-opacity="0.6">'
            f"<title>{_printable(name)}</title></circle>"
        )

    def data(self) -> bytes:
        return "\n".join([*self._out, "</svg>", ""]).encode("utf-8", "backslashreplace")


def _printable(text: str) -> str:
    """XML has no way to write most control characters."""
    return escape("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text))


def _pillow() -> Any:
    try:
        from PIL import Image, ImageDraw, ImageFont  # noqa: PLC0415 - only for PNG
    except ImportError:
        raise UsageError(
            "a PNG needs Pillow, which is not installed here",
            hint="pip install 'nydus-fscache[plot]', or name the file FILE.svg",
        ) from None
    return Image, ImageDraw, ImageFont


class _Png:
    def __init__(self) -> None:
        self._image_module, draw, font = _pillow()
        self._image = self._image_module.new("RGB", (WIDTH, HEIGHT), "#ffffff")
        self._draw = draw.Draw(self._image, "RGBA")
        self._font = font.load_default()

    def line(self, x1: float, y1: float, x2: float, y2: float, colour: str) -> None:
        self._draw.line((x1, y1, x2, y2), fill=colour)

    def text(self, x: float, y: float, text: str, anchor: str, *, upright: bool = False) -> None:
        left, top, right, bottom = self._draw.textbbox((0, 0), text, font=self._font)
        width, height = right - left, bottom - top
        if upright:
            label = self._image_module.new("RGB", (int(width) + 2, int(height) + 4), "#ffffff")
            type(self._draw)(label).text((-left, -top), text, fill="#000000", font=self._font)
            turned = label.rotate(90, expand=True)
            self._image.paste(turned, (int(x - height / 2), int(y - width / 2)))
            return
        start = {"start": 0.0, "middle": width / 2, "end": width}[anchor]
        self._draw.text(
            (x - start - left, y - height / 2 - top), text, fill="#000000", font=self._font
        )

    def dot(self, x: float, y: float, name: str) -> None:
        self._draw.ellipse((x - 2.5, y - 2.5, x + 2.5, y + 2.5), fill="#2a6fb0a0")

    def data(self) -> bytes:
        import io  # noqa: PLC0415

        out = io.BytesIO()
        self._image.save(out, "PNG")
        return out.getvalue()
