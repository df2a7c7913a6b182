"""What libraries load at their start and no stage uses is left out of a stage's process."""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder

_ASSISTED = "transformers.generation.candidate_generator"
"""What transformers needs scikit-learn for: sampling with an assistant, at a threshold that it adapts."""


class _NoScikitLearn(MetaPathFinder):
    """Tells transformers, when it loads assisted sampling, that there is no scikit-learn; finds nothing."""

    def find_spec(self, fullname: str, *_: object) -> None:
        if fullname == _ASSISTED:
            vars(sys.modules["transformers.utils"])["is_sklearn_available"] = lambda: False


def without_scikit_learn() -> None:
    """Let transformers load no scikit-learn, a fifth of a model's start; whoever imports it still has it."""
    sys.meta_path.insert(0, _NoScikitLearn())
