"""The page of a dataset of prompts and completions, for every stage that makes one.

What it shows goes by what the rows hold: lengths once they are counted, rewards once they are given, pairs
once they are chosen, log-probabilities once they are computed.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from markupsafe import Markup, escape

from kubealign_components.data.agreement import agreements
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.licenses import joined, licenses
from kubealign_components.data.manifest import Manifest
from kubealign_components.data.schemas import ROWS
from kubealign_components.data.stats import LABEL_VALUE
from kubealign_components.reports.charts import POINTS, bounds, histogram, scatter
from kubealign_components.reports.columns import OFFLINE, Bools, Floats, Ints, RowColumns, read_columns
from kubealign_components.reports.html import fitting, messages_text, render
from kubealign_components.reports.samples import characters, diversity, languages, spread_rows

EXAMPLES = 12
"""Prompts whose texts are shown."""
COMPLETIONS = 8
"""Most completions of a prompt that are shown: the best and the worst by reward, or the first."""
SOURCES = 50
"""Most sources in the table, the largest."""
BINS = 40
SOURCE_COLUMNS = ("source", "prompts", "completions", "mean tokens", "mean reward")
Row = Mapping[str, object]
Side = tuple[str, str, str | Markup]
"""Name, facts and text."""


def rows_page(dataset: Dataset) -> str:
    """A self-contained page about the rows of ``dataset``, made in one pass over their numbers.

    Args:
        dataset: prompts with completions.
    """
    manifest, columns = dataset.manifest, read_columns(dataset)
    stats = manifest.stats
    agreement = agreements(stats["sums"])
    return render(
        "kubealign_components/reports/rows.html",
        stage=str(manifest.provenance.step["stage"]).replace("_", " "),
        manifest=manifest,
        stride=columns.stride,
        facts=[
            *licence_facts(manifest),
            *_facts(columns),
            *_label_means(stats["sums"]),
            *((n.replace("_", " "), f"{v:.6g}") for n, v in stats["numbers"].items()),
        ],
        dropped=sorted(stats["dropped"].items(), key=lambda pair: -pair[1]),
        dropped_texts=fitting(dropped_texts(manifest.extra), lambda shown: [shown[2]]),
        warnings=[
            *_texts(manifest.extra.get("warnings", [])),
            *(f"{text[0].upper()}{text[1:]}." for one in agreement if (text := one.warning)),
        ],
        agreement=[[one.source or "all", str(one.pairs), f"{one.share:.1%}"] for one in agreement],
        finish=columns.finish_reasons.most_common(10) if columns.finish_reasons.keys() - {OFFLINE} else [],
        diversity=diversity(dataset),
        languages=languages(dataset),
        charts=list(_charts(columns, characters(dataset))),
        sources=_with_content(SOURCE_COLUMNS, _sources(columns)),
        weights=_weights(manifest),
        examples=fitting(_examples(dataset), lambda shown: [shown[0], *(str(s[2]) for s in shown[1])]),
    )


def _texts(listed: object) -> list[str]:
    return [str(text) for text in listed] if isinstance(listed, (list, tuple)) else []


def dropped_texts(extra: Mapping[str, object]) -> Iterator[tuple[str, str, str]]:
    """Reason, place and text of the examples of dropped rows that a manifest keeps."""
    by_reason, malformed = extra.get("dropped_examples", {}), extra.get("malformed", [])
    assert isinstance(by_reason, Mapping) and isinstance(malformed, list)
    for reason, examples in by_reason.items():
        for one in examples:
            yield reason.replace("_", " "), f"prompt {one['prompt_id'][:12]}", one["text"]
    for one in malformed:
        yield one["reason"].replace("_", " "), f"{one['source']}: {one['file']} row {one['row']}", one["text"]


def licence_facts(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """The licences of what went in, as a fact, where there are any."""
    if names := licenses(manifest):
        yield "licence", joined(names)


def _label_means(sums: Mapping[str, Sequence[float]]) -> Iterator[tuple[str, str]]:
    """What each label of a reward model says on average, where several make the reward."""
    for name, (total, count) in sums.items():
        if name.startswith(LABEL_VALUE):
            yield f"mean of {name.removeprefix(LABEL_VALUE)}", f"{total / count:.4g}"


def _facts(columns: RowColumns) -> Iterator[tuple[str, str]]:
    yield "completions looked at", f"{len(columns.prompt):,}"
    if len(columns.prompt):
        yield "same text as another", f"{columns.repeated / len(columns.prompt):.1%}"
    if len(columns.chosen):
        longer = columns.tokens[columns.chosen] - columns.tokens[columns.rejected]
        yield "pairs", f"{len(columns.chosen):,}"
        yield "chosen is longer", f"{np.mean(longer > 0):.1%} (equal {np.mean(longer == 0):.1%})"


def _charts(columns: RowColumns, lengths: Sequence[int]) -> Iterator[Markup]:
    yield from _drawn("Prompt lengths", {"prompts": np.array(lengths, np.float64)}, "characters")
    yield from _drawn("Prompt lengths", {"prompts": columns.prompt_tokens}, "tokens")
    whose = {"sampled": columns.reference, "offline": ~columns.reference}
    yield from _drawn("Completion lengths", _by(columns.tokens, whose), "tokens")
    yield from _drawn("Rewards", _by(columns.reward, whose), "reward")
    yield from _reward_against_length(columns)
    yield from _drawn("Spread of a prompt's rewards", {"prompts": _spread(columns)}, "largest − smallest")
    if len(columns.chosen):
        sides = {"chosen": columns.chosen, "rejected": columns.rejected}
        for title, values, unit in (
            ("Rewards of pairs", columns.reward, "reward"),
            ("Quantile rewards of pairs", columns.quantile_reward, "quantile reward"),
            ("Lengths of pairs", columns.tokens, "tokens"),
        ):
            yield from _drawn(title, {name: values[positions] for name, positions in sides.items()}, unit)
    else:
        yield from _drawn("Quantile rewards", {"completions": columns.quantile_reward}, "quantile reward")
    with np.errstate(divide="ignore", invalid="ignore"):
        each = columns.logprob / columns.tokens
        drift = (columns.logprob - columns.sampler_logprob) / columns.tokens
    yield from _drawn("Reference log-probabilities", _by(each, whose), "nats a token")
    yield from _drawn("Drift from the sampler", {"completions": drift}, "nats a token")


def _drawn(title: str, values: Mapping[str, Floats], unit: str) -> Iterator[Markup]:
    """A histogram over common bins, if there is anything to draw; the outermost hold 0.1 % each at most."""
    finite = {name: those[np.isfinite(those)] for name, those in values.items()}
    finite = {name: those for name, those in finite.items() if len(those)}
    if finite:
        low, high = bounds(*np.quantile(np.concatenate(list(finite.values())), [0.001, 0.999]).tolist())
        counts = {
            name: np.histogram(np.clip(those, low, high), BINS, (low, high))[0].tolist()
            for name, those in finite.items()
        }
        yield histogram(title, counts, low, high, x=unit)


def _by(values: Floats, masks: Mapping[str, Bools]) -> dict[str, Floats]:
    return {name: values[mask] for name, mask in masks.items()}


def _reward_against_length(columns: RowColumns) -> Iterator[Markup]:
    shown = np.flatnonzero(np.isfinite(columns.reward) & np.isfinite(columns.tokens))
    if len(shown) > 2:
        shown = shown[:: max(1, len(shown) // (10 * POINTS))]
        np.random.default_rng(0).shuffle(shown)
        points = list(zip(columns.tokens[shown].tolist(), columns.reward[shown].tolist()))
        yield scatter("Reward against length", points, x="tokens", y="reward", slope=True)


def _spread(columns: RowColumns) -> Floats:
    """Largest less smallest reward of each prompt that has two or more."""
    finite = np.isfinite(columns.reward)
    prompt, reward = columns.prompt[finite], columns.reward[finite]
    low, high = np.full(len(columns.sources), np.inf), np.full(len(columns.sources), -np.inf)
    np.minimum.at(low, prompt, reward)
    np.maximum.at(high, prompt, reward)
    several = np.bincount(prompt, minlength=len(columns.sources)) > 1
    spread: Floats = high[several] - low[several]
    return spread


def _sources(columns: RowColumns) -> list[list[str]]:
    """Name, prompts, completions, mean tokens and mean reward of the largest sources."""
    names = Counter(columns.sources)
    number = {name: i for i, name in enumerate(names)}
    own = np.array([number[name] for name in columns.sources], dtype=np.int64)
    of_completion = own[columns.prompt] if len(own) else own
    completions = np.bincount(of_completion, minlength=len(names))
    tokens, rewards = (_means(of_completion, v, len(names)) for v in (columns.tokens, columns.reward))
    return [
        [
            name,
            str(count),
            str(completions[number[name]]),
            _number(tokens[number[name]], ".1f"),
            _number(rewards[number[name]], ".4f"),
        ]
        for name, count in names.most_common(SOURCES)
    ]


def _with_content(head: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """A table without the columns in which nothing stands."""
    kept = [i for i, _ in enumerate(head) if any(row[i] for row in rows)]
    return [head[i] for i in kept], [[row[i] for i in kept] for row in rows]


def _weights(manifest: Manifest) -> list[list[str]]:
    """Of each source that was mixed its weight, examples before and after, and the share that it was to have
    and has; nothing of what is no mix of several."""
    mixed, params = manifest.extra.get("sources"), manifest.provenance.step["params"]
    if not isinstance(mixed, Mapping) or len(mixed) < 2 or "temperature" not in params:
        return []
    rate = {name: one["weight"] * one["before"] ** (1 / params["temperature"]) for name, one in mixed.items()}
    all_rates, all_after = sum(rate.values()), sum(one["after"] for one in mixed.values())
    return [
        [
            name,
            f"{one['weight']:g}",
            f"{one['before']:,}",
            f"{one['after']:,}",
            f"{rate[name] / all_rates:.1%}" if all_rates else "",
            f"{one['after'] / all_after:.1%}" if all_after else "",
        ]
        for name, one in sorted(mixed.items(), key=lambda pair: -pair[1]["after"])[:SOURCES]
    ]


def _means(groups: Ints, values: Floats, size: int) -> Floats:
    finite = np.isfinite(values)
    counts = np.bincount(groups[finite], minlength=size)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.bincount(groups[finite], values[finite], minlength=size) / counts)


def _number(value: float, form: str) -> str:
    return format(value, form) if np.isfinite(value) else ""


def _examples(dataset: Dataset) -> Iterator[tuple[str, list[Side]]]:
    """Prompt and completions of some rows."""
    for row in spread_rows(dataset, ["messages", "completions", *_pairs(dataset)], EXAMPLES):
        yield messages_text(row["messages"]), _sides(row)


def _pairs(dataset: Dataset) -> list[str]:
    return [name for name in ("pairs", "split") if name in ROWS[dataset.manifest.schema].names]


def _sides(row: Row) -> list[Side]:
    completions = row["completions"]
    assert isinstance(completions, list)
    pairs = row.get("pairs")
    if isinstance(pairs, list) and pairs:
        return _compared(completions[pairs[0]["chosen"]], completions[pairs[0]["rejected"]])
    if "split" in row and len(completions) == 2:
        return _compared(*completions)
    rewarded = [c for c in completions if c["reward"] is not None]
    if len(completions) > COMPLETIONS and len(rewarded) == len(completions):
        order = sorted(completions, key=lambda c: -c["reward"])
        completions = [*order[: COMPLETIONS // 2], *order[-COMPLETIONS // 2 :]]
    return [side_of(str(c["model"] or "offline"), c) for c in completions[:COMPLETIONS]]


def _compared(chosen: Row, rejected: Row) -> list[Side]:
    texts = marked(_text(chosen), _text(rejected))
    return [side_of("chosen", chosen, texts[0]), side_of("rejected", rejected, texts[1])]


def side_of(name: str, completion: Row, text: Markup | None = None) -> Side:
    """A completion under ``name`` with what is known of it, as its text or as ``text`` with marked words."""
    facts = [f"{completion['num_tokens']} tokens" if completion["num_tokens"] is not None else ""]
    facts += [
        f"{word.replace('_', ' ')} {completion[word]:.4g}"
        for word in ("reward", "quantile_reward", "logprob")
        if completion[word] is not None
    ]
    facts += [str(completion[word]) for word in ("finish_reason", "label") if completion[word]]
    return name, ", ".join(filter(None, facts)), _text(completion) if text is None else text


def _text(completion: Row) -> str:
    return messages_text(str(completion["messages"]), roles=False)


def marked(one: str, other: str) -> tuple[Markup, Markup]:
    """Both texts, with the words marked that the other one lacks."""
    words = [re.findall(r"\s+|\w+|[^\w\s]", text) for text in (one, other)]
    matched = difflib.SequenceMatcher(None, words[0], words[1]).get_opcodes()
    first = [(tag, words[0][a:b]) for tag, a, b, _, _ in matched]
    second = [(tag, words[1][c:d]) for tag, _, _, c, d in matched]
    return _marked(first, "ins"), _marked(second, "del")


def _marked(runs: Iterable[tuple[str, Sequence[str]]], tag: str) -> Markup:
    opened, closed = Markup(f"<{tag}>"), Markup(f"</{tag}>")
    pieces = (
        opened + "".join(run) + closed if kind != "equal" and run else escape("".join(run))
        for kind, run in runs
    )
    return Markup("").join(pieces)
