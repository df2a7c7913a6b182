"""Kubeflow's model registry: an aligned model as a version of a registered model.

The version is called as the model's fingerprint, so that what is registered again is that very version: an
attempt that was cut off is finished by the next one, and what others have written to it stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from kubealign_components.config import require
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.licenses import joined, licensed, licenses
from kubealign_components.data.lineage import steps_of
from kubealign_components.data.manifest import MANIFEST
from kubealign_components.data.schemas import MODEL
from kubealign_components.errors import ConfigError, StoreError
from kubealign_components.registry.server import NAME_LETTERS, RegistryServer, require_name
from kubealign_components.store import join, scheme_of

if TYPE_CHECKING:
    from model_registry.core import ModelRegistryAPIClient
    from model_registry.types import ModelVersion, RegisteredModel

FORMAT, FORMAT_VERSION = "huggingface", "1"
"""How KServe's runtimes call a folder that Hugging Face's libraries load."""
_HINTS = {
    401: "the token is missing, wrong or expired: give --registry-token-file",
    403: "this token may not do that",
    404: "no model registry is there, or one of another API: check --server, and install the model-registry "
    "of its release",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class PipelineRun:
    """The run on Kubeflow Pipelines that made a model."""

    id: str
    name: str
    namespace: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Registration:
    """What is written to a registry of one model."""

    name: str
    """Of the registered model."""
    version: str
    uri: str
    """Where the model's files lie."""
    author: str = ""
    description: str = ""
    metadata: Mapping[str, str | float] = field(default_factory=dict)
    run: PipelineRun | None = None

    def __post_init__(self) -> None:
        require_name("--name", self.name)

    def sentence(self, done: Registered) -> str:
        """What became of it."""
        became = "registered" if done.new else "brought up to date"
        return f"{became}: model {self.name} ({done.model_id}), version {self.version} ({done.version_id})"


@dataclass(frozen=True, kw_only=True, slots=True)
class Registered:
    """What became of it."""

    model_id: str
    version_id: str
    new: bool
    """Whether the version was not there before."""
    before: str
    """Where the registry had the model's files so far; empty where that is new or the same."""


def registration(
    model: Dataset,
    *,
    name: str = "",
    author: str = "",
    evaluation: Mapping[str, float] | None = None,
    description: str = "",
    run: PipelineRun | None = None,
) -> Registration:
    """What to register of a model: where it lies, what it was made of and how it did.

    Args:
        model: a model with its manifest.
        name: of the registered model; by default what the manifest calls it.
        author: of the version.
        evaluation: numbers of its comparison with the reference.
        description: the comparison in words.
        run: that made it, if it ran on Kubeflow Pipelines.

    Raises:
        ConfigError: no model, or a name that a registry does not take.
    """
    manifest = model.manifest
    require(manifest.schema == MODEL, "TARGET", model.uri, f"a model, this is {manifest.schema}")
    require(not model.ended_early, "TARGET", model.uri, f"a model that was trained: {model.ended_early}")
    home = model.home
    return Registration(
        name=name or manifest.slug[:NAME_LETTERS] or manifest.fingerprint[:12],
        version=manifest.fingerprint,
        uri=Path(home.removeprefix("file://")).resolve().as_uri() if scheme_of(home) == "file" else home,
        author=author,
        description=description,
        metadata=dict(_metadata(model, evaluation or {})),
        run=run,
    )


def register(server: RegistryServer, what: Registration) -> Registered:
    """Write ``what`` to the registry, or bring the version that is there up to date.

    Raises:
        ConfigError: the client is not installed.
        StoreError: the registry cannot be reached, or refuses.
    """
    try:
        import model_registry.core  # noqa: F401
    except ImportError as error:
        expected = "the client of the model registry: pip install 'kubealign[registry]'"
        raise ConfigError("--server", server.address, expected) from error
    # In a thread of its own: notebooks have a loop that runs already.
    with _asking(server), ThreadPoolExecutor(1, "registry") as thread:
        return thread.submit(lambda: asyncio.run(_register(_client(server), what))).result()


def _metadata(model: Dataset, evaluation: Mapping[str, float]) -> Iterator[tuple[str, str | float]]:
    """Properties of the version; numbers that no JSON has are left out."""
    manifest = model.manifest
    own = manifest.provenance.step
    steps = steps_of(manifest.fingerprint, manifest.recipe)
    yield "kubealign.stage", str(own["stage"])
    yield "kubealign.manifest", join(model.uri, MANIFEST)
    yield "kubealign.license", joined(licenses(manifest))
    policy = own["models"].get("policy")
    digest = str(policy.get("digest", "")) if isinstance(policy, Mapping) else ""
    base = manifest.origin_of(digest)
    if digest:
        yield "kubealign.base_model", base.get("uri", "")
        yield "kubealign.base_model_revision", base.get("revision", "")
        yield "kubealign.base_model_digest", digest
    for setting in ("objective", "beta", "learning_rate"):
        if setting in own["params"]:
            value = own["params"][setting]
            yield f"kubealign.{setting}", float(value) if isinstance(value, (int, float)) else str(value)
    went_in = [{"kind": one.kind, "name": one.name, "license": one.license} for one in licensed(manifest)]
    yield "kubealign.made_of", _json(went_in)
    lineage = [{"stage": s.stage, "fingerprint": s.fingerprint, "inputs": s.inputs} for s in steps]
    yield "kubealign.lineage", _json(lineage)
    for name, number in evaluation.items():
        if math.isfinite(number):
            yield f"evaluation.{name}", float(number)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _client(server: RegistryServer) -> ModelRegistryAPIClient:
    from model_registry.core import ModelRegistryAPIClient

    host, port = server.origin
    if host.startswith("https:"):
        return ModelRegistryAPIClient.secure_connection(
            host, port, user_token=server.token, custom_ca=server.ca_cert or None
        )
    return ModelRegistryAPIClient.insecure_connection(host, port, server.token or None)


async def _register(client: ModelRegistryAPIClient, what: Registration) -> Registered:
    model = await _model(client, what)
    before = await client.get_model_version_by_params(model.id, what.version)
    version = await client.upsert_model_version(_version(what, before), model.id)
    earlier = await _artifact(client, what, str(version.id))
    return Registered(
        model_id=str(model.id),
        version_id=str(version.id),
        new=before is None,
        before="" if earlier == what.uri else earlier,
    )


async def _model(client: ModelRegistryAPIClient, what: Registration) -> RegisteredModel:
    from model_registry.types import RegisteredModel

    existing: RegisteredModel | None = await client.get_registered_model_by_params(what.name)
    if existing is not None:
        return existing
    new = RegisteredModel(name=what.name, owner=what.author or None)
    return await client.upsert_registered_model(new)


def _version(what: Registration, before: ModelVersion | None) -> ModelVersion:
    """A new version, or that of ``before`` with what is said of it now; an update replaces all properties."""
    from model_registry.types import ModelVersion

    version = before or ModelVersion(name=what.version)
    version.author = what.author or version.author
    version.description = what.description or version.description
    version.custom_properties = {**(version.custom_properties or {}), **what.metadata}
    return version


async def _artifact(client: ModelRegistryAPIClient, what: Registration, version_id: str) -> str:
    """Say where the version's files lie; returns where they lay so far, empty where nothing said it."""
    from model_registry.types import ModelArtifact

    before = await client.get_model_artifact_by_params(what.name, version_id)
    artifact = before or ModelArtifact(name=what.name)
    earlier = artifact.uri or ""
    artifact.uri = what.uri
    artifact.model_format_name, artifact.model_format_version = FORMAT, FORMAT_VERSION
    if what.run is not None:
        artifact.model_source_kind, artifact.model_source_class = "kfp", "pipelinerun"
        artifact.model_source_group = what.run.namespace
        artifact.model_source_id, artifact.model_source_name = what.run.id, what.run.name
    if before is None:
        await client.upsert_model_version_artifact(artifact, version_id)
    else:
        await client.upsert_model_artifact(artifact)
    return earlier


@contextlib.contextmanager
def _asking(server: RegistryServer) -> Iterator[None]:
    """What the client raises becomes one line."""
    from aiohttp import ClientError
    from mr_openapi.exceptions import ApiException

    where = f"the model registry at {server.address}"
    try:
        yield
    except ApiException as error:
        hint = _HINTS.get(error.status, " ".join(str(error.reason or "").split()))
        words = _words(error.body)
        raise StoreError(
            f"{where} answers {error.status}: {hint}" + (f" ({words})" if words else "")
        ) from error
    except (ClientError, OSError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise StoreError(f"cannot reach {where}: {reason}; check --server") from error
    except (ValueError, AssertionError, AttributeError) as error:
        raise StoreError(f"{where} answers what no model registry answers; check --server") from error


def _words(body: object) -> str:
    """The server's own words."""
    text = body.decode(errors="replace") if isinstance(body, bytes) else str(body or "")
    with contextlib.suppress(ValueError):
        content = json.loads(text)
        if isinstance(content, dict):
            text = str(content.get("message", ""))
    return " ".join(text.split())[:300]
