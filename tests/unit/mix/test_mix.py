"""mix: against the obvious implementation, and what must hold whatever the data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kubealign_components.config import from_mapping
from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.early_end import end_early
from kubealign_components.data.fingerprint import derive
from kubealign_components.data.schemas import SELECTION, TRAINING, completion_id, new_completion
from kubealign_components.data.seeds import is_held_out
from kubealign_components.data.stats import Stats
from kubealign_components.errors import ConfigError, DataError, StoreError
from kubealign_components.mix.buckets import Buckets
from kubealign_components.mix.quotas import quotas
from kubealign_components.mix.stage import MixConfig, run
from support.mix_oracle import examples_of, mixed
from support.source_files import write_withdrawal
from support.tiny import prompt_row

Row = dict[str, Any]


def selection_row(
    number: int, source: str = "a", *, pairs: int = 1, weight: float = 1.0, logprob: float | None = -2.5
) -> Row:
    """A selected prompt with ``pairs`` pairs, or with two completions for pointwise examples when 0."""
    row = prompt_row(f"prompt {number}", source=source, source_weight=weight)
    row |= {"prompt_token_ids": [1, number], "prompt_tokens": 2, "dropped_completions": 0}
    row["completions"] = [
        new_completion(
            completion_id=completion_id(row["prompt_id"], [i]),
            reference=True,
            messages=f'[{{"content":"{number} {i}","role":"assistant"}}]',
            token_ids=[i, i],
            num_tokens=2,
            logprob=logprob,
            reward=float(i),
            quantile_reward=0.5,
        )
        for i in range(max(2, pairs + 1))
    ]
    row["pairs"] = [{"chosen": i + 1, "rejected": i} for i in range(pairs)]
    row["reference_rewards"] = [float(i) for i in range(number % 4)]
    return row


def dataset_of(folder: Path, rows: Sequence[Row], *, batch: int = 1000, **how: Any) -> Dataset:
    """A selection in shards of ``batch`` rows, which the stage reads one at a time."""
    with DatasetWriter(str(folder), SELECTION, derive("test", 1, {"rows": len(rows)}, **how)) as writer:
        for start in range(0, len(rows), batch):
            writer.write_rows(rows[start : start + batch])
            writer.close_shard()
        return writer.commit(Stats(rows_in=len(rows), rows_out=len(rows)))


def mix(
    folder: Path,
    config: MixConfig,
    *inputs: Sequence[Row],
    training: Sequence[Dataset] = (),
    batch: int = 1000,
) -> tuple[list[Row], Stats]:
    selections = [dataset_of(folder / f"in{i}", rows, batch=batch) for i, rows in enumerate(inputs)]
    stats = run(config, selections=selections, training=training, output=str(folder / "out"))
    return list(Dataset.open(str(folder / "out"), TRAINING, allow_empty=True).iter_rows()), stats


def sources_of(folder: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = Dataset.open(str(folder / "out"), allow_empty=True).manifest.extra[
        "sources"
    ]
    return found


prompts = st.lists(st.tuples(st.integers(0, 40), st.sampled_from("abc")), min_size=1, max_size=30)
limits = st.fixed_dictionaries(
    {},
    optional={
        "weights": st.dictionaries(
            st.sampled_from("abc"), st.sampled_from([0.0, 0.25, 1.0, 3.0]), max_size=3
        ),
        "caps": st.dictionaries(st.sampled_from("abc"), st.integers(1, 8), max_size=3),
        "temperature": st.sampled_from([1.0, 2.0, 100.0]),
        "max_examples": st.integers(0, 20),
        "validation_fraction": st.sampled_from([0.0, 0.3]),
        "seed": st.integers(0, 2),
        "memory_bytes": st.sampled_from([1, 2000, 2**24]),
    },
)
fuzz = settings(max_examples=60)


def known_names(values: dict[str, Any], rows: Sequence[Row]) -> MixConfig:
    """The settings without weights and caps of sources that ``rows`` do not have."""
    names = {row["source"] for row in rows}
    for setting in ("weights", "caps"):
        values = values | {setting: {k: v for k, v in values.get(setting, {}).items() if k in names}}
    return MixConfig(**values)


@fuzz
@given(made=prompts, pairs=st.integers(0, 3), values=limits, cut=st.integers(0, 30), batch=st.integers(1, 40))
def test_equals_the_obvious_implementation(
    tmp_path_factory: Any,
    made: list[tuple[int, str]],
    pairs: int,
    values: dict[str, Any],
    cut: int,
    batch: int,
) -> None:
    folder = tmp_path_factory.mktemp("mix")
    rows = [selection_row(number, source, pairs=pairs) for number, source in made]
    config = known_names(values, rows)
    inputs = [part for part in (rows[:cut], rows[cut:]) if part]
    got, stats = mix(folder, config, *inputs, batch=batch)
    stats.check()
    kept = {name: source["after"] for name, source in sources_of(folder).items()}
    assert got == mixed([[e for row in part for e in examples_of(row)] for part in inputs], config, kept)
    assert stats.counts["train"] + stats.counts["validation"] == stats.rows_out == len(got)
    assert stats.counts["train"] == sum(row["split"] == "train" for row in got)


@settings(max_examples=300)
@given(
    sizes=st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 1000), min_size=1),
    weights=st.dictionaries(st.sampled_from("abcdef"), st.floats(0, 10)),
    caps=st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 500)),
    temperature=st.floats(0.5, 100),
    most=st.integers(0, 2000),
)
def test_shares_hold_within_one_example(
    sizes: dict[str, int], weights: dict[str, float], caps: dict[str, int], temperature: float, most: int
) -> None:
    kept = quotas(sizes, weights, caps, temperature, most)
    room = {name: min(size, caps.get(name, size)) for name, size in sizes.items()}
    assert all(0 <= kept[name] <= room[name] for name in sizes)
    assert not most or sum(kept.values()) <= most
    rate = {n: weights.get(n, 1.0) * room[n] ** (1 / temperature) for n in sizes if room[n]}
    total = sum(rate.values())
    if not total:
        assert sum(kept.values()) == 0
        return
    largest = min(room[n] * total / r for n, r in rate.items() if r)
    whole = min(largest, most) if most else largest
    assert sum(kept.values()) > whole - 1 - 1e-6
    for name, value in rate.items():
        assert abs(kept[name] - whole * value / total) < 1 + 1e-6


def test_quotas_by_hand() -> None:
    sizes = {"a": 100, "b": 1000}
    assert quotas(sizes, {}, {}, 1, 0) == sizes
    assert quotas(sizes, {"a": 7, "b": 7}, {}, 1, 0) == sizes
    assert quotas(sizes, {"b": 0.5}, {}, 1, 0) == {"a": 100, "b": 500}
    assert quotas(sizes, {"a": 2.0}, {}, 1, 0) == {"a": 100, "b": 500}
    assert quotas(sizes, {"a": 0.0}, {}, 1, 0) == {"a": 0, "b": 1000}
    assert quotas(sizes, {}, {"b": 300}, 1, 0) == {"a": 100, "b": 300}
    assert quotas(sizes, {}, {}, 1, 110) == {"a": 10, "b": 100}
    assert quotas(sizes, {}, {}, 1e6, 0) == {"a": 100, "b": 100}
    assert quotas(sizes, {"a": 0.7, "b": 0.3}, {}, 1e6, 0) == {"a": 100, "b": 42}
    assert quotas(sizes, {}, {}, 2, 0) == {"a": 100, "b": 316}


def test_defaults_keep_everything_and_imported_weights_count(tmp_path: Path) -> None:
    rows = [selection_row(i, "ab"[i % 2]) for i in range(40)]
    got, stats = mix(tmp_path / "plain", MixConfig(), rows)
    assert len(got) == 40
    assert stats.dropped == {}
    weighted = [selection_row(i, "ab"[i % 2], weight=[1.0, 0.25][i % 2]) for i in range(40)]
    mix(tmp_path / "weighted", MixConfig(), weighted)
    assert sources_of(tmp_path / "weighted") == {
        "a": {"weight": 1.0, "before": 20, "after": 20},
        "b": {"weight": 0.25, "before": 20, "after": 5},
    }
    mix(tmp_path / "named", MixConfig(weights={"b": 1.0}), weighted)
    assert sources_of(tmp_path / "named")["b"]["after"] == 20


def test_growing_data_moves_nothing(tmp_path: Path) -> None:
    config = MixConfig(validation_fraction=0.3, weights={"b": 0.5})
    rows = [selection_row(i, "ab"[i % 2]) for i in range(120)]
    small, _ = mix(tmp_path / "small", config, rows[:80])
    large, _ = mix(tmp_path / "large", config, rows)
    side = {row["prompt_id"]: row["split"] for row in large}
    assert all(side.get(row["prompt_id"], row["split"]) == row["split"] for row in small)
    common = {row["example_id"] for row in small} & {row["example_id"] for row in large}
    order = [[r["example_id"] for r in rows if r["example_id"] in common] for rows in (small, large)]
    assert order[0] == order[1]
    assert len(common) >= 0.9 * len(small)
    for row in large:
        expected = "validation" if is_held_out(row["prompt_id"], 0.3, 0) else "train"
        assert row["split"] == expected
    assert 0.15 < np.mean([row["split"] == "validation" for row in large]) < 0.45


def test_shuffled_without_regard_to_source(tmp_path: Path) -> None:
    # Half of `b` is dropped; what stays must be spread over the whole order, not stand at its start.
    rows = [selection_row(i, "a" if i < 300 else "b") for i in range(900)]
    got, _ = mix(tmp_path, MixConfig(weights={"b": 0.5}), rows)
    position = [i / len(got) for i, row in enumerate(got) if row["source"] == "b"]
    assert len(position) == 300
    assert 0.44 < np.mean(position) < 0.56
    assert [r["example_id"] for r in got] != sorted(r["example_id"] for r in got)


def test_earlier_training_data_is_mixed_in_once_and_split_anew(tmp_path: Path) -> None:
    rows = [selection_row(i, pairs=2) for i in range(30)]
    mix(tmp_path / "earlier", MixConfig(seed=5, validation_fraction=0.5), rows[:20])
    earlier = Dataset.open(str(tmp_path / "earlier" / "out"), TRAINING)
    got, stats = mix(tmp_path / "now", MixConfig(), rows[10:], training=[earlier])
    everything, _ = mix(tmp_path / "whole", MixConfig(), rows)
    assert got == everything
    assert stats.dropped == {"duplicate": 20}
    manifest = Dataset.open(str(tmp_path / "now" / "out")).manifest
    assert [parent["name"] for parent in manifest.parents] == ["selection_0", "training_0"]
    assert manifest.slug == "plus1"
    assert manifest.extra["pairwise"] is True
    alone, _ = mix(tmp_path / "alone", MixConfig(seed=5, validation_fraction=0.5), training=[earlier])
    assert alone == list(earlier.iter_rows())


def test_nothing_that_was_taken_back_is_mixed_in(tmp_path: Path) -> None:
    earlier, _ = mix(tmp_path / "1", MixConfig(), [selection_row(n, "a", pairs=2) for n in range(8)])
    training = Dataset.open(str(tmp_path / "1" / "out"))
    rows = [selection_row(n, "b" if n % 2 else "c") for n in range(8, 20)]
    whole, _ = mix(tmp_path / "2", MixConfig(), rows, training=[training])
    gone = {earlier[0]["prompt_id"], rows[0]["prompt_id"]}
    path = write_withdrawal(tmp_path / "withdrawal.json", prompts=gone, sources=["b"])
    config = MixConfig(withdrawn=path, weights={"b": 1.0})
    kept, stats = mix(tmp_path / "3", config, rows, training=[training])
    assert kept == [row for row in whole if row["prompt_id"] not in gone and row["source"] != "b"]
    assert stats.dropped == {"withdrawn": 2 + 1 + 6}
    assert stats.rows_in == 16 + 12


@pytest.mark.parametrize("by_source", [True, False])
def test_nothing_is_asked_of_a_source_that_was_taken_back(tmp_path: Path, *, by_source: bool) -> None:
    stay = [selection_row(n, "a") for n in range(6)]
    gone = [selection_row(n, "b") | {"source_weight": float(n)} for n in range(6, 10)]
    path = write_withdrawal(
        tmp_path / "withdrawal.json",
        prompts=() if by_source else [row["prompt_id"] for row in gone],
        sources=["b"] if by_source else (),
    )
    alone, _ = mix(tmp_path / "1", MixConfig(), stay)
    for name, config in (("2", MixConfig()), ("3", MixConfig(weights={"b": 2.0}, caps={"b": 1}))):
        kept, stats = mix(tmp_path / name, replace(config, withdrawn=path), stay + gone)
        assert kept == alone
        assert stats.dropped == {"withdrawn": 4}
        assert stats.counts["prompts_in"] == 10
        assert Dataset.open(str(tmp_path / name / "out")).manifest.extra["sources"].keys() == {"a"}


def test_a_weight_of_a_source_that_no_input_has_any_more(tmp_path: Path) -> None:
    path = write_withdrawal(tmp_path / "withdrawal.json", sources=["b"])
    config = MixConfig(withdrawn=path, weights={"b": 2.0}, caps={"b": 1})
    kept, _ = mix(tmp_path / "1", config, [selection_row(n) for n in range(6)])
    assert len(kept) == 6
    with pytest.raises(ConfigError, match=r"weights\.c"):
        mix(tmp_path / "2", replace(config, weights={"c": 2.0}), [selection_row(n) for n in range(6)])


def test_what_no_example_is_of_makes_no_other_dataset(tmp_path: Path) -> None:
    rows = [selection_row(n) for n in range(6)]
    path = write_withdrawal(tmp_path / "withdrawal.json", prompts=["f" * 32])
    mix(tmp_path / "1", MixConfig(), rows)
    mix(tmp_path / "2", MixConfig(withdrawn=path), rows)
    before, after = (Dataset.open(str(tmp_path / n / "out")).manifest for n in "12")
    assert before.fingerprint == after.fingerprint


def test_pointwise_and_slug(tmp_path: Path) -> None:
    rows = [selection_row(i, "ab"[i % 2], pairs=0) for i in range(10)]
    config = MixConfig(weights={"b": 0.5}, caps={"a": 4}, temperature=2.0, max_examples=9)
    got, stats = mix(tmp_path, config, rows)
    assert all(len(row["completions"]) == 1 for row in got)
    manifest = Dataset.open(str(tmp_path / "out")).manifest
    assert manifest.extra["pairwise"] is False
    assert manifest.slug == "weights_b0.5-caps_a4-temp2-max9"
    assert stats.dropped["over_cap"] == 6
    assert manifest.extra["num_train"] + manifest.extra["num_validation"] == len(got)


def test_what_cannot_be_mixed_is_refused_by_name(tmp_path: Path) -> None:
    plain = [selection_row(i) for i in range(3)]
    missing = [selection_row(i, logprob=None) for i in range(3, 5)]
    with pytest.raises(
        DataError, match=r"4 of 10 completions have no log-probability \(4 in .*in1\); run logprobs"
    ):
        mix(tmp_path / "a", MixConfig(), plain, missing)
    assert not (tmp_path / "a" / "out" / "manifest.json").exists()
    got, _ = mix(tmp_path / "b", MixConfig(require_logprobs=False), plain, missing)
    assert len(got) == 5
    with pytest.raises(DataError, match=r"in1: pairwise and pointwise examples cannot be mixed"):
        mix(tmp_path / "c", MixConfig(), plain, [selection_row(7, pairs=0)])
    with pytest.raises(DataError, match=r"source 'a' carries the weights 0.5, 1.0 .*weights.a"):
        mix(tmp_path / "d", MixConfig(), plain, [selection_row(7, weight=0.5)])
    with pytest.raises(ConfigError, match=r"weights.maths=2.0: expected a source of the data: one of a"):
        mix(tmp_path / "e", MixConfig(weights={"maths": 2.0}), plain)
    with pytest.raises(ConfigError, match=r"selections=\[\]: expected at least one"):
        mix(tmp_path / "f", MixConfig())
    broken = selection_row(9)
    broken["pairs"] = [{"chosen": 2, "rejected": 0}]
    with pytest.raises(DataError, match="names a completion that its row does not have"):
        mix(tmp_path / "g", MixConfig(), [broken])


def test_other_models_are_refused_by_name(tmp_path: Path) -> None:
    rows = [selection_row(0)]
    identity = {"policy": "a" * 64, "tokenizer": "t" * 64, "template": "c" * 64}
    for name in identity:
        one = dataset_of(tmp_path / name / "one", rows, identity=identity)
        two = dataset_of(tmp_path / name / "two", rows, identity=identity | {name: "b" * 64})
        with pytest.raises(DataError, match=rf"two and .*one cannot be mixed: {name} bbbbbbbbbbbb against"):
            run(MixConfig(), selections=[one, two], output=str(tmp_path / name / "out"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": {"a": -1}}, r"weights.a=-1.0: expected 0"),
        ({"weights": {"a": float("inf")}}, r"weights.a=inf: expected 0"),
        ({"caps": {"a": 0}}, r"caps.a=0: expected a positive number"),
        ({"temperature": 0}, r"temperature=0.0: expected 0.1 or more"),
        ({"max_examples": -1}, r"max_examples=-1: expected 0"),
        ({"memory_bytes": 0}, r"memory_bytes=0: expected a positive number of bytes"),
        ({"validation_fraction": 1.0}, r"validation_fraction=1.0: expected a share"),
        ({"caps": {"a": 1.5}}, r"mix.caps.a=1.5: expected a whole number"),
    ],
)
def test_settings_are_checked_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_mapping(MixConfig, settings, "mix")


@settings(max_examples=40)
@given(
    keys=st.lists(st.integers(0, 2**64 - 1), max_size=60),
    count=st.integers(1, 256),
    memory=st.integers(1, 800),
    buffer=st.integers(1, 400),
    batch=st.integers(1, 20),
)
def test_buckets_sort_and_lose_nothing(
    keys: list[int], count: int, memory: int, buffer: int, batch: int
) -> None:
    schema = pa.schema([("example_id", pa.string()), ("key", pa.uint64())])
    with Buckets(count, schema, memory_bytes=memory, buffer_bytes=buffer) as buckets:
        for start in range(0, len(keys), batch):
            part = keys[start : start + batch]
            rows = {"example_id": [str(start + i) for i in range(len(part))], "key": part}
            buckets.add(pa.RecordBatch.from_pydict(rows, schema=schema), np.array(part, dtype=np.uint64))
        buckets.finish()
        tables = [buckets.read(i) for i in range(buckets.count)]
        assert [buckets.read(i, ["key"]).column("key").to_pylist() for i in range(buckets.count)] == [
            table.column("key").to_pylist() for table in tables
        ]
    found = [row for table in tables for row in table.to_pylist()]
    assert Counter(row["key"] for row in found) == Counter(keys)
    for table in tables:
        places = [int(i) for i in table.column("example_id").to_pylist()]
        assert places == sorted(places)
    sorted_within = [key for table in tables for key in sorted(table.column("key").to_pylist())]
    assert sorted_within == sorted(keys)


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    schema = pa.schema([("key", pa.uint64())])
    with Buckets(1, schema, memory_bytes=1, buffer_bytes=1) as buckets:
        folder = Path(buckets._folder.name)
        folder.rename(tmp_path / "gone")  # as good as a disk that takes nothing
        with pytest.raises(StoreError, match="cannot write the shuffle's temporary files"):
            buckets.add(
                pa.RecordBatch.from_pydict({"key": [1]}, schema=schema), np.array([1], dtype=np.uint64)
            )
            buckets.finish()


def test_a_training_dataset_that_was_never_made_is_refused(tmp_path: Path) -> None:
    """Taken as empty, it would leave the examples out that were asked for, without a word."""
    rows = [selection_row(i) for i in range(4)]
    selection = dataset_of(tmp_path / "selection", rows)
    ended = {"schema": TRAINING, "output": str(tmp_path / "ended"), "inputs": {"selection": selection}}
    end_early("round 2 is no better", stage="mix", version=1, **ended)
    with pytest.raises(ConfigError, match=r"training_uris='.*ended'.*round 2 is no better"):
        mix(tmp_path, MixConfig(), rows, training=[Dataset.open(str(tmp_path / "ended"))])


def test_component_runs_the_stage(tmp_path: Path, make_dataset: Callable[..., Dataset]) -> None:
    from kfp import dsl

    from kubealign_components.mix.component import mix as component

    rows = [selection_row(i) for i in range(6)]
    mix(tmp_path / "earlier", MixConfig(), [selection_row(i) for i in range(4, 9)])
    selection = dsl.Dataset(name="s", uri=make_dataset(rows, SELECTION).uri, metadata={"schema": SELECTION})
    dataset = dsl.Dataset(name="dataset", uri=str(tmp_path / "mixed"), metadata={})
    metrics = dsl.Metrics(name="metrics", uri=str(tmp_path / "metrics"), metadata={})
    report = dsl.HTML(name="report", uri=str(tmp_path / "report.html"))
    component.python_func(
        selection=selection,
        dataset=dataset,
        metrics=metrics,
        report=report,
        training_uris=[str(tmp_path / "earlier" / "out")],
        options={"temperature": 2.0},
    )
    assert Path(report.path).read_text().startswith("<!doctype html>")
    assert dataset.metadata["schema"] == TRAINING
    assert dataset.metadata["rows"] == metrics.metadata["rows_out"] == 9
    assert metrics.metadata["dropped_duplicate"] == 2
