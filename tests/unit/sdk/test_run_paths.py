"""Paths go by the run file's folder, and functions of its files travel by content."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from kubealign.run_paths import send_code
from kubealign.runfile import load_run_file
from kubealign_components.engines.reward_functions import LoadedFunction, RewardFunctionSpec
from kubealign_components.engines.reward_input import RewardInput

PARAMETERS = {
    "policy": "models/tiny",
    "reward_model": "org/on-the-hub",
    "work": "mywork",
    "sources": [
        {"uri": "data/a.jsonl"},
        {"uri": "org/dataset"},
        {"uri": "s3://b/c"},
        {"uri": "./gone.jsonl"},
    ],
    "reward_functions": ["brevity", "rewards.py:short", {"function": "lib.rewards:f", "weight": 2.0}],
    "train_adapter": "lora",
    "ppo_options": {"adapter": "lora", "functions": ["rewards.py:short"], "reward": {"model": "models/tiny"}},
    "filter_options": {
        "chat_template": "data/chat.jinja",
        "chat_template_kwargs": {"template": "data/chat.jinja"},
    },
    "judge_options": {"template": "judge", "adapter": "models/tiny"},
    "evaluate_options": {
        "judge": {
            "judge": "models/tiny",
            "principles": "./own.yaml",
            "functions": [{"function": "rewards.py:short", "principle": "Short"}],
        }
    },
    "sample_adapter": "models/tiny",
    "ppo_functions": ["rewards.py:short"],
    "sample_chat_template_kwargs": {"template": "data/chat.jinja"},
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    for place in ("models/tiny/config.json", "data/a.jsonl", "data/chat.jinja", "lora/config.json"):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_text("{}")
    (folder / "helpers.py").write_text("def count(text): return len(text)\n")
    (folder / "rewards.py").write_text("import helpers\ndef short(item): return helpers.count(item.text)\n")
    (folder / "run.yaml").write_text(yaml.safe_dump({"parameters": PARAMETERS}))
    return folder


def test_relative_paths_go_by_the_run_file(project: Path) -> None:
    found = load_run_file(project / "run.yaml").parameters
    assert found == {
        "policy": str(project / "models/tiny"),
        "reward_model": "org/on-the-hub",
        "work": str(project / "mywork"),
        "sources": [
            {"uri": str(project / "data/a.jsonl")},
            {"uri": "org/dataset"},
            {"uri": "s3://b/c"},
            {"uri": str(project / "gone.jsonl")},
        ],
        "reward_functions": [
            "brevity",
            f"{project}/rewards.py:short",
            {"function": "lib.rewards:f", "weight": 2.0},
        ],
        "train_adapter": "lora",
        "ppo_options": {
            "adapter": "lora",
            "functions": [f"{project}/rewards.py:short"],
            "reward": {"model": str(project / "models/tiny")},
        },
        "filter_options": {
            "chat_template": str(project / "data/chat.jinja"),
            "chat_template_kwargs": {"template": "data/chat.jinja"},
        },
        "judge_options": {"template": "judge", "adapter": str(project / "models/tiny")},
        "evaluate_options": {
            "judge": {
                "judge": str(project / "models/tiny"),
                "principles": str(project / "own.yaml"),
                "functions": [{"function": f"{project}/rewards.py:short", "principle": "Short"}],
            }
        },
        "sample_adapter": str(project / "models/tiny"),
        "ppo_functions": [f"{project}/rewards.py:short"],
        "sample_chat_template_kwargs": {"template": "data/chat.jinja"},
    }


def test_functions_of_files_travel_by_content(project: Path) -> None:
    sent = send_code(load_run_file(project / "run.yaml").parameters)
    shipped, own, module = sent["reward_functions"]
    assert sent["ppo_options"]["functions"] == [own]
    assert (shipped, module) == ("brevity", PARAMETERS["reward_functions"][2])  # type: ignore[index]
    assert own["function"] == "rewards.py:short"
    assert own["source"].startswith(str(project / "mywork"))
    here = RewardFunctionSpec(function=f"{project}/rewards.py:short")
    identities = []
    for spec in (here, RewardFunctionSpec(**own)):
        function = LoadedFunction(spec)
        identities.append((function.identity, spec.recipe_name))
        assert function(RewardInput(messages=[], completion=[], text="abc")) == 3.0
        function.close()
    assert identities[0] == identities[1]
