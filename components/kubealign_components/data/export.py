"""Rows of a dataset in the forms of other tools: TRL's, ShareGPT's, or as they are."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import yaml

from kubealign_components.data.dataset import Dataset
from kubealign_components.data.hub_licenses import card_head
from kubealign_components.data.labels import CHOSEN, REJECTED
from kubealign_components.data.licenses import license_in_card, licenses, parse_license, united
from kubealign_components.data.schemas import (
    PREFERENCES,
    PROMPTS,
    REWARDED,
    ROWS,
    SELECTION,
    TOKENIZED,
    TRAINING,
)
from kubealign_components.errors import ConfigError, StoreError
from kubealign_components.json_types import JsonObject
from kubealign_components.whole_file import whole_file, write_whole

Row = JsonObject
Exported = JsonObject

EXPORTED = (PROMPTS, TOKENIZED, REWARDED, SELECTION, TRAINING, PREFERENCES)
"""Kinds of dataset that TRL and ShareGPT have a form for."""
START, END = "<!-- made by KubeAlign -->", "<!-- end of what KubeAlign made -->"
"""Around what a card says of the rows; people write what else they like."""
_SPEAKERS = {"user": "human", "assistant": "gpt", "system": "system", "tool": "observation"}


def trl_rows(dataset: Dataset) -> Iterator[Exported]:
    """TRL's conversational rows: ``prompt``, with ``chosen`` and ``rejected``, or ``completion`` and
    ``label``, or alone; and ``tools``, ``answer`` and ``source`` where there are any.

    Raises:
        ConfigError: a kind of dataset that has no such rows.
    """
    if dataset.manifest.schema not in EXPORTED:
        raise ConfigError("dataset", dataset.manifest.schema, f"one of {', '.join(EXPORTED)}")
    for row in dataset.iter_rows():
        yield from _of_row(row)


def sharegpt_rows(dataset: Dataset) -> Iterator[Exported]:
    """ShareGPT's rows: ``conversations`` with the answer last, or beside ``chosen`` and ``rejected``."""
    for row in trl_rows(dataset):
        turns = [_spoken(message) for message in row.pop("prompt")]
        row.pop("label", None)
        for side in ("chosen", "rejected"):
            if side in row:
                row[side] = _spoken(row[side][0])
        turns += [_spoken(message) for message in row.pop("completion", [])]
        if row.get("tools"):
            row["tools"] = json.dumps(row["tools"], ensure_ascii=False)
        yield {"conversations": turns, **row}


FORMS: dict[str, Callable[[Dataset], Iterator[Exported]]] = {"trl": trl_rows, "sharegpt": sharegpt_rows}


def export(dataset: Dataset, form: str, folder: Path) -> Path:
    """Write ``dataset`` to ``folder`` in one of :data:`FORMS`, or as ``parquet``, with a card.

    Returns:
        The file of rows: JSON lines, or Parquet.

    Raises:
        ConfigError: a kind of dataset that has no such rows, or a folder that is not empty.
        StoreError: the folder cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError("-o", str(folder), "a new folder, or an empty one")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / ("train.parquet" if form == "parquet" else "train.jsonl")
        if form == "parquet":
            with whole_file(file) as part, pq.ParquetWriter(part, ROWS[dataset.manifest.schema]) as writer:
                for batch in dataset.batches():
                    writer.write_batch(batch)
        else:
            with whole_file(file) as part, part.open("w", encoding="utf-8") as lines:
                for row in FORMS[form](dataset):
                    lines.write(json.dumps(row, ensure_ascii=False) + "\n")
        write_whole(folder / "README.md", card(dataset, form, file.name))
    except OSError as error:
        raise StoreError(f"cannot write {folder}: {error.strerror or error}") from error
    return file


def push(folder: Path, repository: str) -> str:
    """Push an exported folder to the Hugging Face hub, card and all; gives its address.

    Raises:
        StoreError: the hub refuses it, or cannot be reached.
    """
    import datasets

    [file] = [path for path in folder.iterdir() if path.name.startswith("train.")]
    kind = "parquet" if file.suffix == ".parquet" else "json"
    try:
        loaded = datasets.load_dataset(kind, data_files={"train": str(file)}, split="train")
        loaded.push_to_hub(repository)
        datasets.utils.logging.disable_progress_bar()
        from huggingface_hub import DatasetCard, constants

        theirs = DatasetCard.load(repository, repo_type="dataset").content
        ours = (folder / "README.md").read_text("utf-8")
        pushed = DatasetCard(_with_own(theirs, ours))
        # What the repository says of its other rows makes none of these known.
        if licence := united(license_in_card(theirs), license_in_card(ours)):
            for key, value in card_head(parse_license(licence)).items():
                pushed.data[key] = value
        pushed.push_to_hub(repository)
    except Exception as error:  # the hub client lets the errors of its HTTP library through
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise StoreError(f"cannot push to {repository}: {reason}") from error
    return f"{constants.ENDPOINT}/datasets/{repository}"


def _with_own(theirs: str, card_text: str) -> str:
    """The card of a repository with what ``card_text`` tells of the rows, in place of what it told before."""
    own = START + card_text.partition(START)[2]
    before, marked, rest = theirs.partition(START)
    after = rest.partition(END)[2] if marked else "\n"
    return f"{before.rstrip()}\n\n{own.partition(END)[0]}{END}{after}"


def card(dataset: Dataset, form: str, file: str) -> str:
    """A dataset card: where the rows come from, and how they were made."""
    manifest = dataset.manifest
    steps = "\n".join(
        f"| {step['stage']} | {step['version']} | `{name[:12]}` |" for name, step in manifest.recipe.items()
    )
    names = licenses(manifest)
    head = yaml.safe_dump(card_head(names), sort_keys=False) if names else ""
    licence = f"Licences of what went in: {', '.join(f'`{name}`' for name in names)}.\n\n" if names else ""
    return (
        f"---\n{head}configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: {file}\n"
        "---\n\n"
        f"{START}\n# {manifest.slug}\n\n{manifest.rows} rows of `{manifest.schema}`, written by KubeAlign in "
        f"the form `{form}`. Fingerprint: `{manifest.fingerprint}`.\n\n{licence}"
        f"| stage | version | fingerprint |\n|---|---|---|\n{steps}\n{END}\n"
    )


def _of_row(row: Row) -> Iterator[Exported]:
    start: Exported = {"prompt": json.loads(row["messages"])}
    if row.get("tools"):
        start["tools"] = json.loads(row["tools"])
    if row.get("answers"):
        start["answer"] = row["answers"]
    start["source"] = row["source"]
    completions = list(row["completions"] or ())
    pairs = _pairs(row, completions)
    paired = {position for pair in pairs for position in pair}
    for chosen, rejected in pairs:
        yield start | _side("chosen", completions[chosen]) | _side("rejected", completions[rejected])
    for number, completion in enumerate(completions):
        if number not in paired:
            label = {"chosen": True, "rejected": False}.get(completion["label"])
            score = completion["score"] if completion["reward"] is None else completion["reward"]
            values = {"label": label, "score": score}
            own = {name: value for name, value in values.items() if value is not None}
            yield start | {"completion": json.loads(completion["messages"])} | own
    if not completions:
        yield start


def _side(side: str, completion: Row) -> Exported:
    score = completion["score"] if completion["reward"] is None else completion["reward"]
    own = {side: json.loads(completion["messages"])}
    return own if score is None else own | {f"score_{side}": score}


def _pairs(row: Row, completions: list[Row]) -> list[tuple[int, int]]:
    """Positions of chosen and rejected: as selected, preferred, put in order for training, or compared."""
    if "pairs" in row:
        return [(pair["chosen"], pair["rejected"]) for pair in row["pairs"] or ()]
    if "preferred" in row:
        return [(row["preferred"], 1 - row["preferred"])]
    if "example_id" in row:
        return [(0, 1)] if len(completions) == 2 else []
    if not any(completion["wins"] for completion in completions):
        labels = [completion["label"] for completion in completions]
        if labels.count(CHOSEN) == labels.count(REJECTED) == 1:
            return [(labels.index(CHOSEN), labels.index(REJECTED))]
        return []
    losers = {n: i for i, completion in enumerate(completions) for n in completion["losses"] or ()}
    won = [(i, n) for i, completion in enumerate(completions) for n in completion["wins"] or ()]
    return [(i, losers[n]) for i, n in won if n in losers]


def _spoken(message: Row) -> Exported:
    if message.get("tool_calls"):
        calls = [call["function"] for call in message["tool_calls"]]
        return {"from": "function_call", "value": json.dumps(calls, ensure_ascii=False)}
    return {"from": _SPEAKERS[message["role"]], "value": message["content"]}
