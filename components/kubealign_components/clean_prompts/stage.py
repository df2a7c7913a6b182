"""clean_prompts: the opening prompts of message trees, filtered by language, length and repetition."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kubealign_components.clean_prompts.trees import (
    USERS,
    Root,
    TreeMessage,
    Trees,
    read_messages,
)
from kubealign_components.config import execution, gate, require
from kubealign_components.data.fingerprint import Provenance, derive
from kubealign_components.data.finished import OutputRequest, once
from kubealign_components.data.language import identifier_version, identify_language
from kubealign_components.data.stats import Stats
from kubealign_components.data.withdrawals import Withdrawal, read_withdrawal
from kubealign_components.sources.example import Example
from kubealign_components.sources.external_sort import Entry, Spool
from kubealign_components.sources.prompt_rows import spooled, to_row
from kubealign_components.sources.prompt_writer import sample, write_prompts
from kubealign_components.sources.request import requested
from kubealign_components.sources.source import SourceReader, Unwanted, reading_bar, report_of
from kubealign_components.sources.source_settings import WeightedSource, named_sources, require_fraction
from kubealign_components.sources.withdrawn_rows import WithdrawnRows

if TYPE_CHECKING:
    from typing import NoReturn

    from tqdm import tqdm

VERSION = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class TreeSource(WeightedSource):
    """One source of message trees: messages with message_id, parent_id, role and text, or nested trees."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CleanPromptsConfig:
    """Settings of ``clean_prompts``."""

    sources: tuple[TreeSource, ...]
    """Where trees come from; of a prompt that several have, the first gives it its name."""
    languages: tuple[str, ...] = ()
    """Languages to keep, such as en: as the message says (its ``lang``, without the region), else as it is
    identified; all when empty."""
    min_characters: int = 1
    """Shorter prompts are dropped; counted without outer white space."""
    max_characters: int = 0
    """Longer prompts are dropped; 0 for no limit. ``filter`` limits tokens."""
    min_turns: int = 2
    """Fewest messages on the longest path of a tree; 2 asks for a prompt that somebody has answered."""
    keep_deleted: bool = False
    """Whether to keep trees whose root is marked as deleted."""
    max_rows: int = 0
    """Most prompts, a seeded sample; 0 for all."""
    max_bad_fraction: float = gate(0.01)
    """Largest fraction of malformed rows in a source; more of them fail the stage."""
    seed: int = 0
    """Decides which prompts ``max_rows`` keeps."""
    withdrawn: str = execution("")
    """Path or URI of a withdrawal, of which nothing is taken: `kubealign withdraw` writes one."""
    work: str = execution("")
    """Work prefix: what was finished there before, with these settings on these rows, is taken."""

    def __post_init__(self) -> None:
        require(bool(self.sources), "sources", self.sources, "at least one source")
        object.__setattr__(self, "sources", named_sources(self.sources))
        require_fraction(self.max_bad_fraction)
        for language in self.languages:
            short = language.isascii() and language.isalpha() and language.islower()
            require(short and 2 <= len(language) <= 3, "languages", language, "codes such as en, de, zh")
        require(self.min_characters >= 1, "min_characters", self.min_characters, "1 or more")
        require(
            self.max_characters == 0 or self.max_characters >= self.min_characters,
            "max_characters",
            self.max_characters,
            f"0 (no limit), or at least min_characters ({self.min_characters})",
        )
        require(self.min_turns >= 1, "min_turns", self.min_turns, "1 or more")
        require(self.max_rows >= 0, "max_rows", self.max_rows, "a number of prompts, 0 for all")


def run(config: CleanPromptsConfig, *, output: str) -> Stats:
    """Write the opening prompts to ``output`` (``kubealign.prompts/v1``), in the order of their ids.

    Rows are counted in trees, plus the malformed rows; ``messages`` counts what the trees are made of,
    ``messages_duplicate`` and ``messages_orphan`` (a reply to nothing) what was left aside.

    Args:
        config: the settings.
        output: URI of the dataset to make.

    Raises:
        ConfigError: a source or withdrawal that is not there, or a source that is empty.
        DataError: a damaged file, or a source with more malformed rows than ``max_bad_fraction``.
        StoreError: a source that cannot be fetched, or no room for the messages.
    """
    readers = [SourceReader(source) for source in config.sources]
    withdrawal = read_withdrawal(config.withdrawn)
    request = requested(
        "clean_prompts",
        VERSION,
        config,
        readers,
        output=output,
        language_identifier=identifier_version() if config.languages else None,
        **withdrawal.request(),
    )
    return once(request, lambda: _make(config, readers, withdrawal, request))


def _make(
    config: CleanPromptsConfig,
    readers: Sequence[SourceReader],
    withdrawal: Withdrawal,
    request: OutputRequest,
) -> Stats:
    stats, dropped = Stats(), WithdrawnRows(withdrawal)
    with Trees() as trees, Spool() as spool:
        with reading_bar(readers, "clean_prompts") as bar:
            for number, reader in enumerate(readers):
                _read(reader, number, trees, stats, bar)
                reader.check(config.max_bad_fraction)
        trees.link()
        stats.counts["messages_orphan"] += trees.orphans()
        spool.add(_entries(config, trees, dropped, stats))
        spool.sort()
        write_prompts(
            spool,
            sample(spool, (), config.max_rows, config.seed, "clean_prompts"),
            request.output,
            _provenance(config, readers, dropped),
            stats,
            over="over_max_rows",
            extra=lambda: report_of(readers) | request.note,
        )
    return stats


def _read(reader: SourceReader, number: int, trees: Trees, stats: Stats, bar: tqdm[NoReturn]) -> None:
    """Take the messages of one source in; what does not make a tree is counted."""
    seen = Stats()
    for row, messages in reader.items(read_messages, seen, bar, row_format="trees"):
        for message in messages:
            stats.counts["messages"] += 1
            if not trees.add(number, row, message):
                stats.counts["messages_duplicate"] += 1
    stats.rows_in += reader.malformed.total()
    stats.dropped.update(reader.malformed)


def _entries(
    config: CleanPromptsConfig, trees: Trees, dropped: WithdrawnRows, stats: Stats
) -> Iterator[Entry]:
    for root in trees.roots(config.min_turns):
        stats.rows_in += 1
        source = config.sources[root.source]
        language = root.message.language
        if config.languages and language is None:
            language = identify_language(root.message.text)
        reason = _unwanted(root, language, config, source.role_names)
        if reason is not None:
            stats.drop(reason)
            continue
        row = to_row(_example(root.message, language), source.name, source.weight)
        try:
            dropped.check(root.source, row["prompt_id"], source.name)
        except Unwanted as choice:
            stats.drop(choice.reason)
            continue
        name, body = spooled(row)
        yield name, root.source, root.row, body


def _unwanted(
    root: Root, language: str | None, config: CleanPromptsConfig, roles: Mapping[str, str]
) -> str | None:
    """Why a tree is dropped, if it is."""
    message, length = root.message, len(root.message.text.strip())
    if message.role not in USERS and roles.get(message.role) != "user":
        return "not_from_user"
    if message.deleted and not config.keep_deleted:
        return "deleted"
    if root.turns < config.min_turns:
        return "too_few_turns"
    if length < config.min_characters:
        return "too_short"
    if config.max_characters and length > config.max_characters:
        return "too_long"
    if config.languages:
        if language is None:
            return "unknown_language"
        if _base(language) not in config.languages:
            return "other_language"
    return None


def _base(language: str) -> str:
    """``pt`` of ``pt-BR``."""
    return language.lower().replace("_", "-").partition("-")[0]


def _example(message: TreeMessage, language: str | None) -> Example:
    metadata = {"message_id": message.id} | ({"lang": language} if language else {})
    return Example(messages=[{"role": "user", "content": message.text.strip()}], metadata=metadata)


def _provenance(
    config: CleanPromptsConfig, readers: Sequence[SourceReader], dropped: WithdrawnRows
) -> Provenance:
    names = ("min_characters", "max_characters", "min_turns", "keep_deleted", "max_rows")
    params: dict[str, object] = {name: getattr(config, name) for name in names}
    params |= {
        "sources": [reader.settings() for reader in readers],
        "languages": sorted(config.languages),
        "language_identifier": identifier_version() if config.languages else None,
        "seed": config.seed if config.max_rows else None,
        **dropped.withdrawal.params(config.withdrawn),
    }
    words = [source.name for source in config.sources]
    return derive("clean_prompts", VERSION, params, slug=[*words, *sorted(config.languages)])
