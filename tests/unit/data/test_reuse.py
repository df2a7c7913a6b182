"""One completion is computed once: more of them, another selection or round ask only for what is new."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from kubealign_components.config import from_mapping
from kubealign_components.data.chat import ChatTemplate
from kubealign_components.data.chunks import Chunk, Part, merge, plan
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.models import find_model
from kubealign_components.data.schemas import COMPLETIONS, canonical_json, completion_id, new_completion
from kubealign_components.engines import scoring
from kubealign_components.engines.fake import FakeEngine
from kubealign_components.engines.generation import Prompt, Sampled, SamplingSpec, open_engine
from kubealign_components.engines.packing import Group
from kubealign_components.engines.rewards import Outcome, Rewarder, RewardInput
from kubealign_components.filter.stage import FilterConfig
from kubealign_components.filter.stage import run as run_filter
from kubealign_components.judge.stage import JudgeConfig
from kubealign_components.judge.stage import run as judge
from kubealign_components.logprobs.stage import LogprobsConfig
from kubealign_components.logprobs.stage import run as logprobs
from kubealign_components.rewards.stage import RewardsConfig
from kubealign_components.rewards.stage import run as rewards
from kubealign_components.sample.stage import SampleConfig
from kubealign_components.sample.stage import run as sample
from support.datasets import MakeDataset
from support.tiny import prompt_row

Row = dict[str, Any]
PROMPTS = 3


def whole(run: Callable[[Chunk], Part], dataset: Dataset, folder: Path, name: str) -> Dataset:
    """What ``run`` makes of ``dataset`` in two chunks, in a work prefix that all share."""
    chunks = plan(dataset, work=str(folder / "work"), chunks=2)
    return merge([run(chunk) for chunk in chunks], chunks, str(folder / name))


@pytest.fixture
def tokenized(make_dataset: MakeDataset, tiny_model: Path, tmp_path: Path) -> Dataset:
    output = str(tmp_path / "tokenized")
    prompts = make_dataset([prompt_row(f"question {i}?") for i in range(PROMPTS)])
    run_filter(FilterConfig(policy=str(tiny_model), min_completions=0), prompts=prompts, output=output)
    return Dataset.open(output)


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many completions of each prompt the fake engine was asked for."""
    asked: list[int] = []
    generate = FakeEngine.generate

    def counted(engine: FakeEngine, prompts: Iterable[Prompt]) -> Iterator[tuple[str, list[Sampled]]]:
        for name, completions in generate(engine, prompts):
            asked.append(len(completions))
            yield name, completions

    monkeypatch.setattr(FakeEngine, "generate", counted)
    return asked


def sampling(model: Path, n: int, **other: Any) -> Callable[[Chunk], Part]:
    spec = SamplingSpec(engine="fake", n=n, max_new_tokens=8)
    return lambda chunk: sample(SampleConfig(policy=str(model), sampling=spec, **other), chunk=chunk)


def test_a_larger_n_samples_only_what_is_new(
    tokenized: Dataset, tiny_model: Path, tmp_path: Path, sampled: list[int]
) -> None:
    few = whole(sampling(tiny_model, 4), tokenized, tmp_path, "few")
    assert sampled == [4] * PROMPTS
    sampled.clear()
    many = whole(sampling(tiny_model, 8), tokenized, tmp_path, "many")
    assert sampled == [4] * PROMPTS
    sampled.clear()
    whole(sampling(tiny_model, 6), tokenized, tmp_path, "between")
    whole(sampling(tiny_model, 8, truncated="drop"), tokenized, tmp_path, "without the cut ones")
    assert sampled == []
    alone = whole(sampling(tiny_model, 8), tokenized, tmp_path / "alone", "many")
    assert list(many.iter_rows()) == list(alone.iter_rows())
    assert many.manifest.fingerprint == alone.manifest.fingerprint != few.manifest.fingerprint
    for before, after in zip(few.iter_rows(), many.iter_rows()):
        assert after["completions"][:4] == before["completions"]


@pytest.mark.parametrize("numbers", [(4, 5, 6, 7), (0, 2, 5), (7,)])
@pytest.mark.parametrize("engine", ["fake", "transformers"])
def test_a_completion_is_the_same_whichever_others_are_wanted(
    tiny_model: Path, engine: str, numbers: Sequence[int]
) -> None:
    spec = SamplingSpec(engine=engine, n=8, max_new_tokens=12, dtype="float32")
    with open_engine(spec, tiny_model) as opened:
        [(_, every)] = opened.generate([Prompt("a" * 32, [5, 6, 7])])
        [(_, some)] = opened.generate([Prompt("a" * 32, [5, 6, 7], numbers)])
    assert [s.token_ids for s in some] == [every[i].token_ids for i in numbers]
    assert [s.logprob for s in some] == pytest.approx([every[i].logprob for i in numbers], abs=1e-4)


def row_of(number: int, texts: Iterable[str], template: ChatTemplate | None = None) -> Row:
    row = prompt_row(f"question {number}?")
    row["completions"] = [
        new_completion(
            completion_id=completion_id(row["prompt_id"], list(text.encode())),
            reference=True,
            model="test",
            messages=canonical_json([{"role": "assistant", "content": text}]),
            token_ids=list(text.encode()),
            num_tokens=len(text.encode()),
            finish_reason="stop",
        )
        for text in texts
    ]
    if template:
        ids = template.prompt_ids([{"role": "user", "content": f"question {number}?"}])
        row |= {"prompt_token_ids": ids, "prompt_tokens": len(ids)}
    return row


FIRST, OTHER = ["one word", "two words"], ["two words", "three more words", "three more words"]
"""Completions of two selections: one is in both, one is there twice."""


def test_another_selection_is_rewarded_for_what_is_new_alone(
    make_dataset: MakeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    each_outcome = Rewarder.each_outcome

    def counted(rewarder: Rewarder, items: Sequence[RewardInput]) -> Iterator[Outcome]:
        asked.extend(item.text for item in items)
        return each_outcome(rewarder, items)

    monkeypatch.setattr(Rewarder, "each_outcome", counted)
    brevity = "kubealign_components.rewards.functions:brevity"
    config = from_mapping(RewardsConfig, {"reward": {"functions": [brevity]}}, "rewards")

    def rewarded(texts: list[str], name: str) -> Dataset:
        dataset = make_dataset(
            [row_of(i, texts) for i in range(PROMPTS)], COMPLETIONS, params={"texts": texts}
        )
        return whole(lambda chunk: rewards(config, chunk=chunk), dataset, tmp_path, name)

    rewarded(FIRST, "first")
    assert sorted(asked) == sorted(FIRST * PROMPTS)
    asked.clear()
    other = rewarded(OTHER, "other")
    assert asked == ["three more words"] * PROMPTS
    rewarded([*FIRST, *OTHER], "union")
    assert len(asked) == PROMPTS
    for row in other.iter_rows():
        assert [c["reward"] for c in row["completions"]] == [256 / (256 + len(text)) for text in OTHER]


def test_another_selection_is_scored_for_what_is_new_alone(
    make_dataset: MakeDataset, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[int] = []
    score = scoring.Scorer.score

    def counted(scorer: scoring.Scorer, groups: Sequence[Group]) -> Iterable[list[float]]:
        scored.extend(len(group.completions) for group in groups)
        return score(scorer, groups)

    monkeypatch.setattr(scoring.Scorer, "score", counted)
    template = ChatTemplate(find_model(str(tiny_model)))
    config = LogprobsConfig(policy=str(tiny_model))

    def of(texts: list[str], folder: Path, name: str) -> Dataset:
        rows = [row_of(i, texts, template) for i in range(PROMPTS)]
        dataset = make_dataset(rows, COMPLETIONS, params={"texts": texts}, identity=template.identity)
        return whole(lambda chunk: logprobs(config, chunk=chunk), dataset, folder, name)

    of(FIRST, tmp_path, "first")
    assert scored == [2] * PROMPTS
    scored.clear()
    other = of(OTHER, tmp_path, "other")
    of([*FIRST, *OTHER], tmp_path, "union")
    assert scored == [1] * PROMPTS
    alone = of(OTHER, tmp_path / "alone", "other")
    assert list(other.iter_rows()) == list(alone.iter_rows())


TWO = """
schema: kubealign.principles/v1
name: two
version: 1
principles: [{name: Brief, positive: It is short.}, {name: Kind, positive: It is kind.}]
"""


def test_another_completion_is_judged_against_the_others_and_no_pair_twice(
    make_dataset: MakeDataset, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kubealign_components.engines.judge import PairJudge

    judged: list[int] = []
    of_pairs = PairJudge.judge

    def counted(judge: PairJudge, pairs: Sequence[Any]) -> Any:
        judged.append(len(pairs))
        return of_pairs(judge, pairs)

    monkeypatch.setattr(PairJudge, "judge", counted)
    (tmp_path / "two.yaml").write_text(TWO)
    config = JudgeConfig(judge=str(tiny_model), principles=str(tmp_path / "two.yaml"), min_characters=1)

    def of(texts: list[str], folder: Path, name: str) -> Dataset:
        dataset = make_dataset(
            [row_of(i, texts) for i in range(PROMPTS)], COMPLETIONS, params={"texts": texts}
        )
        return whole(lambda chunk: judge(config, chunk=chunk), dataset, folder, name)

    of(FIRST, tmp_path, "first")
    assert sum(judged) == PROMPTS
    judged.clear()
    more = of([*FIRST, "a third"], tmp_path, "more")
    assert sum(judged) == 2 * PROMPTS
    alone = of([*FIRST, "a third"], tmp_path / "alone", "more")
    assert list(more.iter_rows()) == list(alone.iter_rows())
