"""A directed acyclic graph as a picture: layers from top to bottom, edges that pass the boxes.

Laid out by grandalf after Sugiyama, Tagawa and Toda (1981).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from kubealign_components.reports.html import render

WIDTH, HEIGHT = 220, 74
"""Of a box, in pixels."""
GAP_X, GAP_Y = 36, 44
MARGIN = 4
LETTERS = 31
"""Most letters of a line in a box."""
Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """A box of the picture."""

    title: str
    lines: tuple[str, ...] = ()
    """At most two, shown below the title; what does not fit is cut."""
    link: str = ""
    """Where the box leads, such as ``#train``; empty for nowhere."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Where everything lies, in pixels from the top left corner."""

    corners: Mapping[str, Point]
    """Top left corner of each box."""
    edges: Mapping[tuple[str, str], Sequence[Point]]
    """The points that an edge passes, from the lower rim of its first box to the upper rim of its second."""

    @property
    def size(self) -> Point:
        """Width and height of the whole."""
        points = [point for way in self.edges.values() for point in way]
        right = max([x + WIDTH for x, _ in self.corners.values()] + [x for x, _ in points])
        return right + MARGIN, max(y for _, y in self.corners.values()) + HEIGHT + MARGIN


def picture(nodes: Mapping[str, Node], edges: Iterable[tuple[str, str]], *, label: str) -> Markup:
    """Inline SVG of a graph.

    Args:
        nodes: by key.
        edges: pairs of keys, from parent to child; they make no circle.
        label: what the picture is, for who cannot see it.
    """
    layout = lay_out(list(nodes), edges)
    boxes = [
        (*layout.corners[key], node.link, node.title, [_cut(line) for line in node.lines])
        for key, node in nodes.items()
    ]
    return Markup(
        render(
            "kubealign_components/reports/graph.html",
            label=label,
            size=layout.size,
            box=(WIDTH, HEIGHT),
            boxes=boxes,
            edges=[(parent, child, _path(way)) for (parent, child), way in layout.edges.items()],
        )
    )


def lay_out(keys: Sequence[str], edges: Iterable[tuple[str, str]]) -> Layout:
    """Boxes in layers, each below all of its parents, and the ways of the edges between the boxes."""
    from grandalf.graphs import Edge, Graph, Vertex

    vertices = {key: Vertex(key) for key in keys}
    links = [Edge(vertices[a], vertices[b]) for a, b in dict.fromkeys(edges)]
    for vertex in vertices.values():
        vertex.view = _View()
    for link in links:
        link.view = _Way()
    left, corners, ways = float(MARGIN), dict[str, Point](), dict[tuple[str, str], list[Point]]()
    for part in Graph(list(vertices.values()), links).C:
        _lay_out(part)
        points = [p for link in part.sE for p in link.view.points[1:-1]]
        shift = left - min([v.view.xy[0] - WIDTH / 2 for v in part.sV] + [x for x, _ in points])
        top = MARGIN - min(v.view.xy[1] - HEIGHT / 2 for v in part.sV)
        for vertex in part.sV:
            x, y = vertex.view.xy
            corners[vertex.data] = (x - WIDTH / 2 + shift, y - HEIGHT / 2 + top)
        for link in part.sE:
            passed = [(x + shift, y + top) for x, y in link.view.points[1:-1]]
            ends = link.v[0].data, link.v[1].data
            ways[ends] = _way(corners[ends[0]], passed, corners[ends[1]])
        left = max(corners[v.data][0] for v in part.sV) + WIDTH + GAP_X
    return Layout(corners=corners, edges=ways)


class _View:
    """What the layout asks of a box, and tells it: size and centre."""

    def __init__(self) -> None:
        self.w, self.h = WIDTH, HEIGHT
        self.xy: Point = (0.0, 0.0)


class _Way:
    """What the layout tells an edge: its ends' centres and a point in each layer between."""

    def __init__(self) -> None:
        self.points: list[Point] = []

    def setpath(self, points: list[Point]) -> None:
        self.points = points


def _lay_out(part: object) -> None:
    from grandalf.layouts import SugiyamaLayout

    layout = SugiyamaLayout(part)
    layout.xspace, layout.yspace = GAP_X, GAP_Y
    layout.dw, layout.dh = WIDTH, HEIGHT
    layout.init_all(inverted_edges=[])
    layout.draw(8)


def _way(parent: Point, passed: Sequence[Point], child: Point) -> list[Point]:
    """Down through the layers between: straight along a layer's boxes, so that none is touched."""
    between = [(x, y + step) for x, y in passed for step in (-HEIGHT / 2, HEIGHT / 2)]
    return [(parent[0] + WIDTH / 2, parent[1] + HEIGHT), *between, (child[0] + WIDTH / 2, child[1])]


def _path(way: Sequence[Point]) -> str:
    """Curves where an edge goes from layer to layer, straight lines along a layer."""
    path = f"M{way[0][0]:.1f} {way[0][1]:.1f}"
    for number, ((x1, y1), (x2, y2)) in enumerate(pairwise(way)):
        middle = (y1 + y2) / 2
        curve = f"C{x1:.1f} {middle:.1f} {x2:.1f} {middle:.1f} {x2:.1f} {y2:.1f}"
        path += f"V{y2:.1f}" if number % 2 else curve
    return path


def _cut(text: str) -> str:
    return text if len(text) <= LETTERS else f"{text[: LETTERS - 1]}…"
