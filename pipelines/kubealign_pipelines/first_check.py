"""The first task of every run: all parameters held against the rules that ``kubealign check`` has.

Whoever fills in a form, clones a run or lets a schedule start one asks nobody else. The component is written
for a pipeline, since a component names its inputs and every pipeline has others: it takes each parameter, and
hands them to :mod:`kubealign_pipelines.checking.in_pod`. It returns a word for the data and models at the
places that parameters name. Tasks that read the outside world may take it as an input: then Kubeflow's cache
answers them, and all after them, while nothing is new there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kfp import dsl

from kubealign_components import images
from kubealign_pipelines.generated import defined
from kubealign_pipelines.graph import CHECK

OWN = ("pipeline", "compiled", "shape")
"""Inputs beside the parameters: the pipeline's name, what of the compile section the check must know, and
the parameters by which the stages were chosen."""
_TYPES = {
    "String": "str",
    "Integer": "int",
    "Float": "float",
    "Boolean": "bool",
    "List": "list",
    "Dict": "dict",
}
"""KFP's types, as a component's function writes them."""
_SOURCE = '''\
def {name}({inputs}) -> str:
    """Hold all parameters against the rules of the stages, with models and sources at hand.

    Returns:
        what sources and models are now; another word wherever that cannot be told.
    """
    parameters = dict(locals())

    from kubealign_pipelines.checking.in_pod import check

    return check(parameters)
'''


def check_component(parameters: Mapping[str, str]) -> Callable[..., dsl.PipelineTask]:
    """The component for a pipeline with ``parameters``: KFP's type by name, such as List[Dict].

    None is required: a graph whose tasks do not read one has no such parameter.
    """
    own = [f"{name}: {kind}" for name, kind in zip(OWN, ("str", "dict", "dict"))]
    read = [f"{name}: {_TYPES[kind.partition('[')[0]]} = None" for name, kind in parameters.items()]
    inputs = ", ".join([*own, *read])
    source = _SOURCE.format(name=CHECK, inputs=inputs)
    # Names and types of the pipeline's own signature: nothing of a user's is run here.
    function = defined(CHECK, source, f"{CHECK} of {len(parameters)} parameters", {})
    component: Callable[..., dsl.PipelineTask] = dsl.component(
        function, base_image=images.DATA, install_kfp_package=False
    )
    return component
