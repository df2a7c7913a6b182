"""Parameters of a pipeline, gathered from the settings of its stages."""

from __future__ import annotations

from collections.abc import Mapping

from kubealign_components.errors import ConfigError


class Parameters:
    """Parameters by name. A setting goes to the pipeline's parameter that stands for it, or else to the
    options of its stage.

    Args:
        slug: what errors call the dataset.
    """

    def __init__(self, slug: str) -> None:
        self.values: dict[str, object] = {}
        self._slug = slug

    def put(
        self, options: str, settings: Mapping[str, object], named: Mapping[str, str], group: str = ""
    ) -> None:
        """Take the settings of one stage in.

        A parameter of several stages has the value of the first; where another stage had its own, that
        stands in its options. Null says that a setting decided nothing.

        Args:
            options: parameter for the stage's further settings; empty where it has none.
            settings: of the stage.
            named: those that are parameters of the pipeline, and the parameter's name.
            group: member of the options that holds them.
        """
        for name, value in settings.items():
            if value is None:
                continue
            parameter = named.get(name)
            if parameter is None or self.values.setdefault(parameter, value) != value:
                self._option(options, name, value, group)

    def _option(self, options: str, name: str, value: object, group: str) -> None:
        held = self.values.setdefault(options, {})
        assert isinstance(held, dict)
        if group:
            held = held.setdefault(group, {})
        if held.setdefault(name, value) != value:
            raise ConfigError(
                "rerun",
                self._slug,
                f"what one run made: two steps have {name} {held[name]!r} and {value!r}, which {options} "
                "gives to both",
            )
