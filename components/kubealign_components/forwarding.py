"""What KFP hands on of a training task's pod to the component, which gives it to the pods of a TrainJob."""

from __future__ import annotations

from kfp import dsl

_PLACEMENT = (
    dsl.TaskConfigField.KUBERNETES_TOLERATIONS,
    dsl.TaskConfigField.KUBERNETES_NODE_SELECTOR,
    dsl.TaskConfigField.KUBERNETES_AFFINITY,
)
_CONTENT = (
    dsl.TaskConfigField.RESOURCES,
    dsl.TaskConfigField.ENV,
    dsl.TaskConfigField.KUBERNETES_VOLUMES,
)


def forwarded(nodes: int = 1) -> list[dsl.TaskConfigPassthrough]:
    """All there is to hand on. With one node the task's own pod has it as well: it trains itself. With more
    that pod only watches: it reads models and stores, and goes wherever there is room for the little that
    it asks for itself; what the nodes ask for is a setting of the TrainJob then."""
    here = _CONTENT + (_PLACEMENT if nodes == 1 else ())
    return [
        dsl.TaskConfigPassthrough(field=field, apply_to_task=field in here) for field in _PLACEMENT + _CONTENT
    ]
