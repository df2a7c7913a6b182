"""The first task of every run: all parameters held against the rules that ``kubealign check`` has.

Whoever fills in a form, clones a run or lets a schedule start one asks nobody else. The component is written
for a graph as it is compiled, since a component names its inputs and every graph has others: it takes each
parameter that another task reads, and hands them to :mod:`kubealign_pipelines.checking.in_pod`.
"""

from __future__ import annotations

import linecache
from collections.abc import Callable, Mapping

from kfp import dsl

from kubealign_components import images
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
def {name}({inputs}):
    """Hold all parameters against the rules of the stages, with models and sources at hand."""
    parameters = dict(locals())

    from kubealign_pipelines.checking.in_pod import check

    check(parameters)
'''


def check_component(parameters: Mapping[str, str]) -> Callable[..., dsl.PipelineTask]:
    """The component for a graph whose tasks read ``parameters``: KFP's type by name, such as List[Dict]."""
    types = dict(zip(OWN, ("str", "dict", "dict"))) | {
        n: _TYPES[kind.partition("[")[0]] for n, kind in parameters.items()
    }
    inputs = ", ".join(f"{name}: {kind}" for name, kind in types.items())
    source = _SOURCE.format(name=CHECK, inputs=inputs)
    file = f"<{CHECK} of {len(types)} inputs {hash(source):x}>"
    # KFP ships a component's source, which it asks Python for.
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    made: dict[str, Callable[..., None]] = {}
    # Names and types of the pipeline's own signature: nothing of a user's is run here.
    exec(compile(source, file, "exec", dont_inherit=True), made)
    component: Callable[..., dsl.PipelineTask] = dsl.component(
        made[CHECK], base_image=images.DATA, install_kfp_package=False
    )
    return component
