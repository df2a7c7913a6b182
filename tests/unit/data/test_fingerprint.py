"""Fingerprints: what determines rows is in them, and nothing else."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubealign_components.data.dataset import Dataset
from kubealign_components.data.fingerprint import canonical_json, check_recipe, derive, digest, slug_word
from kubealign_components.errors import CorruptDataset
from support.tiny import prompt_row

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4)
)


def shuffled(value: Any, order: random.Random) -> Any:
    """``value`` with every dictionary in another order."""
    if isinstance(value, dict):
        items = [(key, shuffled(item, order)) for key, item in value.items()]
        order.shuffle(items)
        return dict(items)
    return [shuffled(item, order) for item in value] if isinstance(value, list) else value


@given(params=st.dictionaries(st.text(), values), order=st.randoms(use_true_random=False))
def test_the_order_of_settings_does_not_matter(params: dict[str, Any], order: random.Random) -> None:
    assert derive("s", 1, shuffled(params, order)).fingerprint == derive("s", 1, params).fingerprint


@given(one=values, two=values)
def test_different_values_have_different_digests(one: Any, two: Any) -> None:
    assert (digest(one) == digest(two)) == (canonical_json(one) == canonical_json(two))


def test_numbers_that_are_none_are_refused() -> None:
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON compliant"):
            digest({"a": value})


def test_everything_that_determines_rows_changes_the_fingerprint(
    make_dataset: Callable[..., Dataset],
) -> None:
    first, second = make_dataset([prompt_row("a")]), make_dataset([prompt_row("a"), prompt_row("b")])
    base: dict[str, Any] = {"params": {"n": 1}, "inputs": {"in": first}, "models": {"m": {"digest": "d"}}}
    made = [
        derive("s", 1, **base),
        derive("t", 1, **base),
        derive("s", 2, **base),
        derive("s", 1, **base | {"params": {"n": 2}}),
        derive("s", 1, **base | {"inputs": {"in": second}}),
        derive("s", 1, **base | {"inputs": {"other": first}}),
        derive("s", 1, **base | {"models": {"m": {"digest": "e"}}}),
    ]
    assert len({p.fingerprint for p in made}) == len(made)
    assert derive("s", 1, **base, slug=["x"]).fingerprint == made[0].fingerprint
    for provenance in made:
        check_recipe(provenance.fingerprint, provenance.recipe, "here")
        assert provenance.step == provenance.recipe[provenance.fingerprint]


def test_the_work_key_leaves_out_the_inputs_alone(make_dataset: Callable[..., Dataset]) -> None:
    first, second = make_dataset([prompt_row("a")]), make_dataset([prompt_row("a"), prompt_row("b")])
    keys = [
        derive("s", 1, {"n": n}, inputs={"in": dataset}).work_key
        for n, dataset in ((1, first), (1, second), (2, first))
    ]
    assert keys[0] == keys[1] != keys[2]


def test_the_recipe_tells_every_step(make_dataset: Callable[..., Dataset]) -> None:
    grandparent = make_dataset([prompt_row("a")])
    parent = make_dataset([prompt_row("a")], inputs={"in": grandparent}, params={"p": 1})
    other = make_dataset([prompt_row("b")], params={"p": 2})
    child = derive("child", 1, {}, inputs={"left": parent, "right": other})
    assert set(child.recipe) == {
        child.fingerprint,
        *(dataset.manifest.fingerprint for dataset in (grandparent, parent, other)),
    }
    assert child.step["inputs"] == {
        "left": parent.manifest.fingerprint,
        "right": other.manifest.fingerprint,
    }


def test_inputs_of_different_models_are_refused(make_dataset: Callable[..., Dataset]) -> None:
    left = make_dataset([prompt_row("a")], identity={"policy": "1" * 64, "template": "2" * 64})
    right = make_dataset([prompt_row("b")], identity={"policy": "1" * 64, "template": "3" * 64})
    with pytest.raises(
        CorruptDataset, match=r"its template has digest 333333333333, the other inputs have 2222"
    ):
        derive("s", 1, {}, inputs={"left": left, "right": right})
    agreed = derive("s", 1, {}, inputs={"left": left}, identity={"policy": "1" * 64})
    assert agreed.identity == left.manifest.identity


def test_an_edited_or_missing_step_is_refused() -> None:
    provenance = derive("s", 1, {"n": 1})
    edited = {provenance.fingerprint: provenance.step | {"version": 2}}
    with pytest.raises(CorruptDataset, match="here: step 's' is filed under"):
        check_recipe(provenance.fingerprint, edited, "here")
    with pytest.raises(CorruptDataset, match="here: the recipe has no step"):
        check_recipe("0" * 64, provenance.recipe, "here")


@given(st.text())
def test_slug_words_are_safe_in_names(text: str) -> None:
    word = slug_word(text)
    assert set(word) <= set("abcdefghijklmnopqrstuvwxyz0123456789._")
    assert slug_word(word) == word


def test_slugs_grow(make_dataset: Callable[..., Dataset]) -> None:
    dataset = make_dataset([prompt_row("a")], slug=["UltraFeedback Binarized"])
    assert derive("s", 1, {}, inputs={"in": dataset}, slug=["SmolLM2-135M", "", "n10"]).slug == (
        "ultrafeedback_binarized-smollm2_135m-n10"
    )
