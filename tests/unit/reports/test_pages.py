"""Pages are whole, small, and the same in look; charts are named; graphs keep their edges off the boxes."""

from __future__ import annotations

import random
import re
from itertools import pairwise
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kubealign_components.reports import charts
from kubealign_components.reports.graph import HEIGHT, WIDTH, Layout, Node, lay_out, picture
from kubealign_components.reports.html import BUDGET, clipped, fitting, messages_text, render
from support.pages import Page

ATTACK = "</script><img src=x onerror=alert(1)>"


def curves_page(**values: object) -> str:
    manifest = SimpleNamespace(slug="a-model", fingerprint="0" * 64)
    return render("kubealign_components/training/curves.html", manifest=manifest, **values)


def shown(**values: object) -> Page:
    return Page(curves_page(**values))


def test_a_page_has_landmarks_both_modes_and_forbids_requests() -> None:
    text = curves_page(facts=[("Model", ATTACK)], charts=[])
    page = Page(text)
    assert {"header", "main", "footer", "h1"} <= set(page.tags)
    assert "prefers-color-scheme:dark" in text and 'name="viewport"' in text
    assert "default-src 'none'" in text
    assert page.loaded == [] and ATTACK in page.text


def test_charts_have_names_unique_ids_and_the_colours_of_the_style() -> None:
    drawn = [
        charts.curves(ATTACK, {"loss": [(1, 0.5), (2, 0.25)], "absent": []}, y="nats"),
        charts.histogram("Rewards", {"before": [1, 2], "after": [3, 0]}, -1.0, 1.0, x="reward"),
        charts.scatter("Length", [(1, 1), (2, 2), (3, 3)], x="tokens", y="reward", slope=True),
        charts.against("Calibration", {"bins": [(0, 0), (1, 1)]}, x="a", y="b", ideal=[(0, 0), (1, 1)]),
    ]
    page = shown(facts=[], charts=drawn)
    assert page.charts == [ATTACK, "Rewards", "Length (correlation +1.00)", "Calibration"]
    assert len(set(page.ids)) == len(page.ids) > 10
    assert page.tags.count("title") == page.tags.count("desc") + 1 == 5
    svg = "".join(drawn)
    assert svg.count('role="img"') == 4 and "#0000f" not in svg and "var(--series-1)" in svg
    assert "http" not in svg.replace("http://www.w3.org/", "")


def test_a_chart_does_not_grow_with_its_data() -> None:
    drawn = random.Random(0)
    values = [drawn.gauss(0, 1) for _ in range(200_000)]
    line = list(enumerate(values))
    counts, low, high = charts.counted(values)
    assert sum(counts) == len(values) and (low, high) == (min(values), max(values))
    assert len(charts.curves("Loss", {"loss": line})) < 60_000
    assert len(charts.scatter("Length", line, x="a", y="b", slope=True)) < 120_000
    thin = charts.thinned(line)
    assert len(thin) <= charts.POINTS and thin[-1][0] == len(line) - 1
    assert charts.thinned(line[:10]) == line[:10]


@pytest.mark.parametrize("values", [[0.3], [0.1 + 0.2, 0.3], [1e12, 1e12 + 1e-4], [-5.0, -5.0]])
def test_values_that_are_as_good_as_equal_have_bins(values: list[float]) -> None:
    counts, low, high = charts.counted(values)
    assert sum(counts) == len(values) and low < min(values) <= max(values) < high


def test_a_line_is_drawn_only_where_there_is_one() -> None:
    assert "correlation" not in charts.scatter("A", [(1, 1), (1, 2), (1, 3)], x="a", y="b", slope=True)


def test_texts_stop_at_the_budget_whatever_they_hold() -> None:
    entries = ["'" * 4000] * 1000  # each becomes five times as long on the page
    kept = fitting(entries, lambda text: [text])
    assert len(kept) == BUDGET // 20_000
    assert clipped("x" * 5000).endswith("… (5000 characters)")


def test_messages_are_shown_with_their_tool_calls() -> None:
    text = messages_text('[{"role": "assistant", "content": null, "tool_calls": [{"name": "f"}]}]')
    assert text == 'assistant: null\n{"tool_calls": [{"name": "f"}]}'


Graph = tuple[list[str], list[tuple[str, str]]]


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    size = draw(st.integers(1, 12))
    keys = [f"n{i}" for i in range(size)]
    pairs = [(a, b) for i, a in enumerate(keys) for b in keys[i + 1 :]]
    edges = draw(st.lists(st.sampled_from(pairs), max_size=18)) if pairs else []
    return keys, edges


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_edges_are_those_of_the_graph_and_touch_no_other_box(
    graph: tuple[list[str], list[tuple[str, str]]],
) -> None:
    keys, edges = graph
    layout = lay_out(keys, edges)
    assert set(layout.corners) == set(keys)
    assert set(layout.edges) == set(edges)
    no_overlap(layout)
    for (parent, child), way in layout.edges.items():
        assert way[0] == (layout.corners[parent][0] + WIDTH / 2, layout.corners[parent][1] + HEIGHT)
        assert way[-1] == (layout.corners[child][0] + WIDTH / 2, layout.corners[child][1])
        assert [y for _, y in way] == sorted(y for _, y in way)
        for x, y in way[1:-1]:
            assert not any(inside(x, y, corner) for corner in layout.corners.values())
    width, height = layout.size
    assert all(0 <= x <= width and 0 <= y <= height for way in layout.edges.values() for x, y in way)


def no_overlap(layout: Layout) -> None:
    corners = list(layout.corners.values())
    for i, (x, y) in enumerate(corners):
        for other_x, other_y in corners[i + 1 :]:
            assert abs(x - other_x) >= WIDTH or abs(y - other_y) >= HEIGHT


def inside(x: float, y: float, corner: tuple[float, float]) -> bool:
    return corner[0] < x < corner[0] + WIDTH and corner[1] <= y <= corner[1] + HEIGHT


def test_a_long_edge_goes_round_what_lies_between() -> None:
    keys = [*"abcde"]
    layout = lay_out(keys, [*pairwise(keys), ("a", "e")])
    around = layout.edges["a", "e"][1:-1]
    assert len(around) == 6  # past three layers
    assert not any(inside(x, y, layout.corners[key]) for x, y in around for key in "bcd")


def test_a_picture_names_its_boxes_and_points_its_edges() -> None:
    nodes = {
        "a": Node(title="filter", lines=("smol & co",), link="#a"),
        "b": Node(title="x" * 5, lines=("y" * 90,)),
    }
    svg = picture(nodes, [("a", "b"), ("a", "b")], label="two")
    assert re.findall(r'data-parent="(\w+)" data-child="(\w+)" marker-end="url\(#arrow\)"', svg) == [
        ("a", "b")
    ]
    assert "smol &amp; co" in svg and "y" * 90 not in svg and "…" in svg
    assert '<a href="#a">' in svg and svg.count("<a ") == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_colour_reads_well_on_its_paper(scheme: str) -> None:
    """WCAG 2.2: 4.5 for text, 3 for marks."""
    style = render("kubealign_components/reports/style.css").split("@media (prefers-color-scheme:dark)")
    colours = dict(re.findall(r"(--[\w-]+):(#\w+)", style[scheme == "dark"]))
    for name, least in (("ink", 7), ("soft", 4.5), ("link", 4.5), *((f"series-{i}", 3) for i in range(1, 5))):
        assert contrast(colours[f"--{name}"], colours["--paper"]) >= least, name
        if name in ("ink", "soft"):
            assert contrast(colours[f"--{name}"], colours["--panel"]) >= 4.5
    assert contrast(colours["--ink"], colours["--warn"]) >= 7


def contrast(one: str, other: str) -> float:
    """Of two colours, as https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio has it."""

    def luminance(colour: str) -> float:
        digits = colour.lstrip("#")
        full = digits if len(digits) == 6 else "".join(2 * d for d in digits)
        parts = [int(full[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_steps_are_numbered_whole_and_what_is_no_count_is_not() -> None:
    few = [(float(step), 100.0 * step) for step in range(1, 5)]
    assert not re.search(r">\d+\.5<", charts.curves("Loss", {"loss": few}))
    between = [(0.25, 100.0), (0.75, 200.0)]
    assert re.search(r">0\.5\d*<", charts.curves("Loss", {"loss": between}))
