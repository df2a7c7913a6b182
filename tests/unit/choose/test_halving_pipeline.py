"""The rungs of successive halving in Kubeflow's own runner: what goes from one loop to the next."""

from pathlib import Path

import pytest
from kfp import dsl, local

from kubealign.local.loops import loop_inputs_kept
from kubealign_components import images
from kubealign_components.choose.component import choose
from kubealign_components.data.choice_rows import CHOICE, ChoiceRow
from kubealign_components.data.dataset import Dataset


@dsl.component(base_image=images.DATA, install_kfp_package=False)
def evaluated(variant: dict, dataset: dsl.Output[dsl.Dataset], share: float = 1.0):
    """The evaluation of a model of a variant, the better the larger its beta."""
    from kubealign_components.artifacts import publish, rows_of
    from kubealign_components.data.dataset import Dataset, DatasetWriter
    from kubealign_components.data.fingerprint import derive
    from kubealign_components.data.schemas import EVALUATION, MODEL, new_completion
    from kubealign_components.data.stats import Stats
    from kubealign_components.variant import name_variant

    beta = variant["train"]["beta"]
    params = {"beta": beta} | ({"stop_after": share} if share < 1 else {})
    model = rows_of(dataset) + "-model"
    with DatasetWriter(model, MODEL, derive("train", 1, params)) as writer:
        writer.commit(Stats())
    rows = []
    for prompt in range(20):
        reward = beta + 0.01 * (prompt % 3)
        sides = [
            [
                new_completion(
                    completion_id=f"{prompt}-{gain}",
                    reference=True,
                    model="m",
                    token_ids=[5, 2],
                    num_tokens=2,
                    finish_reason="stop",
                    reward=gain,
                )
            ]
            for gain in (0.0, reward)
        ]
        rows.append(
            {"prompt_id": f"{prompt:02d}", "messages": "[]", "reference": sides[0], "aligned": sides[1]}
            | {"reward_difference": reward}
        )
    made = derive("evaluate", 1, {}, inputs={"model": Dataset.open(model, allow_empty=True)})
    stats = Stats(rows_in=20, rows_out=20)
    stats.numbers["reward_gain"] = beta
    with DatasetWriter(rows_of(dataset), EVALUATION, made) as writer:
        writer.write_rows(rows)
        writer.commit(stats)
    name_variant(dataset, variant)
    publish(dataset)


@dsl.pipeline(name="two-rungs")
def two_rungs(variants: list[dict[str, object]]) -> dsl.Dataset:
    """Two of three variants go on."""
    with dsl.ParallelFor(variants) as variant:
        first = evaluated(variant=variant, share=0.5)
    earlier = choose(evaluations=dsl.Collected(first.outputs["dataset"]), reduction_factor=2)
    with dsl.ParallelFor(earlier.outputs["Output"]) as variant:
        last = evaluated(variant=variant)
    chosen = choose(evaluations=dsl.Collected(last.outputs["dataset"]), earlier=earlier.outputs["dataset"])
    return chosen.outputs["dataset"]


def test_the_next_loop_is_over_the_variants_that_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / "root"))
    with loop_inputs_kept():
        two_rungs(variants=[{"train": {"beta": beta}} for beta in (0.2, 0.1, 0.3)])
    [last] = (tmp_path / "root").rglob("choose-2/dataset")
    rows = list(Dataset.open(str(last), CHOICE).iter_rows(of=ChoiceRow))
    assert [(row["variant"], row["rung"], row["share"], row["chosen"]) for row in rows] == [
        ("train_beta=0.2", 2, 1.0, False),
        ("train_beta=0.3", 2, 1.0, True),
        ("train_beta=0.1", 1, 0.5, False),
    ]
    assert rows[2]["dropped"] is not None
