import math
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunewright.report import charts, numbers
from tunewright.report.svg import Scale, nice_ticks, tag, tick_label


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (3.2e-07, "3.2e-07"),
        (0.000871, "8.7e-04"),
        (0.98765, "0.9877"),
        (0.0, "0"),
        (True, "yes"),
        (False, "no"),
        (12345, "12,345"),
        (123456.7, "123,457"),
        (float("nan"), "not finite"),
        (None, "—"),
        ("padded", "padded"),
    ],
)
def test_figure_is_shown_as_a_person_reads_it(value: object, shown: str) -> None:
    assert numbers.figure(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(4.24, "4.2 s"), (59.96, "1 min 0 s"), (312.4, "5 min 12 s"), (12001, "3 h 20 min"), (None, "—")],
)
def test_duration_has_two_units_at_most(seconds: float | None, shown: str) -> None:
    assert numbers.duration(seconds).replace(numbers.NARROW_SPACE, " ") == shown


@pytest.mark.parametrize(
    ("size_bytes", "shown"),
    [(812, "812 B"), (143_900_000, "143.9 MB"), (999_999, "1.0 MB"), (2.9e9, "2.9 GB"), (5e15, "5000.0 TB")],
)
def test_size_is_in_powers_of_a_thousand(size_bytes: float, shown: str) -> None:
    assert numbers.size(size_bytes).replace(numbers.NARROW_SPACE, " ") == shown


@pytest.mark.parametrize(
    ("text", "shown"), [(">= 0.98", "≥ 0.98"), ("<= 1e-06", "≤ 1e-06"), ("= True", "= yes"), ("", "")]
)
def test_limit_reads_without_code(text: str, shown: str) -> None:
    assert numbers.limit(text) == shown


def test_names_are_listed_with_an_and() -> None:
    assert [numbers.listed(list("abc")[:count]) for count in range(4)] == ["", "a", "a and b", "a, b and c"]


def test_percent_has_one_decimal() -> None:
    assert numbers.percent(0.96).replace(numbers.NARROW_SPACE, " ") == "96.0 %"


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_enclose_the_range(low: float, span: float) -> None:
    ticks = nice_ticks(low, low + span)
    step = ticks[1] - ticks[0]
    slack = max(1e-6 * step, math.ulp(low) + math.ulp(low + span))
    assert ticks[0] <= low + slack
    assert ticks[-1] >= low + span - slack
    assert 2 <= len(ticks) <= 12


def test_ticks_are_round_numbers() -> None:
    assert [tick_label(tick) for tick in nice_ticks(0.55, 2.9)] == ["0.5", "1", "1.5", "2", "2.5", "3"]
    assert [tick_label(tick) for tick in nice_ticks(0, 2e-4, 2)] == ["0", "1e-4", "2e-4"]


def test_scale_of_a_single_value_does_not_divide_by_zero() -> None:
    assert Scale(5, 5, 10, 90)(5) == 10


def test_element_escapes_text_and_attributes() -> None:
    assert tag("text", {"x": 1.25, "class": '"><script>'}, "a & <b>") == (
        '<text x="1.2" class="&#34;&gt;&lt;script&gt;">a &amp; &lt;b&gt;</text>'
    )


@given(st.lists(st.integers(0, 40000), min_size=1), st.integers(3, 40))
def test_every_row_stands_in_one_bin_of_the_histogram(values: list[int], most: int) -> None:
    edges = charts.bin_edges(values, most)
    counts = charts.bin_counts(values, edges)
    assert sum(counts) == len(values)
    assert edges[0] <= min(values)
    assert edges[-1] > max(values)


def test_histogram_counts_rows_at_their_lengths() -> None:
    edges = charts.bin_edges([100, 101, 119, 120], 4)
    assert (edges, charts.bin_counts([100, 101, 119, 120], edges)) == ([100, 105, 110, 115, 120, 125], [2, 0, 0, 1, 1])


def test_histogram_draws_the_limit_as_a_labelled_line() -> None:
    drawn = charts.histogram("lengths", "Lengths", [100, 200, 300], "tokens", limit=320)
    assert drawn.count('class="limit-line"') == 2
    assert "max_length 320<" in drawn


def test_histogram_points_at_a_limit_that_is_far_beyond_the_rows() -> None:
    drawn = charts.histogram("lengths", "Lengths", [100, 110, 120], "tokens", limit=4096)
    assert "limit-line" not in drawn
    assert "max_length 4,096 →" in drawn


def test_smoothing_is_the_mean_of_neighbours_and_keeps_the_ends() -> None:
    points = [(0.0, 4.0), (1.0, 1.0), (2.0, 1.0), (3.0, 7.0)]
    assert charts.smoothed(points, 1) == [(0.0, 4.0), (1.0, 2.0), (2.0, 3.0), (3.0, 7.0)]


def test_thinning_takes_means_and_keeps_the_last_step() -> None:
    points = [(float(step), float(step % 2)) for step in range(1000)]
    thin = charts.thinned(points, 100)
    assert (len(thin), thin[-1]) == (100, (999.0, 0.5))


def test_curves_read_out_every_series_at_a_step() -> None:
    one = charts.Series("train", [(1.0, 2.5), (2.0, 1.25)], "thin")
    other = charts.Series("held-out", [(2.0, 1.5)], "held-out", dots=True)
    drawn = charts.curves("loss", "Loss", "falls", [one, other])
    assert drawn.count("<title>step 2: train 1.25, held-out 1.5</title>") == 2
    assert drawn.count("<title>step 1: train 2.5</title>") == 2


def test_curves_leave_out_what_is_not_finite() -> None:
    series = charts.Series("train", [(1.0, 2.0), (2.0, math.nan), (3.0, math.inf)], "thin")
    drawn = charts.curves("loss", "Loss", "breaks", [series])
    assert "nan" not in drawn
    assert "inf" not in drawn
    assert charts.curves("loss", "Loss", "", [charts.Series("train", [(1.0, math.nan)], "thin")]) == (
        '<p class="note">No finite figure was recorded.</p>'
    )


def test_whiskers_differ_by_shape_and_not_by_colour_alone() -> None:
    items = [charts.Whisker("intent", name, 0.5, 0.4, 0.6) for name in ("base", "tuned", "q8_0")]
    drawn = str(charts.whiskers("metrics", "Metrics", items))
    wide = ElementTree.fromstring(drawn.split("</svg>")[0].split("<div")[1].partition(">")[2] + "</svg>")  # noqa: S314
    marks = [(mark.tag, "transform" in mark.attrib) for mark in wide.iter() if "dot" in mark.get("class", "")]
    assert marks == [("circle", False), ("rect", False), ("rect", True)]
    assert wide.findtext("desc") == "intent, base: 50.0%; intent, tuned: 50.0%; intent, q8_0: 50.0%"
