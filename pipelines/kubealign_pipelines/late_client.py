"""Kubeflow Pipelines without its client and that of Kubernetes, until something asks for them.

``import kfp`` imports the one and all that it signs in with, ``kfp.kubernetes`` the other: most of the time
that it takes to compile a pipeline, which needs neither.
"""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType

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


def kfp_kubernetes() -> ModuleType:
    """``kfp.kubernetes``, without Kubernetes' own client, which one function needs and imports itself.

    The client, with a class for every kind of object, is half of what compiling a pipeline would import.
    """
    if "kubernetes" in sys.modules:
        return importlib.import_module("kfp.kubernetes")
    stand_in = ModuleType("kubernetes")
    vars(stand_in)["client"] = _Late("kubernetes.client")
    sys.modules["kubernetes"] = stand_in
    try:
        return importlib.import_module("kfp.kubernetes")
    finally:
        del sys.modules["kubernetes"]


class _Late(ModuleType):
    """A module that is imported when something of it is asked for."""

    def __getattr__(self, name: str) -> object:
        return getattr(importlib.import_module(self.__name__), name)


def _on_first_use(name: str) -> object:
    if name not in _LATE:
        raise AttributeError(f"module 'kfp' has no attribute {name!r}")
    module = importlib.import_module(_LATE[name])
    return vars(module)[name] if name == "Client" else module
