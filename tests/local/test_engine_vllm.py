"""vLLM samples what it says it samples: on a real model, and inside a component's subprocess."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from kubealign_components.data.chat import ChatTemplate
from kubealign_components.data.chunks import Part, plan
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.models import find_model
from kubealign_components.data.schemas import PROMPTS
from kubealign_components.engines.generation import (
    GenerationEngine,
    Prompt,
    Sampled,
    SamplingSpec,
    open_engine,
)
from kubealign_components.errors import DataError, EngineError
from kubealign_components.filter.stage import FilterConfig
from kubealign_components.filter.stage import run as run_filter
from support.tiny import in_order, prompt_row

pytestmark = [
    pytest.mark.model,
    # vLLM runs in this process here, and warns in its own and its libraries' name.
    pytest.mark.filterwarnings("default"),
]

QUESTIONS = ["Name a colour.", "What is 2 + 2?", "Say hello.", "Write one word.", "Who are you?", "Why?"]
SPEC = SamplingSpec(n=6, max_new_tokens=24, dtype="float32", max_model_len=512, temperature=0.8, top_p=0.9)


@pytest.fixture(scope="module")
def smollm2() -> Path:
    cache = Path(os.environ.get("KUBEALIGN_CACHE", Path.home() / ".cache" / "kubealign"))
    if not (cache / "smollm2" / "config.json").is_file():
        pytest.skip(f"SmolLM2 is not at {cache / 'smollm2'}; make demo fetches it")
    return cache / "smollm2"


@pytest.fixture(scope="module")
def prompts(smollm2: Path) -> list[Prompt]:
    template = ChatTemplate(find_model(str(smollm2)))
    ids = [template.prompt_ids([{"role": "user", "content": q}]) for q in QUESTIONS]
    # The last ones are one prompt under many ids: only their seeds tell them apart.
    twins = [Prompt(f"{100 + i:032x}", ids[0]) for i in range(16)]
    return [*(Prompt(f"{i:032x}", tokens) for i, tokens in enumerate(ids)), *twins]


@pytest.fixture(scope="module")
def engine(smollm2: Path) -> Iterator[GenerationEngine]:
    with open_engine(SPEC, smollm2) as engine:
        yield engine


@pytest.fixture(scope="module")
def sampled(engine: GenerationEngine, prompts: list[Prompt]) -> list[list[Sampled]]:
    return in_order(engine, prompts)


def test_sampler_logprobs_are_those_of_a_plain_forward(
    sampled: list[list[Sampled]], prompts: list[Prompt], smollm2: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    differences = []
    for prompt, row in zip(prompts[:6], sampled):
        for s in row[:3]:
            ids = torch.tensor([[*prompt.token_ids, *s.token_ids]])
            with torch.inference_mode():
                logits = model(ids).logits[0, len(prompt.token_ids) - 1 : -1].double()
            expected = logits.log_softmax(-1).gather(1, torch.tensor(s.token_ids)[:, None]).sum().item()
            differences.append(abs(s.logprob - expected))
    assert max(differences) < 1e-3


def test_every_prompt_and_completion_has_a_seed_of_its_own(
    sampled: list[list[Sampled]], engine: GenerationEngine, prompts: list[Prompt]
) -> None:
    twins = sampled[6:]
    assert len({tuple(s.token_ids) for row in twins for s in row}) > 80
    assert len({s.token_ids[0] for row in twins for s in row[:1]}) > 2
    again = in_order(engine, prompts[6:8])
    assert [s.token_ids for row in again for s in row] == [s.token_ids for row in twins[:2] for s in row]


def test_completions_end_with_the_end_token_or_are_cut(sampled: list[list[Sampled]], smollm2: Path) -> None:
    end = AutoTokenizer.from_pretrained(smollm2).eos_token_id
    flat = [s for row in sampled for s in row]
    assert {s.finish_reason for s in flat} == {"stop", "length"}
    for s in flat:
        assert s.token_ids.count(end) == (s.finish_reason == "stop")
        assert (s.token_ids[-1] == end) == (s.finish_reason == "stop")
        assert len(s.token_ids) == 24 or s.finish_reason == "stop"


def test_a_prompt_without_room_is_named(engine: GenerationEngine) -> None:
    with pytest.raises(DataError, match=r"prompt d{32} has 489 tokens; .*max_model_len=512"):
        in_order(engine, [Prompt("d" * 32, [5] * 489)])


def test_stop_strings_and_a_second_engine_in_one_process(prompts: list[Prompt], smollm2: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    spec = SamplingSpec(n=4, max_new_tokens=32, dtype="float32", max_model_len=512, stop=(".", "?"))
    with open_engine(spec, smollm2) as engine:
        rows = in_order(engine, prompts[:4])
    stopped = [tokenizer.decode(s.token_ids) for row in rows for s in row if s.finish_reason == "stop"]
    assert any(text.endswith((".", "?")) for text in stopped)
    for text in stopped:
        body = text.removesuffix("<|im_end|>")
        assert not any(mark in body[:-1] for mark in ".?")


def test_prompts_are_taken_as_there_is_room_and_a_stopped_stream_leaves_the_engine_whole(
    prompts: list[Prompt], smollm2: Path
) -> None:
    spec = SamplingSpec(
        n=2, max_new_tokens=6, dtype="float32", max_model_len=512, engine_args={"max_num_seqs": 4}
    )
    taken = []

    def source() -> Iterator[Prompt]:
        for prompt in prompts:
            taken.append(prompt)
            yield prompt

    with open_engine(spec, smollm2) as engine:
        whole = in_order(engine, prompts)
        stream = engine.generate(source())
        name, first = next(stream)
        assert len(taken) < len(prompts) / 2
        stream.close()
        again = dict(engine.generate(prompts))
    assert set(again) == {prompt.prompt_id for prompt in prompts}
    assert [s.token_ids for s in again[name]] == [s.token_ids for s in first]
    assert [[s.token_ids for s in again[p.prompt_id]] for p in prompts] == [
        [s.token_ids for s in row] for row in whole
    ]


def test_a_start_that_fails_says_why(smollm2: Path) -> None:
    spec = SamplingSpec(n=1, max_new_tokens=4, engine_args={"no_such_option": 1})
    with pytest.raises(EngineError, match=r"vLLM cannot start with .*no_such_option"):
        open_engine(spec, smollm2)


def test_the_component_samples_in_a_subprocess_of_kfp(
    make_dataset: Callable[..., Dataset], smollm2: Path, tmp_path: Path
) -> None:
    from kfp import local

    from kubealign_components.sample.component import sample

    raw = make_dataset([prompt_row(q) for q in QUESTIONS[:3]], PROMPTS)
    run_filter(FilterConfig(policy=str(smollm2)), prompts=raw, output=str(tmp_path / "tokenized"))
    [chunk] = plan(Dataset.open(str(tmp_path / "tokenized")), work=str(tmp_path / "work"), chunks=1)
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / "root"))
    options: dict[str, Any] = {"sampling": {"max_model_len": 512, "dtype": "float32"}}
    task = sample(
        chunk=json.loads(json.dumps(chunk.to_json())),
        policy=str(smollm2),
        n=2,
        max_new_tokens=12,
        options=options,
    )
    out = Dataset.open(Part.from_json(task.output).uri)
    assert [len(row["completions"]) for row in out.iter_rows()] == [2, 2, 2]
    start = AutoTokenizer.from_pretrained(smollm2).bos_token_id
    for row in out.iter_rows():
        assert row["prompt_token_ids"][:2].count(start) == 1
        assert all(json.loads(c["messages"])[0]["content"] is not None for c in row["completions"])
