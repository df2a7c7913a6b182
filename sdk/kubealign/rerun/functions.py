"""Reward functions of one's own: the recipe says what they are, and the origins beside it where they lay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from kubealign.rerun.story import Story
from kubealign_components.config import require
from kubealign_components.engines.own_code import find_code
from kubealign_components.engines.reward_functions import RewardFunctionSpec


def placed(
    story: Story, functions: Sequence[Mapping[str, object]], identities: Mapping[str, object]
) -> list[dict[str, object]]:
    """The settings of ``functions`` as a run file has them: with the places of those that are files.

    Args:
        story: of what they rewarded.
        functions: their settings in a step's recipe.
        identities: what they were, by their names there.

    Raises:
        ConfigError: the manifest does not tell where a file lay, or what lies there now is another function.
    """
    return [
        _function_settings(story, function, identities.get(str(function["function"])))
        for function in functions
    ]


def _function_settings(story: Story, function: Mapping[str, object], identity: object) -> dict[str, object]:
    spec = RewardFunctionSpec(function=str(function["function"]))
    if not spec.is_file or not isinstance(identity, str):
        return dict(function)
    uri = story.origin_of(identity)["uri"]
    file, _, name = uri.rpartition(":")
    if not file.endswith(".py"):  # what a run sends to its work prefix, which is named by its content
        return {**function, "source": uri}
    beside = Path(file).with_name(spec.module)  # a copy of it under another name has one identity with it
    _require_unchanged(story, beside, name, identity)
    return {**function, "function": f"{beside}:{name}"}


def _require_unchanged(story: Story, file: Path, name: str, identity: str) -> None:
    if not file.is_file():
        return  # on another machine the place is told as it was
    current = find_code(str(file), name).digest
    require(
        current == identity,
        "rerun",
        f"{file}:{name}",
        f"the function that rewarded {story.manifest.slug}, whose digest is {identity[:12]}; what is there "
        f"now has {current[:12]}: put back what it was",
    )
