"""What stands in the documents, for tests that run it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

PAGE = "pipelines/README.md"
ROOT = Path(__file__).parents[2]
_FOLDERS = ("components", "images", "manifests", "pipelines", "sdk", "tests", "tests/benchmarks")
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "SECURITY.md", *(f"{folder}/README.md" for folder in _FOLDERS))
"""Those for users and for who works on this."""
_FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


def fenced(document: str) -> list[tuple[str, str]]:
    """Language and text of every fenced block of ``document``."""
    return _FENCE.findall((ROOT / document).read_text())


def blocks(document: str, language: str) -> list[str]:
    """The texts of the fenced blocks of ``document`` in ``language``."""
    return [text for kind, text in fenced(document) if kind == language]


def table(document: str, name: str) -> list[list[str]]:
    """The rows of the table between the marks ``name`` of ``document``, cell by cell, without its head."""
    text = (ROOT / document).read_text()
    text = text.partition(f"<!-- {name} -->")[2].partition(f"<!-- end of {name} -->")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip().strip("`") for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def shown_file(document: str, name: str) -> str:
    """The file ``name`` as ``document`` shows it, in a block that begins with its name."""
    (text,) = [block for block in blocks(document, "python") if block.startswith(f"# {name}\n")]
    return text


def leave_own_pipeline(folder: Path, policy: Path) -> None:
    """The pipeline and the stage of one's own that the page shows, prompts, and ``mine.yaml``."""
    for name in ("my_pipeline.py", "short_prompts.py"):
        (folder / name).write_text(shown_file(PAGE, name))
    rows = [{"prompt": f"Is {number} even?"} for number in range(12)] + [{"prompt": "Is it so " * 4}]
    (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    parameters = {
        "policy": str(policy),
        "sources": [{"uri": "mine.jsonl"}],
        "sample_engine": "transformers",
        "sample_n": 2,
        "sample_max_new_tokens": 6,
    }
    settings = {"stages": {"short_prompts": {"memory": "3Gi"}}}
    written = {"pipeline": "my_pipeline.py", "parameters": parameters, "compile": settings}
    (folder / "mine.yaml").write_text(yaml.safe_dump(written, sort_keys=False))
