"""Rewarded prompts of random token ids, as fast as they can be written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.fingerprint import derive
from kubealign_components.data.schemas import COMPLETION, PROMPT_ROW, REWARDED, TOKEN_IDS
from kubealign_components.data.stats import Stats

COMPLETIONS = 10
LENGTHS = (40, 215)
PROMPT_LENGTHS = (16, 64)
VOCABULARY = 49152
BATCH_ROWS = 500

_HEX = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)


def rewarded(
    uri: str,
    rows: int,
    *,
    identity: dict[str, str],
    seed: int = 0,
    completions: int = COMPLETIONS,
    lengths: tuple[int, int] = LENGTHS,
    vocabulary: int = VOCABULARY,
) -> Dataset:
    """A ``kubealign.rewarded/v1`` dataset at ``uri``: every id is different, lengths are uniform."""
    params = {"rows": rows, "seed": seed, "completions": completions, "lengths": list(lengths)}
    with DatasetWriter(uri, REWARDED, derive("synthetic", 1, params, identity=identity)) as writer:
        for batch in batches(rows, seed, completions, lengths, vocabulary):
            writer.write(batch)
        return writer.commit(Stats(rows_in=rows, rows_out=rows))


def batches(
    rows: int, seed: int, completions: int, lengths: tuple[int, int], vocabulary: int
) -> Iterator[pa.RecordBatch]:
    """The rows, :data:`BATCH_ROWS` at a time."""
    source = np.random.default_rng(seed)
    for start in range(0, rows, BATCH_ROWS):
        count = min(BATCH_ROWS, rows - start)
        made = _completions(source, count * completions, lengths, vocabulary)
        offsets = pa.array(completions * np.arange(count + 1), pa.int32())
        prompt = source.integers(PROMPT_LENGTHS[0], PROMPT_LENGTHS[1] + 1, count)
        columns = {
            "prompt_id": _ids(source, count),
            "source": _repeated("synthetic", count),
            "source_weight": pa.array(np.ones(count)),
            "messages": _repeated('[{"content":"?","role":"user"}]', count),
            "answers": pa.ListArray.from_arrays(
                pa.array(np.zeros(count + 1), pa.int32()), pa.array([], pa.string())
            ),
            "prompt_token_ids": _token_lists(source, prompt, vocabulary),
            "prompt_tokens": pa.array(prompt, pa.int32()),
            "completions": pa.ListArray.from_arrays(offsets, made),
            "dropped_completions": pa.array(np.zeros(count), pa.int32()),
        }
        yield pa.RecordBatch.from_arrays(_in_order(columns, PROMPT_ROW, count), schema=PROMPT_ROW)


def _completions(
    source: np.random.Generator, count: int, lengths: tuple[int, int], vocabulary: int
) -> pa.StructArray:
    length = source.integers(lengths[0], lengths[1] + 1, count)
    columns = {
        "completion_id": _ids(source, count),
        "reference": pa.array(np.ones(count, dtype=np.bool_)),
        "model": _repeated("policy", count),
        "token_ids": _token_lists(source, length, vocabulary),
        "num_tokens": pa.array(length, pa.int32()),
        "finish_reason": _repeated("stop", count),
        "sampler_logprob": pa.array(-source.random(count)),
        "logprob": pa.array(-source.random(count)),
        "reward": pa.array(source.normal(size=count)),
    }
    return pa.StructArray.from_arrays(_in_order(columns, COMPLETION, count), fields=list(COMPLETION))


def _in_order(columns: dict[str, pa.Array], fields: Any, count: int) -> list[pa.Array]:
    return [columns[f.name] if f.name in columns else pa.nulls(count, f.type) for f in fields]


def _token_lists(source: np.random.Generator, length: NDArray[Any], vocabulary: int) -> pa.ListArray:
    ids = source.integers(0, vocabulary, int(length.sum()), dtype=np.int32)
    offsets = np.concatenate(([0], np.cumsum(length)))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(ids), type=TOKEN_IDS)


def _ids(source: np.random.Generator, count: int) -> pa.StringArray:
    digits = _HEX[source.integers(0, 16, 32 * count, dtype=np.uint8)]
    offsets = np.arange(0, 32 * count + 1, 32, dtype=np.int32)
    return pa.StringArray.from_buffers(count, pa.py_buffer(offsets), pa.py_buffer(digits))


def _repeated(text: str, count: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, dtype=np.int32)), pa.array([text])).cast(
        pa.string()
    )
