"""Plots as SVG: bars, histograms and curves, in the page's own colours. Pure: numbers in, markup out."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 460, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 10, 28, 34


class Bar(NamedTuple):
    """A value and, where several rounds gave it, how far they lie apart."""

    value: float
    low: float
    high: float


def bars(title: str, groups: Sequence[str], series: Mapping[str, Sequence[Bar]]) -> str:
    """One group of bars for each of ``groups``, one bar in it for each series; whiskers where low and high differ."""
    top = max((bar.high for found in series.values() for bar in found), default=0) or 1
    drawn = [_frame(title, series), _y_axis(top)]
    wide = (WIDTH - _LEFT - _RIGHT) / max(1, len(groups))
    each = min(40.0, wide * 0.8 / max(1, len(series)))
    for at, group in enumerate(groups):
        middle = _LEFT + wide * (at + 0.5)
        drawn.append(_text(middle, HEIGHT - _BOTTOM + 16, group))
        for place, (name, found) in enumerate(series.items()):
            if at >= len(found):
                continue
            bar, left = found[at], middle + each * (place - len(series) / 2)
            y = _y(bar.value, top)
            said = escape(f"{name} {group}: {_label(bar.value)}")
            drawn.append(
                f'<rect class="{escape(name)}" x="{left + 1:.1f}" y="{y:.1f}" width="{each - 2:.1f}" '
                f'height="{HEIGHT - _BOTTOM - y:.1f}"><title>{said}</title></rect>'
            )
            if bar.low != bar.high:
                x = left + each / 2
                drawn.append(_line(x, _y(bar.low, top), x, _y(bar.high, top), "whisker"))
    return _svg(title, drawn)


def histogram(title: str, series: Mapping[str, Sequence[tuple[float, float, int]]]) -> str:
    """Shares of the values by size, on a logarithmic axis; ``series`` holds (low, high, count), low above 0."""
    series = {name: found for name, found in series.items() if found}
    if not series:
        return ""
    low = min(found[0][0] for found in series.values())
    high = max(found[-1][1] for found in series.values())
    shares = {name: sum(count for _, _, count in found) for name, found in series.items()}
    top = max(100 * count / shares[name] for name, found in series.items() for _, _, count in found)

    def x(value: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * math.log(value / low) / math.log(high / low)

    drawn = [_frame(title, series), _y_axis(top, "%")]
    for name, found in series.items():
        points = [f"{x(found[0][0]):.1f},{_y(0, top):.1f}"]
        for begin, end, count in found:
            y = _y(100 * count / shares[name], top)
            points += [f"{x(begin):.1f},{y:.1f}", f"{x(end):.1f},{y:.1f}"]
        points.append(f"{x(found[-1][1]):.1f},{_y(0, top):.1f}")
        drawn.append(f'<polygon class="{escape(name)} area" points="{" ".join(points)}"/>')
    for share in (0, 1 / 3, 2 / 3, 1):
        value = low * (high / low) ** share
        drawn.append(_text(x(value), HEIGHT - _BOTTOM + 16, _label(value), _anchor(share)))
    return _svg(title, drawn)


def curve(title: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Lines through (x, y) points, y from 0."""
    series = {name: found for name, found in series.items() if found}
    if not series:
        return ""
    low = min(x for found in series.values() for x, _ in found)
    high = max(x for found in series.values() for x, _ in found)
    top = max(y for found in series.values() for _, y in found) or 1
    drawn = [_frame(title, series), _y_axis(top)]
    for name, found in series.items():
        points = " ".join(
            f"{_LEFT + (WIDTH - _LEFT - _RIGHT) * (x - low) / ((high - low) or 1):.1f},{_y(y, top):.1f}"
            for x, y in found
        )
        drawn.append(f'<polyline class="{escape(name)} line" points="{points}"/>')
    for share in (0, 0.5, 1):
        at = _LEFT + (WIDTH - _LEFT - _RIGHT) * share
        drawn.append(_text(at, HEIGHT - _BOTTOM + 16, _label(low + (high - low) * share), _anchor(share)))
    return _svg(title, drawn)


def _svg(title: str, drawn: Sequence[str]) -> str:
    inside = "".join(drawn)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{inside}</svg>'


def _frame(title: str, series: Mapping[str, object]) -> str:
    """Title, ground line and, of several series, which is which."""
    drawn = [_text(_LEFT, 14, title, "start", "title")]
    drawn.append(_line(_LEFT, HEIGHT - _BOTTOM, WIDTH - _RIGHT, HEIGHT - _BOTTOM, "axis"))
    if len(series) > 1:
        for place, name in enumerate(reversed(list(series))):
            x = WIDTH - _RIGHT - 46 * place
            drawn.append(f'<rect class="{escape(name)}" x="{x - 42}" y="5" width="10" height="10"/>')
            drawn.append(_text(x - 28, 14, name, "start"))
    return "".join(drawn)


def _y_axis(top: float, unit: str = "") -> str:
    drawn = []
    for share in (0, 0.5, 1):
        y = _y(top * share, top)
        drawn.append(_line(_LEFT, y, WIDTH - _RIGHT, y, "grid"))
        drawn.append(_text(_LEFT - 6, y + 4, f"{_label(top * share)}{unit}", "end"))
    return "".join(drawn)


def _y(value: float, top: float) -> float:
    return HEIGHT - _BOTTOM - (HEIGHT - _BOTTOM - _TOP) * value / top


def _label(value: float) -> str:
    """Three digits, or all before the point: no room for more, and nobody reads 1.31e+03."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _anchor(share: float) -> str:
    return "start" if share == 0 else "end" if share == 1 else "middle"


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, said: str, anchor: str = "middle", kind: str = "label") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(said)}</text>'
