"""Mappings that are merged into others: values as YAML has them, marks where a user would change them."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kubealign.yaml_source import read_yaml
from kubealign_components.config import Path

MERGED = """
sample: &gpu {accelerators: 1, memory: 64Gi, sources: [{uri: a, name: n}]}
rewards:
  memory: 32Gi
  <<: *gpu
judge:
  <<: *gpu
  sources:
    - uri: b
"""
mappings = st.dictionaries(st.sampled_from("abcd"), st.integers(0, 9), max_size=4)


@given(st.lists(mappings, min_size=1, max_size=3), mappings, st.booleans(), st.booleans())
def test_merged_mappings_are_those_of_yaml(
    bases: list[dict[str, int]], own: dict[str, int], listed: bool, last: bool
) -> None:
    names = [f"*a{n}" for n in range(len(bases))]
    merged = [f"<<: [{', '.join(names)}]" if listed else f"<<: {names[0]}"]
    pairs = [f"{name}: {value}" for name, value in own.items()]
    inner = ", ".join(pairs + merged if last else merged + pairs)
    anchors = "".join(f"b{n}: &a{n} {base}\n".replace("'", "") for n, base in enumerate(bases))
    text = f"{anchors}x: {{{inner}}}\n"
    document = read_yaml(text, "f")
    assert document.findings == []
    assert document.values == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("rewards", "memory"), 4),
        (("rewards", "accelerators"), 2),
        (("rewards", "sources", 0, "uri"), 2),
        (("judge", "memory"), 2),
        (("judge", "sources", 0, "uri"), 9),
        (("judge",), 6),
    ],
)
def test_what_a_mapping_says_itself_stands_where_it_says_it(path: Path, line: int) -> None:
    document = read_yaml(MERGED, "f")
    assert document.findings == []
    assert document.marks[path].line == line
    assert ("judge", "sources", 0, "name") not in document.marks, "of a list that is not there"


@pytest.mark.parametrize("merge", ["first", "between", "last"])
def test_a_name_that_a_mapping_has_twice_is_refused_beside_a_merge(merge: str) -> None:
    lines = ["  a: 2", "  a: 3"]
    lines.insert(["first", "between", "last"].index(merge), "  <<: *base")
    document = read_yaml("\n".join(["base: &base {a: 1}", "x:", *lines]), "f")
    [finding] = document.findings
    first = 3 + lines.index("  a: 2")
    assert finding.path == ("x", "a") and f"line {first} has it already" in finding.expected
    assert document.values == {"base": {"a": 1}, "x": {"a": 2}}
