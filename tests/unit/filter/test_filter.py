"""filter: token ids as the policy's template gives them, and every drop under its name."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kubealign_components.config import from_mapping
from kubealign_components.data.chat import ChatTemplate
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.models import ModelFiles, find_model
from kubealign_components.data.schemas import COMPLETIONS, PROMPTS, TOKENIZED, canonical_json, completion_id
from kubealign_components.data.stats import Stats
from kubealign_components.errors import ConfigError, DataError, EngineError
from kubealign_components.filter.stage import FilterConfig, run
from support.datasets import MakeDataset
from support.pages import Page
from support.tiny import CHATML, prompt_row

Row = dict[str, Any]
START, END = 1, 2  # <|im_start|> (also BOS) and <|im_end|> (also EOS) of the tiny model


@pytest.fixture
def filtered(
    tiny_model: Path, tmp_path: Path, make_dataset: MakeDataset
) -> Callable[..., tuple[list[Row], Stats]]:
    """``filtered(rows, **settings)``: the rows that stay, and what was counted."""
    calls = 0

    def call(
        rows: Sequence[Row] | Dataset, policy: Path = tiny_model, **limits: Any
    ) -> tuple[list[Row], Stats]:
        nonlocal calls
        calls += 1
        config = FilterConfig(policy=str(policy), **limits)
        prompts = rows if isinstance(rows, Dataset) else make_dataset(rows)
        stats = run(config, prompts=prompts, output=str(tmp_path / f"out{calls}"))
        opened = Dataset.open(str(tmp_path / f"out{calls}"), TOKENIZED, allow_empty=True)
        assert stats.rows_in == prompts.rows == opened.rows + sum(stats.dropped.values())
        return list(opened.iter_rows()), stats

    return call


@pytest.fixture
def tokenized(tiny_model: Path, tmp_path: Path, make_dataset: MakeDataset) -> Callable[..., Dataset]:
    """``tokenized(rows)``: all of them with token ids."""
    calls = 0

    def call(rows: Sequence[Row]) -> Dataset:
        nonlocal calls
        calls += 1
        output = str(tmp_path / f"tokenized{calls}")
        run(FilterConfig(policy=str(tiny_model)), prompts=make_dataset(rows), output=output)
        return Dataset.open(output, TOKENIZED)

    return call


def with_template(model: Path, folder: Path, template: str) -> Path:
    """A copy of ``model`` with another chat template."""
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "chat_template.jinja").write_text(template)
    return folder


def test_prompt_and_completions_become_the_templates_tokens(filtered: Any, tiny_model: Path) -> None:
    template = ChatTemplate(find_model(str(tiny_model)))
    [row], stats = filtered([prompt_row("Why?", ["Because.", "No idea"])])
    assert template.tokenizer.decode(row["prompt_token_ids"]) == (
        "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert row["prompt_token_ids"][0] == START
    assert row["prompt_token_ids"].count(START) == 2  # one a turn: BOS is not doubled
    assert row["prompt_tokens"] == len(row["prompt_token_ids"])
    for completion, text in zip(row["completions"], ["Because.", "No idea"]):
        # Up to the end of the turn, as sampling ends; not the newline that ChatML writes after it.
        assert template.tokenizer.decode(completion["token_ids"]) == f"{text}<|im_end|>"
        assert completion["token_ids"][-1] == END
        assert completion["num_tokens"] == len(completion["token_ids"]) == len(text) + 1
        assert completion["finish_reason"] == "offline"
        assert completion["completion_id"] == completion_id(row["prompt_id"], completion["token_ids"])
    assert stats.counts["completions"] == 2


def test_completion_ids_follow_prompt_and_tokens(filtered: Any) -> None:
    rows, _ = filtered([prompt_row("a", ["x", "y"]), prompt_row("b", ["x"])])
    ids = [c["completion_id"] for row in rows for c in row["completions"]]
    assert len(set(ids)) == 3
    again, _ = filtered([prompt_row("a", ["y", "x"])])
    assert [c["completion_id"] for c in again[0]["completions"]] == ids[1::-1]


def test_lengths_are_exact_bounds(filtered: Any) -> None:
    [row], _ = filtered([prompt_row("Why?", ["12345678"])])
    prompt, whole = row["prompt_tokens"], row["prompt_tokens"] + row["completions"][0]["num_tokens"]
    rows = [prompt_row("Why?", ["12345678", "123456789"])]
    [fits], stats = filtered(rows, max_prompt_len=prompt, max_seq_len=whole)
    assert [c["num_tokens"] for c in fits["completions"]] == [whole - prompt]
    assert stats.counts["completions_too_long"] == 1
    assert stats.dropped == {}
    left, stats = filtered(rows, max_prompt_len=prompt - 1, max_seq_len=whole)
    assert left == []
    assert stats.dropped == {"prompt_too_long": 1}


@pytest.mark.parametrize(("other", "label"), [("rejected", None), ("chosen", "chosen"), (None, "chosen")])
def test_what_two_people_said_of_the_same_tokens_counts_where_they_agree(
    filtered: Any, tiny_model: Path, tmp_path: Path, other: str | None, label: str | None
) -> None:
    trimming = CHATML.replace("message['content']", "message['content'] | trim")
    policy = with_template(tiny_model, tmp_path / "trimming", trimming)
    row = prompt_row("Why?", ["Because.", "Because. "])
    for completion, said in zip(row["completions"], ("chosen", other)):
        completion["label"] = said
    [kept], stats = filtered([row], policy)
    assert [c["label"] for c in kept["completions"]] == [label]
    assert stats.counts["completions_same_tokens"] == 1
    assert stats.counts["completions_chosen_and_rejected"] == (label is None)


def test_too_few_completions_left(filtered: Any) -> None:
    rows = [
        prompt_row("none"),
        prompt_row("one", ["x"]),
        prompt_row("two", ["x", "y"]),
        prompt_row("long", ["x" * 99]),
    ]
    for least, reasons in ((0, {}), (1, {"too_few_completions": 2}), (2, {"too_few_completions": 3})):
        left, stats = filtered(rows, max_seq_len=100, max_prompt_len=60, min_completions=least)
        assert stats.dropped == reasons
        assert all(len(row["completions"]) >= least for row in left)
        assert stats.counts["completions_too_long"] == 1


def test_a_template_that_renders_history_differently_is_counted(
    filtered: Any, tiny_model: Path, tmp_path: Path
) -> None:
    # Writes the generation prompt otherwise than the assistant turn that follows it.
    mismatch = CHATML.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>answer\n{% endif %}")
    policy = with_template(tiny_model, tmp_path / "mismatch", mismatch)
    [row], stats = filtered([prompt_row("a", ["x", "y"])], policy=policy)
    assert row["completions"] == []
    assert stats.counts["completions_template_mismatch"] == 2
    _, stats = filtered([prompt_row("a", ["x"])], policy=policy, min_completions=1)
    assert stats.dropped == {"too_few_completions": 1}


def test_a_conversation_that_the_template_refuses_is_dropped(
    filtered: Any, tiny_model: Path, tmp_path: Path
) -> None:
    refusing = "{% if messages[0]['content'] == 'a' %}{{ raise_exception('no a') }}{% endif %}" + CHATML
    policy = with_template(tiny_model, tmp_path / "refusing", refusing)
    [row], stats = filtered([prompt_row("a", ["x"]), prompt_row("b", ["x"])], policy=policy)
    assert json.loads(row["messages"])[0]["content"] == "b"
    assert stats.dropped == {"template_refused": 1}


@pytest.mark.parametrize(
    "system", ["{{ raise_exception('no system') }}", "{% set messages = messages[1:] %}"]
)
def test_system_turns_that_a_template_refuses_or_hides_begin_the_users_turn(
    filtered: Any, tiny_model: Path, tmp_path: Path, system: str
) -> None:
    template = "{% if messages[0]['role'] == 'system' %}" + system + "{% endif %}" + CHATML
    policy = with_template(tiny_model, tmp_path / "refusing", template)
    row = prompt_row("a", ["x"])
    messages = [{"role": "system", "content": "Be brief."}, *json.loads(row["messages"])]
    [row], _ = filtered([row | {"messages": canonical_json(messages)}], policy=policy)
    text = ChatTemplate(find_model(str(policy))).tokenizer.decode(row["prompt_token_ids"])
    assert text == "<|im_start|>user\nBe brief.\n\na<|im_end|>\n<|im_start|>assistant\n"


def test_tools_reach_the_template(filtered: Any, tiny_model: Path, tmp_path: Path) -> None:
    policy = with_template(
        tiny_model, tmp_path / "tools", "{{ tools[0].function.name if tools else '-' }}" + CHATML
    )
    template = ChatTemplate(find_model(str(policy)))
    plain = prompt_row("a")
    tool = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}
    rows, _ = filtered(
        [plain, plain | {"prompt_id": "0" * 32, "tools": canonical_json([tool])}], policy=policy
    )
    assert [template.tokenizer.decode(row["prompt_token_ids"])[0] for row in rows] == ["-", "f"]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    made=st.lists(st.lists(st.integers(0, 14), max_size=4), min_size=1, max_size=8),
    lengths=st.lists(st.integers(1, 30), min_size=8, max_size=8),
    max_prompt_len=st.integers(25, 55),
    room=st.integers(1, 14),
    min_completions=st.integers(0, 2),
)
def test_rows_with_token_ids_are_held_to_the_same_limits_as_text(
    filtered: Any,
    tokenized: Any,
    made: list[list[int]],
    lengths: list[int],
    max_prompt_len: int,
    room: int,
    min_completions: int,
) -> None:
    rows = [
        prompt_row(f"{i}" + "x" * length, ["y" * n + str(j) for j, n in enumerate(completions)])
        for i, (completions, length) in enumerate(zip(made, lengths))
    ]
    limits = {
        "max_prompt_len": max_prompt_len,
        "max_seq_len": max_prompt_len + room,
        "min_completions": min_completions,
    }
    left, stats = filtered(rows, **limits)
    again, from_ids = filtered(tokenized(rows), **limits)
    assert again == left
    assert from_ids == stats


def test_tokenised_rows_keep_their_kind_and_are_refused_for_another_policy(
    tokenized: Any, make_dataset: MakeDataset, tiny_model: Path, tmp_path: Path
) -> None:
    source = tokenized([prompt_row("a", ["x"]), prompt_row("b" * 50, ["x"])])
    rows = list(source.iter_rows())
    sampled = make_dataset(rows, COMPLETIONS, identity=source.manifest.identity)
    config = FilterConfig(policy=str(tiny_model), max_prompt_len=60)
    run(config, prompts=sampled, output=str(tmp_path / "kept"))
    kept = Dataset.open(str(tmp_path / "kept"), COMPLETIONS)
    assert list(kept.iter_rows()) == rows[:1]
    assert kept.manifest.identity == source.manifest.identity
    other = make_dataset(rows, TOKENIZED, identity={"policy": "0" * 64})
    with pytest.raises(ConfigError, match="the model that the dataset was tokenised for"):
        run(config, prompts=other, output=str(tmp_path / "other"))
    bare = make_dataset([prompt_row("a")], TOKENIZED, identity=source.manifest.identity)
    with pytest.raises(DataError, match="has no token ids"):
        run(config, prompts=bare, output=str(tmp_path / "bare"))


def test_models_without_usable_tokenizer_or_template_are_refused(
    tiny_model: Path, tmp_path: Path, make_dataset: MakeDataset
) -> None:
    prompts = make_dataset([prompt_row("a")])

    def attempt(policy: Path) -> None:
        run(FilterConfig(policy=str(policy)), prompts=prompts, output=str(tmp_path / "out"))

    plain = with_template(tiny_model, tmp_path / "plain", CHATML.split("{% if add_generation_prompt %}")[0])
    with pytest.raises(EngineError, match="has no generation prompt"):
        attempt(plain)
    with pytest.raises(ConfigError, match=r"model='.*/nowhere': expected a model directory"):
        attempt(tmp_path / "nowhere")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (plain / name).unlink(missing_ok=True)
    with pytest.raises(EngineError, match=r"holds no tokenizer; save one"):
        attempt(plain)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_what_is_said_of_a_model_without_a_template_helps(
    tiny_model: Path, tmp_path: Path, make_dataset: MakeDataset
) -> None:
    """The setting that the refusal names is read, and gives the ids of a model that has the template."""
    prompts = make_dataset([prompt_row("a")])
    bare = with_template(tiny_model, tmp_path / "bare", CHATML)
    template = tmp_path / "own.jinja"
    (bare / "chat_template.jinja").rename(template)
    with pytest.raises(
        EngineError, match=r"has no chat template; give the path of a file .* as chat_template"
    ):
        run(FilterConfig(policy=str(bare)), prompts=prompts, output=str(tmp_path / "refused"))
    given = FilterConfig(policy=str(bare), chat_template=str(template))
    run(given, prompts=prompts, output=str(tmp_path / "given"))
    run(FilterConfig(policy=str(tiny_model)), prompts=prompts, output=str(tmp_path / "own"))
    ids = [
        next(Dataset.open(str(tmp_path / name)).iter_rows())["prompt_token_ids"] for name in ("given", "own")
    ]
    assert ids[0] == ids[1]


def test_where_the_model_lies_is_not_in_the_fingerprint(
    tiny_model: Path, tmp_path: Path, make_dataset: MakeDataset
) -> None:
    prompts = make_dataset([prompt_row("a", ["x"])])
    copy = with_template(tiny_model, tmp_path / tiny_model.name, CHATML)
    other = with_template(tiny_model, tmp_path / "other", CHATML + " ")
    manifests = []
    for number, policy in enumerate((tiny_model, copy, other)):
        output = str(tmp_path / f"out-{number}")
        run(FilterConfig(policy=str(policy)), prompts=prompts, output=output)
        manifests.append(Dataset.open(output).manifest)
    assert manifests[0].fingerprint == manifests[1].fingerprint != manifests[2].fingerprint
    assert manifests[0].identity == ChatTemplate(ModelFiles(name="x", path=tiny_model)).identity
    assert manifests[0].identity["template"] != manifests[2].identity["template"]
    assert manifests[0].slug == "tiny_llama-maxlen4096"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_seq_len": 0}, r"max_seq_len=0: expected a positive number of tokens"),
        (
            {"max_prompt_len": 4096},
            r"max_prompt_len=4096: expected a positive number of tokens below max_seq_len",
        ),
        ({"max_prompt_len": 0}, r"max_prompt_len=0"),
        ({"min_completions": -1}, r"min_completions=-1: expected 0 or more"),
        ({"max_len": 3}, r"filter.max_len=3: expected a setting of filter"),
    ],
)
def test_settings_are_checked_by_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_mapping(FilterConfig, {"policy": "p"} | values, "filter")


def test_component_runs_the_stage(tiny_model: Path, tmp_path: Path, make_dataset: MakeDataset) -> None:
    from kfp import dsl

    from kubealign_components.filter.component import filter as component

    source = make_dataset([prompt_row("a", ["x"]), prompt_row("b" * 200, ["x"])])
    prompts = dsl.Dataset(name="prompts", uri=source.uri, metadata={"schema": PROMPTS})
    dataset = dsl.Dataset(name="dataset", uri=str(tmp_path / "filtered"), metadata={})
    metrics = dsl.Metrics(name="metrics", uri=str(tmp_path / "metrics"), metadata={})
    report = dsl.HTML(name="report", uri=str(tmp_path / "report.html"))
    component.python_func(
        prompts=prompts,
        dataset=dataset,
        metrics=metrics,
        report=report,
        policy=str(tiny_model),
        max_prompt_len=100,
    )
    assert Path(report.path).read_text().startswith("<!doctype html>")
    assert dataset.metadata["schema"] == TOKENIZED
    assert dataset.metadata["rows"] == 1
    assert metrics.metadata["dropped_prompt_too_long"] == 1
    page = Page(Path(report.path).read_text())
    [dropped] = [row for row in page.rows if row[0] == "prompt too long" and len(row) == 3]
    assert "b" * 200 in dropped[2]
