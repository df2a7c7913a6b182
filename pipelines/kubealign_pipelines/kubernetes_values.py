"""Values as Kubernetes will check them: quantities, names, labels.

Sources: apimachinery's ``resource.Quantity``, ``validation.IsQualifiedName``, ``IsValidLabelValue`` and
``IsDNS1123Subdomain``; KFP's ``PipelineTask`` takes fewer suffixes for processors and memory.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping

from kubealign_components.config import require

_NUMBER = r"[0-9]+(\.[0-9]+)?"
_CPU = re.compile(rf"({_NUMBER}|[0-9]+m)")
_MEMORY = re.compile(rf"{_NUMBER}(Ei?|Pi?|Ti?|Gi?|Mi?|Ki)?")
_LABEL = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?)?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_QUEUE = "kueue.x-k8s.io/queue-name"
KFP_MOUNTS = ("/gcs", "/s3", "/minio", "/.local", "/.cache", "/.config", "/kfp-launcher", "/kfp-workspace")
"""Where Kubeflow Pipelines mounts volumes of its own: another one there would take the place of KFP's."""
EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
OPERATORS = ("Equal", "Exists")


def require_cpu(field: str, value: float | str | None) -> None:
    """Cores: ``4``, ``0.5`` or ``500m``."""
    ok = value is None or (_CPU.fullmatch(str(value)) is not None and float(str(value).rstrip("m")) > 0)
    require(ok, field, value, "cores such as 4, 0.5 or 500m")


def cores(cpu: float | str | None) -> float:
    """The processor cores of a quantity such as 4, "4" or "500m"."""
    text = str(cpu or 0)
    return float(text[:-1]) / 1000 if text.endswith("m") else float(text)


def require_memory(field: str, value: str | None) -> None:
    """Bytes: a number with Ki, Mi, Gi, Ti, Pi, Ei, or M, G, T, P, E."""
    ok = value is None or (_MEMORY.fullmatch(value) is not None and any(map(value.__contains__, "123456789")))
    meant = (value or "").replace(" ", "").upper().removesuffix("B")
    hint = (
        f"; did you mean {meant.removesuffix('I')}i?" if meant[-1:] in "GMTK" or meant.endswith("I") else ""
    )
    require(ok, field, value, f"a quantity of bytes such as 64Gi, 512Mi or 96G{hint}")


def require_labels(field: str, labels: Mapping[str, str]) -> None:
    """Labels or a selector: qualified names, and values of at most 63 characters."""
    for name, value in labels.items():
        require_qualified(f"{field}.{name}", name)
        if name == _QUEUE:
            require_object_name(f"{field}.{name}", value)
        ok = len(value) <= 63 and _LABEL.fullmatch(value) is not None
        require(
            ok, f"{field}.{name}", value, "at most 63 letters, digits, - _ and ., ending in letters or digits"
        )


def require_qualified(field: str, name: str) -> None:
    """The name of a label or annotation: ``name`` or ``domain/name``."""
    prefix, slash, own = name.rpartition("/")
    ok = 0 < len(own) <= 63 and _LABEL.fullmatch(own) is not None
    ok = ok and (not slash or (len(prefix) <= 253 and _SUBDOMAIN.fullmatch(prefix) is not None))
    require(ok, field, name, "a name such as team or example.com/team: letters, digits, - _ and .")


def require_pod_names(
    labels: Mapping[str, str], annotations: Mapping[str, str], environment: Mapping[str, str]
) -> None:
    """What a pod is called by, and its environment."""
    require_labels("labels", labels)
    for name in annotations:
        require_qualified(f"annotations.{name}", name)
    require_variables("environment", environment)


def require_variables(field: str, names: Mapping[str, object]) -> None:
    """Names of environment variables."""
    for name in names:
        ok = _VARIABLE.fullmatch(name) is not None
        require(ok, f"{field}.{name}", name, "a name of letters, digits and _ that starts with no digit")


def require_object_name(field: str, name: str) -> None:
    """The name of an object such as a claim or a secret."""
    ok = len(name) <= 253 and _SUBDOMAIN.fullmatch(name) is not None
    require(ok, field, name, "the name of a Kubernetes object: small letters, digits, - and .")


def require_volumes(field: str, volumes: Mapping[str, str], taken: Iterable[str] = ()) -> None:
    """Claims, by whose names KFP calls the pod's volumes, and where the pod sees them.

    Args:
        field: what they are called in the run file.
        volumes: places by claim.
        taken: places of other volumes.
    """
    seen = {*KFP_MOUNTS, *taken}
    for claim, path in volumes.items():
        ok = len(claim) <= 63 and _DNS_LABEL.fullmatch(claim) is not None
        require(ok, f"{field}.{claim}", claim, "the name of a claim: at most 63 small letters, digits and -")
        absolute = path.startswith("/") and ":" not in path and path.strip("/") != ""
        require(absolute, f"{field}.{claim}", path, "a place in the pod, such as /models")
        mount_path = posixpath.normpath(path)
        unused = "a place that no other volume of the pod has"
        require(mount_path not in seen, f"{field}.{claim}", path, unused)
        seen.add(mount_path)


def require_toleration(field: str, toleration: Mapping[str, str]) -> None:
    """A taint that pods bear."""
    unknown = set(toleration) - {"key", "operator", "value", "effect"}
    require(not unknown, field, toleration, "mappings with key, operator, value and effect")
    operator = toleration.get("operator", "Equal")
    require(operator in OPERATORS, f"{field}.operator", operator, f"one of {', '.join(OPERATORS)}")
    effect = toleration.get("effect", EFFECTS[0])
    require(effect in EFFECTS, f"{field}.effect", effect, f"one of {', '.join(EFFECTS)}")
