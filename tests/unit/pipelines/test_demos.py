"""What the demonstrations are made of: the data and rewards that come along say what their run files say."""

from __future__ import annotations

import json
from importlib.resources import files

import pytest
import yaml

from kubealign_components.engines.rewards import RewardInput
from kubealign_components.rewards.functions import format_match

PACKAGE = files("kubealign_pipelines")
SALMON = yaml.safe_load((PACKAGE / "params" / "salmon_demo.yaml").read_text())["parameters"]
QUESTIONS = [json.loads(line) for line in (PACKAGE / "examples" / "questions.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1. Mint: it grows fast.\n2. Thyme", 1.0),
        ("Here are three herbs:\n\n1) Mint\n2) Thyme", 1.0),
        ("Three herbs grow well in pots.\n- Mint\n- Thyme", 1.0),
        ("* **Mint** grows fast", 1.0),
        ("Mint, thyme and basil grow well in pots.", 0.0),
        ("In 2020 there were 3. 5 of them were herbs - mint, for one.", 0.0),
        ("Here are three herbs:\n\n1", 0.0),
        ("", 0.0),
    ],
)
def test_the_salmon_demo_judges_by_whether_a_text_is_a_list(text: str, expected: float) -> None:
    given = RewardInput(
        messages=[{"role": "user", "content": "?"}],
        completion=[{"role": "assistant", "content": text}],
        text=text,
        finish_reason="length",
    )
    judges = SALMON["judge_options"]["functions"], SALMON["evaluate_options"]["judge"]["functions"]
    for [function], principle, weight in zip(judges, ("List", "Running Text"), (1.0, -1.0), strict=True):
        assert (function["principle"], function["function"]) == (principle, "format_match")
        assert function.get("weight", 1.0) == weight
        assert format_match(given, **function["settings"]) == expected


def test_its_questions_are_all_different_and_ask_for_a_list_or_do_not() -> None:
    texts = [question["text"] for question in QUESTIONS]
    assert len(texts) == 240 == len({question["message_id"] for question in QUESTIONS})
    asked = ("List three ", "Give me three ", "Name three ")
    openings = (*asked, "Tell me about some ", "What are some ")
    topics = [text.removeprefix(start)[:-1] for text in texts for start in openings if text.startswith(start)]
    assert len(set(topics)) == 240, "no topic is asked in two ways, of which one may be held out"
    assert sum(text.startswith(asked) for text in texts) == 144
