"""How ``train_ppo`` trains, in each process of its run."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from kubealign_components.data.chat import ChatTemplate, stored_settings
from kubealign_components.data.chat.ends import embedding_rows
from kubealign_components.data.chat.tokenizer import check_ids
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.model_files import ADAPTER_FOLDER
from kubealign_components.data.models import ModelFiles
from kubealign_components.data.schemas import TOKENIZED
from kubealign_components.data.stats import Stats
from kubealign_components.preemption import Preempted
from kubealign_components.progress import note, progress_bar
from kubealign_components.train_ppo.checkpoint import LoopState, load_state, save_state
from kubealign_components.train_ppo.collectives import Collectives
from kubealign_components.train_ppo.config import PpoConfig
from kubealign_components.train_ppo.model import Adapters, PpoModel
from kubealign_components.train_ppo.prompts import PrincipleDraw, load_prompts, ppo_steps
from kubealign_components.train_ppo.rollouts import Rollout, RolloutScorer
from kubealign_components.train_ppo.sampling import open_sampler
from kubealign_components.train_ppo.saving import compare, samples, save_aligned
from kubealign_components.train_ppo.trainer import Parts, PpoTrainer
from kubealign_components.training.changed import require_changed
from kubealign_components.training.checkpoints import CheckpointStore, everything
from kubealign_components.training.metrics import means_of_last
from kubealign_components.training.models import check_machine
from kubealign_components.training.pausing import Pauses
from kubealign_components.training.processes import Processes
from kubealign_components.training.program import Job, Run, Trained
from kubealign_components.training.rehearsal import rehearse_saving
from kubealign_components.training.resuming import going_on

log = logging.getLogger(__name__)

Log = list[tuple[int, dict[str, float]]]
_PROGRESS = ("score", "kl", "policy_loss", "value_loss")
"""What the log says of every step."""


def train(run: Run[PpoConfig]) -> Trained | None:
    """Train on the prompts; the first process saves the policy.

    Raises:
        ConfigError, DataError, EngineError: settings, data or a model that cannot be used.
    """
    config, processes = run.config, run.processes
    check_machine(config.adapter)
    base = processes.find_model(config.policy, config.revision).path
    parts = _parts(run.job, config, processes, base)
    try:
        outcome = _Loop(run, parts).to_its_end()
    finally:
        parts.sampler.close()
        parts.scorer.close()
    if not processes.first:
        return None
    prompts = Dataset.open(run.job.inputs["prompts"], TOKENIZED)
    template = stored_settings(prompts)
    save_aligned(config, parts.model, base, run.folder, template.text)
    if not config.policy_adapter:
        require_changed(base, run.folder, config.learning_rate)
    return Trained(
        steps=outcome["log"],
        stats=_summary(prompts, outcome),
        extra={
            "adapter": not config.merge_adapter,
            "samples": outcome["samples"],
            "chat_template": template.named(),
        },
    )


def _parts(job: Job, config: PpoConfig, processes: Processes, base: Path) -> Parts:
    collectives = Collectives(processes)
    prompts = Dataset.open(job.inputs["prompts"], TOKENIZED)
    questions = load_prompts(prompts, config)
    prompt_ids = (q.token_ids for q in (*questions.train, *questions.held_out))
    check_ids(prompt_ids, embedding_rows(base), base.name)
    scored_by = job.inputs.get("reward_model")
    reward_model = processes.find_model(scored_by).path if scored_by else None
    adapter = config.policy_adapter
    adapters = Adapters(
        reward=reward_model / ADAPTER_FOLDER if reward_model else None,
        policy=processes.find_adapter(adapter, "policy_adapter").path if adapter else None,
    )
    if processes.first:
        rehearse_saving(config, base, merge_adapter=config.merge_adapter)
    model = PpoModel(config, base, adapters, collectives.device)
    template = ChatTemplate(ModelFiles(name=base.name, path=base), stored_settings(prompts))
    return Parts(
        model=model,
        sampler=open_sampler(config, model, base, collectives.count, template.end_ids),
        scorer=RolloutScorer(config, model, template, PrincipleDraw(config), reward_model),
        questions=questions,
        collectives=collectives,
    )


def _summary(prompts: Dataset, outcome: Mapping[str, Any]) -> Stats:
    """Counts, the means of the last steps, and the evaluation."""
    steps: Log = outcome["log"]
    stats = Stats(
        rows_in=prompts.rows, rows_out=prompts.rows - outcome["too_long"], numbers=means_of_last(steps)
    )
    stats.drop("prompt_too_long", outcome["too_long"])
    stats.counts.update({"steps": steps[-1][0]})
    stats.counts.update({name: outcome[name] for name in ("train_prompts", "held_out_prompts")})
    return stats


class _Loop:
    """Steps, checkpoints and evaluations in their order."""

    def __init__(self, run: Run[PpoConfig], parts: Parts) -> None:
        config, checkpoints = run.config, run.job.checkpoints
        self.config, self.parts, self.processes = config, parts, run.processes
        self.store = CheckpointStore(uri=checkpoints, keep=config.keep_checkpoints) if checkpoints else None
        self.pauses = Pauses(run.processes, run.stop, every=config.save_every, minutes=config.save_minutes)
        if run.processes.count == 1:
            parts.check = run.stop  # several stop together, at the end of a step
        self.steps = ppo_steps(config, len(parts.questions.train))
        self.trainer = PpoTrainer(config, parts, self.steps)
        self.progress = LoopState()

    def to_its_end(self) -> dict[str, Any]:
        """Train what is left to train; the log, the samples and the counts."""
        checkpoint = self.store.newest(everything, self.processes) if self.store else None
        if self.processes.first:
            log.warning("%s", going_on(checkpoint[0] if checkpoint else None))
        if checkpoint is not None:
            self.progress = load_state(checkpoint[1], self.trainer)
        else:
            self.progress.before = self.trainer.evaluate()
        rollouts = self._train()
        after = self.trainer.evaluate()
        progress, questions = self.progress, self.parts.questions
        progress.log[-1][1].update(compare(progress.before, after, self.config.seed))
        return {
            "log": progress.log,
            "samples": samples(questions, rollouts, progress.before, after),
            "train_prompts": len(questions.train),
            "held_out_prompts": len(questions.held_out),
            "too_long": questions.too_long,
        }

    def _train(self) -> list[Rollout]:
        """The steps that are left; gives the rollouts of the last one."""
        rollouts: list[Rollout] = []
        shown = self.parts.collectives.first
        with progress_bar(self.steps, "steps", "train_ppo") if shown else nullcontext() as bar:
            if bar is not None:
                bar.update(self.progress.step)
            for number in range(self.progress.step, self.steps):
                metrics, rollouts = self._step(number)
                if bar is not None:
                    bar.set_postfix(score=f"{metrics['score']:.3g}", kl=f"{metrics['kl']:.3g}", refresh=False)
                    bar.update(1)
                    numbers = [
                        f"{name.replace('_', ' ')} {metrics[name]:.4g}"
                        for name in _PROGRESS
                        if name in metrics
                    ]
                    note(bar, f"train_ppo: step {number + 1}, {', '.join(numbers)}")
        return rollouts

    def _step(self, number: int) -> tuple[dict[str, float], list[Rollout]]:
        """One step and, where it is time or the run has to stop, its checkpoint."""
        progress = self.progress
        try:
            metrics, rollouts = self.trainer.step(number)
        except Preempted:
            if progress.step:  # nothing is half trained: what the steps before this one made is whole
                self._save()
            raise
        progress.step = number + 1
        progress.log.append((progress.step, metrics))
        if self.pauses.after(progress.step):
            self._save()
        self.pauses.check()
        return metrics, rollouts

    def _save(self) -> None:
        if self.store is None:
            return
        folder = self.processes.folder / f"checkpoint-{self.progress.step}"
        if self.processes.first:
            save_state(folder, self.trainer, self.progress)
        self.store.publish(folder, self.progress.step, self.processes)
        if self.processes.first:
            shutil.rmtree(folder)
