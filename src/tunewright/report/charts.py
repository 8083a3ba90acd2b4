"""The report's charts as SVG: a histogram, curves over steps, dots with whiskers, a bar that balances.

In go plain numbers, out comes markup that needs no script and no style attribute. Every chart is drawn twice, for a
wide and for a narrow page, and the style sheet shows the one that fits, so that its words keep their size on a phone.
Points that are not finite are left out.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from tunewright.report.svg import (
    Scale,
    bottom_axis,
    left_axis,
    line,
    marker,
    nice_step,
    nice_ticks,
    path,
    picture,
    tag,
    text,
    text_width,
    tick_label,
)

WIDE, NARROW = 760, 350
SHAPES = ("circle", "square", "diamond")
MOST_POINTS = 600

Point = tuple[float, float]


def responsive(draw: Callable[[int], Markup], small: bool = False) -> Markup:
    """The chart at both widths; a small one stands beside another and is narrow on every page."""
    if small:
        return tag("div", {"class": "narrow"}, draw(NARROW))
    return tag("div", {"class": "wide"}, draw(WIDE)) + tag("div", {"class": "narrow"}, draw(NARROW))


# Histogram


def bin_edges(values: list[int], most_bins: int) -> list[float]:
    """Equal edges at round numbers that hold every value; each bin holds `edge <= value < next edge`."""
    step = max(1.0, nice_step(max(values) - min(values) + 1, most_bins))
    first = math.floor(min(values) / step)
    last = math.floor(max(values) / step) + 1
    return [index * step for index in range(first, last + 1)]


def bin_counts(values: list[int], edges: list[float]) -> list[int]:
    counts = [0] * (len(edges) - 1)
    step = edges[1] - edges[0]
    for value in values:
        counts[int((value - edges[0]) // step)] += 1
    return counts


def histogram(
    key: str, title: str, values: list[int], unit: str, limit: int | None = None, css: str = "bar", height: int = 200
) -> Markup:
    """How often each length occurs, with `limit` as a labelled line.

    A limit far beyond the values is only pointed at, so that it does not press the bars together.
    """

    def draw(width: int) -> Markup:
        edges = bin_edges(values, 28 if width == WIDE else 14)
        counts = bin_counts(values, edges)
        far = limit is not None and limit > edges[-1] + 2 * (edges[-1] - edges[0])
        high = edges[-1] if far or limit is None else max(edges[-1], float(limit))
        high += 0.02 * (high - edges[0])
        ticks = [float(tick) for tick in nice_ticks(0, max(counts), 3)]
        x = Scale(edges[0], high, 40, width - 12)
        y = Scale(0, ticks[-1], height - 40, 24)
        bars = [_bar(x, y, edges[i], edges[i + 1], counts[i], unit, css) for i in range(len(counts)) if counts[i]]
        x_ticks = [tick for tick in nice_ticks(edges[0], high, width // 90) if edges[0] <= tick <= high]
        return picture(
            key,
            width,
            height,
            title,
            f"{len(values)} rows between {min(values)} and {max(values)} {unit}"
            + (f"; the limit is {limit}." if limit is not None else "."),
            left_axis(y, ticks, 40, width - 12),
            *bars,
            bottom_axis(x, x_ticks, height - 40),
            text(40, 12, "rows", "label"),
            text(width - 12, height - 4, unit, "label", "end"),
            _limit_line(x, y, limit, far) if limit is not None else "",
        )

    return responsive(draw)


def _bar(x: Scale, y: Scale, low: float, high: float, count: int, unit: str, css: str) -> Markup:
    span = f"{low:,.0f}" if high - low == 1 else f"{low:,.0f} to {high - 1:,.0f}"
    title = tag("title", {}, f"{span} {unit}: {count} {'row' if count == 1 else 'rows'}")
    width = max(x(high) - x(low) - 1.5, 0.5)
    return tag("rect", {"x": x(low), "y": y(count), "width": width, "height": y(0) - y(count), "class": css}, title)


def _limit_line(x: Scale, y: Scale, limit: int, far: bool) -> Markup:
    label = f"max_length {limit:,}"
    if far:
        return text(x.end, 12, f"{label} →", "limit-label", "end")
    at = x(limit)
    fits_left = at - text_width(label) > x.start + 50
    return line(at, 16, at, y(0), "limit-line") + text(
        at, 12, label, "limit-label", "end" if fits_left or at > x.end - 60 else "start"
    )


# Curves


@dataclass(frozen=True)
class Series:
    """One curve.

    Attributes:
        name: as the legend has it.
        points: (x, y), sorted by x.
        css: the class that gives colour and stroke.
        dots: draw a marker on each point.
    """

    name: str
    points: list[Point]
    css: str
    dots: bool = False


def smoothed(points: list[Point], reach: int) -> list[Point]:
    """The mean of each point and up to `reach` neighbours on either side; no lag, shorter at the ends."""
    means = []
    for index, (x, _) in enumerate(points):
        width = min(reach, index, len(points) - 1 - index)
        window = [y for _, y in points[index - width : index + width + 1]]
        means.append((x, sum(window) / len(window)))
    return means


def thinned(points: list[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most about `most` points: the mean of each group of neighbours, at the group's last x."""
    group = math.ceil(len(points) / most)
    if group <= 1:
        return points
    groups = [points[start : start + group] for start in range(0, len(points), group)]
    return [(part[-1][0], sum(y for _, y in part) / len(part)) for part in groups]


def finite(points: list[Point]) -> list[Point]:
    return [(x, y) for x, y in points if math.isfinite(y)]


def curves(key: str, title: str, description: str, series: list[Series], small: bool = False) -> Markup:
    """Curves over a common x axis of steps; where the pointer rests, a title reads out every curve at that step."""
    height = 110 if small else 260
    drawn = [Series(one.name, finite(one.points), one.css, one.dots) for one in series]
    xs = [x for one in drawn for x, _ in one.points]
    ys = [y for one in drawn for _, y in one.points]
    if not ys:
        return tag("p", {"class": "note"}, "No finite figure was recorded.")

    def draw(width: int) -> Markup:
        ticks = nice_ticks(min(0.0, *ys), max(ys), 2 if small else 5)
        left = 12 + max(text_width(tick_label(tick)) for tick in ticks)
        x = Scale(min(xs), max(max(xs), min(xs) + 1), left + 4, width - 12)
        y = Scale(ticks[0], ticks[-1], height - 26, 10)
        x_ticks = [tick for tick in nice_ticks(min(xs), max(xs), width // 110) if x.low <= tick <= x.high]
        return picture(
            key,
            width,
            height,
            title,
            description,
            left_axis(y, ticks, left, width - 12),
            bottom_axis(x, x_ticks, height - 26),
            text(left - 6, height - 9, "step", anchor="end"),
            *[_curve(one, x, y) for one in drawn if one.points],
            _read_outs(drawn, x, height - 26),
        )

    return responsive(draw, small)


def _curve(series: Series, x: Scale, y: Scale) -> Markup:
    placed = [(x(at), y(value)) for at, value in series.points]
    drawn = path(placed, f"curve {series.css}") if len(placed) > 1 else Markup("")
    if series.dots or len(placed) == 1:
        dots = [marker("diamond", at, value, f"dot {series.css}", 3.5) for at, value in placed]
        drawn += Markup("").join(dots)
    return drawn


def _read_outs(series: list[Series], x: Scale, bottom: float) -> Markup:
    """Unseen strips, one for each x of the longest curve, whose title is what stands there."""
    steps = sorted({at for one in series for at, _ in one.points})
    values = [(one.name, dict(one.points)) for one in series]
    edges = [x.start, *[(x(low) + x(high)) / 2 for low, high in pairwise(steps)], x.end]
    strips = []
    for index, step in enumerate(steps):
        words = [f"{name} {points[step]:.4g}" for name, points in values if step in points]
        title = tag("title", {}, f"step {step:g}: {', '.join(words)}")
        width = max(edges[index + 1] - edges[index], 1.0)
        box: dict[str, object] = {"x": edges[index], "y": 0, "width": width, "height": bottom, "class": "read"}
        strips.append(tag("rect", box, title))
    return Markup("").join(strips)


# Dots with whiskers


@dataclass(frozen=True)
class Whisker:
    """One figure with its interval, all as ratios from 0 to 1."""

    group: str
    name: str
    value: float
    low: float
    high: float


def whiskers(key: str, title: str, items: list[Whisker]) -> Markup:
    """Each group's figures on lines of their own, from 0 to 100 %; the order of names gives shape and colour."""
    groups = list(dict.fromkeys(item.group for item in items))
    names = list(dict.fromkeys(item.name for item in items))
    row, gap, head = 18, 16, 22
    block = head + row * len(names) + gap

    def draw(width: int) -> Markup:
        height = block * len(groups) + 26
        x = Scale(0, 1, 12, width - 18 - max(map(text_width, names)))
        bottom = height - 26
        grid = [
            line(x(share), 4, x(share), bottom, "grid" if share else "axis")
            + text(x(share), bottom + 17, f"{share:.0%}".replace("%", " %"), anchor="middle" if share else "start")
            for share in (0, 0.25, 0.5, 0.75, 1.0)
        ]
        labels = [text(x(0) + 8, index * block + 16, group, "group") for index, group in enumerate(groups)]
        dots = [
            _whisker(item, x, groups.index(item.group) * block + head + row * names.index(item.name) + 10, names)
            for item in items
        ]
        spoken = "; ".join(f"{item.group}, {item.name}: {item.value:.1%}" for item in items)
        return picture(key, width, height, title, spoken, *grid, *labels, *dots)

    return responsive(draw)


def _whisker(item: Whisker, x: Scale, y: float, names: list[str]) -> Markup:
    index = names.index(item.name)
    css = f"series-{min(index, len(SHAPES) - 1)}"
    title = f"{item.group}, {item.name}: {item.value:.1%}, 95 % interval {item.low:.1%} to {item.high:.1%}"
    return tag(
        "g",
        {},
        tag("title", {}, title),
        line(x(item.low), y, x(item.high), y, f"whisker {css}"),
        marker(SHAPES[min(index, len(SHAPES) - 1)], x(item.value), y, f"dot {css}", 4.5 if index == 0 else 4.0),
        text(max(x(item.high), x(item.value) + 6) + 6, y + 4, item.name, "tick"),
    )


# A bar that balances


def balance(key: str, title: str, parts: list[tuple[str, int]]) -> Markup:
    """One bar whose parts are the fates of all rows; every part that is not empty is at least a hairline."""
    total = sum(count for _, count in parts) or 1

    def draw(width: int) -> Markup:
        bars, at = [], 0.0
        for name, count in parts:
            share = count / total * width
            title_tag = tag("title", {}, f"{name}: {count} ({count / total:.1%})")
            box: dict[str, object] = {"x": at, "y": 0, "width": max(share - 1.5, 1.5), "height": 12}
            bars.append(tag("rect", {**box, "class": f"fate-{name}"}, title_tag) if count else Markup(""))
            at += share
        spoken = ", ".join(f"{name} {count}" for name, count in parts)
        return picture(key, width, 12, title, spoken, *bars)

    return responsive(draw)
