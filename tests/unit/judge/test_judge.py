"""The judge: the plain forward's log-odds, in both orders, whatever the chunks and budgets."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import kubealign_components.engines.judge as judge_module
from kubealign_components.data.chunks import merge, plan
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.models import ModelFiles, find_adapter, find_model
from kubealign_components.data.principles import load_principles
from kubealign_components.data.schemas import COMPLETIONS
from kubealign_components.data.templates import load_judge_template
from kubealign_components.engines.judge import JudgeSpec, Pair, PairJudge
from kubealign_components.engines.judge_model import Judge
from kubealign_components.engines.judging_functions import JudgingFunction
from kubealign_components.engines.reward_functions import AT_ONCE
from kubealign_components.errors import ConfigError, EngineError
from kubealign_components.filter.stage import FilterConfig
from kubealign_components.filter.stage import run as run_filter
from kubealign_components.judge.stage import JudgeConfig, run
from support.tiny import CHATML, build_tiny_model, prompt_row

TEMPLATE = load_judge_template("judge")
PRINCIPLES = """
schema: kubealign.principles/v1
name: two
version: 1
principles:
  - {name: Brief, positive: It is short., negative: It is long.}
  - {name: Kind, positive: It is kind., negative: It is not kind.}
"""


@pytest.fixture
def principles(tmp_path: Path) -> str:
    (tmp_path / "two.yaml").write_text(PRINCIPLES)
    return str(tmp_path / "two.yaml")


def sampled_rows(texts: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """A prompt for each of ``texts``, which are its sampled completions."""
    made = [prompt_row(f"question {number}?", of_row) for number, of_row in enumerate(texts)]
    for row in made:
        for completion in row["completions"]:
            completion["reference"] = True
    return made


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    """Four prompts with two sampled completions each."""
    return sampled_rows([[f"{n} is a short answer", f"a longer one is {n * n}"] for n in range(4)])


@pytest.fixture(scope="module")
def adapted(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A random LoRA adapter of the tiny model, on its head too, and the model with the adapter merged."""
    folder = tmp_path_factory.mktemp("adapted")
    torch.manual_seed(1)
    targets = ["q_proj", "down_proj", "lm_head"]
    lora = LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=targets, init_lora_weights=False)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32), lora)
    model.save_pretrained(folder / "adapter", save_embedding_layers=False)
    model.merge_and_unload().save_pretrained(folder / "merged")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder / "merged")
    return folder / "adapter", folder / "merged"


def judged(dataset: Dataset, folder: Path, model: Path, chunks: int = 1, **settings: Any) -> Dataset:
    planned = plan(dataset, work=str(folder / "work"), chunks=chunks)
    config = JudgeConfig(judge=str(model), **settings)
    return merge([run(config, chunk=chunk) for chunk in planned], planned, str(folder / f"merged-{chunks}"))


def judgements(dataset: Dataset) -> list[dict[str, Any]]:
    return [one for row in dataset.iter_rows() for one in row["judgements"]]


def plain(model: Path, question: str) -> float:
    """log p(a) - log p(b) after the answer's beginning, by a forward of transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    chat = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) + TEMPLATE.answer
    logits = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)(
        torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
    ).logits[0, -1]
    a, b = (tokenizer.encode(letter, add_special_tokens=False) for letter in "ab")
    return float(logits[a[0]] - logits[b[0]])


@torch.inference_mode()
def test_scores_are_the_plain_forwards_in_both_orders(
    rows: list[dict[str, Any]],
    make_dataset: Callable[..., Dataset],
    tiny_model: Path,
    principles: str,
    tmp_path: Path,
) -> None:
    found = judgements(
        judged(make_dataset(rows[:1], COMPLETIONS), tmp_path, tiny_model, principles=principles)
    )
    one, two = (json.loads(c["messages"])[0]["content"] for c in rows[0]["completions"])
    assert [j["principle"] for j in found] == ["Brief", "Kind"]
    for judgement, principle in zip(found, load_principles(principles), strict=True):
        by = {"name": principle.name, "text": principle.positive}
        messages = json.loads(rows[0]["messages"])
        s12 = plain(tiny_model, TEMPLATE.question(messages, one, two, **by))
        s21 = -plain(tiny_model, TEMPLATE.question(messages, two, one, **by))
        assert (judgement["first"], judgement["second"]) == (0, 1)
        assert judgement["s12"] == pytest.approx(s12, abs=1e-4)
        assert judgement["s21"] == pytest.approx(s21, abs=1e-4)
        assert judgement["score"] == pytest.approx((s12 + s21) / 2, abs=1e-4)
        assert judgement["consistent"] == (s12 * s21 > 0)


def test_chunks_slices_and_budgets_change_nothing(
    rows: list[dict[str, Any]],
    make_dataset: Callable[..., Dataset],
    tiny_model: Path,
    principles: str,
    tmp_path: Path,
) -> None:
    dataset = make_dataset(rows, COMPLETIONS)
    whole = judged(dataset, tmp_path / "a", tiny_model, principles=principles)
    settings: dict[str, Any] = {"principles": principles, "slice_rows": 1, "token_budget": 300}
    cut = judged(dataset, tmp_path / "b", tiny_model, 3, **settings)
    assert whole.manifest.fingerprint == cut.manifest.fingerprint
    for one, other in zip(judgements(whole), judgements(cut), strict=True):
        assert one["s12"] == pytest.approx(other["s12"], abs=1e-4)
        assert one["s21"] == pytest.approx(other["s21"], abs=1e-4)
    again = judged(dataset, tmp_path / "b", tiny_model, 2, **settings)
    assert again.manifest.stats["counts"]["rows_reused"] == 4
    assert len(judgements(whole)) == whole.manifest.stats["counts"]["judgements"] == 8


def test_completions_that_trade_places_trade_scores(
    rows: list[dict[str, Any]],
    make_dataset: Callable[..., Dataset],
    tiny_model: Path,
    principles: str,
    tmp_path: Path,
) -> None:
    swapped = [row | {"completions": row["completions"][::-1]} for row in rows]
    one, other = (
        judgements(judged(make_dataset(r, COMPLETIONS), tmp_path / n, tiny_model, principles=principles))
        for n, r in (("a", rows), ("b", swapped))
    )
    for first, second in zip(one, other, strict=True):
        assert first["s12"] == pytest.approx(-second["s21"], abs=1e-4)
        assert first["score"] == pytest.approx(-second["score"], abs=1e-4)


def test_an_adapter_judges_as_the_merged_model_does(
    rows: list[dict[str, Any]],
    make_dataset: Callable[..., Dataset],
    tiny_model: Path,
    adapted: tuple[Path, Path],
    principles: str,
    tmp_path: Path,
) -> None:
    dataset, (adapter, merged) = make_dataset(rows, COMPLETIONS), adapted
    plainly, unmerged, whole = (
        judged(dataset, tmp_path / name, model, principles=principles, **settings)
        for name, model, settings in (
            ("plain", tiny_model, {}),
            ("adapter", tiny_model, {"adapter": str(adapter)}),
            ("merged", merged, {}),
        )
    )
    scores = [[(j["s12"], j["s21"]) for j in judgements(d)] for d in (plainly, unmerged, whole)]
    assert np.abs(np.subtract(scores[1], scores[2])).max() < 1e-4
    assert np.abs(np.subtract(scores[0], scores[1])).min() > 1e-3
    identities = [d.manifest.recipe[d.manifest.fingerprint]["models"]["judge"] for d in (plainly, unmerged)]
    assert identities[1].pop("adapter") == find_adapter(str(adapter), "adapter").adapter_identity()
    assert identities[0] == identities[1]


@pytest.mark.parametrize("broken", ["nowhere", "other", "lacking"])
def test_an_adapter_that_is_not_the_judges_is_refused(
    tiny_model: Path, adapted: tuple[Path, Path], tmp_path: Path, broken: str
) -> None:
    copy = tmp_path / "adapter"
    shutil.copytree(adapted[0], copy)
    if broken == "nowhere":
        (copy / "adapter_config.json").unlink()
    elif broken == "other":
        tiny_model = build_tiny_model(tmp_path / "wider", hidden=64)
    else:
        weights = load_file(copy / "adapter_model.safetensors")
        save_file(dict(list(weights.items())[:-1]), copy / "adapter_model.safetensors")
    with pytest.raises(ConfigError, match="adapter=") as caught:
        spec = JudgeSpec(judge=str(tiny_model), adapter=str(copy))
        PairJudge(spec).judge([Pair([{"role": "user", "content": "?"}], "yes", "no")])
    assert str(copy) in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="4 bits are refused where there is no CUDA device")
def test_four_bits_need_cuda(
    rows: list[dict[str, Any]], make_dataset: Callable[..., Dataset], tiny_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="quantise=True: expected false on this machine"):
        judged(make_dataset(rows, COMPLETIONS), tmp_path, tiny_model, quantise=True)


def test_only_what_the_judge_is_shown_of_the_principles_counts(
    rows: list[dict[str, Any]], make_dataset: Callable[..., Dataset], tiny_model: Path, tmp_path: Path
) -> None:
    dataset, reused = make_dataset(rows, COMPLETIONS), {}
    changes = {
        "weights": ("name: Brief,", "name: Brief, weight: 3,"),
        "negatives": ("It is long.", "It is wordy."),
        "version": ("version: 1", "version: 2"),
        "statement": ("It is short.", "It is brief."),
        "name": ("name: Kind", "name: Warm"),
    }
    (tmp_path / "set.yaml").write_text(PRINCIPLES)
    judged(dataset, tmp_path, tiny_model, principles=str(tmp_path / "set.yaml"))
    for number, (name, change) in enumerate(changes.items(), start=2):
        (tmp_path / "set.yaml").write_text(PRINCIPLES.replace(*change))
        again = judged(dataset, tmp_path, tiny_model, number, principles=str(tmp_path / "set.yaml"))
        reused[name] = again.manifest.stats["counts"]["rows_reused"]
    assert reused == {"weights": 4, "negatives": 4, "version": 4, "statement": 0, "name": 0}


def test_chosen_principles_judge_alone(
    rows: list[dict[str, Any]],
    make_dataset: Callable[..., Dataset],
    tiny_model: Path,
    principles: str,
    tmp_path: Path,
) -> None:
    dataset = make_dataset(rows, COMPLETIONS)
    made = judged(dataset, tmp_path, tiny_model, principles=principles, principle_names=("Kind",))
    assert {j["principle"] for j in judgements(made)} == {"Kind"}


def test_what_cannot_be_compared_is_left_out_and_counted(
    make_dataset: Callable[..., Dataset], tiny_model: Path, principles: str, tmp_path: Path
) -> None:
    texts = [
        ["the same answer, twice", "the same answer, twice"],
        ["too short", "long enough to be compared"],
        ["long enough to be compared", "x" * 800],
        ["three completions make", "three different pairs", "when each is long enough"],
    ]
    dataset = make_dataset(sampled_rows(texts), COMPLETIONS)
    made = judged(dataset, tmp_path, tiny_model, principles=principles, max_length=900)
    pairs = [[(j["first"], j["second"]) for j in row["judgements"]][::2] for row in made.iter_rows()]
    assert pairs == [[], [], [], [(0, 1), (0, 2), (1, 2)]]
    counts = made.manifest.stats["counts"]
    assert counts["pairs_over_length"] == 1
    assert counts["prompts_without_pairs"] == 3


def test_letters_that_are_no_tokens_of_their_own_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    """A tokenizer that writes "(a" as one token and "(b" as two."""
    copy = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    written = json.loads((copy / "tokenizer.json").read_text())
    written["model"]["vocab"]["(a"] = max(written["model"]["vocab"].values()) + 1
    written["model"]["merges"].append(["(", "a"])
    written["pre_tokenizer"]["use_regex"] = False  # it keeps brackets and letters apart
    (copy / "tokenizer.json").write_text(json.dumps(written))
    with pytest.raises(EngineError, match="does not write a and b as one token each"):
        Judge(find_model(str(copy)), TEMPLATE)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"schema": "other/v1"}, "schema='other/v1'"),
        ({"version": 0}, "version=0"),
        ({"answer": ""}, "answer=''"),
        ({"user": "{{ first }} or {{ second }}?"}, "messages, first, second and principle.text"),
        ({"user": "{{ firts }}"}, "firts"),
        ({"user": "{% if %}"}, "Jinja"),
        ({"more": 1}, "only schema, name, version, user, answer"),
    ],
)
def test_a_broken_template_is_named(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    good = "{{ messages }}{{ first }}{{ second }}{{ principle.text }}"
    body = {"schema": "kubealign.judge-template/v1", "name": "t", "version": 1, "user": good, "answer": "("}
    (tmp_path / "t.yaml").write_text(json.dumps(body | change))
    with pytest.raises(ConfigError, match=named.replace("(", r"\(")):
        load_judge_template(str(tmp_path / "t.yaml"))


def test_a_missing_template_is_named() -> None:
    with pytest.raises(ConfigError, match="shipped template: judge"):
        load_judge_template("/nowhere/judge.yaml")


def test_the_policy_judges_under_the_settings_that_its_prompts_were_made_with(
    rows: list[dict[str, Any]], make_dataset: Callable[..., Dataset], tiny_model: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own.jinja"
    own.write_text("{{ strftime_now('%Y') }} " + CHATML)
    output = str(tmp_path / "tokens")
    filtering = FilterConfig(policy=str(tiny_model), chat_template=str(own), chat_template_date="2025-01-01")
    run_filter(filtering, prompts=make_dataset([prompt_row("a")]), output=output)
    tokens = Dataset.open(output)
    spec = JudgeSpec(judge=str(tiny_model))
    assert PairJudge(spec, tokens).params["chat_template_date"] == "2025-01-01"
    assert PairJudge(spec, tokens).params["chat_template"] == own.read_text()
    assert PairJudge(spec).params["chat_template"] is None
    asked = JudgeSpec(judge=str(tiny_model), chat_template_date="2024-01-01")
    assert PairJudge(asked, tokens).params["chat_template_date"] == "2024-01-01"
    other = build_tiny_model(tmp_path / "other", seed=1)
    assert PairJudge(JudgeSpec(judge=str(other)), tokens).params["chat_template"] is None


def longer(principle: str, **settings: Any) -> dict[str, Any]:
    """A function that judges by ``principle``: 1 for a text of 18 characters or more."""
    pattern = {"kind": "regex", "pattern": ".{18,}"}
    return {"principle": principle, "function": "format_match", "settings": pattern, **settings}


def with_functions(*functions: dict[str, Any]) -> tuple[JudgingFunction, ...]:
    return tuple(JudgingFunction(**one) for one in functions)


def test_a_function_judges_the_principle_that_it_measures_and_the_model_the_other(
    rows: list[dict[str, Any]],
    make_dataset: Callable[..., Dataset],
    tiny_model: Path,
    principles: str,
    tmp_path: Path,
) -> None:
    dataset = make_dataset(rows, COMPLETIONS)
    asked = judged(dataset, tmp_path / "a", tiny_model, principles=principles)
    functions = with_functions(longer("Brief", weight=-2.0))
    mixed = judged(dataset, tmp_path / "b", tiny_model, principles=principles, functions=functions)
    texts = [[json.loads(c["messages"])[0]["content"] for c in row["completions"]] for row in rows]
    expected = [-2.0 * ((len(one) >= 18) - (len(two) >= 18)) for one, two in texts]
    by_principle = {
        name: [j for j in judgements(mixed) if j["principle"] == name] for name in ("Brief", "Kind")
    }
    assert [(j["s12"], j["s21"], j["score"]) for j in by_principle["Brief"]] == [(e, e, e) for e in expected]
    assert any(expected)
    model = [j for j in judgements(asked) if j["principle"] == "Kind"]
    assert [j["s12"] for j in by_principle["Kind"]] == pytest.approx([j["s12"] for j in model], abs=1e-4)
    assert asked.manifest.fingerprint != mixed.manifest.fingerprint


def test_functions_alone_ask_no_model_and_name_none(
    monkeypatch: pytest.MonkeyPatch,
    rows: list[dict[str, Any]],
    make_dataset: Callable[..., Dataset],
    tiny_model: Path,
    principles: str,
    tmp_path: Path,
) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    save_file({name: tensor * torch.nan for name, tensor in load_file(weights).items()}, weights)
    functions = with_functions(longer("Brief"), longer("Kind", weight=3.0))
    settings: dict[str, Any] = {"principles": principles, "functions": functions}
    asked: list[bool] = []

    def looked_for(name: str, revision: str | None, *, weights: bool) -> ModelFiles:
        asked.append(weights)
        return find_model(name, revision, weights=weights)

    monkeypatch.setattr(judge_module, "find_model", looked_for)
    dataset = judged(make_dataset(rows, COMPLETIONS), tmp_path, tmp_path / "model", **settings)
    assert asked == [False], "nothing of the model is fetched that is not read"
    by_judge = [step for step in dataset.manifest.recipe.values() if step["stage"] == "judge"]
    assert [step.get("models", {}) for step in by_judge] == [{}]
    assert {j["principle"] for j in judgements(dataset)} == {"Brief", "Kind"}
    assert all(j["s12"] == j["s21"] for j in judgements(dataset))


def test_a_function_rewards_a_completion_once_whatever_it_is_compared_with(
    make_dataset: Callable[..., Dataset], tiny_model: Path, principles: str, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(
        "def counted(item, log):\n"
        "    with open(log, 'a') as file:\n"
        "        file.write(item.text + '\\n')\n"
        "    return len(item.text)\n"
    )
    texts = [f"an answer of its own{'!' * number}" for number in range(4)]
    one = {"function": f"{tmp_path / 'mine.py'}:counted", "settings": {"log": str(tmp_path / "log")}}
    functions = with_functions({"principle": "Brief", **one}, longer("Kind"))
    rows = sampled_rows([texts])
    rows[0]["completions"][0]["reference"] = False
    settings: dict[str, Any] = {"principles": principles, "functions": functions}
    dataset = judged(make_dataset(rows, COMPLETIONS), tmp_path, tiny_model, **settings)
    assert [j["score"] for j in judgements(dataset) if j["principle"] == "Brief"] == [-1.0, -2.0, -1.0]
    assert (tmp_path / "log").read_text().splitlines() == texts[1:]


def test_a_function_that_waits_for_others_judges_many_completions_at_a_time(
    rows: list[dict[str, Any]],
    make_dataset: Callable[..., Dataset],
    tiny_model: Path,
    principles: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dataset = make_dataset(rows, COMPLETIONS)
    functions = with_functions(longer("Brief"), longer("Kind"))
    settings: dict[str, Any] = {"principles": principles, "functions": functions}
    one_by_one = judged(dataset, tmp_path / "a", tiny_model, **settings)
    monkeypatch.setitem(AT_ONCE, "format_match", 4)
    at_once = judged(dataset, tmp_path / "b", tiny_model, **settings)
    assert judgements(at_once) == judgements(one_by_one)


def test_a_function_sees_how_a_completion_ended(
    rows: list[dict[str, Any]],
    make_dataset: Callable[..., Dataset],
    tiny_model: Path,
    principles: str,
    tmp_path: Path,
) -> None:
    finished = {"kind": "regex", "pattern": ".*", "finished": True}
    functions = with_functions(*(longer(name, settings=finished) for name in ("Brief", "Kind")))
    settings: dict[str, Any] = {"principles": principles, "functions": functions}
    whole = judged(make_dataset(rows, COMPLETIONS), tmp_path / "whole", tiny_model, **settings)
    assert {j["score"] for j in judgements(whole)} == {0.0}
    for row in rows:
        row["completions"][1]["finish_reason"] = "length"
    cut = judged(make_dataset(rows, COMPLETIONS), tmp_path / "cut", tiny_model, **settings)
    assert {j["score"] for j in judgements(cut)} == {1.0}


@pytest.mark.parametrize(
    ("functions", "expected"),
    [
        ([longer("Breif")], "did you mean Brief"),
        ([longer("Brief"), longer("Brief", weight=2.0)], "one function a principle"),
        ([longer("Brief", settings={"length": 3})], "settings"),
    ],
)
def test_functions_that_cannot_judge_are_refused(
    functions: list[dict[str, Any]], expected: str, tiny_model: Path, principles: str
) -> None:
    spec = JudgeSpec(judge=str(tiny_model), principles=principles, functions=with_functions(*functions))
    with pytest.raises(ConfigError, match=expected):
        PairJudge(spec)


def test_files_of_one_name_do_not_judge_under_two_principles() -> None:
    functions = with_functions(
        {"principle": "Brief", "function": "a/score.py:score"},
        {"principle": "Kind", "function": "b/score.py:score"},
    )
    with pytest.raises(ConfigError, match=r"functions='b/score.py:score'.*a/score.py:score is called"):
        JudgeSpec(judge="some/model", functions=functions)
    again = [{"principle": name, "function": "a/score.py:score"} for name in ("Brief", "Kind")]
    JudgeSpec(judge="some/model", functions=with_functions(*again))


def test_a_function_that_refuses_a_completion_is_named(
    rows: list[dict[str, Any]],
    make_dataset: Callable[..., Dataset],
    tiny_model: Path,
    principles: str,
    tmp_path: Path,
) -> None:
    rows[2]["metadata"] = json.dumps({"pattern": "("})
    functions = with_functions(longer("Brief"), longer("Kind", settings={"kind": "regex"}))
    for row in rows[:2] + rows[3:]:
        row["metadata"] = json.dumps({"pattern": ".*"})
    with pytest.raises(EngineError, match=r"format_match judges by 'Kind' and refused .*bad_pattern"):
        judged(
            make_dataset(rows, COMPLETIONS), tmp_path, tiny_model, principles=principles, functions=functions
        )
