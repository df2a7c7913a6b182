"""Models by name: where their files are, and which model it is, byte for byte."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from kubealign_components.data.file_digests import kept_digest
from kubealign_components.data.fingerprint import digest, slug_word
from kubealign_components.data.licenses import license_of_model
from kubealign_components.data.model_cache import FetchedModel, fetch_hub, fetch_prefix
from kubealign_components.data.model_files import (
    ADAPTER_CONFIG,
    CONFIG,
    deciding_tokens,
    files_below,
    weights_among,
)
from kubealign_components.data.origins import note_origin
from kubealign_components.data.weight_files import check_weights, require_fetched
from kubealign_components.data.weight_records import WeightFile, record_weights, recorded_weights
from kubealign_components.errors import ConfigError, EngineError
from kubealign_components.json_types import JsonObject
from kubealign_components.named_paths import FILE, FOLDER, kind_at, named_path
from kubealign_components.store import last_part, scheme_of

if TYPE_CHECKING:
    from kubealign_components.data.dataset import Dataset

A_MODEL = "a model directory (with config.json), a URI of one, or a hub id like org/name"
# Where a run was made and by which library version does not make it another model.
_IGNORED_CONFIG = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFiles:
    """A model's files on this machine."""

    name: str
    """As the user named it, without the folders before it."""
    path: Path
    """A Hugging Face model directory."""
    uri: str = ""
    """Where the user said that it lies: a path, URI or hub id; the path for one that nobody named."""
    elsewhere: Mapping[str, WeightFile] = field(default_factory=dict, compare=False)
    """The files of weights by name where they were not fetched."""

    def identity(self) -> dict[str, str]:
        """SHA-256 of config and weights; the same bytes have the same, whatever they are called.

        Raises:
            EngineError: no weights, or not all of them.
        """
        weights = self.weights()
        if not weights:
            raise EngineError(
                f"{self.path} holds no weights (model*.safetensors or pytorch_model*.bin); give a whole "
                "Hugging Face model directory"
            )
        return self._identity({"config": _config(self.path), "files": self._digests(weights)})

    def adapter_identity(self) -> dict[str, str]:
        """SHA-256 of an adapter's settings and weights, whatever it and its base are called."""
        settings = read_object(self.path / ADAPTER_CONFIG)
        settings.pop("base_model_name_or_path", None)
        return self._identity({"config": settings, "files": self._digests(self.weights())})

    def _identity(self, content: Mapping[str, object]) -> dict[str, str]:
        """The digest of ``content``, whose place manifests will name."""
        revision = self.path.name if self.path.parent.name == "snapshots" else ""
        identity = {"digest": digest(content)}
        note_origin(
            identity["digest"], self.uri or str(self.path), revision, license=license_of_model(self.path)
        )
        return identity

    def file_digests(self) -> dict[str, str]:
        """SHA-256 of the config and of the files of weights, by name."""
        return self._digests([CONFIG, *self.weights()])

    def tokenizer_digest(self) -> str:
        """SHA-256 of the files that decide tokens: tokenizer and templates, and all that may be one."""
        files = deciding_tokens(files_below(self.path))
        if not files:
            raise EngineError(f"{self.path} holds no tokenizer; save one beside the model")
        return digest(self._digests(files))

    def weight_bytes(self) -> int:
        """Bytes of the files of weights.

        Raises:
            EngineError: shards are missing.
        """
        if self.elsewhere:
            return sum(file.size for file in self.elsewhere.values())
        return sum((self.path / name).stat().st_size for name in self.weights())

    def weights(self) -> list[str]:
        """Names of the files of weights that are loaded.

        Raises:
            EngineError: shards are missing.
        """
        if self.elsewhere:
            return sorted(self.elsewhere)
        try:
            return weights_among(files_below(self.path), lambda name: (self.path / name).read_bytes())
        except EngineError as error:
            raise EngineError(f"{self.path}: {error}") from error

    def _digests(self, names: Sequence[str]) -> dict[str, str]:
        with ThreadPoolExecutor(4) as pool:
            return dict(zip(names, pool.map(self._sha256, names)))

    def _sha256(self, name: str) -> str:
        stored = self.elsewhere.get(name)
        return stored.sha256 if stored else kept_digest(self.path / name)

    @property
    def slug(self) -> str:
        """The name as a word of a dataset's slug."""
        return slug_word(self.name)


def instead_of_model(path: Path) -> str:
    """What is said of whatever is at ``path`` where a model was expected; an empty text of nothing."""
    kind = kind_at(path)
    if kind == FILE:
        return "; this is a file, name the folder with the model's files"
    try:
        names = sorted(entry.name for entry in path.iterdir()) if kind == FOLDER else []
        adapter = read_object(path / ADAPTER_CONFIG) if ADAPTER_CONFIG in names else {}
    except (OSError, EngineError) as error:
        return f"; this folder cannot be read ({error})"
    if ADAPTER_CONFIG in names:
        base = adapter.get("base_model_name_or_path", "a model that it does not name")
        return f"; this is a PEFT adapter of {base}; merge it into that (merge_and_unload) and save the whole"
    if any(name.endswith(".gguf") for name in names):
        return "; this holds GGUF, take the model in Hugging Face's form"
    inside = [name for name in names if kind_at(path / name / CONFIG) == FILE]
    if inside:
        return f"; did you mean {path / inside[-1]}?"
    return "; this folder has none" if kind == FOLDER else ""


def find_model(name: str, revision: str | None = None, *, weights: bool = True) -> ModelFiles:
    """The files of the model ``name``: a local directory, ``gs://`` or ``s3://`` prefix, or hub id.

    Args:
        name: path, URI or hub id; a remote model is fetched once and cached.
        revision: branch, tag or commit of a hub id.
        weights: whether weights are needed. Where not, a remote model's are fetched only if neither the hub
            nor a record beside them says what their digests are.

    Raises:
        ConfigError: nothing of that name.
        EngineError: its config cannot be read, it is an encoder-decoder, or files of its weights are missing,
            cut, pointers of Git LFS, or of another vocabulary than its config's.
    """
    short = last_part(name)
    if scheme_of(name) != "file":
        fetched = fetch_prefix(name, CONFIG, "model", weights=weights)
        model = _checked(_of(fetched, short, name))
        if fetched.objects and not recorded_weights(name, fetched.objects):
            record_weights(name, fetched.objects, model.path, model.file_digests())
        return model
    path = named_path(name)
    if kind_at(path / CONFIG) == FILE:
        return _checked(ModelFiles(name=short, path=path.resolve()))
    if kind_at(path) or name.startswith(("/", ".", "~")) or name.count("/") != 1:
        raise ConfigError("model", name, f"{A_MODEL}{instead_of_model(path)}")
    return _checked(_of(fetch_hub(name, revision, weights=weights), short, name))


def with_weights(model: ModelFiles) -> ModelFiles:
    """``model`` with its weights on this machine.

    Raises:
        EngineError: what is at its place is another model by now.
    """
    if not model.elsewhere:
        return model
    commit = model.path.name if model.path.parent.name == "snapshots" else None
    whole = find_model(model.uri, commit)
    if whole.identity() != model.identity() or _small_files(whole) != _small_files(model):
        raise EngineError(
            f"{model.uri} was changed since this task began, and is not the model that its results are kept "
            "under; run again"
        )
    return whole


def _small_files(model: ModelFiles) -> dict[str, str]:
    """SHA-256 of the config and of what decides tokens, by name."""
    return model._digests([CONFIG, *deciding_tokens(files_below(model.path))])


def _of(fetched: FetchedModel, name: str, uri: str) -> ModelFiles:
    return ModelFiles(name=name, path=fetched.path, uri=uri, elsewhere=fetched.weights)


def _checked(model: ModelFiles) -> ModelFiles:
    """``model``, which is one and is whole."""
    require_fetched(model.path, [CONFIG])
    config = read_object(model.path / CONFIG)
    if config.get("is_encoder_decoder") is True:
        raise EngineError(
            f"{model.path} is an encoder-decoder ({config.get('model_type', 'by its config')}), expected a "
            "model that reads and writes one text, such as …ForCausalLM"
        )
    if (model.path / ADAPTER_CONFIG).is_file():
        raise EngineError(
            f"{model.path} holds {ADAPTER_CONFIG} beside {CONFIG}: transformers would load the adapter's "
            "base in the place of these weights; merge the adapter, or move it to a folder of its own"
        )
    # What was not fetched is looked at by those who fetch it.
    weights = [] if model.elsewhere else model.weights()
    require_fetched(model.path, [*weights, *deciding_tokens(files_below(model.path))])
    check_weights(model.path, weights, config)
    return model


def find_adapter(source: str, field: str) -> ModelFiles:
    """The PEFT adapter at ``source``: a local directory, or a ``gs://`` or ``s3://`` prefix.

    Args:
        source: path or URI; a remote adapter is fetched once and cached.
        field: the setting that errors name.

    Raises:
        ConfigError: no adapter there.
        EngineError: its weights are cut, or pointers of Git LFS.
    """
    short = last_part(source)
    if scheme_of(source) != "file":
        return _whole(_of(fetch_prefix(source, ADAPTER_CONFIG, field), short, source))
    path = named_path(source)
    if kind_at(path / ADAPTER_CONFIG) != FILE:
        raise ConfigError(field, source, f"a PEFT adapter: a folder with {ADAPTER_CONFIG}")
    return _whole(ModelFiles(name=short, path=path.resolve()))


def _whole(adapter: ModelFiles) -> ModelFiles:
    """``adapter``, whose files are what they seem."""
    weights = adapter.weights()
    require_fetched(adapter.path, [ADAPTER_CONFIG, *weights])
    check_weights(adapter.path, weights, {})
    return adapter


def require_policy(policy: ModelFiles, dataset: Dataset) -> dict[str, str]:
    """The identity of ``policy``, which must be the one that the dataset's token ids belong to.

    Raises:
        ConfigError: another model.
    """
    identity = policy.identity()
    expected = dataset.manifest.identity.get("policy")
    if identity["digest"] != expected:
        raise ConfigError(
            "policy",
            policy.name,
            f"the model that the dataset was tokenised for: this one has digest {identity['digest'][:12]}, "
            f"{dataset.manifest.slug!r} was made for {str(expected)[:12]}; filter again with it",
        )
    return identity


def read_object(path: Path) -> JsonObject:
    """The JSON object in a file of a model.

    Raises:
        EngineError: it cannot be read, or is something else.
    """
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise EngineError(f"{path} is no JSON ({error}); save the model again") from error
    if not isinstance(value, dict):
        raise EngineError(f"{path} holds a {type(value).__name__}, expected a JSON object with settings")
    return value


def _config(folder: Path) -> JsonObject:
    return {k: v for k, v in read_object(folder / CONFIG).items() if k not in _IGNORED_CONFIG}
