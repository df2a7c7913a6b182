"""Reward functions of one's own: a file beside the run file, TRL's signature, and whatever they do wrong."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kubealign_components.engines.own_code import find_code
from kubealign_components.engines.reward_functions import SHIPPED, LoadedFunction, RewardFunctionSpec
from kubealign_components.engines.rewards import Rewarder, RewardInput, RewardSpec
from kubealign_components.errors import ConfigError, EngineError, StoreError
from kubealign_components.rewards import functions
from kubealign_components.store import store_for

Write = Callable[..., str]


def item(text: str = "four words of text", **columns: Any) -> RewardInput:
    return RewardInput(
        messages=[{"role": "user", "content": "Hi?"}],
        completion=[{"role": "assistant", "content": text}],
        text=text,
        **columns,
    )


@pytest.fixture
def own(tmp_path: Path) -> Write:
    """``own(source, helpers.py=…)`` writes a file of functions, and gives its path."""

    def write(source: str, **helpers: str) -> str:
        for name, text in helpers.items():
            (tmp_path / f"{name}.py").write_text(text)
        path = tmp_path / "mine.py"
        path.write_text(source)
        return str(path)

    return write


def reward_of(place: str, *items: RewardInput, **options: Any) -> list[float | None]:
    rewarder = Rewarder(RewardSpec(functions=(RewardFunctionSpec(function=place, **options),)))
    try:
        return rewarder.score(items or (item(),))
    finally:
        rewarder.close()


def test_shipped_functions_have_short_names_and_versions() -> None:
    assert set(SHIPPED) == set(functions.__all__)
    assert set(SHIPPED) >= {
        n
        for n in dir(functions)
        if getattr(getattr(functions, n), "__module__", "") == functions.__name__ and n[0] != "_"
    }
    assert reward_of("brevity") == reward_of("kubealign_components.rewards.functions:brevity")
    one, other = (
        Rewarder(RewardSpec(functions=(RewardFunctionSpec(function=name),))).identity
        for name in ("brevity", "kubealign_components.rewards.functions:brevity")
    )
    assert one == other == {"functions": {"kubealign_components.rewards.functions:brevity": {"version": 1}}}


def test_a_function_in_a_file_with_helpers_beside_it(own: Write) -> None:
    place = own(
        "import helpers\nfrom more import TWICE\ndef short(item, scale=1):\n"
        "    return helpers.length(item.text) * TWICE * scale\n",
        helpers="def length(text): return len(text.split())\n",
        more="TWICE = 2\n",
    )
    assert reward_of(f"{place}:short", settings={"scale": 10}) == [80.0]


def test_trl_functions_are_called_as_trl_calls_them(own: Write) -> None:
    place = own(
        "def lengths(prompts, completions, **columns):\n"
        "    assert prompts == [[{'role': 'user', 'content': 'Hi?'}]]\n"
        "    return [float(len(c[0]['content'])) + w for c, w in zip(completions, columns['weight'])]\n"
        "def right(completions, answer, bonus=0):\n"
        "    return [float(a in c[0]['content']) + bonus for c, a in zip(completions, answer)]\n"
        "async def later(completions, **kwargs):\n    return [0.25 for _ in completions]\n"
    )
    items = [
        item("ab", answers=["a"], metadata={"weight": 1}),
        item("abc", answers=["z"], metadata={"weight": 2}),
    ]
    assert reward_of(f"{place}:lengths", *items) == [3.0, 5.0]
    assert reward_of(f"{place}:right", *items, settings={"bonus": 1}) == [2.0, 1.0]
    assert reward_of(f"{place}:later", *items) == [0.25, 0.25]


def test_every_call_has_its_own_copy(own: Write) -> None:
    place = own(
        "def spoil(item):\n    count = len(item.messages)\n    item.messages.append({})\n"
        "    item.metadata['x'] = 1\n    return count\n"
    )
    shared = item()
    assert reward_of(f"{place}:spoil", shared, shared) == [1.0, 1.0]
    assert (len(shared.messages), shared.metadata) == (1, {})


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise KeyError('unit')", r"raised KeyError: 'unit'.*'Hi\?'"),
        ("import sys; sys.exit(3)", "raised SystemExit: 3"),
        ("import os; os._exit(0)", "ended its process .*code 0"),
        ("return 10**400", "returned 1000.*expected a finite number"),
        ("return 10**9000", "returned a int that cannot be shown"),
        ("return float('nan')", "returned nan"),
        ("return None", "returned None"),
        ("return [1.0]", r"returned \[1.0\]"),
        ("raise RecursionError", "raised RecursionError"),
        ("import time; time.sleep(60)", "took more than 0.5 s"),
        ("while True: pass", "took more than 0.5 s"),
        ("print('x' * 100_000); return 'text'", "returned 'text'"),
    ],
)
def test_what_a_function_does_wrong_is_an_error_with_its_name(own: Write, body: str, message: str) -> None:
    place = own(f"def reward(item):\n    {body}\n")
    started = time.monotonic()
    with pytest.raises(EngineError, match=f"reward function {place}:reward {message}"):
        reward_of(f"{place}:reward", seconds=0.5)
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def reward(item:\n", r"\(SyntaxError: .*line 1\)"),
        ("raise ValueError('no key')\ndef reward(item): return 1\n", "ValueError: no key"),
        ("import sys\nsys.exit(3)\n", "SystemExit: 3"),
        ("import os\nos._exit(3)\n", "its process ended with code 3"),
        ("def other(item): return 1\n", "a function of .*: one of other"),
        ("def reward(item, size): return 1\n", "keyword settings of .*size"),
        ("import no_such_module\ndef reward(item): return 1\n", "No module named 'no_such_module'"),
    ],
)
def test_files_that_cannot_be_used_are_bad_settings(own: Write, source: str, message: str) -> None:
    place = own(source)
    with pytest.raises(ConfigError, match=message):
        function = LoadedFunction(RewardFunctionSpec(function=f"{place}:reward"))
        _ = function.identity
    with pytest.raises(ConfigError, match="a Python file; there is none"):
        LoadedFunction(RewardFunctionSpec(function="nowhere/rewards.py:f"))


def test_a_function_is_what_it_says_and_refers_to(own: Write) -> None:
    source = (
        "import re\nfrom helpers import count\nLIMIT = 3\ndef other(item): return 1\n"
        "def reward(item):\n    return count(item) * LIMIT\n"
    )
    helpers = "SIZE = 2\ndef count(item): return SIZE\ndef unused(): return 0\n"

    def digest(source: str, helpers: str) -> str:
        return find_code(own(source, helpers=helpers), "reward").digest

    first = digest(source, helpers)
    laid_out = source.replace("    return count", "    '''Why.'''\n\n    # because\n    return  count")
    assert digest(laid_out, helpers) == first
    assert digest(source.replace("return 1", "return 2"), helpers) == first
    assert digest(source, helpers.replace("return 0", "return 1")) == first
    changes = [
        (source.replace("LIMIT = 3", "LIMIT = 4"), helpers),
        (source, helpers.replace("SIZE = 2", "SIZE = 3")),
        (source.replace("* LIMIT", "+ LIMIT"), helpers),
        (source + "LIMIT += 1\n", helpers),
        (source, "print(1)\n" + helpers),
    ]
    assert len({first, *(digest(*change) for change in changes)}) == len(changes) + 1


def test_code_travels_by_content(own: Write, tmp_path: Path) -> None:
    place = own(
        "from helpers import count\ndef reward(item): return count(item)\n",
        helpers="def count(item): return len(item.text)\n",
        unrelated="raise ValueError\n",
    )
    code = find_code(place, "reward")
    data = code.bundle()
    uri = str(tmp_path / "work" / f"{hashlib.sha256(data).hexdigest()}.json")
    store_for(uri).publish(uri, data)
    spec = RewardFunctionSpec(function="rewards.py:reward", source=uri)
    function = LoadedFunction(spec)
    assert function(item("abc")) == 3.0
    assert function.identity == code.digest
    function.close()
    Path(uri).chmod(0o644)
    Path(uri).write_bytes(data.replace(b"len", b"max"))
    with pytest.raises(StoreError, match="is not what its name says"):
        LoadedFunction(spec)
