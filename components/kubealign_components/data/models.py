"""Models by name: where their files are, and which model it is, byte for byte."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kubealign_components.data.fingerprint import digest, file_digest, slug_word
from kubealign_components.errors import ConfigError, EngineError
from kubealign_components.store import scheme_of, store_for

if TYPE_CHECKING:
    from kubealign_components.data.dataset import Dataset

WEIGHTS = ("*.safetensors", "*.bin")
ADAPTER_CONFIG = "adapter_config.json"
TOKENIZER = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
)
# Where a run was made and by which library version does not make it another model.
_IGNORED_CONFIG = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFiles:
    """A model's files on this machine."""

    name: str
    """As the user named it, without the folders before it."""
    path: Path
    """A Hugging Face model directory."""

    def identity(self) -> dict[str, str]:
        """Name and SHA-256 of config, weights and adapter weights."""
        files = _matching(self.path, (*WEIGHTS, "adapter_config.json"))
        if not files:
            raise EngineError(
                f"{self.path} holds no weights (*.safetensors or *.bin); give a Hugging Face model directory"
            )
        return {"name": self.name, "digest": digest({"config": _config(self.path), "files": _digests(files)})}

    def adapter_identity(self) -> dict[str, str]:
        """Name and SHA-256 of an adapter's settings and weights, whatever its base is called."""
        settings = json.loads((self.path / ADAPTER_CONFIG).read_text())
        settings.pop("base_model_name_or_path", None)
        files = _digests(_matching(self.path, WEIGHTS))
        return {"name": self.name, "digest": digest({"config": settings, "files": files})}

    def tokenizer_digest(self) -> str:
        """SHA-256 of the tokenizer's files."""
        files = _matching(self.path, TOKENIZER)
        if not files:
            raise EngineError(f"{self.path} holds no tokenizer; save one beside the model")
        return digest(_digests(files))

    @property
    def slug(self) -> str:
        """The name as a word of a dataset's slug."""
        return slug_word(self.name)


def find_model(name: str, revision: str | None = None) -> ModelFiles:
    """The files of the model ``name``: a local directory, ``gs://`` or ``s3://`` prefix, or hub id.

    Args:
        name: path, URI or hub id; a remote model is fetched once and cached.
        revision: branch, tag or commit of a hub id.

    Raises:
        ConfigError: nothing of that name.
    """
    short = name.rstrip("/").rsplit("/", 1)[-1]
    if scheme_of(name) != "file":
        return ModelFiles(name=short, path=_fetch_prefix(name, "config.json"))
    path = Path(name.removeprefix("file://")).expanduser()
    if (path / "config.json").is_file():
        return ModelFiles(name=short, path=path.resolve())
    if path.exists() or name.startswith(("/", ".", "~")) or name.count("/") != 1:
        raise ConfigError(
            "model",
            name,
            "a model directory (with config.json), a gs:// or s3:// URI, or a hub id like org/name",
        )
    return ModelFiles(name=short, path=_fetch_hub(name, revision))


def find_adapter(place: str, field: str) -> ModelFiles:
    """The PEFT adapter at ``place``: a local directory, or a ``gs://`` or ``s3://`` prefix.

    Args:
        place: path or URI; a remote adapter is fetched once and cached.
        field: the setting that errors name.

    Raises:
        ConfigError: no adapter there.
    """
    short = place.rstrip("/").rsplit("/", 1)[-1]
    if scheme_of(place) != "file":
        return ModelFiles(name=short, path=_fetch_prefix(place, ADAPTER_CONFIG))
    path = Path(place.removeprefix("file://")).expanduser()
    if not (path / ADAPTER_CONFIG).is_file():
        raise ConfigError(field, place, f"a PEFT adapter: a folder with {ADAPTER_CONFIG}")
    return ModelFiles(name=short, path=path.resolve())


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


def _fetch_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(name, revision=revision, ignore_patterns=["*.pth", "original/*", "*.gguf"])
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            "model", name, f"a model directory on this machine, or a hub id that can be fetched ({reason})"
        ) from error


def _fetch_prefix(uri: str, marker: str) -> Path:
    """A local copy of the objects below ``uri``, among them ``marker``."""
    store = store_for(uri)
    objects = list(store.list(uri))
    if not any(o.uri.endswith(f"/{marker}") for o in objects):
        raise ConfigError("model", uri, f"a prefix that holds a Hugging Face model ({marker} was not found)")
    folder = Path.home() / ".cache" / "kubealign" / "models" / digest([[o.uri, o.size] for o in objects])[:32]
    for entry in objects:
        target = folder / entry.uri.removeprefix(uri).lstrip("/")
        if not (target.is_file() and target.stat().st_size == entry.size):
            target.parent.mkdir(parents=True, exist_ok=True)
            fetched = store.fetch(entry.uri, target.parent / ".part")
            fetched.replace(target)
    return folder


def _matching(folder: Path, patterns: Sequence[str]) -> list[Path]:
    return sorted({path for pattern in patterns for path in folder.glob(pattern)})


def _config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return {k: v for k, v in config.items() if k not in _IGNORED_CONFIG}


def _digests(files: Sequence[Path]) -> dict[str, str]:
    with ThreadPoolExecutor(4) as pool:
        return dict(zip((f.name for f in files), pool.map(_sha256, files)))


def _sha256(path: Path) -> str:
    # The hub's cache names large files by their SHA-256: nothing to read then.
    target = path.resolve().name
    if path.is_symlink() and len(target) == 64:
        return target
    return file_digest(path)
