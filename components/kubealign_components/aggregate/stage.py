"""aggregate: from judgements under single principles to pairs for the reward model.

Follows SALMON (arXiv 2310.05910, section 3.2) in how a label is made: a random few of the principles,
each negated at random, and the dominant one decides. Departs from the published release in that every
random choice comes from one generator per pair and pass, seeded by content hashes: a row depends on
nothing but its pair, the settings and the scale of the scores.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kubealign_components.aggregate.consistency import check_consistency
from kubealign_components.aggregate.draws import Draw, Odds, draw
from kubealign_components.aggregate.labels import POLICIES, dominant
from kubealign_components.aggregate.pairs import JudgedPair, Unusable, judged_pairs
from kubealign_components.aggregate.report import report_html
from kubealign_components.aggregate.rules import (
    PUBLISHED,
    LoadedRule,
    RuleInput,
    RuleSpec,
    Verdict,
    rules_identity,
)
from kubealign_components.aggregate.scales import NONE, SCALES, VARIANCE, Moments
from kubealign_components.config import execution, gate, require, require_choice, semantic_params
from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.fingerprint import Provenance, canonical_json, derive, slug_word
from kubealign_components.data.finished import once, output_request
from kubealign_components.data.opinions import Survey, survey
from kubealign_components.data.principles import JUDGE, REWARD_MODEL, PrincipleSet, load_principles
from kubealign_components.data.schemas import (
    PREFERENCES,
    JudgedRow,
    PreferencePrinciple,
    pair_id,
)
from kubealign_components.data.seeds import is_held_out, require_validation_fraction
from kubealign_components.data.stats import Stats
from kubealign_components.engines.rewards import flatten_text
from kubealign_components.errors import ConfigError, EmptyDataset
from kubealign_components.json_types import JsonObject
from kubealign_components.progress import progress_bar
from kubealign_components.reports.html import REPORT, copy_report, write_report

if TYPE_CHECKING:
    from kubealign_components.data.schemas import Completion

VERSION = 1
DROP, COIN = "drop", "coin"
ZERO, MEAN = "zero", "mean"
WRITE_ROWS = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class AggregateConfig:
    """Settings of ``aggregate``; the defaults are the published ones."""

    principles: str = "judging"
    """A shipped principle set, or path or URI of a user's own; the pairs must have been judged by it."""
    names: tuple[str, ...] = ()
    """Which of its principles to draw from; all that are for the reward model when empty."""
    passes: int = 4
    """How often each pair is drawn for."""
    geometric_p: float = 0.2
    """Of the geometric distribution of how many principles a draw has."""
    max_principles: int = 8
    """Most principles of a draw: the distribution is truncated there, or at the number of principles."""
    negation: float = 0.5
    """Probability of each drawn principle to be negated."""
    scale: str = VARIANCE
    """What scores of a principle are divided by, over the whole dataset: variance (as published), std,
    or none."""
    label: str = "dominant"
    """Which completion is preferred: by the principle with the largest score (dominant, as published),
    by the sum of the scores (sum), or by the number of principles for it (vote)."""
    inconsistent: str = ZERO
    """What the score of a judgement counts whose two orders prefer different completions: zero (as
    published), or mean. In the mean a constant preference for a position cancels as well, so it is what a
    small judge with a strong one still has to say."""
    ties: str = DROP
    """What becomes of a draw whose scores prefer neither: drop (as published), or coin for a random
    label."""
    label_noise: float = 0.1
    """Probability of a label to be flipped, where no rule has decided it."""
    rules: tuple[RuleSpec, ...] = PUBLISHED
    """Rules that overrule the scores, in order: a later one overrules an earlier one."""
    validation_fraction: float = 0.05
    """Share of prompts that are held out."""
    seed: int = 0
    """Decides every draw and coin, and the split."""
    min_consistency: float = gate(0.0)
    """Fail the run, before anything is written, when the judge's two orders prefer the same completion in a
    smaller share of the judgements under the principles that are drawn from; 0 for no gate. A judge without
    an opinion, whose orders are two independent coins, reaches 0.5, and less if it likes a position; one that
    sees the position alone reaches 0. So chance is 0.5 or less, and 0.6 is clear of it from some hundreds of
    judgements on."""
    min_principle_consistency: float = gate(0.0)
    """The same under each of these principles, of which a weak one can hide behind the others."""
    work: str = execution("")
    """Work prefix: what was finished there before, with these settings on these rows, is taken."""

    def __post_init__(self) -> None:
        require(self.passes > 0, "passes", self.passes, "1 or more")
        require(0 < self.geometric_p <= 1, "geometric_p", self.geometric_p, "a probability above 0")
        require(self.max_principles > 0, "max_principles", self.max_principles, "1 or more")
        require_choice("scale", self.scale, SCALES)
        require_choice("label", self.label, POLICIES)
        require_choice("inconsistent", self.inconsistent, (ZERO, MEAN))
        require_choice("ties", self.ties, (DROP, COIN))
        for name in ("negation", "label_noise", "min_consistency", "min_principle_consistency"):
            value = getattr(self, name)
            require(0 <= value <= 1, name, value, "a share, from 0 to 1")
        require_validation_fraction(self.validation_fraction)
        functions = [rule.name for rule in self.rules]
        require(len(set(functions)) == len(functions), "rules", functions, "every rule once")

    @property
    def slug(self) -> list[str]:
        """Words of the dataset's slug."""
        return [self.label, f"passes{self.passes}", *([self.scale] if self.scale != VARIANCE else [])]


def run(config: AggregateConfig, *, judged: Dataset, output: str, report: str | None = None) -> Stats:
    """Write the pairs to ``output`` (``kubealign.preferences/v1``).

    Rows are counted in draws: each pair counts once for every pass. ``extra`` of the manifest holds
    the principles with their scales, how often each of them was dominant, and how many draws had how
    many principles.

    Args:
        config: the settings.
        judged: ``kubealign.judged/v1``.
        output: URI of the dataset to make; the report lies beside its rows.
        report: path of a second copy of the report, for the Kubeflow UI.

    Raises:
        ConfigError: an unusable rule or principle set, or one that the pairs were not judged by.
        DataError: judgements that contradict each other or are not finite.
        EmptyDataset: no pair was judged.
        GateError: the judge is less consistent than ``min_consistency`` or ``min_principle_consistency``
            asks; nothing is written.
    """
    whole = load_principles(config.principles)
    principles = _principles(config, whole)
    _check_judged_by(principles, judged)
    rules = [LoadedRule(spec) for spec in config.rules]
    params = semantic_params(config) | {
        "principles": whole.identity(),
        "names": principles.names,
        "rule_functions": rules_identity(rules),
    }
    provenance = derive(
        "aggregate",
        VERSION,
        params,
        inputs={"judged": judged},
        slug=config.slug,
    )
    request = output_request(config, provenance, output, REPORT)
    stats = once(request, lambda: _make(config, principles, rules, judged, provenance, output))
    copy_report(output, report)
    return stats


def _make(
    config: AggregateConfig,
    principles: PrincipleSet,
    rules: Sequence[LoadedRule],
    judged: Dataset,
    provenance: Provenance,
    output: str,
) -> Stats:
    scales, opinions = _scales(config, judged, principles), survey(judged)
    _require_judgements(judged, opinions)
    check_consistency(
        opinions.opinions,
        principles.names,
        least=config.min_consistency,
        least_each=config.min_principle_consistency,
    )
    maker = _Maker(config, principles, rules, scales)
    with (
        DatasetWriter(output, PREFERENCES, provenance) as writer,
        progress_bar(judged.rows, "prompts", "aggregate") as bar,
    ):
        pending: list[Mapping[str, object]] = []
        for row in judged.iter_rows(of=JudgedRow):
            pending += maker.rows(row)
            if len(pending) >= WRITE_ROWS:
                writer.write_rows(pending)
                pending = []
            bar.update()
        writer.write_rows(pending)
        maker.stats.rows_out = writer.rows
        writer.commit(maker.stats, maker.report())
    page = report_html(slug=provenance.slug, survey=opinions, made=maker.report(), stats=maker.stats)
    write_report(page, output)
    return maker.stats


def _principles(config: AggregateConfig, whole: PrincipleSet) -> PrincipleSet:
    """The principles to draw from.

    Raises:
        ConfigError: there are none, or one that may be negated has no negative statement.
    """
    chosen = whole.only(config.names) if config.names else whole.of_stage(REWARD_MODEL)
    if not len(chosen):
        raise ConfigError(
            "principles", config.principles, f"a set with principles for the stage {REWARD_MODEL}, or names"
        )
    for principle in chosen:
        principle.statement(negated=config.negation > 0)
    return chosen


def _check_judged_by(principles: PrincipleSet, judged: Dataset) -> None:
    """Raise :class:`ConfigError` when a principle says something else now than when the pairs were judged."""
    steps = [step for step in judged.manifest.recipe.values() if step["stage"] == JUDGE]
    theirs = {name: statement for step in steps for name, statement in step["params"]["principles"]}
    changed = [name for name, ours in principles.statements() if theirs.get(name, ours) != ours]
    if changed:
        raise ConfigError(
            "principles",
            f"{principles.name} version {principles.version}",
            f"the statements that {judged.uri} was judged by; {', '.join(changed)} changed, so judge again",
        )


def _scales(config: AggregateConfig, judged: Dataset, principles: PrincipleSet) -> list[float]:
    """What each principle's scores are divided by; a spread comes from a first pass over the scores."""
    if config.scale == NONE:
        return [1.0 for _ in principles]
    moments = [Moments() for _ in principles]
    with progress_bar(judged.rows, "prompts", "aggregate: scale") as bar:
        for row in judged.iter_rows(["prompt_id", "completions", "judgements"], of=JudgedRow):
            for pair in judged_pairs(row, principles.names):
                if isinstance(pair, JudgedPair):
                    for moment, s12, s21 in zip(moments, pair.s12, pair.s21):
                        moment.add((s12, s21))
            bar.update()
    return [moment.scale(config.scale) for moment in moments]


def _require_judgements(judged: Dataset, judgements: Survey) -> None:
    if not judgements.opinions:
        raise EmptyDataset(
            f"{judged.uri}: none of its {judged.rows} prompts has a judged pair; `judge` needs two different "
            "reference completions of a prompt, each of min_characters or more, so sample with n=2 or more"
        )


class _Maker:
    """Makes the rows of one prompt after the other, and counts."""

    def __init__(
        self,
        config: AggregateConfig,
        principles: PrincipleSet,
        rules: Sequence[LoadedRule],
        scales: list[float],
    ) -> None:
        self.stats = Stats()
        self._config, self._principles, self._rules, self._scales = config, principles, rules, scales
        self._odds = Odds(
            principles=len(principles),
            p=config.geometric_p,
            most=min(config.max_principles, len(principles)),
            negation=config.negation,
        )
        self._dominant: Counter[str] = Counter()
        self._drawn: Counter[int] = Counter()

    def rows(self, row: JudgedRow) -> Iterator[Mapping[str, object]]:
        """The pairs of one prompt, in every pass."""
        config, stats = self._config, self.stats
        stats.counts["prompts"] += 1
        held_out = is_held_out(row["prompt_id"], config.validation_fraction, config.seed)
        split = "validation" if held_out else "train"
        for pair in judged_pairs(row, self._principles.names):
            stats.counts["pairs"] += 1
            stats.rows_in += config.passes
            if isinstance(pair, Unusable):
                stats.drop(pair.reason, config.passes)
                continue
            verdicts = self._verdicts(row, pair)
            scores = pair.scores(self._scales, keep_inconsistent=self._config.inconsistent == MEAN)
            for number in range(config.passes):
                decided = self._decide(pair, scores, verdicts, number)
                if decided is not None:
                    yield {
                        "prompt_id": row["prompt_id"],
                        "source": row["source"],
                        "split": split,
                        "messages": row["messages"],
                        "tools": row["tools"],
                        **decided,
                    }

    def report(self) -> JsonObject:
        """What the manifest says beside the counts."""
        return {
            "principles": [
                {"name": name, "scale": scale, "dominant": self._dominant[name]}
                for name, scale in zip(self._principles.names, self._scales)
            ],
            "principles_per_draw": [self._drawn[k + 1] for k in range(self._odds.most)],
        }

    def _verdicts(self, row: JudgedRow, pair: JudgedPair) -> list[Verdict]:
        if not self._rules:
            return []
        messages = json.loads(row["messages"])
        asked = RuleInput(
            messages=messages,
            prompt=next((str(m["content"]) for m in reversed(messages) if m["role"] == "user"), ""),
            completions=(_text(pair.completions[0]), _text(pair.completions[1])),
        )
        return [rule.ask(asked) for rule in self._rules]

    def _decide(
        self, pair: JudgedPair, scores: list[float], verdicts: list[Verdict], number: int
    ) -> JsonObject | None:
        """One draw of one pair; None, counted, when it is dropped."""
        drawn = draw(self._odds, len(self._rules), self._config.seed, pair.prompt, *pair.ids, number)
        signed = [
            (-scores[i] or 0.0) if negated else scores[i]
            for i, negated in zip(drawn.principles, drawn.negated)
        ]
        support = POLICIES[self._config.label](signed)
        if support == 0 and self._config.ties == DROP:
            self.stats.drop("tie")
            return None
        preferred = int(support < 0) if support else int(drawn.tie < 0.5)
        rule, dropped = None, False
        for spec, verdict, coin in zip(self._config.rules, verdicts, drawn.rules):
            if coin < spec.probability and verdict != Verdict():
                rule, dropped = spec, verdict.drop
                preferred = preferred if verdict.preferred is None else verdict.preferred
            if dropped:
                self.stats.drop(f"rule_{slug_word(spec.name)}")
                return None
        flipped = drawn.flip < (self._config.label_noise if rule is None else rule.flip_rate)
        self._count(drawn, signed, rule, flipped)
        facts = {
            "dominant": self._dominant_name(drawn, signed),
            "pass": number,
            "rule": rule.name if rule else None,
            "flipped": flipped,
            "swapped": drawn.swapped,
            # In favour of the completion that is shown first, by principle.
            "scores": [(-s or 0.0) if drawn.swapped else s for s in signed],
        }
        return {
            "pair_id": pair_id(pair.prompt, pair.ids, number),
            "completions": list(pair.completions[::-1] if drawn.swapped else pair.completions),
            "preferred": preferred ^ flipped ^ drawn.swapped,
            "principles": self._shown(drawn),
            "margin": None if rule else abs(support),
            "metadata": canonical_json(facts),
        }

    def _dominant_name(self, drawn: Draw, signed: list[float]) -> str | None:
        """The principle with the largest score; None when all scores are 0."""
        strongest = dominant(signed)
        return self._principles.names[drawn.principles[strongest]] if signed[strongest] else None

    def _shown(self, drawn: Draw) -> list[PreferencePrinciple]:
        chosen = [self._principles.principles[i] for i in drawn.principles]
        return [
            {"name": p.name, "negated": negated, "text": p.statement(negated=negated)}
            for p, negated in zip(chosen, drawn.negated)
        ]

    def _count(self, drawn: Draw, signed: list[float], rule: RuleSpec | None, flipped: bool) -> None:
        name = self._dominant_name(drawn, signed)
        self._drawn[len(drawn.principles)] += 1
        counts = self.stats.counts
        if name is not None:
            self._dominant[name] += 1
            counts[f"dominant_{slug_word(name)}"] += 1
        counts["flipped"] += flipped
        counts["swapped"] += drawn.swapped
        if rule is not None:
            counts[f"decided_by_{slug_word(rule.name)}"] += 1
        self.stats.observe("principles", [len(drawn.principles)])
        self.stats.observe("negated", drawn.negated)


def _text(completion: Completion) -> str:
    return flatten_text(json.loads(completion["messages"]))
