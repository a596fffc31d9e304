"""Plots as inline SVG: bars with ranges, and lines. No script; colours are the page's CSS variables.

Every mark has a <title>, which browsers show as a tooltip. What supports no claim is hatched, or drawn hollow.
"""

import math
from dataclasses import dataclass
from html import escape

WIDTH = 520
BAR_HEIGHT, BAR_GAP, LABEL_WIDTH, VALUE_WIDTH = 20, 9, 92, 96
LINE_HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 270, 56, 16, 12, 40
# Lines leave no room for all numbers of an axis; so many fit.
TICKS = 5


@dataclass
class Bar:
    name: str  # chooses the colour
    label: str
    value: float
    low: float | None = None
    high: float | None = None
    weak: bool = False  # supports no claim
    shown: str = ""
    tip: str = ""


@dataclass
class Point:
    x: float
    y: float
    low: float | None = None
    high: float | None = None
    weak: bool = False


@dataclass
class Series:
    name: str
    label: str
    points: list


def bars(items, unit=""):
    """Horizontal bars; the thin line is the range over all rounds."""
    top = max([bar.high or bar.value for bar in items] + [bar.value for bar in items] + [0]) or 1
    room = WIDTH - LABEL_WIDTH - VALUE_WIDTH
    height = len(items) * (BAR_HEIGHT + BAR_GAP) + BAR_GAP
    scale = lambda value: max(0.0, value) / top * room
    marks = []
    for number, bar in enumerate(items):
        y = BAR_GAP + number * (BAR_HEIGHT + BAR_GAP)
        middle = y + BAR_HEIGHT / 2
        width = max(1.5, scale(bar.value))
        style = "weak" if bar.weak else "bar"
        tip = bar.tip or f"{bar.label}: {bar.shown}"
        marks.append(f'<g class="c-{escape(bar.name)}"><title>{escape(tip)}</title>'
                     f'<text class="label{" us" if bar.name == "claviger" else ""}" x="{LABEL_WIDTH - 8}" '
                     f'y="{middle + 4:.1f}" text-anchor="end">{escape(bar.label)}</text>'
                     f'<rect class="{style}" x="{LABEL_WIDTH}" y="{y}" width="{width:.1f}" height="{BAR_HEIGHT}" rx="2.5"/>')
        end = width
        if bar.weak:
            marks.append(f'<rect class="hatch" x="{LABEL_WIDTH}" y="{y}" width="{width:.1f}" height="{BAR_HEIGHT}" rx="2.5"/>')
        if bar.low is not None and bar.high is not None and bar.high > bar.low:
            left, right = LABEL_WIDTH + scale(bar.low), LABEL_WIDTH + scale(bar.high)
            marks.append(f'<path class="range" d="M{left:.1f} {middle}H{right:.1f}M{left:.1f} {middle - 4}v8'
                         f'M{right:.1f} {middle - 4}v8"/>')
            end = max(end, scale(bar.high))
        marks.append(f'<text class="value" x="{LABEL_WIDTH + end + 7:.1f}" y="{middle + 4:.1f}">{escape(bar.shown)}</text></g>')
    return (f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(unit)}">{"".join(marks)}</svg>')


def lines(series, x_label, y_label, x_log=True, y_log=False, from_zero=True):
    """Lines with their points; whiskers are the range over all rounds or the interval."""
    series = [one for one in series if one.points]
    xs = sorted({point.x for one in series for point in one.points})
    ys = [value for one in series for point in one.points for value in (point.y, point.low, point.high) if value is not None]
    if y_log:
        ys = [y for y in ys if y > 0]
    if not xs or not ys:
        return ""
    low, high = min(ys), max(ys)
    if from_zero and not y_log:
        low = min(0.0, low)
    y_ticks = log_ticks(low, high) if y_log else ticks(low, high)
    low, high = min(low, y_ticks[0]), max(high, y_ticks[-1])
    place_y = scaler(low, high, LINE_HEIGHT - BOTTOM, TOP, y_log)
    place_x = scaler(xs[0], xs[-1], LEFT + 14, WIDTH - RIGHT - 14, x_log and xs[0] > 0)
    marks = []
    for tick in y_ticks:
        y = place_y(tick)
        marks.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
                     f'<text class="tick" x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{short(tick)}</text>')
    last = -100.0
    for x in xs:
        at = place_x(x)
        if at - last > 34:
            marks.append(f'<text class="tick" x="{at:.1f}" y="{LINE_HEIGHT - BOTTOM + 17}" text-anchor="middle">{short(x)}</text>')
            last = at
    marks.append(f'<text class="axis" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{LINE_HEIGHT - 5}" text-anchor="middle">{escape(x_label)}</text>')
    marks.append(f'<text class="axis" transform="translate(12 {(LINE_HEIGHT - BOTTOM + TOP) / 2}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>')
    # Ours last, so that it lies on top.
    for one in sorted(series, key=lambda one: one.name == "claviger"):
        points = [point for point in sorted(one.points, key=lambda point: point.x) if not y_log or point.y > 0]
        path = "L".join(f"{place_x(point.x):.1f} {place_y(point.y):.1f}" for point in points)
        marks.append(f'<g class="c-{escape(one.name)}{" us" if one.name == "claviger" else ""}"><path class="line" d="M{path}"/>')
        for point in points:
            x, y = place_x(point.x), place_y(point.y)
            if point.low is not None and point.high is not None and (not y_log or point.low > 0):
                marks.append(f'<path class="whisker" d="M{x:.1f} {place_y(point.low):.1f}V{place_y(point.high):.1f}"/>')
            spread = (f" ({point.low:,.4g} to {point.high:,.4g})" if point.low is not None and point.high is not None else "")
            marks.append(f'<circle class="{"hollow" if point.weak else "dot"}" cx="{x:.1f}" cy="{y:.1f}" r="3.4">'
                         f'<title>{escape(one.label)} at {short(point.x)}: {point.y:,.4g}{spread}</title></circle>')
        marks.append("</g>")
    return f'<svg viewBox="0 0 {WIDTH} {LINE_HEIGHT}" role="img" aria-label="{escape(y_label)}">{"".join(marks)}</svg>'


def scaler(low, high, start, end, log):
    if log:
        low, high = math.log10(low), math.log10(high)
    span = (high - low) or 1.0
    return lambda value: start + ((math.log10(value) if log else value) - low) / span * (end - start)


def ticks(low, high):
    """Round numbers from below `low` to above `high`."""
    step = 10 ** math.floor(math.log10(((high - low) or 1.0) / TICKS))
    for factor in (1, 2, 2.5, 5, 10):
        if (high - low) / (step * factor) <= TICKS:
            step *= factor
            break
    first, last = math.floor(low / step), math.ceil(high / step)
    return [number * step for number in range(first, last + 1)]


def log_ticks(low, high):
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    found = [10.0**power * factor for power in range(first, last + 1) for factor in (1, 3)]
    # One below and one above hold everything.
    start = max((tick for tick in found if tick <= low), default=found[0])
    end = min((tick for tick in found if tick >= high), default=found[-1])
    return [tick for tick in found if start <= tick <= end]


def short(value):
    """A number for an axis: 10k rather than 10,000."""
    for size, suffix in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{suffix}"
    return f"{value:g}"
