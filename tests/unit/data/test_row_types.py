"""The types of rows against the Arrow schemas that they describe."""

from __future__ import annotations

import types
import typing
from pathlib import Path
from typing import TypedDict

import pyarrow as pa
import pytest

from kubealign_components.data import schemas
from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.fingerprint import derive
from kubealign_components.data.schemas import ROW_TYPES, ROWS, PromptRow
from kubealign_components.data.stats import Stats
from kubealign_components.errors import SchemaMismatch
from support.tiny import prompt_row

SCALARS = {
    str: {pa.string()},
    int: {pa.int32(), pa.int64()},
    float: {pa.float64()},
    bool: {pa.bool_()},
}
NULL = type(None)


def differences(hint: object, field: pa.Field, where: str) -> list[str]:
    """What a type says of a column that Arrow does not, each with the column's path."""
    options = set(typing.get_args(hint)) if isinstance(hint, types.UnionType) else {hint}
    if NULL in options and not field.nullable:
        return [f"{where}: null in the type, never in the column"]
    (kind,) = options - {NULL}
    if typing.is_typeddict(kind):
        return typed_dict_differences(kind, field.type, where)
    if typing.get_origin(kind) is list:
        if not pa.types.is_list(field.type):
            return [f"{where}: {kind} against {field.type}"]
        (element,) = typing.get_args(kind)
        return differences(element, field.type.value_field, f"{where}[]")
    return [] if field.type in SCALARS[kind] else [f"{where}: {kind} against {field.type}"]


def typed_dict_differences(kind: type, fields: pa.Schema | pa.StructType, where: str) -> list[str]:
    if not isinstance(fields, pa.Schema) and not pa.types.is_struct(fields):
        return [f"{where}: {kind.__name__} against {fields}"]
    hints, columns = typing.get_type_hints(kind), {field.name: field for field in fields}
    apart = [f"{where}.{name}: in one of the two only" for name in sorted(hints.keys() ^ columns.keys())]
    for name in hints.keys() & columns.keys():
        apart += differences(hints[name], columns[name], f"{where}.{name}")
    return apart


def test_every_kind_of_dataset_has_a_type_of_row() -> None:
    assert ROW_TYPES.keys() == ROWS.keys()


@pytest.mark.parametrize("kind", ROWS)
def test_a_type_of_row_has_the_columns_of_its_schema(kind: str) -> None:
    assert typed_dict_differences(ROW_TYPES[kind], ROWS[kind], kind) == []


def test_the_comparison_sees_names_types_and_nulls() -> None:
    class Wrong(TypedDict):
        prompt_token_ids: list[int | None]
        source: int
        other: str

    fields = pa.schema([("prompt_token_ids", schemas.TOKEN_IDS), ("source", pa.string())])
    assert len(typed_dict_differences(Wrong, fields, "row")) == 3


def one_prompt(folder: Path) -> Dataset:
    with DatasetWriter(str(folder), schemas.PROMPTS, derive("test", 1, {})) as writer:
        writer.write_rows([prompt_row("What is Lyon?")])
        return writer.commit(Stats(rows_in=1, rows_out=1))


def test_rows_are_read_as_the_columns_of_a_type(tmp_path: Path) -> None:
    class Named(TypedDict):
        source: str
        prompt_id: str

    dataset = one_prompt(tmp_path)
    (row,) = dataset.iter_rows(of=Named)
    assert row.keys() == {"prompt_id", "source"}
    assert next(dataset.iter_rows(of=PromptRow)).keys() == set(ROWS[schemas.PROMPTS].names)
    assert next(dataset.iter_rows(["source"], of=PromptRow)).keys() == {"source"}


def test_a_type_with_a_column_that_the_rows_have_not_is_refused(tmp_path: Path) -> None:
    class Paired(TypedDict):
        prompt_id: str
        pairs: list[schemas.PairRow]

    dataset = one_prompt(tmp_path)
    with pytest.raises(SchemaMismatch, match=r"kubealign\.prompts/v1, which has no pairs"):
        next(dataset.iter_rows(of=Paired))
