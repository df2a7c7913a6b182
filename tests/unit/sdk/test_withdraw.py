"""What is taken back is in nothing made afterwards, costs what hangs on it, and is found where it is."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from tqdm import tqdm

from kubealign import Dataset, stage
from kubealign.cli.main import main
from kubealign_components.data.stats import Stats
from kubealign_components.data.withdrawals import Withdrawal, read_withdrawal, withdrawal_text
from kubealign_components.errors import ConfigError
from kubealign_components.import_prompts.stage import ImportConfig, SourceConfig, run
from kubealign_components.mix.stage import MixConfig
from kubealign_components.mix.stage import run as mix
from kubealign_components.sources.source import SourceReader
from kubealign_pipelines.checking.run import check_run
from kubealign_pipelines.resources import CompileSettings
from kubealign_pipelines.stage_resources import StageResources
from support.source_files import write_withdrawal
from support.tiny import prompt_row


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["withdraw", *map(str, arguments)])


def write_rows(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return str(path)


def finished_run(output: Path, dataset: Dataset) -> Path:
    """An output folder with a run that made ``dataset``."""
    path = output / "runs" / "one"
    (path / "logs" / "1").mkdir(parents=True)
    (path / "pipeline.yaml").write_text("")
    shutil.copytree(dataset.uri, path / "import")
    made = {"task": "import", "output": "dataset", "type": "system.Dataset", "path": "import"}
    (path / "results.json").write_text(json.dumps({"outputs": [made]}))
    return output


@pytest.fixture
def sources(tmp_path: Path) -> tuple[SourceConfig, ...]:
    """Two, that share a prompt."""
    mine = write_rows(tmp_path / "mine.jsonl", ["both?", *(f"mine {n}?" for n in range(6))])
    theirs = write_rows(tmp_path / "theirs.jsonl", ["both?", *(f"theirs {n}?" for n in range(3))])
    return SourceConfig(uri=mine), SourceConfig(uri=theirs)


def imported(output: Path, sources: tuple[SourceConfig, ...], withdrawn: str = "", work: str = "") -> Dataset:
    run(ImportConfig(sources=sources, withdrawn=withdrawn, work=work), output=str(output))
    return Dataset.open(str(output), allow_empty=True)


def ids_of(dataset: Dataset) -> list[str]:
    return [row["prompt_id"] for row in dataset.iter_rows(["prompt_id"])]


def test_import_takes_nothing_of_it_and_counts_it(sources: tuple[SourceConfig, ...], tmp_path: Path) -> None:
    work = str(tmp_path / "work")
    before = imported(tmp_path / "1", sources, work=work)
    gone = ids_of(before)[2]
    after = imported(tmp_path / "2", sources, write_withdrawal(tmp_path / "w", prompts=[gone]), work)
    kept = [row for row in before.iter_rows() if row["prompt_id"] != gone]
    assert list(after.iter_rows()) == kept
    both = prompt_row("both?")["prompt_id"]
    assert after.manifest.stats["dropped"]["withdrawn"] == (2 if gone == both else 1)
    assert after.manifest.fingerprint != before.manifest.fingerprint


def test_a_rerun_takes_the_same_withdrawal(sources: tuple[SourceConfig, ...], tmp_path: Path) -> None:
    path = write_withdrawal(tmp_path / "w.json", sources=["mine"])
    made = imported(tmp_path / "made", sources, path)
    written = CliRunner().invoke(main, ["rerun", made.uri])
    assert written.exit_code == 0, written.output
    assert f"withdrawn: {path}" in written.output


def test_a_source_goes_and_what_others_have_too_stays(
    sources: tuple[SourceConfig, ...], tmp_path: Path
) -> None:
    made = imported(tmp_path / "made", sources, write_withdrawal(tmp_path / "w", sources=["mine"]))
    rows = list(made.iter_rows(["source", "messages"]))
    assert {row["source"] for row in rows} == {"theirs"}
    assert any("both?" in row["messages"] for row in rows)
    assert made.manifest.stats["dropped"]["withdrawn"] == 7


def test_what_nothing_is_of_changes_nothing(sources: tuple[SourceConfig, ...], tmp_path: Path) -> None:
    before = imported(tmp_path / "1", sources)
    nothing = write_withdrawal(tmp_path / "w", prompts=["f" * 32], sources=["nobody"])
    after = imported(tmp_path / "2", sources, nothing)
    assert after.manifest.fingerprint == before.manifest.fingerprint


def test_a_source_that_is_read_again_in_another_format_is_asked_anew(tmp_path: Path) -> None:
    """The first rows look like chats, which the last turn of is in a column of its own; most are prompts."""
    said = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hi."}]
    both = [
        {"prompt": f"Both {n}?", "messages": [*said, {"role": "user", "content": f"Both {n}?"}]}
        for n in range(64)
    ]
    bare = [{"prompt": f"Bare {n}?"} for n in range(80)]
    files = {name: tmp_path / f"{name}.jsonl" for name in ("chats", "most")}
    contents: tuple[Sequence[object], ...] = (both, [*both, *bare])
    for path, rows in zip(files.values(), contents):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    chats, most = ((SourceConfig(uri=str(path)),) for path in files.values())
    whole = imported(tmp_path / "whole", most)
    chat_only = set(ids_of(imported(tmp_path / "chats", chats))) - set(ids_of(whole))
    assert len(chat_only) == 64
    one = min(chat_only)
    after = imported(tmp_path / "after", most, write_withdrawal(tmp_path / "w", prompts=[one]))
    assert "withdrawn" not in after.manifest.stats["dropped"]
    assert after.manifest.fingerprint == whole.manifest.fingerprint
    gone = ids_of(whole)[0]
    after = imported(tmp_path / "other", most, write_withdrawal(tmp_path / "v", prompts=[one, gone]))
    alone = imported(tmp_path / "alone", most, write_withdrawal(tmp_path / "u", prompts=[gone]))
    assert ids_of(after) == ids_of(whole)[1:]
    assert after.manifest.fingerprint == alone.manifest.fingerprint


@pytest.mark.parametrize("listed", [True, False])
def test_the_bar_of_a_source_that_is_read_again_goes_on_to_its_end(tmp_path: Path, *, listed: bool) -> None:
    """Whether its size is known beforehand, as of objects in a store, or not."""
    path = write_rows(tmp_path / "a.jsonl", ["What? " * 50] * 99)
    reader = SourceReader(SourceConfig(uri=path))
    size = Path(path).stat().st_size
    kilobytes = -(-size // 1000)
    [file] = reader.source.files
    reader.source = replace(reader.source, files=(replace(file, size=size if listed else 0),))
    with tqdm(total=kilobytes if listed else 0, file=io.StringIO()) as bar:
        for reading in (1, 2):
            assert len(list(reader.items(str, Stats(), bar))) == 99
            assert bar.n == bar.total == reading * kilobytes
            reader.start_again()


def test_rows_that_stay_are_not_sampled_again(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, into = write_rows(tmp_path / "p.jsonl", [f"Question {n}?" for n in range(24)]), tmp_path / "stages"
    policy = str(tiny_model)

    def answers(**settings: str) -> Dataset:
        prompts = stage("import_prompts", into=into, sources=rows, **settings)
        tokens = stage("filter", prompts, into=into, policy=policy)
        sampling = {"engine": "transformers", "n": 2, "max_new_tokens": 4, "slice_rows": 8}
        return stage("sample", tokens, into=into, policy=policy, **sampling)

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("it was sampled again")

    before = answers()
    gone = ids_of(before)[5]
    monkeypatch.setattr("kubealign_components.engines.transformers_engine.TransformersEngine", fail)
    after = answers(withdrawn=write_withdrawal(tmp_path / "w", prompts=[gone]))
    assert list(after.iter_rows()) == [row for row in before.iter_rows() if row["prompt_id"] != gone]


def test_the_command_writes_adds_and_names_what_holds_it(
    sources: tuple[SourceConfig, ...], tmp_path: Path
) -> None:
    made = imported(tmp_path / "made", sources)
    runs = finished_run(tmp_path / "runs", made)
    path = tmp_path / "w.json"
    first = call(runs, "--source", "theirs", "-o", path)
    assert first.exit_code == 0, first.output
    assert "0 prompts and 1 source are taken back" in first.output
    assert "3 of 10" in first.output
    listed = tmp_path / "ids.txt"
    listed.write_text("\n".join(ids_of(made)[:2]))
    second = call(runs, "--ids", listed, "--ids", "e" * 32, "-o", path, "--json")
    withdrawal = read_withdrawal(str(path))
    assert withdrawal == Withdrawal(
        prompt_ids=frozenset([*ids_of(made)[:2], "e" * 32]), sources=frozenset(["theirs"])
    )
    expected = sum(withdrawal.holds(row["prompt_id"], row["source"]) for row in made.iter_rows())
    assert [one["rows"] for one in json.loads(second.output)] == [expected]
    after = imported(tmp_path / "after", sources, str(path))
    clean = finished_run(tmp_path / "others", after)
    told = call(clean, "--source", "theirs", "-o", path).output
    assert "No dataset or model of 1 run here holds them." in told
    assert "Not searched: finished rows and checkpoints in the work prefix" in told
    (clean / "runs" / "one" / "results.json").unlink()
    killed = clean / "runs" / "one" / "artifacts" / "2" / "import" / "dataset"
    shutil.copytree(made.uri, killed)
    told = call(clean, "--source", "theirs", "-o", path).output
    assert "1 output here hold rows of them" in told


Told = set[tuple[str, str]]
"""Source and text of completions."""


class Pairs:
    """Two sources that share a prompt, for which each has answers of its own."""

    def __init__(self, folder: Path, policy: Path) -> None:
        self.folder, self.policy, self.made = folder, str(policy), 0
        self.sources = tuple(SourceConfig(uri=self._write(name), name=name) for name in ("mine", "theirs"))

    def _write(self, name: str) -> str:
        path = self.folder / f"{name}.jsonl"
        answers = {"chosen": f"good of {name}", "rejected": f"bad of {name}"}
        rows = [{"prompt": text, **answers} for text in ("Both?", f"Of {name}?", f"More of {name}?")]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    def output(self) -> str:
        self.made += 1
        return str(self.folder / str(self.made))

    def selection(self, withdrawn: str = "") -> Dataset:
        rows = imported(Path(self.output()), self.sources, withdrawn)
        tokens = stage("filter", rows, into=self.output(), policy=self.policy)
        return stage("select", tokens, into=self.output(), strategy="labels", pairs_per_prompt=4)

    def mixed(self, *selections: Dataset, training: tuple[Dataset, ...] = (), withdrawn: str = "") -> Dataset:
        config = MixConfig(withdrawn=withdrawn, require_logprobs=False)
        output = self.output()
        mix(config, selections=selections, training=training, output=output)
        return Dataset.open(output, allow_empty=True)


def told(dataset: Dataset) -> Told:
    return {(row["source"], c["messages"]) for row in dataset.iter_rows() for c in row["completions"]}


def authors(dataset: Dataset) -> list[tuple[str, bool, bool]]:
    """Of each source that rows have: its name, and whether they hold completions of either."""
    texts: dict[str, str] = {}
    for name, text in told(dataset):
        texts[name] = texts.get(name, "") + text
    return [(name, "of mine" in text, "of theirs" in text) for name, text in sorted(texts.items())]


@pytest.fixture
def pairs(tmp_path: Path, tiny_model: Path) -> Pairs:
    return Pairs(tmp_path, tiny_model)


def test_nothing_of_a_source_is_left_under_the_name_of_another(
    pairs: Pairs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    selection = pairs.selection()
    earlier = pairs.mixed(selection)
    assert authors(earlier) == [("mine", True, True), ("theirs", False, True)]
    gone = write_withdrawal(tmp_path / "w", sources=["theirs"])
    for selections, training in (((selection,), ()), ((), (earlier,))):
        caplog.clear()
        left = pairs.mixed(*selections, training=training, withdrawn=gone)
        assert authors(left) == []
        dropped = left.manifest.stats["dropped"]
        assert (dropped["withdrawn"], dropped["perhaps_withdrawn"]) == (2, earlier.rows - 2)
        assert "may be of theirs" in caplog.text
    anew = pairs.selection(gone)
    both = pairs.mixed(anew, training=(earlier,), withdrawn=gone)
    assert told(both) == told(pairs.mixed(anew))
    assert authors(both) == [("mine", True, False)]
    again = pairs.mixed(training=(both,), withdrawn=gone)  # of which nothing is taken back any more
    assert told(again) == told(both)
    assert not again.manifest.stats["dropped"]


def test_of_the_first_source_whole_rows_go_and_those_of_the_next_stay(pairs: Pairs, tmp_path: Path) -> None:
    gone = write_withdrawal(tmp_path / "w", sources=["mine"])
    left = pairs.mixed(pairs.selection(), withdrawn=gone)
    assert authors(left) == [("theirs", False, True)]
    assert left.manifest.stats["dropped"].keys() == {"withdrawn"}


def test_the_command_counts_what_may_hold_it(pairs: Pairs, tmp_path: Path) -> None:
    runs = finished_run(tmp_path / "runs", imported(tmp_path / "made", pairs.sources))
    found = call(runs, "--source", "theirs", "-o", tmp_path / "w.json")
    assert "5 of 5" in found.output
    assert "may hold some of it" in found.output
    found = call(runs, "--source", "mine", "-o", tmp_path / "v.json")
    assert "3 of 5" in found.output


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "--ids or --source"),
        (["--ids", "abc"], "32 hex digits"),
        (["--source", " "], "the name of a source"),
        (["nowhere", "--source", "a"], "no such run here"),
        (["--source", "a", "-o", "gs://bucket/w.json"], "a path on this machine"),
        (["--source", "a", "-o", "other.json"], "kubealign.withdrawal/v1"),
    ],
)
def test_mistakes_are_told_and_write_nothing(
    words: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("other.json").write_text("{}")
    done = call(*words)
    assert done.exit_code != 0
    assert expected in done.output
    assert "Traceback" not in done.output
    assert [path.name for path in Path().iterdir()] == ["other.json"]


@pytest.mark.parametrize(
    "text", ["", "[]", '{"schema": "x"}', '{"schema": "kubealign.withdrawal/v1", "prompt_ids": 1}']
)
def test_a_file_that_is_none_is_refused(text: str, sources: tuple[SourceConfig, ...], tmp_path: Path) -> None:
    (tmp_path / "w").write_text(text)
    for uri in (str(tmp_path / "w"), str(tmp_path / "nowhere")):
        with pytest.raises(ConfigError, match="withdraw"):
            imported(tmp_path / "out", sources, uri)


@pytest.mark.parametrize(
    ("uri", "told"),
    [("./w.json", True), ("gs://bucket/w.json", False), ("/data/w.json", False), ("hdfs://a/w.json", True)],
)
def test_pods_must_be_able_to_read_it(uri: str, told: bool, tiny_model: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [f"Question {n}?" for n in range(24)])
    values = {
        "policy": str(tiny_model),
        "sources": [{"uri": rows}],
        "reward_functions": ["brevity"],
        "sample_engine": "transformers",
        "import_options": {"withdrawn": uri},
    }
    volumes = {"import_prompts": StageResources(volumes={"claim": "/data"})}
    report = check_run("offline_alignment", values, CompileSettings(stages=volumes))
    assert any("withdraw" in str(finding) for finding in report.findings) is told


@given(st.sets(st.text("0123456789abcdef", min_size=32, max_size=32)), st.sets(st.text(min_size=1)))
def test_what_is_written_is_what_is_read(
    tmp_path_factory: pytest.TempPathFactory, ids: set[str], names: set[str]
) -> None:
    withdrawal = Withdrawal(prompt_ids=frozenset(ids), sources=frozenset(n for n in names if n.strip()))
    path = tmp_path_factory.mktemp("w") / "w.json"
    path.write_text(withdrawal_text(withdrawal))
    assert read_withdrawal(str(path)) == withdrawal
