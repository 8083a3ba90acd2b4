"""The few parts that a chart is drawn from: elements, a linear scale, ticks, axes.

In go numbers, out come escaped SVG elements. Colours come from the page's style sheet by class, never from an
attribute, so that one chart does for light, dark and print and the page needs no inline styles.
"""

import math
from dataclasses import dataclass

from markupsafe import Markup, escape

FONT_PIXELS = 12


def tag(name: str, attributes: dict[str, object], *content: str) -> Markup:
    """One element; attribute values and plain text are escaped, floats get one decimal."""
    written = "".join(f' {key}="{escape(_short(value))}"' for key, value in attributes.items())
    inner = Markup("").join(escape(part) for part in content)
    return Markup(f"<{name}{written}>{inner}</{name}>" if inner else f"<{name}{written}/>")  # noqa: S704


def _short(value: object) -> object:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else value


@dataclass(frozen=True)
class Scale:
    """Maps `low..high` linearly to the pixels `start..end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / ((self.high - self.low) or 1.0)
        return self.start + share * (self.end - self.start)


def nice_step(span: float, wanted: int) -> float:
    """The step of 1, 2 or 5 times a power of ten that cuts `span` into about `wanted` parts."""
    if span <= 0:
        return 1.0
    rough = span / max(wanted, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    return min((factor * power for factor in (1, 2, 5, 10)), key=lambda step: abs(step - rough))


def nice_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers from the last one at or below `low` to the first at or above `high`."""
    step = nice_step(high - low, wanted)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, max(last, first + 1) + 1)]


def tick_label(value: float) -> str:
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{round(value, 6):,.10g}"


def text(x: float, y: float, content: str, css: str = "tick", anchor: str = "start") -> Markup:
    return tag("text", {"x": x, "y": y, "class": css, "text-anchor": anchor}, content)


def line(x1: float, y1: float, x2: float, y2: float, css: str) -> Markup:
    return tag("line", {"x1": x1, "y1": y1, "x2": x2, "y2": y2, "class": css})


def path(points: list[tuple[float, float]], css: str) -> Markup:
    return tag("path", {"d": "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in points), "class": css})


def marker(shape: str, x: float, y: float, css: str, radius: float = 4.0) -> Markup:
    """A circle, square or diamond around a point, so that series differ by shape and not by colour alone."""
    if shape == "circle":
        return tag("circle", {"cx": x, "cy": y, "r": radius, "class": css})
    box: dict[str, object] = {
        "x": x - radius,
        "y": y - radius,
        "width": 2 * radius,
        "height": 2 * radius,
        "class": css,
    }
    if shape == "diamond":
        box["transform"] = f"rotate(45 {x:.1f} {y:.1f})"
    return tag("rect", box)


def left_axis(scale: Scale, ticks: list[float], left: float, right: float) -> Markup:
    """Hairlines across the chart with their figures to the left of it."""
    parts = [
        line(left, scale(tick), right, scale(tick), "grid" if tick != ticks[0] else "axis")
        + text(left - 6, scale(tick) + 4, tick_label(tick), anchor="end")
        for tick in ticks
    ]
    return Markup("").join(parts)


def bottom_axis(scale: Scale, ticks: list[float], y: float) -> Markup:
    parts = [
        line(scale(tick), y, scale(tick), y + 4, "axis") + text(scale(tick), y + 17, tick_label(tick), anchor="middle")
        for tick in ticks
    ]
    return Markup("").join(parts)


def text_width(content: str) -> float:
    """About how many pixels the text of a tick takes."""
    return 0.56 * FONT_PIXELS * len(content)


def picture(key: str, width: int, height: int, title: str, description: str, *content: str) -> Markup:
    """A whole chart with its title and description for those who cannot see it; `key` makes the ids unique."""
    labels = f"{key}-{width}-title {key}-{width}-desc"
    attributes: dict[str, object] = {
        "viewBox": f"0 0 {width} {height}",
        "role": "img",
        "aria-labelledby": labels,
        "class": "chart",
    }
    return tag(
        "svg",
        attributes,
        tag("title", {"id": f"{key}-{width}-title"}, title),
        tag("desc", {"id": f"{key}-{width}-desc"}, description),
        *content,
    )
