"""Nobody can tell from a dataset in which order files, or rows in them, stood; its name tells how they were
read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kubealign.rerun import run_file_of
from kubealign_components.clean_pmp.stage import CleanPmpConfig
from kubealign_components.clean_pmp.stage import run as clean_pmp
from kubealign_components.config import from_mapping
from kubealign_components.data.chunks import plan
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.schemas import COMPLETIONS
from kubealign_components.import_prompts.stage import ImportConfig
from kubealign_components.import_prompts.stage import run as import_prompts
from kubealign_components.rewards.stage import RewardsConfig
from kubealign_components.rewards.stage import run as rewards
from kubealign_components.sources import source as source_module
from support.datasets import MakeDataset

Row = dict[str, object]
BARE = st.fixed_dictionaries(
    {"prompt": st.sampled_from("abc")},
    optional={
        "completion": st.sampled_from("xyz"),
        "score": st.integers(0, 3),
        "label": st.booleans(),
        "answer": st.sampled_from(["1", "2"]),
        "note": st.sampled_from("pq"),
    },
)
PAIR = st.fixed_dictionaries(
    {"prompt": st.sampled_from("abc"), "chosen": st.sampled_from("xyz"), "rejected": st.sampled_from("xyz")}
)
CHAT = st.fixed_dictionaries(
    {"messages": st.sampled_from("abc").map(lambda text: [{"role": "user", "content": text}])}
)
FILES = st.lists(st.lists(BARE | PAIR | CHAT, max_size=5), min_size=2, max_size=4).filter(
    lambda files: any(files)
)


def write(folder: Path, files: Sequence[Sequence[Row]], card: str = "") -> str:
    folder.mkdir(parents=True)
    for number, rows in enumerate(files):
        (folder / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if card:
        (folder / "README.md").write_text(card)
    return str(folder)


def imported(folder: Path, uri: str, **source: object) -> Dataset:
    values = {"sources": [{"uri": uri, "name": "s", **source}], "max_bad_fraction": 1.0}
    import_prompts(from_mapping(ImportConfig, values, "import_prompts"), output=str(folder))
    return Dataset.open(str(folder), allow_empty=True)


def counted(dataset: Dataset) -> tuple[Counter[str], Counter[str]]:
    stats = dataset.manifest.stats
    return Counter(stats["dropped"]), Counter(stats["counts"])


@pytest.fixture(scope="module", autouse=True)
def few_rows_are_looked_at_first() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source_module, "DETECTION_ROWS", 2)
        yield


@settings(max_examples=40)
@given(files=FILES, data=st.data())
def test_files_and_rows_in_any_order_are_one_dataset(
    tmp_path_factory: pytest.TempPathFactory, files: list[list[Row]], data: st.DataObject
) -> None:
    """Rows of several formats among them, whichever come first; files in another order keep the name, too."""
    folder = tmp_path_factory.mktemp("order")
    first = imported(folder / "a", write(folder / "in-a", files))
    renamed = imported(folder / "b", write(folder / "in-b", data.draw(st.permutations(files))))
    assert first.manifest.fingerprint == renamed.manifest.fingerprint
    rows = data.draw(st.permutations([row for rows in files for row in rows]))
    shuffled = imported(folder / "c", write(folder / "in-c", [rows]))
    for other in (renamed, shuffled):
        assert list(other.iter_rows()) == list(first.iter_rows())
        assert counted(other) == counted(first)


@pytest.mark.parametrize("kind", ["import_prompts", "clean_pmp"])
def test_the_format_is_that_of_most_rows_wherever_they_stand(kind: str, tmp_path: Path) -> None:
    """Prompts without completions are incomplete rows of pairs, and no less so where they come first."""
    pairs = [{"prompt": f"Q{i}?", "chosen": "Yes.", "rejected": "No."} for i in range(6)]
    bare = [{"prompt": f"Q{i}?"} for i in range(6, 10)]
    made = []
    for name, files in {"a": [pairs, bare], "b": [bare, pairs]}.items():
        uri, output = write(tmp_path / f"in-{name}", files), str(tmp_path / name)
        if kind == "import_prompts":
            imported(tmp_path / name, uri)
        else:
            values = {"sources": [{"uri": uri, "name": "s"}], "max_bad_fraction": 1.0}
            clean_pmp(from_mapping(CleanPmpConfig, values, "clean_pmp"), output=output)
        made.append(Dataset.open(output))
    assert made[0].rows == 6
    assert made[0].manifest.fingerprint == made[1].manifest.fingerprint
    assert list(made[0].iter_rows()) == list(made[1].iter_rows())
    assert counted(made[0]) == counted(made[1])
    assert made[1].manifest.stats["rows_in"] == 10


def test_a_card_may_list_files_in_any_order(tmp_path: Path) -> None:
    files = [[{"prompt": "a", "note": 1}], [{"prompt": "a", "note": 2}, {"messages": "b"}], [{"prompt": "c"}]]
    made = []
    for name, order in {"a": (0, 1, 2), "b": (2, 1, 0)}.items():
        listed = "".join(f"\n      - {number}.jsonl" for number in order)
        card = (
            f"---\nconfigs:\n- config_name: x\n  data_files:\n    - split: train\n      path:{listed}\n---\n"
        )
        made.append(imported(tmp_path / name, write(tmp_path / f"in-{name}", files, card)))
    assert made[0].manifest.fingerprint == made[1].manifest.fingerprint
    assert list(made[0].iter_rows()) == list(made[1].iter_rows())


def test_rewards_of_duplicate_rows_are_found_again_in_any_order(
    make_dataset: MakeDataset, tmp_path: Path
) -> None:
    """A reward function reads answers and metadata of a prompt, which are those of all its rows."""
    rows: list[Row] = [
        {"prompt": "a", "completion": "x", "answer": "2", "note": "p"},
        {"prompt": "a", "completion": "y", "answer": "1", "note": "q"},
        {"prompt": "a", "completion": "x", "answer": "1"},
    ]
    values = {"reward": {"functions": ["exact_answer"]}}
    reused = []
    for name, order in {"a": (0, 1, 2), "b": (2, 1, 0), "c": (1, 2, 0)}.items():
        prompts = imported(tmp_path / name, write(tmp_path / f"in-{name}", [[rows[i]] for i in order]))
        answered = [
            row
            | {"prompt_token_ids": [1], "prompt_tokens": 1}
            | {
                "completions": [
                    c | {"token_ids": [2], "num_tokens": 1, "finish_reason": "stop"}
                    for c in row["completions"]
                ]
            }
            for row in prompts.iter_rows()
        ]
        dataset = make_dataset(answered, schema=COMPLETIONS, params={"name": name})
        [chunk] = plan(dataset, work=str(tmp_path / "work"), chunks=1)
        part = rewards(from_mapping(RewardsConfig, values, "rewards"), chunk=chunk)
        reused.append(part.reused_rows)
    assert reused == [0, 1, 1]


def test_rows_that_are_read_otherwise_have_another_name(tmp_path: Path) -> None:
    """By a format that is given all rows are read, by one that is found those alone that look like it."""
    chats: list[Row] = [{"messages": [{"role": "user", "content": text}]} for text in "ab"]
    uri = write(tmp_path / "in", [[*chats, {"prompt": "c", "completions": ["x", "y"]}]])
    found, told = imported(tmp_path / "found", uri), imported(tmp_path / "told", uri, format="messages")
    assert (found.rows, told.rows) == (3, 2)
    assert found.manifest.fingerprint != told.manifest.fingerprint
    again = run_file_of(found.manifest)["parameters"]["sources"]
    values = {"sources": again, "max_bad_fraction": 1.0}
    import_prompts(from_mapping(ImportConfig, values, "import_prompts"), output=str(tmp_path / "again"))
    assert Dataset.open(str(tmp_path / "again")).manifest.fingerprint == found.manifest.fingerprint
    alike = write(tmp_path / "alike", [[{"prompt": "a"}, {"prompt": "b"}]])
    one, other = imported(tmp_path / "one", alike), imported(tmp_path / "other", alike, format="prompt")
    assert one.manifest.fingerprint == other.manifest.fingerprint


def test_files_of_one_content_and_two_kinds_have_two_names(tmp_path: Path) -> None:
    text = '{"prompt": "a"}\n{"prompt": "b"}\n'
    for kind in ("jsonl", "txt"):
        (tmp_path / f"in.{kind}").write_text(text)
    one, other = (imported(tmp_path / kind, str(tmp_path / f"in.{kind}")) for kind in ("jsonl", "txt"))
    assert list(one.iter_rows()) != list(other.iter_rows())
    assert one.manifest.fingerprint != other.manifest.fingerprint
