"""Kubeflow Pipelines without its client, until something asks for it.

``import kfp`` imports the client and all that it signs in with: a good part of the time that it takes to
compile a pipeline, which needs none of it.
"""

from __future__ import annotations

import importlib
import os
import sys

_RUNTIME = "_KFP_RUNTIME"
"""Environment variable by which kfp knows that it is in a pod, where it imports little."""
_LATE = {"Client": "kfp.client", "components": "kfp.components", "dsl": "kfp.dsl"}
"""What ``import kfp`` brings else, and where it is."""


def import_kfp() -> None:
    """Import kfp, if nobody has, so that the names that it brings are imported on first use.

    In a pod somebody has, without the names that make pipelines: they are added.
    """
    in_pod = os.environ.pop(_RUNTIME, None) is not None
    if "kfp" in sys.modules and not in_pod:
        return
    os.environ[_RUNTIME] = "true"
    try:
        kfp = importlib.import_module("kfp")
    finally:
        del os.environ[_RUNTIME]
    if "kfp.dsl" in sys.modules and in_pod:
        importlib.reload(sys.modules["kfp.dsl"])
    vars(kfp)["__getattr__"] = _on_first_use


def _on_first_use(name: str) -> object:
    if name not in _LATE:
        raise AttributeError(f"module 'kfp' has no attribute {name!r}")
    module = importlib.import_module(_LATE[name])
    return vars(module)[name] if name == "Client" else module
