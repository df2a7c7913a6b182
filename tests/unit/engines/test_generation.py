"""Sampling engines: reproducible, and right about what they sampled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from kubealign_components.engines.fake import FakeEngine
from kubealign_components.engines.generation import (
    GenerationEngine,
    Prompt,
    Sampled,
    SamplingSpec,
    check_sampled,
    context_limit,
    end_token_ids,
    open_engine,
    versions_of,
)
from kubealign_components.engines.transformers_engine import TransformersEngine, choose
from kubealign_components.errors import ConfigError, DataError, EngineError
from support.tiny import build_tiny_model, in_order

END = 2


def spec_of(**values: Any) -> SamplingSpec:
    return SamplingSpec(**{"engine": "transformers", "n": 4, "max_new_tokens": 12, **values})


def prompts_of(count: int, length: int = 7) -> list[Prompt]:
    random = np.random.default_rng(0)
    return [Prompt(f"{i:032x}", random.integers(3, 250, length + i).tolist()) for i in range(count)]


def sample(spec: SamplingSpec, model: Path, prompts: Sequence[Prompt]) -> list[list[Sampled]]:
    with open_engine(spec, model) as engine:
        return in_order(engine, prompts)


@pytest.fixture(scope="module")
def ending_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama that ends a turn with a probability of about a third."""
    folder = build_tiny_model(tmp_path_factory.mktemp("models") / "ending", seed=3)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        rest = [i for i in range(model.lm_head.weight.shape[0]) if i != END]
        model.lm_head.weight[rest] *= 0.3
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reference(tiny_model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()


def plain_logprobs(model: Any, prompt: Sequence[int], completion: Sequence[int]) -> torch.Tensor:
    """Log-probabilities of ``completion`` by one forward pass without cache, shape (len(completion),)."""
    ids = torch.tensor([[*prompt, *completion]])
    with torch.inference_mode():
        logits = model(ids).logits[0, len(prompt) - 1 : -1].double()
    return logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None])[:, 0]


@pytest.mark.parametrize("options", [{}, {"temperature": 0.6, "top_p": 0.8}], ids=["plain", "sharpened"])
def test_logprob_is_that_of_a_plain_forward_before_temperature_and_top_p(
    options: dict[str, Any], ending_model: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(ending_model, dtype=torch.float32).eval()
    prompts = prompts_of(3)
    for prompt, row in zip(prompts, sample(spec_of(n=6, **options), ending_model, prompts)):
        for s in row:
            expected = plain_logprobs(model, prompt.token_ids, s.token_ids).sum().item()
            assert s.logprob == pytest.approx(expected, abs=1e-3)


def test_completions_stop_with_the_end_token_or_are_cut(ending_model: Path) -> None:
    rows = sample(spec_of(n=8, max_new_tokens=4), ending_model, prompts_of(4))
    flat = [s for row in rows for s in row]
    assert {s.finish_reason for s in flat} == {"stop", "length"}
    for s in flat:
        assert s.token_ids.count(END) == (s.finish_reason == "stop")
        assert (s.token_ids[-1] == END) == (s.finish_reason == "stop")
        assert len(s.token_ids) == 4 or s.finish_reason == "stop"


def test_rows_that_end_early_do_not_change_the_others(ending_model: Path) -> None:
    long, short = (
        sample(spec_of(n=8, max_new_tokens=length), ending_model, prompts_of(2)) for length in (16, 3)
    )
    assert len({len(s.token_ids) for row in long for s in row}) > 2
    for a, b in zip([s for row in long for s in row], [s for row in short for s in row]):
        assert a.token_ids[:3] == b.token_ids


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(5)), cut=st.integers(1, 4))
def test_samples_do_not_depend_on_the_other_prompts(
    tiny_model: Path, order: list[int], cut: int, seen: dict[str, list[Sampled]]
) -> None:
    prompts = [prompts_of(5)[i] for i in order]
    with TransformersEngine(spec_of(), tiny_model) as engine:
        rows = in_order(engine, prompts[:cut]) + in_order(engine, prompts[cut:])
    for prompt, row in zip(prompts, rows):
        assert row == seen.setdefault(prompt.prompt_id, row)


@pytest.fixture(scope="module")
def seen() -> dict[str, list[Sampled]]:
    """The first samples of each prompt, which every later run must repeat."""
    return {}


@pytest.mark.parametrize("engine", ["transformers", "fake"])
def test_completions_differ_within_a_prompt_and_between_neighbours(engine: str, tiny_model: Path) -> None:
    twins = [Prompt(f"{i:032x}", [5, 6, 7, 8]) for i in range(12)]
    rows = sample(spec_of(engine=engine, n=6), tiny_model, twins)
    assert [len(row) for row in rows] == [6] * 12
    everything = Counter(tuple(s.token_ids) for row in rows for s in row if len(s.token_ids) > 4)
    assert len(everything) > 10
    assert set(everything.values()) == {1}
    again = sample(spec_of(engine=engine, n=6), tiny_model, twins[3:5])
    assert again == rows[3:5]
    assert sample(spec_of(engine=engine, n=6, seed=1), tiny_model, twins[3:5]) != again


def test_temperature_zero_is_what_transformers_generates(tiny_model: Path, reference: Any) -> None:
    prompts = prompts_of(3)
    rows = sample(spec_of(n=1, temperature=0), tiny_model, prompts)
    for prompt, [s] in zip(prompts, rows):
        ids = torch.tensor([list(prompt.token_ids)])
        expected = reference.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12
        )
        assert s.token_ids == expected[0, len(prompt.token_ids) :].tolist()


def test_a_low_temperature_comes_close_to_greedy(tiny_model: Path) -> None:
    [greedy] = sample(spec_of(n=1, temperature=0), tiny_model, prompts_of(1))[0]
    cold = sample(spec_of(n=8, temperature=0.01), tiny_model, prompts_of(1))[0]
    assert Counter(tuple(s.token_ids) for s in cold).most_common(1)[0][0] == tuple(greedy.token_ids)


def test_top_p_samples_only_the_nucleus(tiny_model: Path, reference: Any) -> None:
    [prompt] = prompts_of(1)
    for s in sample(spec_of(n=16, top_p=0.3), tiny_model, [prompt])[0]:
        ids = torch.tensor([[*prompt.token_ids, *s.token_ids]])
        with torch.inference_mode():
            logits = reference(ids).logits[0, len(prompt.token_ids) - 1 : -1]
        for token, p in zip(s.token_ids, logits.double().softmax(-1)):
            more_likely = p[p > p[token]].sum().item()
            assert more_likely < 0.3 + 1e-5


def test_choose_follows_the_distribution_and_its_nucleus() -> None:
    probabilities = torch.tensor([0.1, 0.5, 0.0, 0.25, 0.15])
    uniform = (torch.arange(10000, dtype=torch.float64) + 0.5) / 10000
    logits = probabilities.log().expand(10000, -1)

    def shares(temperature: float, top_p: float) -> list[float]:
        counts = torch.bincount(choose(logits, uniform, temperature, top_p), minlength=5)
        return (counts / 10000).tolist()

    assert shares(1.0, 1.0) == pytest.approx(probabilities.tolist(), abs=2e-4)
    squared = probabilities**2 / (probabilities**2).sum()
    assert shares(0.5, 1.0) == pytest.approx(squared.tolist(), abs=2e-4)
    assert shares(1.0, 0.6) == pytest.approx([0, 2 / 3, 0, 1 / 3, 0], abs=2e-4)
    assert shares(1.0, 0.01) == [0, 1, 0, 0, 0]
    last = torch.full((1,), 1 - 2**-53, dtype=torch.float64)
    assert choose(logits[:1], last, 1.0, 1.0).tolist() == [4]


def test_stop_strings_end_a_completion_and_stay_in_it(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    [free] = sample(spec_of(n=12, max_new_tokens=24), tiny_model, prompts_of(1))
    texts = [tokenizer.decode(s.token_ids, skip_special_tokens=True) for s in free]
    stop = next(t for t in texts if len(t) > 8)[4:6]
    [stopped] = sample(spec_of(n=12, max_new_tokens=24, stop=(stop,)), tiny_model, prompts_of(1))
    hits = 0
    for before, after, text in zip(free, stopped, texts):
        kept = tokenizer.decode(after.token_ids, skip_special_tokens=True)
        assert before.token_ids[: len(after.token_ids)] == after.token_ids
        if stop in text:
            hits += 1
            assert after.finish_reason == "stop"
            assert kept.endswith(stop)
            assert kept.index(stop) == len(kept) - len(stop)
        else:
            # The stopped rows leave the batch, and another batch size rounds the last bits differently.
            assert (after.token_ids, after.finish_reason) == (before.token_ids, before.finish_reason)
            assert after.logprob == pytest.approx(before.logprob, abs=1e-3)
    assert hits


def test_all_sources_of_end_tokens_count(tmp_path: Path) -> None:
    folder = build_tiny_model(tmp_path / "model")
    assert end_token_ids(folder) == (END,)
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 0]}')
    assert end_token_ids(folder) == (0, END, 7)
    (folder / "generation_config.json").write_text("{}")
    assert end_token_ids(folder) == (END,)
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "chat_template.jinja").unlink()
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"eos_token_id": 2', '"eos_token_id": null'))
    with pytest.raises(EngineError, match="names no end-of-turn token"):
        end_token_ids(folder)


@pytest.mark.parametrize("engine", ["transformers", "fake"])
def test_a_prompt_without_room_is_named_before_anything_is_sampled(engine: str, tiny_model: Path) -> None:
    spec = spec_of(engine=engine, max_model_len=20)
    assert context_limit(spec, tiny_model) == 20
    assert context_limit(spec_of(engine=engine), tiny_model) == 2048
    fits, too_long = Prompt("a" * 32, [5] * 8), Prompt("b" * 32, [5] * 9)
    assert len(sample(spec, tiny_model, [fits])) == 1
    with pytest.raises(DataError, match=r"prompt b{32} has 9 tokens; .*max_model_len=20"):
        sample(spec, tiny_model, [fits, too_long])


def test_fake_completions_look_like_samples(tiny_model: Path) -> None:
    engine: GenerationEngine = FakeEngine(spec_of(engine="fake", n=50, max_new_tokens=30), tiny_model)
    flat = [s for row in in_order(engine, prompts_of(20)) for s in row]
    assert {s.finish_reason for s in flat} == {"stop", "length"}
    for s in flat:
        assert 1 <= len(s.token_ids) <= 30
        assert all(0 <= token < 259 for token in s.token_ids)
        assert (s.token_ids[-1] == END) == (s.finish_reason == "stop")
        assert s.token_ids.count(END) == (s.finish_reason == "stop")
        assert s.logprob < 0


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("engine", {"engine": "vlm"}),
        ("n", {"n": 0}),
        ("n", {"n": 2, "temperature": 0}),
        ("temperature", {"temperature": -0.1}),
        ("temperature", {"temperature": 0.001}),
        ("temperature", {"temperature": float("nan")}),
        ("top_p", {"top_p": 0}),
        ("max_new_tokens", {"max_new_tokens": 0}),
        ("stop", {"stop": ("",)}),
        ("stop", {"stop": ("x",), "engine": "fake"}),
        ("seed", {"seed": -1}),
        ("dtype", {"dtype": "fp32"}),
        ("max_model_len", {"max_model_len": -1}),
        ("memory_fraction", {"memory_fraction": 0}),
        ("tensor_parallel_size", {"tensor_parallel_size": 2}),
        ("engine_args", {"engine_args": {"a": 1}, "engine": "fake"}),
        ("engine_args", {"engine_args": {"a": object()}}),
        (r"engine_args\.seed", {"engine_args": {"seed": 1}}),
    ],
)
def test_bad_settings_are_named(field: str, values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"^{field}="):
        spec_of(**values)


def test_engine_failures_say_why(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no_such_model", "eos_token_id": 2}')
    with pytest.raises(EngineError, match=r"cannot load the model .*no_such_model"):
        open_engine(spec_of(), tmp_path)
    with pytest.raises(EngineError, match=r"no_such_option"):
        open_engine(spec_of(engine_args={"no_such_option": 1}), tiny_model)
    with pytest.raises(EngineError, match="no vocab_size"):
        open_engine(spec_of(engine="fake"), tmp_path)
    for bad in (Sampled([], "stop", 0.0), Sampled([1], "stop", 0.5), Sampled([1], "stop", float("nan"))):
        with pytest.raises(EngineError, match=f"prompt {'c' * 32}: sampled {len(bad.token_ids)} tokens"):
            check_sampled(Prompt("c" * 32, [1]), bad)


def test_versions_are_told_of_the_vllm_that_is_installed() -> None:
    """The CPU build has a distribution of another name."""
    import vllm

    told = versions_of("vllm")
    assert told["vllm"] == vllm.__version__.partition("+")[0]
    assert set(told) == {"vllm", "torch"}
