"""Folders of finished runs as ``kubealign run`` leaves them, with an evaluation, without running anything."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import yaml

from kubealign_components.data.schemas import EVALUATION, REWARDED, new_completion
from support.datasets import MakeDataset
from support.tiny import prompt_row


def completions(text: str, rewards: Sequence[float | None]) -> list[dict[str, object]]:
    messages = json.dumps([{"role": "assistant", "content": text}])
    return [
        new_completion(
            completion_id=f"{text}-{i}",
            reference=True,
            model="tiny",
            messages=messages,
            reward=reward,
            token_ids=[1, 2, 3],
            num_tokens=3,
            finish_reason="stop",
        )
        for i, reward in enumerate(rewards)
    ]


def add_run(
    output: Path,
    name: str,
    make: MakeDataset,
    *,
    aligned: dict[str, float | None],
    parameters: dict[str, object] | None = None,
    reward: str = "brevity",
    text: str = "answer",
    evaluated: bool = True,
) -> Path:
    """A run below ``output`` that evaluated the prompts of ``aligned``.

    Args:
        output: the output folder.
        name: of the run.
        make: the fixture ``make_dataset``.
        aligned: reward of the aligned model's answer, by prompt; that of the reference is 0.
        parameters: of the run.
        reward: name of the reward function.
        text: of all aligned answers.
        evaluated: whether it came so far.
    """
    run = output / "runs" / name
    (run / "logs" / "1").mkdir(parents=True)
    (run / "pipeline.yaml").write_text("")
    (run / "parameters.yaml").write_text(yaml.safe_dump({"work": str(output), **(parameters or {})}))
    sampled = [
        prompt_row(prompt, []) | {"prompt_id": prompt, "completions": completions("draft", [0.0, 0.5])}
        for prompt in aligned
    ]
    made = {"merge-rewards": make(sampled, REWARDED, stage="rewards", params={"run": name})}
    known = [value for value in aligned.values() if value is not None]
    numbers = {"reward_gain": sum(known) / len(known)} if known else {}
    if evaluated:
        rows = [
            {"prompt_id": prompt, "messages": json.dumps([{"role": "user", "content": f"tell {prompt}"}])}
            | {"reference": completions("before", [None if value is None else 0.0])}
            | {"aligned": completions(text, [value]), "reward_difference": value}
            for prompt, value in aligned.items()
        ]
        params = {"reward": {"functions": [{"function": f"functions:{reward}"}]}}
        inputs = {"rewarded": made["merge-rewards"]}
        made["evaluate"] = make(rows, EVALUATION, stage="evaluate", params=params, inputs=inputs)
    outputs = []
    for task, dataset in made.items():
        place = Path("artifacts", "1", "graph", task, "dataset")
        shutil.copytree(dataset.uri, run / place)
        outputs.append({"task": task, "output": "dataset", "type": "system.Dataset", "path": str(place)})
    stages = [
        {
            "stage": "rewards",
            "title": "rewards",
            "rows_in": len(aligned),
            "rows_out": len(aligned),
            "dropped": {},
            "counts": {},
            "seconds": 1.5,
            "numbers": {"mean": 0.5},
        }
    ]
    content = {"pipeline": "offline-alignment", "seconds": 61.0, "outputs": outputs, "stages": stages}
    content["evaluation"] = numbers if evaluated else {}
    (run / "results.json").write_text(json.dumps(content))
    return run
