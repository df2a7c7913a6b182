"""A judge behind an endpoint: what a real server's answers are worth, and a ranking by one that gives
log-probabilities, a letter alone, reasons first, or forgets the form."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau

from kubealign_components.config import from_parameters
from kubealign_components.data.chunks import merge, plan
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.schemas import COMPLETIONS
from kubealign_components.engines.chat_endpoint import Answer, AnswerToken, ChatEndpoint
from kubealign_components.engines.endpoint_judge import LETTER_ALONE, preference
from kubealign_components.engines.judge import JudgeSpec, Pair, PairJudge
from kubealign_components.errors import ConfigError, EngineError
from kubealign_components.judge.stage import JudgeConfig
from kubealign_components.rank.stage import RankConfig, run
from support.chat_server import ChatServer
from support.tiny import prompt_row

MakeDataset = Callable[..., Dataset]
PRINCIPLES = """
schema: kubealign.principles/v1
name: two
version: 1
principles:
  - {name: Even, positive: It is even.}
  - {name: Kind, positive: It is kind.}
"""
CONTROL = "What is 1 + 1?"
_SHOWN = re.compile(r"# Response \(a\)\n(\S+)\n\n# Response \(b\)\n(\S+)\n\n# Principle\n(\w+)")


class PlantedServer(ChatServer):
    """Finds a number better the larger it is, and what is shown first by one nat more; ``way`` says how it
    answers."""

    way = "logprobs"

    def reply(self, body: dict[str, Any]) -> tuple[int, object, dict[str, str]]:
        question = body["messages"][0]["content"]
        if CONTROL in question and self.way != "never":
            return 200, self._said("a", None), {}
        if self.way == "never":
            return 200, self._said("As an assistant I cannot say", None), {}
        shown = _SHOWN.search(question)
        assert shown is not None, question
        with self.lock:
            self.asked.append(body)
        if self.way == "letter" and "logprobs" in body:
            return 400, {"error": {"message": "logprobs is not supported with this model"}}, {}
        if "13" in shown.groups() and self.way == "strict":
            return 200, self._said("Both are good, I prefer a", None), {}
        if "13" in shown.groups() and self.way == "long":
            return 400, {"error": {"message": "the maximum context length is 9 tokens"}}, {}
        log_odds = (float(shown[1]) - float(shown[2])) / 3 + 1
        letter = "a" if log_odds > 0 else "b"
        text = f"<think>(b) or (a)?</think>\n\n({letter})" if self.way == "reasons" else letter
        likely = -math.log1p(math.exp(-abs(log_odds)))
        other = "b" if letter == "a" else "a"
        top = {letter: likely, other: likely - abs(log_odds), "The": -30.0}
        return 200, self._said(text, top if "logprobs" in body else None), {}

    def _said(self, text: str, top: dict[str, float] | None) -> object:
        choice: dict[str, object] = {"message": {"role": "assistant", "content": text}}
        if top is not None:
            listed = [{"token": token, "logprob": value, "bytes": None} for token, value in top.items()]
            tokens = re.findall(r"\w+|\W+", text)
            content = [
                {"token": t, "logprob": 0.0, "top_logprobs": [{"token": t, "logprob": 0.0}]} for t in tokens
            ]
            at = next(i for i in reversed(range(len(tokens))) if tokens[i] in "ab")
            content[at] = {"token": tokens[at], "logprob": 0.0, "top_logprobs": listed}
            choice["logprobs"] = {"content": content}
        return {"choices": [choice]}


@pytest.fixture
def server() -> Iterator[PlantedServer]:
    with PlantedServer().serving() as server:
        yield server


@pytest.fixture
def principles(tmp_path: Path) -> str:
    (tmp_path / "two.yaml").write_text(PRINCIPLES)
    return str(tmp_path / "two.yaml")


def spec(server: PlantedServer, principles: str, **settings: Any) -> JudgeSpec:
    return JudgeSpec(judge="some-judge", endpoint=server.url, principles=principles, patience=5.0, **settings)


def numbers(make_dataset: MakeDataset, *of_rows: list[int]) -> Dataset:
    """A prompt for each row, with numbers for completions."""
    rows = []
    for row_number, values in enumerate(of_rows):
        row = prompt_row(f"question {row_number}?", [str(value) for value in values])
        for position, completion in enumerate(row["completions"]):
            completion |= {"reference": True, "completion_id": f"{row_number:016x}{position:016x}"}
        rows.append(row)
    return make_dataset(rows, COMPLETIONS)


def ranked(
    dataset: Dataset, judge: JudgeSpec, folder: Path, name: str = "ranked", chunks: int = 1
) -> Dataset:
    planned = plan(dataset, work=str(folder / "work"), chunks=chunks)
    config = RankConfig(judge=judge, resolved=1.0)
    return merge([run(config, chunk=chunk) for chunk in planned], planned, str(folder / name))


@pytest.mark.parametrize("way", ["logprobs", "reasons"])
def test_log_probabilities_of_both_letters_are_the_preference(
    way: str, server: PlantedServer, principles: str
) -> None:
    server.way = way
    judge = PairJudge(spec(server, principles))
    messages = [{"role": "user", "content": "Which?"}]
    for judgements, gap in zip(judge.judge([Pair(messages, "6", "3"), Pair(messages, "3", "9")]), (1, -2)):
        assert judgements is not None
        assert [j.principle for j in judgements] == ["Even", "Kind"]
        for one in judgements:
            assert (one.s12, one.s21) == pytest.approx((gap + 1, gap - 1), abs=1e-9)
    assert len(server.asked) == 8
    one = server.asked[0]
    assert (one["model"], one["temperature"], one["max_tokens"]) == ("some-judge", 0.0, 16)


@pytest.mark.parametrize("way", ["logprobs", "letter"])
def test_a_ranking_asks_each_question_once_and_is_kept_by_content(
    way: str, server: PlantedServer, principles: str, make_dataset: MakeDataset, tmp_path: Path
) -> None:
    server.way = way
    values = [[4, 16, 1, 9, 12], [30, 20, 10]]
    made = ranked(numbers(make_dataset, *values), spec(server, principles), tmp_path)
    for row, of_row in zip(made.iter_rows(), values, strict=True):
        assert kendalltau([c["reward"] for c in row["completions"]], of_row).statistic > 0.999
    questions = [
        one["messages"][0]["content"] for one in server.asked if way == "logprobs" or "logprobs" not in one
    ]
    pairs = made.manifest.stats["counts"]["comparisons"]
    assert len(questions) == len(set(questions)) == 4 * pairs  # two orders, two principles
    told = made.manifest.provenance.step
    assert (told["params"]["judge"]["endpoint"], told["params"]["judge"]["judge"]) == (
        server.url,
        "some-judge",
    )
    assert not told["models"]
    server.asked.clear()
    otherwise = spec(server, principles, seconds=9.0, key_variable="OTHER")
    again = ranked(numbers(make_dataset, *values, [7, 8]), otherwise, tmp_path, "again", chunks=2)
    assert {_SHOWN.search(one["messages"][0]["content"])[1] for one in server.asked} == {"7", "8"}
    assert again.manifest.provenance.step["params"] == told["params"]


@pytest.mark.parametrize("way", ["strict", "long"])
def test_what_is_not_answered_with_a_letter_is_left_out_and_counted(
    way: str, server: PlantedServer, principles: str, make_dataset: MakeDataset, tmp_path: Path
) -> None:
    server.way = way
    made = ranked(numbers(make_dataset, [4, 16, 13, 9]), spec(server, principles), tmp_path)
    [row] = made.iter_rows()
    assert len(row["completions"]) == 3
    counts = made.manifest.stats["counts"]
    assert (counts["completions_without_answer"], counts["pairs_without_answer"]) == (1, 3)


def test_a_judge_that_never_gives_a_letter_is_an_error_and_not_an_empty_dataset(
    server: PlantedServer, principles: str, make_dataset: MakeDataset, tmp_path: Path
) -> None:
    server.way = "never"
    with pytest.raises(
        EngineError, match=r"some-judge at .* gave none; it says 'As an assistant.*answer_tokens"
    ):
        ranked(numbers(make_dataset, [1, 2, 3]), spec(server, principles), tmp_path)


def test_a_judge_that_has_given_letters_may_have_none_for_some_prompts(
    server: PlantedServer, principles: str
) -> None:
    """As one that will not answer what is harmful; a row of them may be asked about alone."""
    server.way = "strict"
    judge = PairJudge(spec(server, principles))
    refused, usual = (Pair([{"role": "user", "content": "Which?"}], one, "4") for one in ("13", "9"))
    assert None not in judge.judge([usual])
    assert judge.judge([refused, refused]) == [None, None]
    # Nor is it an error where they come first, as on every retry of a slice: it answers what any judge can.
    assert PairJudge(spec(server, principles)).judge([refused, refused]) == [None, None]


def test_a_server_without_log_probabilities_is_asked_for_them_in_the_beginning_alone(
    server: PlantedServer, principles: str
) -> None:
    server.way = "letter"
    judge = PairJudge(spec(server, principles))
    pair = Pair([{"role": "user", "content": "Which?"}], "9", "4")
    judge.judge([pair])
    server.asked.clear()
    judge.judge([pair])
    assert len(server.asked) == 4 and not any("logprobs" in one for one in server.asked)


def test_settings_of_a_loaded_judge_are_refused_of_an_endpoint() -> None:
    for setting in (
        {"adapter": "a"}, {"revision": "main"}, {"quantise": True}, {"max_length": 9},
        {"chat_template": "t.jinja"}, {"chat_template_kwargs": {"enable_thinking": False}},
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=f"{next(iter(setting))}=.* with an endpoint"):
            JudgeSpec(judge="j", endpoint="http://judge:8000/v1", **setting)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="endpoint='judge:8000'"):
        JudgeSpec(judge="j", endpoint="judge:8000")
    with pytest.raises(ConfigError, match=r"answer_tokens=64.* without an endpoint"):
        JudgeSpec(judge="j", answer_tokens=64)
    with pytest.raises(ConfigError, match="its own judge"):
        JudgeConfig(judge="j", endpoint="http://judge:8000/v1")
    options = {"judge": {"endpoint": "http://judge:8000/v1"}}
    config = from_parameters(RankConfig, {"judge": "some-judge", "options": options}, "rank")
    assert config.judge.server().url == "http://judge:8000/v1"


LOG_ODDS = st.floats(-8, 8)


@given(LOG_ODDS, st.sampled_from(["a", "A", " a", "(a", "a)"]), st.sampled_from(["b", "B", " b", "(b"]))
def test_letters_count_however_they_are_written(log_odds: float, one: str, other: str) -> None:
    top = {one: -0.5, other: -0.5 - log_odds, "The": -12.0}
    said = one if log_odds > 0 else other
    assert preference(Answer(said, [AnswerToken(said, top)])) == pytest.approx(log_odds, abs=1e-9)


def test_what_a_letter_is_worth_without_the_other_one() -> None:
    spread = {"a": -1.0, " a": -1.0, "The": -5.0}
    assert preference(Answer("a", [AnswerToken("a", spread)])) == pytest.approx(-1 + math.log(2) + 5)
    certain = [AnswerToken("b", {"b": 0.0})]  # of one alternative: nothing says how much less likely a is
    assert preference(Answer("b", certain)) == preference(Answer("**b**.")) == -LETTER_ALONE
    impossible = preference(Answer("a", [AnswerToken("a", {"a": 0.0, "b": -math.inf, "B": -math.inf})]))
    assert impossible is not None and 100 < impossible < math.inf
    assert preference(Answer(" (A)")) == LETTER_ALONE
    for text in ("", "c", "a or b", "ab", "a, because it is short", "<think>a</think>", "I prefer (a)"):
        assert preference(Answer(text)) is None


class StrictServer(ChatServer):
    """Refuses settings by name, and answers in parts, as servers of models that reason do."""

    refused: tuple[str, ...] = ()
    names_it = True
    status = 400
    content: object = "a"

    def reply(self, body: dict[str, Any]) -> tuple[int, object, dict[str, str]]:
        with self.lock:
            self.asked.append(body)
        for name in self.refused:
            if name in body:
                param = name if self.names_it else "None"  # which vLLM writes for no parameter
                error = {"message": f"Unsupported parameter: '{name}'", "param": param}
                return self.status, {"error": error}, {}
        if self.content is None:
            return 200, {"error": {"message": "Provider returned error", "code": 529}}, {}
        return 200, {"choices": [{"message": {"role": "assistant", "content": self.content}}]}, {}


def endpoint(server: ChatServer) -> ChatEndpoint:
    return ChatEndpoint(url=server.url, model="m", key_variable="NO_KEY", seconds=5.0, patience=0.1)


def test_settings_that_a_server_refuses_are_given_otherwise(caplog: pytest.LogCaptureFixture) -> None:
    sampling = {"temperature": 0.0, "seed": 0, "max_tokens": 9, "top_p": 1.0}
    with StrictServer().serving() as server:
        server.refused = ("max_tokens", "temperature", "seed")
        asked = endpoint(server)
        for _ in range(2):
            assert asked.answer([], sampling).text == "a"
        assert len(server.asked) == 5 and caplog.text.count("instead") == 1
        last = {name: value for name, value in server.asked[-1].items() if name not in ("model", "messages")}
        assert last == {"max_completion_tokens": 9, "top_p": 1.0}
        server.refused = ("max_completion_tokens",)
        with pytest.raises(EngineError, match=r"answered 400: .*max_completion_tokens"):
            asked.answer([], sampling)


def test_a_refusal_that_names_no_parameter_is_read_and_one_of_the_key_is_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with StrictServer().serving() as server:
        server.refused, server.names_it = ("temperature",), False
        assert endpoint(server).answer([], {"temperature": 0.0}).text == "a"
        assert "instead" in caplog.text or "the server's own temperature holds" in caplog.text
        server.names_it, server.status = True, 401
        with pytest.raises(EngineError, match="401"):
            endpoint(server).answer([], {"temperature": 0.0})


QUESTION = [{"role": "user", "content": 'Say "temperature" \n of logprobs and a context length'}]


class EchoingServer(ChatServer):
    """Refuses every request, and repeats it."""

    write = staticmethod(json.dumps)

    def reply(self, body: dict[str, Any]) -> tuple[int, object, dict[str, str]]:
        return 400, {"error": {"message": f"model_type is bad: {self.write(body)}", "param": None}}, {}


@pytest.mark.parametrize(
    "write", [json.dumps, repr, lambda body: " ".join(f"{k}={v!r}" for k, v in body.items())]
)
def test_what_a_refusal_only_repeats_is_not_refused(
    write: Callable[[object], str], caplog: pytest.LogCaptureFixture
) -> None:
    with EchoingServer().serving() as server:
        server.write = write
        given = {"temperature": 0.0, "seed": 0, "max_tokens": 9, "logprobs": True}
        with pytest.raises(EngineError, match="model_type is bad"):
            endpoint(server).answer(QUESTION, given)
    assert "instead" not in caplog.text


def test_what_comes_beside_plain_texts_is_read_or_told() -> None:
    thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "b?"}]}
    with StrictServer().serving() as server:
        server.content = [thinking, {"type": "text", "text": "a"}]
        assert endpoint(server).answer([], {}).text == "a"
        server.content = None
        with pytest.raises(EngineError, match=r"gave no chat completion .*Provider returned error"):
            endpoint(server).answer([], {})
