"""Licences as the Hugging Face hub has them: it refuses a card whose ``license`` is not on its own list."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

OTHER = "other"
"""Of what is under a licence that the hub has no identifier for."""
_LISTED = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc
cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0
cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0
cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0
eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research
lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0 openrail++ osl-3.0 postgresql
ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license fair-noncommercial-research-license llama2
llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma unknown other
"""
HUB_LICENSES = frozenset(_LISTED.split())
"""What the hub takes as ``license``, as it said in May 2026 (https://hf.co/docs/hub/repositories-licenses).
A licence that it has added since is told as :data:`OTHER`, with its name."""


def card_head(licenses: Iterable[str]) -> dict[str, object]:
    """What the head of a card says of ``licenses`` so that the hub takes it: themselves where it lists all,
    else ``other``, a name of all in one word, and, exactly, all of them."""
    names = sorted(set(licenses))
    if HUB_LICENSES.issuperset(names):
        return {"license": names} if names else {}
    return {"license": OTHER, "license_name": _one_word(names), "license_details": " AND ".join(names)}


def name_of_other(head: Mapping[str, object]) -> str:
    """What a card whose ``license`` is ``other`` calls it: as :func:`card_head` wrote it, or by its name."""
    name, details = str(head.get("license_name") or ""), str(head.get("license_details") or "")
    return details if details and _one_word(details.split(" AND ")) == name else name


def _one_word(names: Iterable[str]) -> str:
    return re.sub(r"[^a-z0-9.-]", "-plus", "-and-".join(names))
