"""A first run file: commented, for a laptop or a cluster, from a few answers."""

from __future__ import annotations

import math
import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kubealign_components.config import require, require_choice
from kubealign_components.named_paths import FOLDER, kind_at
from kubealign_components.store import scheme_of

if TYPE_CHECKING:
    from jinja2 import Environment

LAPTOP, CLUSTER = TARGETS = ("laptop", "cluster")
REWARDS, PAIRS = TASKS = ("rewards", "pairs")
"""Answers of the policy that a reward chooses among, or pairs that people labelled."""
OBJECTIVE = "dpo"
"""What a first run trains on."""
TEMPLATE = "starter.yaml.jinja"


@dataclass(frozen=True, kw_only=True, slots=True)
class Starter:
    """What a first run file is made of."""

    target: str = LAPTOP
    """Where it runs, one of :data:`TARGETS`."""
    task: str = REWARDS
    """One of :data:`TASKS`."""
    policy: str
    """The model to align."""
    source: str
    """Its data: a path as seen from here, a URI or a hub id."""
    reward: str = "target_length"
    """A shipped function, ``file.py:function``, or a reward model."""
    work: str = ""
    """On a cluster: the prefix for finished rows."""
    registry: str = ""
    """On a cluster: where its images are."""

    def __post_init__(self) -> None:
        require_choice("--for", self.target, TARGETS)
        require_choice("--task", self.task, TASKS)
        require(bool(self.policy), "--policy", self.policy, "a chat model: a directory, a URI or a hub id")
        require(bool(self.source), "--source", self.source, "a file, a folder, a URI or a hub dataset")
        if self.target == CLUSTER:
            _require_remote("--policy", self.policy)
            _require_remote("--source", self.source)
            if self._by_model:
                _require_remote("--reward", self.reward)
            require("://" in self.work, "--work", self.work, "a prefix of a store, such as gs://bucket/work")

    @property
    def _by_model(self) -> bool:
        """Whether a reward model is what rewards: whatever is not named as a function is."""
        from kubealign_components.engines.reward_functions import names_function

        return self.task == REWARDS and not names_function(self.reward)

    def text(self, path: Path) -> str:
        """The run file that will lie at ``path``: places on this machine are relative to it, and the commands
        in it are for where the user stands now."""
        from kubealign_components.engines.reward_functions import SHIPPED
        from kubealign_pipelines.checking.across import USUAL_BETA

        values = {
            "policy": _beside(self.policy, path),
            "source": _beside(self.source, path),
            "work": self.work,
            "registry": self.registry,
            "reward": _beside(self.reward, path) if self._by_model else _function_beside(self.reward, path),
        }
        template = _environment().get_template(TEMPLATE)
        return template.render(
            target=self.target,
            task=self.task,
            by_model=self._by_model,
            file=shlex.quote(path.as_posix()),
            beta="{:g} to {:g}".format(*USUAL_BETA[OBJECTIVE]),
            objective=OBJECTIVE,
            functions=", ".join(sorted(SHIPPED)),
            **{name: _scalar(value) for name, value in values.items()},
        )


def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    # Values are quoted where they are put in: the text is YAML, and nothing of it is HTML.
    return Environment(
        loader=PackageLoader("kubealign", package_path=""),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )


def _scalar(value: str) -> str:
    """``value`` as YAML has it: plain where that cannot be misread, quoted else."""
    import yaml

    if re.fullmatch(r"[A-Za-z][\w./-]*", value, re.ASCII) and yaml.safe_load(value) == value:
        return value
    quoted: str = yaml.safe_dump(value, default_style='"', allow_unicode=True, width=math.inf)
    return quoted.rstrip()


def _beside(uri: str, path: Path) -> str:
    """``uri``, relative to the run file at ``path`` where it is on this machine."""
    if scheme_of(uri) != "file" or not kind_at(Path(uri)) or Path(uri).is_absolute():
        return uri
    relative = os.path.relpath(uri, path.parent)
    # A folder might be taken for an id of the hub.
    return f"./{relative}" if kind_at(Path(uri)) == FOLDER and not relative.startswith(".") else relative


def _function_beside(reward: str, path: Path) -> str:
    file, colon, name = reward.rpartition(":")
    return f"{_beside(file, path)}:{name}" if colon and file.endswith(".py") else reward


def _require_remote(field: str, uri: str) -> None:
    here = scheme_of(uri) == "file" and (kind_at(Path(uri)) or uri.startswith((".", "/", "~")))
    require(not here, field, uri, "what pods can read: gs://, s3:// or a hub id, no path of this machine")
