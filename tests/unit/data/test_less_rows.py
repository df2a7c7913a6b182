"""What is made of finished datasets without some rows is what the whole work makes of those that are left."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kubealign.card import card
from kubealign_components.data.chunks import merge, plan
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.less_rows import MOST_DELETED
from kubealign_components.data.withdrawals import Withdrawal, withdrawal_text
from kubealign_components.engines.rewards import RewardFunctionSpec, RewardSpec
from kubealign_components.errors import ConfigError
from kubealign_components.filter.stage import FilterConfig
from kubealign_components.filter.stage import run as run_filter
from kubealign_components.import_prompts.stage import ImportConfig, SourceConfig
from kubealign_components.import_prompts.stage import run as run_import
from kubealign_components.mix.stage import MixConfig
from kubealign_components.mix.stage import run as run_mix
from kubealign_components.rewards.stage import RewardsConfig
from kubealign_components.rewards.stage import run as run_rewards
from kubealign_components.select.stage import SelectConfig
from kubealign_components.select.stage import run as run_select
from kubealign_components.sources.locate import find_files

STAGES = ("import", "filter", "rewards", "select", "mix")


class Chain:
    """From files to a training dataset, over one work prefix."""

    def __init__(self, folder: Path, policy: Path, **settings: Any) -> None:
        self.folder, self.policy, self.settings = folder, policy, settings
        self.training: list[Dataset] = []
        """Of earlier runs."""

    def imported(self, name: str, withdrawn: str = "", *, work: str = "work") -> Dataset:
        """The prompts."""
        paths = sorted(self.folder.glob("*.jsonl"))
        sources = tuple(SourceConfig(uri=str(path), **self.settings.get("source", {})) for path in paths)
        settings = {
            "withdrawn": withdrawn,
            "work": str(self.folder / work),
            **self.settings.get("import", {}),
        }
        output = str(self.folder / name / "import")
        run_import(ImportConfig(sources=sources, **settings), output=output)
        return Dataset.open(output, allow_empty=True)

    def run(self, name: str, withdrawn: str = "", *, work: str = "work") -> dict[str, Dataset]:
        """The datasets by stage."""
        made = {"import": self.imported(name, withdrawn, work=work)}
        prefix = str(self.folder / work)

        def stage(stage: str, run: Callable[[str], object]) -> Dataset:
            run(str(self.folder / name / stage))
            made[stage] = Dataset.open(str(self.folder / name / stage), allow_empty=True)
            return made[stage]

        def rewarded(output: str) -> None:
            chunks = plan(made["filter"], work=prefix, rows_per_chunk=7)
            reward = RewardSpec(functions=(RewardFunctionSpec(function="brevity"),))
            merge(
                [run_rewards(RewardsConfig(reward=reward), chunk=chunk) for chunk in chunks], chunks, output
            )

        limits = FilterConfig(policy=str(self.policy), max_seq_len=120, max_prompt_len=80, work=prefix)
        stage("filter", lambda output: run_filter(limits, prompts=made["import"], output=output))
        stage("rewards", rewarded)
        choice = SelectConfig(
            **{"pool": "offline", "strategy": "labels", "work": prefix, **self.settings.get("select", {})}
        )
        stage("select", lambda output: run_select(choice, rewarded=made["rewards"], output=output))
        mix = MixConfig(require_logprobs=False, work=prefix, **self.settings.get("mix", {}))
        stage(
            "mix",
            lambda output: run_mix(mix, selections=[made["select"]], training=self.training, output=output),
        )
        return made

    def withdrawal(self, ids: list[str], sources: list[str]) -> str:
        path = self.folder / "withdrawal.json"
        path.write_text(withdrawal_text(Withdrawal(prompt_ids=frozenset(ids), sources=frozenset(sources))))
        return str(path)


def write_source(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def some_rows(name: str, count: int) -> list[dict[str, Any]]:
    """Pairs, of which some prompts are too long, and some answers."""
    return [
        {
            "prompt": f"{name} {n}" + " long" * (20 if n % 7 == 3 else 0),
            "chosen": f"Yes {n}." + " Indeed." * (20 if n % 5 == 4 else 0),
            "rejected": "No.",
        }
        for n in range(count)
    ]


def shared(dataset: Dataset) -> bool:
    return bool(dataset.manifest.undeleted)


def same(cheap: Dataset, whole: Dataset) -> None:
    """Rows, counts, fingerprint and what the manifest says beside them."""
    assert list(cheap.iter_rows()) == list(whole.iter_rows())
    one, other = cheap.manifest, whole.manifest
    assert (one.fingerprint, one.rows, one.schema) == (other.fingerprint, other.rows, other.schema)
    assert (one.recipe, one.slug, one.identity) == (other.recipe, other.slug, other.identity)
    assert [p["fingerprint"] for p in one.parents] == [p["fingerprint"] for p in other.parents]
    for name in ("rows_in", "rows_out", "dropped"):
        assert one.stats[name] == other.stats[name]
    reused = {"rows_reused", "chunks_reused", "chunks"}
    counts = [{k: n for k, n in m.stats["counts"].items() if k not in reused} for m in (one, other)]
    assert counts[0] == counts[1]
    assert one.stats["sums"].keys() == other.stats["sums"].keys()
    for name, (total, count) in one.stats["sums"].items():
        assert [total, count] == pytest.approx(other.stats["sums"][name])
    # Of what was dropped there are a few examples, and fewer where some are gone.
    own = {"undeleted", "undeleted_from", "request", "row_counts", "dropped_examples"}
    beside = [{k: v for k, v in m.extra.items() if k not in own} for m in (one, other)]
    assert beside[0] == beside[1]


@settings(max_examples=4)
@given(data=st.data())
def test_it_is_what_the_whole_work_makes(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, data: st.DataObject
) -> None:
    chain = Chain(tmp_path_factory.mktemp("less"), tiny_model)
    counts = data.draw(st.lists(st.integers(4, 16), min_size=1, max_size=3))
    rows = [some_rows(f"s{number}", count) for number, count in enumerate(counts)]
    for number in range(len(rows)):
        # Rows of the same prompt in one source or several, with the same answers or turned round.
        for again in data.draw(st.lists(st.sampled_from(rows[-1]), max_size=4)):
            turned = {"chosen": again["rejected"], "rejected": again["chosen"]}
            rows[number].append(again | (turned if data.draw(st.booleans()) else {}))
        write_source(chain.folder, f"source{number}", rows[number])
    before = chain.run("before")
    ids = [row["prompt_id"] for row in before["import"].iter_rows(["prompt_id"])]
    gone = data.draw(st.lists(st.sampled_from(ids), min_size=1, max_size=len(ids) // 3, unique=True))
    sources = data.draw(st.sampled_from([[], ["source0"] if len(counts) > 2 else []]))
    withdrawn = chain.withdrawal([*gone, "f" * 32], sources)
    cheap, whole = chain.run("cheap", withdrawn), chain.run("whole", withdrawn, work="other")
    for stage in STAGES:
        same(cheap[stage], whole[stage])
        assert not shared(whole[stage])
        assert all(row["prompt_id"] not in gone for row in cheap[stage].iter_rows(["prompt_id"]))
    if not sources and cheap["import"].rows >= (1 - MOST_DELETED) * len(ids):
        assert shared(cheap["import"])


def test_every_stage_shares_what_was_finished(tmp_path: Path, tiny_model: Path) -> None:
    """With chunks that the withdrawal leaves alone, too; and once the first run's folder is gone."""
    chain = Chain(tmp_path, tiny_model)
    write_source(tmp_path, "source0", some_rows("s0", 24))
    before = chain.run("before")
    gone = [row["prompt_id"] for row in before["mix"].iter_rows(["prompt_id"])][:2]
    cheap = chain.run("cheap", chain.withdrawal(gone, []))
    for stage in STAGES:
        assert cheap[stage].manifest.undeleted == before[stage].manifest.fingerprint
        assert [s.sha256 for s in cheap[stage].manifest.shards] == [
            s.sha256 for s in before[stage].manifest.shards
        ]
    shutil.rmtree(tmp_path / "before")
    for part in (tmp_path / "work/rewards/parts").iterdir():
        if Dataset.open(str(part)).manifest.fingerprint == before["rewards"].manifest.fingerprint:
            shutil.rmtree(part)  # as is done with what no run refers to
    more = chain.withdrawal([*gone, cheap["mix"].table(["prompt_id"])["prompt_id"][0].as_py()], [])
    second, whole = chain.run("second", more), chain.run("whole", more, work="other")
    for stage in STAGES:
        same(second[stage], whole[stage])
        assert second[stage].manifest.undeleted == before[stage].manifest.fingerprint
    for dataset in cheap.values():
        dataset.verify()
        assert len(list(dataset.iter_rows())) == dataset.rows
    # What reads the files themselves would bring the rows back.
    with pytest.raises(ConfigError, match="no deleted rows"):
        card(cheap["mix"])
    with pytest.raises(ConfigError, match="no deleted rows"):
        find_files(cheap["mix"].uri, split="train")


@pytest.mark.parametrize(
    ("settings", "stage"),
    [
        ({"import": {"max_rows": 20}}, "import"),
        (
            {"select": {"strategy": "best_worst", "rewards": "length_controlled", "min_references": 1}},
            "select",
        ),
        ({"mix": {"max_examples": 4}}, "mix"),
    ],
)
def test_what_others_decide_is_made_of_all_rows(
    tmp_path: Path, tiny_model: Path, settings: dict[str, Any], stage: str, caplog: pytest.LogCaptureFixture
) -> None:
    chain = Chain(tmp_path, tiny_model, **settings)
    write_source(tmp_path, "source0", some_rows("s0", 24))
    gone = next(chain.run("before")["filter"].iter_rows(["prompt_id"]))["prompt_id"]
    withdrawn = chain.withdrawal([gone], [])
    with caplog.at_level("INFO"):
        cheap, whole = chain.run("cheap", withdrawn), chain.run("whole", withdrawn, work="other")
    same(cheap[stage], whole[stage])
    assert not shared(cheap[stage])
    assert f"{'import_prompts' if stage == 'import' else stage} reads all rows" in caplog.text


def test_a_weight_that_rows_of_earlier_runs_do_not_have_is_found_in_all_rows(
    tmp_path: Path, tiny_model: Path
) -> None:
    chain = Chain(tmp_path, tiny_model, source={"weight": 2.0})
    write_source(tmp_path, "source0", some_rows("earlier", 4))
    chain.training = [chain.run("earlier", work="earlier-work")["mix"]]
    write_source(tmp_path, "source0", some_rows("s0", 12))
    gone = next(chain.run("before")["select"].iter_rows(["prompt_id"]))["prompt_id"]
    withdrawn = chain.withdrawal([gone], [])
    cheap, whole = chain.run("cheap", withdrawn), chain.run("whole", withdrawn, work="other")
    same(cheap["mix"], whole["mix"])
    assert shared(cheap["select"])
    assert not shared(cheap["mix"])


@pytest.mark.parametrize(
    ("several", "sources", "shares"),
    [
        (["source0", "source1"], ["source1"], False),
        (["source0", "source1"], [], True),
        (["source1", "source1"], ["source1"], True),
        (["source0", "source1"], ["source0", "source1"], True),
    ],
)
def test_a_source_goes_with_its_prompts_where_no_other_has_them(
    tmp_path: Path, tiny_model: Path, several: list[str], sources: list[str], shares: bool
) -> None:
    """Or else their rows change, and are imported again. Without a source the prompt is named."""
    rows = {f"source{n}": some_rows(f"s{n}", count) for n, count in enumerate((2, 2, 12))}
    for name in several:
        rows[name].append({"prompt": "of two", "chosen": f"Yes, {name}.", "rejected": "No."})
    # What is counted as a source is read, of rows that go, too, is no reason to read it again.
    rows["source2"].append({"prompt": "of equals", "response_a": "One.", "response_b": "1.", "winner": "tie"})
    for name, own in rows.items():
        write_source(tmp_path, name, own)
    chain = Chain(tmp_path, tiny_model)
    named = [row["prompt_id"] for row in chain.imported("before").iter_rows() if "of two" in row["messages"]]
    withdrawn = chain.withdrawal([] if sources else named, sources)
    cheap, whole = chain.imported("cheap", withdrawn), chain.imported("whole", withdrawn, work="other")
    same(cheap, whole)
    assert shared(cheap) is shares
