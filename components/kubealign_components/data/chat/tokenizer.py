"""Loading a tokenizer, and holding what it gives to the rows of the model's embedding."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from kubealign_components.errors import EngineError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(model: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in the directory ``model``, without running code that lies in it.

    Raises:
        EngineError: there is none, or it cannot be loaded; gives the reason.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    except Exception as error:  # the libraries below raise anything
        reason = _unusable_sentencepiece(model) or str(error)
        raise EngineError(f"cannot load the tokenizer of {model}: {reason}") from error


def unknown_tokens(tokenizer: PreTrainedTokenizerBase, rows: int | None, name: str, template: str) -> str:
    """What is wrong with a tokenizer that gives ids which the model does not know; empty when all is well.

    Control tokens that the template never writes may lie outside: no text becomes one of them. Several
    published models have such a token, to pad with or for images.

    Args:
        tokenizer: of the model.
        rows: of its embedding, None for unknown.
        name: of the model.
        template: text of the chat template.
    """
    if rows is None or len(tokenizer) <= rows:
        return ""
    control = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    outside = {
        text: number
        for text, number in tokenizer.get_vocab().items()
        if number >= rows and (text not in control or text in template)
    }
    return _outside(name, rows, sorted(outside.values()), sorted(outside)[:3]) if outside else ""


def check_ids(sequences: Iterable[Sequence[int]], rows: int | None, name: str) -> None:
    """Refuse token ids that the model does not know.

    Args:
        sequences: token ids.
        rows: of the model's embedding, None for unknown.
        name: what the error calls the model.

    Raises:
        EngineError: an id is outside the embedding; gives both sizes.
    """
    for ids in sequences:
        if rows is not None and ids and max(ids) >= rows:
            raise EngineError(_outside(name, rows, sorted({token for token in ids if token >= rows})))


def check_column(lists: pa.Array, rows: int | None, name: str) -> None:
    """:func:`check_ids` for a column of lists."""
    largest = pc.max(lists.flatten()).as_py()
    if rows is not None and largest is not None and largest >= rows:
        check_ids(lists.to_pylist(), rows, name)


def one_bos(ids: list[int], bos: int | None) -> list[int]:
    """``ids`` with at most one leading BOS: most templates write it, and some tokenizers once more."""
    while bos is not None and ids[:2] == [bos, bos]:
        ids = ids[1:]
    return ids


def _outside(name: str, rows: int, ids: Sequence[int], texts: Sequence[str] = ()) -> str:
    shown = ", ".join(map(repr, texts)) or ", ".join(map(str, ids[:3]))
    return (
        f"the tokenizer of {name} gives token ids up to {ids[-1]}, and its embedding has {rows} rows: "
        f"{len(ids)} tokens have none ({shown}); resize the embedding (resize_token_embeddings) and save the "
        "model again, or remove the added tokens"
    )


def _unusable_sentencepiece(model: Path) -> str:
    """Why a SentencePiece file cannot be read here, if there is one and it cannot."""
    files = sorted(model.glob("*.model"))
    if not files or (model / "tokenizer.json").is_file():
        return ""
    try:
        importlib.import_module("sentencepiece.sentencepiece_model_pb2")
    except Exception as error:  # whatever the generated code raises about the versions
        return (
            f"{files[0].name} is read by sentencepiece and protobuf, and {_version('sentencepiece')} does "
            f"not go with {_version('protobuf')} ({error}); install versions that do, such as "
            "sentencepiece 0.2.2, or save the tokenizer as tokenizer.json"
        )
    return ""


def _version(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{package}, which is not installed,"
