"""What holds for a pipeline's parameters beyond the rules of any one stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """Rules that the command line holds parameters to before a run."""

    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Values of the parameters that choose a branch."""
    one_of: tuple[tuple[str, ...], ...] = ()
    """Groups of parameters of which at least one must be given and not be empty."""
