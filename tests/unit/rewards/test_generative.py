"""The judge behind an endpoint: scores of a real server that is busy, refuses, and forgets the form."""

from __future__ import annotations

import json
import logging
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kubealign_components.data.chunks import plan
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.schemas import COMPLETIONS
from kubealign_components.engines.reward_functions import RewardFunctionSpec
from kubealign_components.engines.reward_input import RewardInput
from kubealign_components.engines.rewards import Outcome, Rewarder, RewardSpec
from kubealign_components.errors import ConfigError, EngineError
from kubealign_components.rewards.generative import score_of
from kubealign_components.rewards.stage import RewardsConfig, run
from kubealign_pipelines import build
from kubealign_pipelines.checking.rewards import check_functions
from kubealign_pipelines.checking.stages import check_stages
from kubealign_pipelines.compiler import graph_of
from kubealign_pipelines.resources import CompileSettings
from support.chat_server import ChatServer
from support.tiny import prompt_row

TOO_LONG = {
    "error": {
        "message": "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens.",
        "type": "BadRequestError",
        "param": None,
        "code": 400,
    }
}


class JudgeServer(ChatServer):
    """Answers as vLLM's server does, by what stands in the response that is judged."""

    def reply(self, body: dict[str, Any]) -> tuple[int, object, dict[str, str]]:
        question = body["messages"][0]["content"]
        with self.lock:
            before = sum(one["messages"] == body["messages"] for one in self.asked)
            self.asked.append(body)
        if "BUSY" in question and before < 2:
            return (429, 503)[before], {"message": "try later"}, {"Retry-After": "0"}
        if "LONG" in question:
            return 400, TOO_LONG, {}
        if "DOWN" in question:
            return 503, "no capacity", {}
        if "CLOSED" in question:
            return 401, {"error": "Unauthorized"}, {}
        if "MOVED" in question:
            return 302, "", {"Location": "http://127.0.0.1:1/v1"}
        if "PAGE" in question:
            return 200, "<html>Welcome</html>", {}
        if "ECHO" in question:
            return 400, f"no such header: {self.keys[-1]}", {}
        text = "Good.\nScore: 7.5"
        if ("CHATTY" in question and before < 1) or "NEVER" in question:
            text = "I would say Score: 9 or so"
        return 200, {"choices": [{"message": {"role": "assistant", "content": text}}]}, {}


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with JudgeServer().serving() as server:
        yield server


def rewarder(server: JudgeServer, **settings: Any) -> Rewarder:
    endpoint = f"http://127.0.0.1:{server.server_port}/v1"
    given = {"endpoint": endpoint, "model": "some-judge", "patience": 5.0, **settings}
    return Rewarder(RewardSpec(functions=(RewardFunctionSpec(function="generative_judge", settings=given),)))


def spec(**settings: Any) -> RewardFunctionSpec:
    given = {"endpoint": "http://judge/v1", "model": "some-judge", **settings}
    return RewardFunctionSpec(function="generative_judge", settings=given)


def item(text: str) -> RewardInput:
    return RewardInput(
        messages=[{"role": "user", "content": "What is it?"}],
        completion=[{"role": "assistant", "content": text}],
        text=text,
    )


def test_scores_stand_in_the_order_of_the_completions_whatever_the_server_does(server: JudgeServer) -> None:
    texts = ["plain", "BUSY", "LONG", "CHATTY", "NEVER", "with {high} braces"]
    outcomes = rewarder(server, temperature=1.0).outcomes([item(text) for text in texts])
    good = Outcome(reward=7.5)
    lost = [Outcome(reward=None, refused=reason) for reason in ("over_length", "no_score")]
    assert outcomes == [good, good, lost[0], good, lost[1], good]
    never = [one for one in server.asked if "NEVER" in one["messages"][0]["content"]]
    assert [one["seed"] for one in never] == [0, 1, 2]
    assert {one["temperature"] for one in server.asked} == {1.0}
    assert any("with {high} braces" in one["messages"][0]["content"] for one in server.asked)


def test_the_key_is_of_the_environment_and_in_no_recipe_or_error(
    server: JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBEALIGN_JUDGE_API_KEY", "very-secret-key")
    asked = rewarder(server)
    assert asked.outcomes([item("plain")]) == [Outcome(reward=7.5)]
    assert server.keys == ["Bearer very-secret-key"]
    assert "very-secret-key" not in json.dumps([asked.identity, str(asked.spec)])
    with pytest.raises(EngineError, match=r"401: put the key into .* KUBEALIGN_JUDGE_API_KEY") as refused:
        asked.outcomes([item("CLOSED very-secret-key")])
    assert "Bearer" not in str(refused.value)


def test_a_key_of_a_file_is_sent_without_its_newline_and_told_by_nobody(
    server: JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENDPOINT_ONE", "plainhexkey0123\n")
    asked = rewarder(server, key_variable="ENDPOINT_ONE")
    assert asked.outcomes([item("plain")]) == [Outcome(reward=7.5)]
    assert server.keys == ["Bearer plainhexkey0123"]
    with pytest.raises(EngineError, match=r"answered 400: .*no such header: Bearer …") as refused:
        asked.outcomes([item("ECHO")])
    assert "plainhexkey" not in str(refused.value)


@pytest.mark.parametrize("key", ["plainhex\r\nX: 1", "plainhex\tkey", "plainhexé"])
def test_what_is_no_key_is_refused_by_its_variable_before_anything_is_sent(
    server: JudgeServer, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("KUBEALIGN_JUDGE_API_KEY", key)
    with pytest.raises(EngineError, match="variable KUBEALIGN_JUDGE_API_KEY holds no key") as refused:
        rewarder(server).outcomes([item("plain")])
    assert "plainhex" not in str(refused.value) and server.asked == []


def test_what_was_answered_before_an_error_is_not_asked_again(
    server: JudgeServer, make_dataset: Callable[..., Dataset], tmp_path: Path
) -> None:
    rows = [prompt_row(f"question {n}?", ["DOWN" if n == 39 else f"answer {n}"]) for n in range(40)]
    for n, row in enumerate(rows):
        row["completions"][0] |= {"reference": True, "completion_id": f"{n:032x}"}
    dataset = make_dataset(rows, COMPLETIONS)
    [chunk] = plan(dataset, work=str(tmp_path / "work"), chunks=1)
    asked = []
    for patience in (0.5, 0.6):  # raised, as the error says
        given = {"endpoint": f"http://127.0.0.1:{server.server_port}/v1", "model": "m", "patience": patience}
        function = RewardFunctionSpec(function="generative_judge", settings=given)
        server.asked.clear()
        with pytest.raises(EngineError, match="patience"):
            run(RewardsConfig(reward=RewardSpec(functions=(function,))), chunk=chunk)
        asked.append({body["messages"][0]["content"] for body in server.asked})
    assert (len(asked[0]), len(asked[1])) == (40, 1)


def test_at_a_temperature_of_0_nothing_is_asked_twice(server: JudgeServer) -> None:
    assert rewarder(server).outcomes([item("NEVER")]) == [Outcome(reward=None, refused="no_score")]
    assert len(server.asked) == 1


def test_how_long_and_with_which_key_is_asked_is_no_part_of_a_recipe() -> None:
    plain = spec().params
    assert spec(patience=9.0, seconds=1.0, key_variable="OTHER").params == plain
    assert spec(seed=1).params != plain
    own = RewardFunctionSpec(function="own.py:generative_judge", settings={"seconds": 3})
    assert own.params["settings"] == {"seconds": 3}


def test_the_judge_reads_contents_in_parts_tools_and_calls(server: JudgeServer) -> None:
    call = {"type": "function", "function": {"name": "look_up", "arguments": {"word": "it"}}}
    asked = RewardInput(
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "What is it?"}]},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "a thing"},
        ],
        completion=[{"role": "assistant", "content": "A thing."}],
        text="A thing.",
        tools=[{"name": "look_up"}],
    )
    assert rewarder(server).outcomes([asked]) == [Outcome(reward=7.5)]
    question = server.asked[0]["messages"][0]["content"]
    for part in ('{"name":"look_up"}', "user: What is it?", 'look_up({"word":"it"})', "a thing"):
        assert part in question.replace('": "', '":"')
    assert "'type'" not in question


@pytest.mark.parametrize(("text", "said"), [("DOWN", "503.*patience"), ("MOVED", "answered 302")])
def test_a_server_that_cannot_answer_ends_the_run_with_its_name(
    server: JudgeServer, text: str, said: str
) -> None:
    with pytest.raises(EngineError, match=f"some-judge at http://127.*{said}"):
        rewarder(server, patience=0.5).outcomes([item(text)])


def test_a_busy_server_is_told_of_once(server: JudgeServer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        rewarder(server).outcomes([item("BUSY"), item("BUSY too")])
    assert caplog.text.count("answered 429") == 1 and "asked again for up to 5 s (patience)" in caplog.text


@pytest.mark.parametrize(
    "endpoint", ["ftp://judge", "http:///v1", "http://judge:many/v1", "http://judge/my model", "http://[::1"]
)
def test_a_place_that_is_no_endpoint_is_refused(server: JudgeServer, endpoint: str) -> None:
    with pytest.raises(ConfigError, match=r"endpoint='(ftp|http):/"):
        rewarder(server, endpoint=endpoint).outcomes([item("plain")])


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"endpoint": "ftp://x"}, "endpoint"),
        ({"low": 10.0, "high": 1.0}, "low"),
        ({"prompt": "Judge!"}, "prompt"),
        ({"patience": 0}, "patience"),
        ({"low": "one"}, ""),
    ],
)
def test_settings_are_refused_before_anything_runs(settings: dict[str, object], name: str) -> None:
    """Where they stand in the run file, and with no server there."""
    settings = {"endpoint": "http://judge:8000/v1", "model": "m", **settings}
    functions = [{"function": "generative_judge", "settings": settings}]
    given = {"policy": "org/m", "sources": [{"uri": "org/d"}], "reward_functions": functions}
    graph = graph_of(build("offline_alignment", CompileSettings(), given), "offline_alignment")
    refused = {one.name for one in check_functions(check_stages(graph, given), [])}
    assert refused == {f"reward_functions[0].settings.{name}" if name else "reward_functions[0]"}


def test_a_web_page_is_no_answer_to_wait_for(server: JudgeServer) -> None:
    with pytest.raises(EngineError, match=r"^some-judge at http://127.*what is no JSON: .*Welcome.* base of"):
        rewarder(server, patience=60.0).outcomes([item("PAGE")])


def test_a_host_that_nobody_knows_is_not_waited_for(
    server: JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(EngineError, match=r"cannot be reached \(.*Name or service not known"):
        rewarder(server, endpoint="http://judeg:8000/v1", patience=60.0).outcomes([item("plain")])


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes the certificate")
def test_a_certificate_that_nobody_trusts_is_not_waited_for(server: JudgeServer, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    subprocess.run([*made, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    endpoint = f"https://localhost:{server.server_port}/v1"
    with pytest.raises(EngineError, match=r"cannot be reached .*certificate"):
        rewarder(server, endpoint=endpoint, patience=60.0).outcomes([item("plain")])


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("Fine.\nScore: 10", 10.0),
        ("Score: 1.25\n\n", 1.25),
        ("Fine.\n**Score: 7**", 7.0),
        ("**Score:** 7.5.", 7.5),
        ("Fine.\n  Score:7", 7.0),
        ("Score: 7.\n", 7.0),
        ("Score: 7. It is fine.", None),
        ("Score: 7..", None),
        ("Score: 11", None),
        ("Score: 5/10", None),
        ("Score: 5\nThat is all.", None),
        ("score: 5", None),
        ("Score: nan", None),
        ("", None),
    ],
)
def test_only_a_last_line_of_the_form_is_a_score(answer: str, score: float | None) -> None:
    assert score_of(answer, 1, 10) == score
