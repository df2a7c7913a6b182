"""The head of a card: settings in YAML above the text of a README.md, as the Hugging Face hub has them."""

from __future__ import annotations

import re
from collections.abc import Mapping

import yaml

from kubealign_components.errors import ConfigError

CARD = "README.md"
CARD_BYTES = 2**20
"""A longer card's front matter is not read."""


def front_matter(card: str | None) -> Mapping[str, object]:
    """The settings above the text of ``card``; none where there are none that can be read.

    Raises:
        ConfigError: it has aliases.
    """
    match = re.match(r"\s{0,99}---\r?\n(.*?)\r?\n---", (card or "")[:CARD_BYTES], re.DOTALL)
    try:
        body = yaml.load(match[1], Loader=_PlainLoader) if match else None  # noqa: S506
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: a date that is none
        return {}
    return body if isinstance(body, Mapping) else {}


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases: a few of them can stand for more text than fits in memory."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """The next node.

        Raises:
            ConfigError: it is an alias.
        """
        if self.check_event(yaml.AliasEvent):
            raise ConfigError(CARD, "an alias", "a dataset card without YAML aliases (*name)")
        return super().compose_node(parent, index)
