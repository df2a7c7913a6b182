"""One process of a PPO run: alone in the caller's process, or one of many under torchrun."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubealign_components.config import from_mapping
from kubealign_components.data.chat import ChatTemplate
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.models import ModelFiles
from kubealign_components.data.schemas import TOKENIZED
from kubealign_components.preemption import Preempted, preemptible
from kubealign_components.progress import progress_bar
from kubealign_components.train.checkpoints import CheckpointStore
from kubealign_components.train.ppo.config import PpoConfig
from kubealign_components.train.ppo.model import Adapters, PpoModel
from kubealign_components.train.ppo.prompts import PrincipleDraw, load_questions, steps_of
from kubealign_components.train.ppo.ranks import Ranks
from kubealign_components.train.ppo.sampling import open_sampler
from kubealign_components.train.ppo.saving import compare, samples, save_aligned
from kubealign_components.train.ppo.scoring import Rollout, Scorer
from kubealign_components.train.ppo.state import Progress, load_state, save_state
from kubealign_components.train.ppo.trainer import Parts, PpoTrainer
from kubealign_components.train.reward.model import ADAPTER_FOLDER

PROGRAM = "kubealign_components.train.ppo.worker:work"
MODEL_FOLDER = "model"
OUTCOME_FILE = "outcome.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What a process needs to know, in plain JSON values."""

    config: dict[str, Any]
    """Settings of :class:`PpoConfig`."""
    prompts: str
    """URI of the prompts."""
    policy: str
    """Local directory of the base."""
    folder: str
    """Local folder for the aligned policy (``model/``), the outcome (``outcome.json``) and passing files."""
    policy_adapter: str = ""
    """Local directory of the adapter that training starts from."""
    reward_model: str = ""
    """Local directory of the reward model."""
    checkpoints: str = ""
    """URI of this run's checkpoints; empty for none."""
    resume: str = ""
    """Local directory of a checkpoint to go on from; empty to start at step 0."""


def work(**members: Any) -> None:
    """Train, and leave the policy and the outcome in the job's folder (written by the first process).

    Args:
        members: those of a :class:`Job`.

    Raises:
        ConfigError, DataError, EngineError: settings, data or a model that cannot be used.
        Preempted: SIGTERM came; a checkpoint was published where the job has a place for it.
    """
    job = Job(**members)
    config = from_mapping(PpoConfig, job.config, "train_ppo")
    ranks = Ranks()
    parts = _parts(job, config, ranks)
    try:
        outcome = _Run(job, config, parts).to_its_end()
    finally:
        parts.sampler.close()
    if ranks.first:
        folder = Path(job.folder)
        save_aligned(config, parts.model, Path(job.policy), folder / MODEL_FOLDER)
        (folder / OUTCOME_FILE).write_text(json.dumps(outcome))
    ranks.wait()


def _parts(job: Job, config: PpoConfig, ranks: Ranks) -> Parts:
    base = Path(job.policy)
    questions = load_questions(Dataset.open(job.prompts, TOKENIZED), config)
    reward_model = Path(job.reward_model) if job.reward_model else None
    adapters = Adapters(
        reward=reward_model / ADAPTER_FOLDER if reward_model else None,
        policy=Path(job.policy_adapter) if job.policy_adapter else None,
    )
    model = PpoModel(config, base, adapters, ranks.device)
    template = ChatTemplate(ModelFiles(name=base.name, path=base))
    return Parts(
        model=model,
        sampler=open_sampler(config, model, base, ranks.count),
        scorer=Scorer(config, model, template, PrincipleDraw(config), reward_model),
        questions=questions,
        ranks=ranks,
    )


class _Run:
    """Steps, checkpoints and evaluations in their order."""

    def __init__(self, job: Job, config: PpoConfig, parts: Parts) -> None:
        self.job, self.config, self.parts = job, config, parts
        self.steps = steps_of(config, len(parts.questions.train))
        self.trainer = PpoTrainer(config, parts, self.steps)
        self.progress = Progress()

    def to_its_end(self) -> dict[str, Any]:
        """Train what is left to train; the log, the samples and the counts."""
        with preemptible("train_ppo") as check:
            self.parts.check = check
            if self.job.resume:
                self.progress = load_state(Path(self.job.resume), self.trainer)
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
        with (
            progress_bar(self.steps, "steps", "train_ppo") if self.parts.ranks.first else nullcontext() as bar
        ):
            if bar is not None:
                bar.update(self.progress.step)
            for number in range(self.progress.step, self.steps):
                metrics, rollouts = self._step(number)
                if bar is not None:
                    bar.set_postfix(score=f"{metrics['score']:.3g}", kl=f"{metrics['kl']:.3g}", refresh=False)
                    bar.update(1)
        return rollouts

    def _step(self, number: int) -> tuple[dict[str, float], list[Rollout]]:
        """One step and, where it is time or the process has to stop, its checkpoint."""
        progress, alone = self.progress, self.parts.ranks.count == 1
        try:
            metrics, rollouts = self.trainer.step(number)
            progress.step = number + 1
            progress.log.append((progress.step, metrics))
            self.parts.check()
        except Preempted:
            # Alone, one more checkpoint fits into the grace period; several would wait for each other.
            if alone and self.job.checkpoints and progress.step:
                self._save()
            raise
        if self.config.save_every and progress.step % self.config.save_every == 0:
            self._save()
        return metrics, rollouts

    def _save(self) -> None:
        ranks = self.parts.ranks
        if ranks.first:
            folder = Path(self.job.folder) / f"checkpoint-{self.progress.step}"
            save_state(folder, self.trainer, self.progress)
            store = CheckpointStore(uri=self.job.checkpoints, keep=self.config.keep_checkpoints)
            store.publish(folder, self.progress.step)
            shutil.rmtree(folder)
        ranks.wait()
