"""The labels of a reward model: what its config calls them, and the weights that make one score of several.

A model's values are taken as its own config has them: ``problem_type`` says whether they are scores of a
regression, probabilities of labels that hold independently (a sigmoid each), or of labels of which one holds
(a softmax); a cross-encoder's config names the function itself. Where neither is there, values are as they
come.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from kubealign_components.config import did_you_mean, require
from kubealign_components.json_types import JsonObject

DECLARED = "declared"
ACTIVATIONS = (DECLARED, "none", "sigmoid", "softmax")
"""What a model's values go through before they are weighted."""
_OF_PROBLEM = {
    "regression": "none",
    "multi_label_classification": "sigmoid",
    "single_label_classification": "softmax",
}
_OF_CLASS = {"identity": "none", "sigmoid": "sigmoid", "softmax": "softmax"}
"""By the class of torch that a cross-encoder's config names."""
OBJECTIVES = "num_objectives"
"""What configs of models that regress several attributes call their number, beside the one label of a config
that was made for none."""
_SHOWN = 40


@dataclass(frozen=True, kw_only=True, slots=True)
class Labels:
    """What a classifier gives a value for, in the order of its outputs."""

    names: tuple[str, ...]
    activation: str
    """What its config declares: none, sigmoid, softmax, or the name of another class."""

    @classmethod
    def of(cls, config: JsonObject) -> Labels:
        """The labels of a model with this ``config.json``."""
        named = config.get("id2label") or {}
        count = config.get(OBJECTIVES) or config.get("num_labels") or len(named) or 2  # transformers' default
        names = tuple(str(named.get(str(i), f"LABEL_{i}")) for i in range(int(count)))
        return cls(names=names, activation=_declared(config))

    def weighted(self, weights: Mapping[str, float]) -> list[tuple[int, float]]:
        """The outputs that count, and their weights, in the order of outputs.

        Args:
            weights: by the names of labels, or their numbers from 0; empty for a model with one label.

        Raises:
            ConfigError: none of several labels is chosen, or there is no such label; the labels are listed.
        """
        if not weights:
            require(len(self.names) == 1, "label_weights", dict(weights), f"weights of {self.words}")
            return [(0, 1.0)]
        chosen: dict[int, float] = {}
        for name, weight in weights.items():
            index = self.index(name)
            require(index not in chosen, "label_weights", dict(weights), f"one weight for label {name}")
            chosen[index] = weight
        return sorted(chosen.items())

    def index(self, name: str) -> int:
        """The output that ``name`` is, the name of a label or its number.

        Raises:
            ConfigError: no such label, or several of the name; the labels are listed.
        """
        if (count := self.names.count(name)) == 1:
            return self.names.index(name)
        require(not count, "label_weights", name, f"a number: {count} labels have this name, of {self.words}")
        is_number = name.isascii() and name.isdigit() and int(name) < len(self.names)
        require(is_number, "label_weights", name, f"one of {self.words}{did_you_mean(name, self.names)}")
        return int(name)

    def activation_for(self, asked: str) -> str:
        """None, sigmoid or softmax.

        Raises:
            ConfigError: the model declares something else, and ``asked`` is to take what it declares.
        """
        activation = self.activation if asked == DECLARED else asked
        expected = (
            f"one of {', '.join(ACTIVATIONS[1:])}: the model's config declares {activation}, which is none"
        )
        require(activation in ACTIVATIONS, "label_activation", asked, expected)
        return activation

    @property
    def words(self) -> str:
        """How many there are, and their names with their numbers."""
        shown = ", ".join(f"{i} {name}" for i, name in enumerate(self.names[:_SHOWN]))
        more = f" and {len(self.names) - _SHOWN} more" if len(self.names) > _SHOWN else ""
        return f"the model's {len(self.names)} labels, by name or number ({shown}{more})"


def check_weights(weights: Mapping[str, float]) -> None:
    """Raise :class:`ConfigError` for weights of labels that are no finite numbers, or all 0."""
    for name, weight in weights.items():
        require(math.isfinite(weight), f"label_weights.{name}", weight, "a finite number")
    require(not weights or any(weights.values()), "label_weights", dict(weights), "a weight that is not 0")


def _declared(config: JsonObject) -> str:
    cross_encoder = config.get("sentence_transformers")
    named = cross_encoder.get("activation_fn") if isinstance(cross_encoder, dict) else None
    named = named or config.get("sbert_ce_default_activation_function")
    if named:
        name = str(named).rpartition(".")[2]
        return _OF_CLASS.get(name.lower(), name)
    return _OF_PROBLEM.get(str(config.get("problem_type")), "none")
