"""filter, select, mix and merge against ``datasets.map`` doing the same, and the plan of a fan-out.

    python tests/benchmarks/bench_data.py MODEL [--rows 40000] [--rounds 5] [--processes 2] [--full-rows 0]

MODEL is not used. A row is one prompt with 10 completions of 40 to 215 random token ids, with ids,
rewards and log-probabilities. The peer does what the project does, on ``--processes`` processes: from
the same Parquet shards (``Dataset.from_parquet`` into an empty cache), through batched maps, to a
Parquet file (``to_parquet``); it verifies nothing that it reads. The project runs in one process with
its reading and writing threads. What "the same" is, checked row by row on ids and token ids:

- filter: prompts of more than 60 tokens go, then completions that do not fit into 220 with their
  prompt; lengths come from the token ids.
- select: best and worst of each prompt by reward, with inclusive quantile rewards.
- mix: a training example of each selected pair with its content hash and its side of the split,
  shuffled (``shuffle`` and ``flatten_indices``, which is a map, write the new order).
- merge: the parts of a fan-out as one dataset. ``data_merge_bytes`` is the time of merging rows of 10
  completions over that of rows of one: 1 when it does not grow with the bytes of a row.

``--full-rows 1000000`` runs the project alone on that many rows and prints its peak resident memory.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from synthetic import rewarded
from timing import alternate

from kubealign_components.data.arrow_take import take
from kubealign_components.data.chunks import Part, merge, plan
from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.fingerprint import derive
from kubealign_components.data.models import find_model
from kubealign_components.data.schemas import REWARDED
from kubealign_components.data.seeds import is_held_out
from kubealign_components.data.stats import Stats
from kubealign_components.filter.stage import FilterConfig
from kubealign_components.filter.stage import run as run_filter
from kubealign_components.mix.stage import MixConfig
from kubealign_components.mix.stage import run as run_mix
from kubealign_components.select.stage import SelectConfig
from kubealign_components.select.stage import run as run_select

MAX_PROMPT, MAX_SEQUENCE = 60, 220
PARTS = 20
NOT_IN_EXAMPLES = (
    "source_weight",
    "answers",
    "metadata",
    "prompt_tokens",
    "dropped_completions",
    "reference_rewards",
    "pairs",
)
Rows = dict[str, list[Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rows", type=int, default=40_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--full-rows", type=int, default=0)
    parser.add_argument("--plan-rows", type=int, default=1_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-data-") as name:
        folder = Path(name)
        policy = small_policy(folder / "policy")
        identity = {"policy": find_model(str(policy)).identity()["digest"]}
        if options.full_rows:
            source = rewarded(str(folder / "full"), options.full_rows, identity=identity)
            full(source, folder, policy)
            shutil.rmtree(folder / "full")
        compare(options, folder, policy, identity)
        merge_cost(options, folder, identity)
        planning(options.plan_rows, folder, identity)


def small_policy(folder: Path) -> Path:
    """A model directory that is quick to identify: hashing weights is not what is measured."""
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes(b"\2" + bytes(7) + b"{}")  # no weights
    return folder


def compare(options: argparse.Namespace, folder: Path, policy: Path, identity: dict[str, str]) -> None:
    source = rewarded(str(folder / "in"), options.rows, identity=identity)
    project = stages(folder, policy)
    project["select"](source)
    selection = Dataset.open(str(folder / "select"))
    peers = Peers(folder, options.processes)
    parts, chunks = cut(source, folder)
    for name, rows, transform, key in (
        ("filter", source, lambda rows: peers.map(rows, peer_filter), "prompt_id"),
        ("select", source, lambda rows: peers.map(rows, peer_select), "prompt_id"),
        ("mix", selection, peers.mix, "example_id"),
    ):
        ways: dict[str, Callable[[], Any]] = {
            "project": partial(project[name], rows),
            "peer": partial(peers.stored, rows, transform),
        }
        report(name, ways, key, options)
    report(
        "merge",
        {"project": lambda: merged(parts, chunks, folder), "peer": lambda: peers.joined(parts)},
        "prompt_id",
        options,
    )


def report(name: str, ways: dict[str, Callable[[], Any]], key: str, options: argparse.Namespace) -> None:
    """Time the ways in turns, check that they made the same, and print the ratio."""
    seconds, results = alternate(ways, options.rounds)
    check(results["project"], results["peer"], key, sort=name == "mix")
    print(f"{name}: " + ", ".join(f"{way} {options.rows / s:.0f} rows/s" for way, s in seconds.items()))
    print(f"ratio data_{name} {seconds['peer'] / seconds['project']:.2f}")


def stages(folder: Path, policy: Path) -> dict[str, Callable[[Dataset], Dataset]]:
    """The project's stages from dataset to dataset."""
    limits = FilterConfig(policy=str(policy), max_seq_len=MAX_SEQUENCE, max_prompt_len=MAX_PROMPT)

    def into(name: str, run: Callable[[Dataset, str], Stats]) -> Callable[[Dataset], Dataset]:
        def call(source: Dataset) -> Dataset:
            shutil.rmtree(folder / name, ignore_errors=True)
            run(source, str(folder / name))
            return Dataset.open(str(folder / name))

        return call

    return {
        "filter": into("filter", lambda rows, out: run_filter(limits, prompts=rows, output=out)),
        "select": into("select", lambda rows, out: run_select(SelectConfig(), rewarded=rows, output=out)),
        "mix": into("mix", lambda rows, out: run_mix(MixConfig(), selections=[rows], output=out)),
    }


def full(source: Dataset, folder: Path, policy: Path) -> None:
    """The stages one after the other on many rows."""
    project = stages(folder, policy)
    for name, before in (("filter", source), ("select", source), ("mix", None)):
        start = time.perf_counter()
        project[name](before or Dataset.open(str(folder / "select")))
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{name} of {source.rows} rows: {source.rows / seconds:.0f} rows/s, peak so far {peak:.2f} GiB")
        if name == "filter":
            shutil.rmtree(folder / name)


def cut(source: Dataset, folder: Path) -> tuple[list[Part], list[Any]]:
    """The parts of a fan-out over ``source``, as workers publish them."""
    chunks = plan(source, work=str(folder / "work"), chunks=PARTS)
    parts = []
    for chunk in chunks:
        uri = str(folder / f"part-{chunk.index}")
        with DatasetWriter(uri, REWARDED, derive("part", 1, {}, inputs={"rows": source})) as writer:
            for batch in source.batches(batch_rows=None, spans=chunk.spans):
                writer.write(batch)
            writer.commit(Stats(rows_in=chunk.rows, rows_out=chunk.rows), {"row_ids": chunk.row_ids})
        parts.append(Part(index=chunk.index, uri=uri, rows=chunk.rows, reused_rows=0))
    return parts, chunks


def merged(parts: list[Part], chunks: list[Any], folder: Path) -> Dataset:
    """The merged dataset."""
    shutil.rmtree(folder / "merged", ignore_errors=True)
    return merge(parts, chunks, str(folder / "merged"))


def merge_cost(options: argparse.Namespace, folder: Path, identity: dict[str, str]) -> None:
    """Merging short and long rows, as many of each."""
    ways: dict[str, Callable[[], Any]] = {}
    for name, completions in (("short", 1), ("long", 10)):
        place = folder / name
        source = rewarded(str(place / "in"), options.rows, identity=identity, completions=completions)
        parts, chunks = cut(source, place)
        ways[name] = partial(merged, parts, chunks, place)
        print(f"merge of {name} rows: {sum(s.size for s in source.manifest.shards) / 2**20:.0f} MiB")
    seconds, _ = alternate(ways, options.rounds)
    print(f"ratio data_merge_bytes {seconds['long'] / seconds['short']:.2f}")


def planning(rows: int, folder: Path, identity: dict[str, str]) -> None:
    """A plan of 100 chunks over ``rows`` short rows."""
    source = rewarded(str(folder / "short"), rows, identity=identity, completions=0)
    start = time.perf_counter()
    chunks = plan(source, work=str(folder / "work"), chunks=100)
    seconds = time.perf_counter() - start
    print(f"plan of {len(chunks)} chunks over {rows} rows without completions: {seconds:.2f} s")


class Peers:
    """Hugging Face datasets."""

    def __init__(self, folder: Path, processes: int) -> None:
        import datasets

        datasets.disable_progress_bars()
        self.library = datasets
        self.folder = folder
        self.processes = processes

    def read(self, source: Dataset, cache: str) -> Any:
        """The rows of a dataset of ours in a cache of the peer's."""
        files = [source.shard_uri(shard) for shard in source.manifest.shards]
        return self.library.Dataset.from_parquet(files, cache_dir=str(self.folder / cache))

    def stored(self, source: Dataset, transform: Callable[[Any], Any]) -> Any:
        """The whole job: from stored shards to a stored file."""
        shutil.rmtree(self.folder / "cache", ignore_errors=True)
        made = transform(self.read(source, "cache"))
        made.to_parquet(str(self.folder / "made.parquet"))
        return made

    def mix(self, rows: Any) -> Any:
        """Training examples of a selection, shuffled."""
        made = self.map(rows, peer_examples, NOT_IN_EXAMPLES)
        return made.shuffle(seed=0).flatten_indices(num_proc=self.processes)

    def map(self, rows: Any, function: Callable[[Rows], Rows], drop: Sequence[str] = ()) -> Any:
        """``datasets.map`` on all processes, nothing reused."""
        return rows.map(
            function,
            batched=True,
            num_proc=self.processes,
            load_from_cache_file=False,
            remove_columns=[name for name in rows.column_names if name in drop],
        )

    def joined(self, parts: list[Part]) -> Any:
        """The parts' rows as one stored dataset."""
        shutil.rmtree(self.folder / "cache", ignore_errors=True)
        whole = self.library.concatenate_datasets([self.read(Dataset.open(p.uri), "cache") for p in parts])
        whole.to_parquet(str(self.folder / "joined.parquet"))
        return whole


def peer_filter(rows: Rows) -> Rows:
    kept: Rows = {name: [] for name in rows}
    for i, prompt in enumerate(rows["prompt_token_ids"]):
        if len(prompt) > MAX_PROMPT:
            continue
        room = MAX_SEQUENCE - len(prompt)
        for name, values in rows.items():
            kept[name].append(values[i])
        kept["completions"][-1] = [c for c in rows["completions"][i] if 0 < len(c["token_ids"]) <= room]
    return kept


def peer_select(rows: Rows) -> Rows:
    rewards, pairs = [], []
    for i, completions in enumerate(rows["completions"]):
        values = [c["reward"] for c in completions]
        best, worst = values.index(max(values)), values.index(min(values))
        kept = sorted((best, worst))
        for place in kept:
            below = sum(value <= values[place] for value in values)
            completions[place]["quantile_reward"] = below / len(values)
        rows["completions"][i] = [completions[place] for place in kept]
        rewards.append(values)
        pairs.append([{"chosen": kept.index(best), "rejected": kept.index(worst)}])
    return rows | {"reference_rewards": rewards, "pairs": pairs}


def peer_examples(rows: Rows) -> Rows:
    copied = ("prompt_id", "source", "messages", "tools", "prompt_token_ids")
    made: Rows = {name: [] for name in ("example_id", *copied, "split", "completions", "num_references")}
    for i, prompt in enumerate(rows["prompt_id"]):
        for pair in rows["pairs"][i]:
            completions = [rows["completions"][i][pair[side]] for side in ("chosen", "rejected")]
            text = prompt + "".join(c["completion_id"] for c in completions)
            made["example_id"].append(hashlib.sha256(text.encode()).hexdigest()[:32])
            for name in copied:
                made[name].append(rows[name][i])
            made["split"].append("validation" if is_held_out(prompt, 0.05, 0) else "train")
            made["completions"].append(completions)
            made["num_references"].append(len(rows["reference_rewards"][i]))
    return made


def check(ours: Dataset, theirs: Any, key: str, *, sort: bool) -> None:
    """Stop unless both hold the same rows: ids, and of each completion id, tokens and quantile reward."""
    places = {name: i for i, name in enumerate(theirs[key])}
    ids = [name.as_py() for batch in ours.batches([key]) for name in batch.column(key)]
    if len(ids) != len(places) or any(name not in places for name in ids):
        raise SystemExit(f"{key}: peer and project kept other rows")
    if not sort and ids != list(places):
        raise SystemExit(f"{key}: peer and project have the rows in other orders")
    step = max(1, len(ids) // 2000)
    done = 0
    for batch in ours.batches([key, "completions"]):
        sampled = np.arange(-done % step, batch.num_rows, step)
        for row in take(batch, sampled).to_pylist():
            peer = theirs[places[row[key]]]["completions"]
            if [essence(c) for c in row["completions"]] != [essence(c) for c in peer]:
                raise SystemExit(f"{row[key]}: peer and project have other completions")
        done += batch.num_rows


def essence(completion: dict[str, Any]) -> tuple[Any, ...]:
    return completion["completion_id"], completion["token_ids"], completion["quantile_reward"]


if __name__ == "__main__":
    main()
