"""What stands on an HTML page, as its reader finds it."""

from __future__ import annotations

from html.parser import HTMLParser


class Page(HTMLParser):
    """The text, links, tables and charts of a page, and what it would load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.targets: set[str] = set()
        self.ids: list[str] = []
        self.loaded: list[str] = []
        self.rows: list[list[str]] = []
        """Cells of every row of every table."""
        self.charts: list[str] = []
        self.scripts: list[str] = []
        self.tags: list[str] = []
        self.edges: list[tuple[str, str]] = []
        """Of a graph, from parent to child."""
        self._open: list[str] = []
        self.feed(page)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        self._open.append(tag)
        if "id" in values:
            self.ids.append(values["id"])
        if values.get("href", "").startswith("#") and tag == "a":
            self.targets.add(values["href"].removeprefix("#"))
        if tag in ("link", "img") or "src" in values or "://" in values.get("href", ""):
            self.loaded.append(tag)
        if "data-parent" in values:
            self.edges.append((values["data-parent"], values["data-child"]))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "script" in self._open:
            self.scripts[-1] += data
            return
        if "style" in self._open:
            return
        self.words.append(data)
        if "figcaption" in self._open:
            self.charts.append(data)
        if {"td", "th"} & set(self._open) and "figure" not in self._open:
            self.rows[-1][-1] += data.strip()
