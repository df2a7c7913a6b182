"""The command ``kubealign estimate``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from kubealign.cli.options import Given, run_options
from kubealign.cli.terminal import say
from kubealign.estimate.formulas import GIB, SHAPES, ModelShape, Throughput

if TYPE_CHECKING:
    from kubealign.estimate.stages import Assumptions, StageEstimate


@click.command("estimate")
@run_options
@click.option(
    "--model-shape", type=click.Choice(tuple(SHAPES)), help="By default the policy's config, or its name."
)
@click.option("--reward-model-shape", type=click.Choice(tuple(SHAPES)), help="By default the policy's.")
@click.option("--gpu-memory", default=80.0, show_default=True, help="GiB of a GPU.")
@click.option("--nodes", default=0, help="Machines of every training stage; by default the run file's.")
@click.option("--rows", default=0, help="Prompts; by default those of local sources, else 10,000.")
@click.option("--prompt-tokens", default=256, show_default=True, help="Mean tokens of a prompt.")
@click.option("--completion-tokens", default=512, show_default=True, help="Mean tokens of a completion.")
@click.option("--questions", default=22, show_default=True, help="Questions of the judge on a pair.")
@click.option("--flops", default=4e14, show_default=True, help="Useful operations per second and GPU.")
@click.option("--sample-rate", default=0.0, help="Sampled tokens/s and GPU; by default 10,000 at 8B.")
@click.option("--score-rate", default=0.0, help="Scored tokens/s and GPU; by default from --flops.")
@click.option("--train-rate", default=0.0, help="Trained tokens/s and GPU; by default from --flops.")
@click.option("--price", default=0.0, help="Of a GPU-hour, in a currency of yours; nothing is said without.")
def estimate(
    given: Given,
    model_shape: str | None,
    reward_model_shape: str | None,
    flops: float,
    sample_rate: float,
    score_rate: float,
    train_rate: float,
    price: float,
    **assumptions: Any,
) -> None:
    """Estimate memory per rank and GPU-hours of every GPU stage of PIPELINE.

    The formulas stand in kubealign.estimate.formulas with their sources.
    """
    from kubealign.estimate.stages import Assumptions, is_here, preset_of, rows_of, shape_of
    from kubealign.estimate.stages import estimate as estimate_run
    from kubealign_pipelines.rounds import STOP

    run = given.run()
    named = ("policy", "reward_model", "rank_judge")
    policy, reward_model, judge = (str(run.parameters.get(name, "")) for name in named)
    shape = shape_of(policy, model_shape or "")
    reward_model_shape = reward_model_shape or preset_of(reward_model or judge) or None
    assumptions["rows"] = assumptions["rows"] or rows_of(run.parameters) or Assumptions().rows
    throughput = Throughput(flops=flops, sample=sample_rate, score=score_rate, train=train_rate)
    reward_shape = SHAPES[reward_model_shape] if reward_model_shape else None
    assumed = Assumptions(**assumptions, reward_shape=reward_shape, throughput=throughput)
    _show(shape, assumed, estimate_run(run, shape, assumed), price)
    if run.parameters.get(STOP.name, STOP.values[0]) != STOP.values[0]:
        say("That is at most: rounds after one that is not shown to be better neither sample nor train.")
    if not model_shape and not is_here(policy):
        say(f"Shape of {preset_of(policy)}, after the policy's name; --model-shape takes another.")


def _show(shape: ModelShape, assumed: Assumptions, stages: Sequence[StageEstimate], price: float) -> None:
    from rich.table import Table

    from kubealign.cli.console import standard_console

    console = standard_console()
    table = Table(title="GiB of a rank, and GPU-hours", title_justify="left")
    table.add_column("")
    for stage in stages:
        table.add_column(stage.title, justify="right", overflow="fold")
    table.add_row("machines", *(str(stage.nodes) for stage in stages))
    table.add_row("GPUs", *(str(stage.gpus) for stage in stages))
    for part in dict.fromkeys(name for stage in stages for name in stage.memory.parts):
        cells = [stage.memory.parts.get(part, 0.0) for stage in stages]
        if any(cells):
            table.add_row(part, *(f"{cell / GIB:.1f}" if cell else "" for cell in cells))
    table.add_row("total", *(f"{stage.memory.total / GIB:.1f}" for stage in stages))
    table.add_row(f"fits {assumed.gpu_memory:g} GiB", *("yes" if s.fits else "NO" for s in stages))
    table.add_row("GPU-hours", *(f"{stage.hours:,.1f}" for stage in stages))
    console.print(table)
    hours = sum(stage.hours for stage in stages)
    cost = f", {hours * price:,.2f} at {price:g} a GPU-hour" if price else ""
    console.print(f"GPU-hours in all: {hours:,.1f}{cost}")
    rates = assumed.throughput.rates(shape)
    slow = assumed.throughput.rates(shape, checkpointing=True)["train"]
    documents = (
        f"Tasks of benchmarks have {assumed.benchmark_documents:,} documents of four choices. "
        if any(stage.stage == "benchmark" for stage in stages)
        else ""
    )
    console.print(
        f"Assumed: {shape.parameters / 1e9:.2f}e9 parameters; {assumed.rows:,} prompts of "
        f"{assumed.prompt_tokens} tokens, completions of {assumed.completion_tokens}. {documents}"
        f"Tokens/s of a GPU: sampling {rates['sample']:,.0f}, "
        f"scoring {rates['score']:,.0f}, training {rates['train']:,.0f} "
        f"(with gradient checkpointing {slow:,.0f})."
    )
