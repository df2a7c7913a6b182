"""Every row on the page on one's own data is of the format that it says, and every format is shown."""

from __future__ import annotations

import json

import yaml

from kubealign_components.config import from_mapping
from kubealign_components.import_prompts.stage import SourceConfig
from kubealign_components.sources.row_formats import FORMATS, looks_like, parse
from support.documents import PAGE, blocks, table


def test_rows_of_the_page_are_what_it_says() -> None:
    shown = table(PAGE, "formats")
    assert {name for name, _ in shown} == set(FORMATS)
    for name, text in shown:
        row = json.loads(text)
        assert looks_like(row) == name, text
        example = parse(row, FORMATS[name])
        assert example.messages[-1]["role"] == "user"
        assert example.completions or example.answers == ["42"]
        assert not example.notes


def test_sources_of_the_page_are_settings() -> None:
    block = next(text for text in blocks(PAGE, "yaml") if "roles:" in text)
    for source in yaml.safe_load(block)["sources"]:
        assert from_mapping(SourceConfig, source, "source").columns == source.get("columns", {})
