"""Mistakes as data: a file under ``mistakes`` says behind its lines what is found there; nothing else is.

All mistakes of a file are found at once. ``# error: text`` or ``# warning: text`` is what a finding of that
line has to say; ``# missing: name`` is an error that has no line of its own.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from kubealign.checking import check
from kubealign.runfile import read_run
from kubealign_pipelines.checking.findings import Finding
from support.families import FAMILIES, build_family
from support.source_files import write_pairs

MISTAKES = Path(__file__).parent / "mistakes"
FILES = sorted(path.stem for path in MISTAKES.glob("*.yaml") if path.stem not in ("whole", "commands"))
WHOLE = yaml.safe_load((MISTAKES / "whole.yaml").read_text())
MARK = re.compile(r"# (error|warning): (.+)$")
NO_WEIGHTS = b"\2" + bytes(7) + b"{}"
"""A whole safetensors file without a weight."""
REWARDS = """
def raises(item):
    raise KeyError("gold")
def text(item):
    return "good"
def not_finite(item):
    return float("nan")
def two_items(first, second):
    return 0.0
async def later(item):
    return 0.0
def none(item):
    pass
def truth(item):
    return "yes"
def listed(item):
    return [0.0, 1.0]
def leaves(item):
    raise SystemExit(3)
NUMBER = 3
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Data, a classifier of three labels, a model without a template, and a user's reward functions."""
    folder = tmp_path_factory.mktemp("mistakes")
    write_pairs(folder / "prompts.jsonl", 24)
    tree = [
        {"message_id": "1", "parent_id": None, "role": "prompter", "text": "Why?", "lang": "en"},
        {"message_id": "2", "parent_id": "1", "role": "assistant", "text": "So.", "lang": "en"},
    ]
    (folder / "trees.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tree))
    (folder / "unlabelled.jsonl").write_text("".join(f'{{"prompt": "Why {n}?"}}\n' for n in range(24)))
    (folder / "notes.pdf").write_text("notes")
    (folder / "model").mkdir()
    config = json.loads((tiny_model / "config.json").read_text())
    labels = {str(n): str(n) for n in range(3)}
    classifier = config | {
        "architectures": ["LlamaForSequenceClassification"],
        "id2label": labels,
        "sentence_transformers": {"activation_fn": "torch.nn.Tanh"},
    }
    several = {"architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl"}
    bodies = {"classifier": classifier, "untemplated": config, "several": config | several}
    for name, body in bodies.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(body))
        (folder / name / "model.safetensors").write_bytes(NO_WEIGHTS)
        (folder / name / "tokenizer.json").write_text("{}")
    (folder / "own_rewards.py").write_text(REWARDS)
    (folder / "wrong_code.py").write_text("def short(item) return 1")
    (folder / "latin.jsonl").write_bytes(
        '{"prompt": "Café?", "chosen": "a", "rejected": "b"}\n'.encode("latin-1")
    )
    (folder / "broken.jsonl").write_text('{"prompt": "Why?"')
    (folder / "hollow.jsonl").write_text("")
    (folder / "columns.jsonl").write_text('{"frage": "Why?", "gut": "So."}\n')
    (folder / "no.parquet").write_text("none")
    (folder / "splits").mkdir()
    shutil.copy(folder / "prompts.jsonl", folder / "splits" / "train.jsonl")
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    build_family(FAMILIES["zephyr"], folder / "begins_texts", weights=True)
    (folder / "with_bos.jinja").write_text("{{ bos_token }}" + FAMILIES["zephyr"].text)
    return folder


def findings_of(path: Path) -> list[Finding]:
    sourced = read_run([path])
    return sourced.located([]) if sourced.run is None else check(sourced, here=True).findings


def expected_of(text: str) -> list[tuple[int, str, str]]:
    """Line, level and words of every finding."""
    marks = [(number, MARK.search(line)) for number, line in enumerate(text.splitlines(), start=1)]
    return [(number, mark[1], mark[2]) for number, mark in marks if mark]


@pytest.mark.parametrize("name", FILES)
def test_every_mistake_of_a_file_is_found_at_its_line_and_nothing_else(
    name: str, folder: Path, tiny_model: Path, tmp_path: Path
) -> None:
    text = (MISTAKES / f"{name}.yaml").read_text()
    for word, value in (("MODEL", tiny_model), ("DATA", folder / "prompts.jsonl"), ("FOLDER", folder)):
        text = text.replace(f"@{word}@", str(value))
    path = tmp_path / "run.yaml"
    path.write_text(text)
    found = findings_of(path)
    told = {(f.mark.line if f.mark else 0, "warning" if f.warning else "error", f.message) for f in found}
    expected = expected_of(text)
    for line, level, words in expected:
        assert any(line == at and level == lvl and words in message for at, lvl, message in told), (
            f"line {line}: expected {level} {words!r}, not {[m for at, _, m in told if at == line]}"
        )
    missing = set(re.findall(r"^# missing: (\w+)$", text, re.MULTILINE))
    assert missing == {f.name for f in found if f.value is None and f.name in missing}
    lines = {line for line, _, _ in expected}
    errors = [f for f in found if not f.warning and f.name not in missing]
    assert [str(f) for f in errors if f.mark is None or f.mark.line not in lines] == []


@pytest.mark.parametrize("case", WHOLE, ids=lambda case: case["text"][:20])
def test_a_file_that_is_no_run_file_says_where(case: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(case["text"])
    errors = [f for f in read_run([path]).located([]) if not f.warning]
    assert any(f.mark and f.mark.line == case["line"] and case["says"] in f.message for f in errors), [
        str(f) for f in errors
    ]


def test_an_own_template_may_write_what_the_models_does_not(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    text = (MISTAKES / "bos.yaml").read_text().replace("@DATA@", str(folder / "prompts.jsonl"))
    text = text.replace("@FOLDER@", str(folder))
    path.write_text(text)
    assert any("begins every text" in f.message for f in findings_of(path))
    path.write_text(f"{text}  filter_options: {{chat_template: {folder}/with_bos.jinja}}\n")
    assert not any("begins every text" in f.message for f in findings_of(path))


def test_there_are_enough_mistakes() -> None:
    texts = [(MISTAKES / f"{name}.yaml").read_text() for name in FILES]
    assert sum(len(expected_of(text)) + text.count("# missing: ") for text in texts) + len(WHOLE) >= 120
