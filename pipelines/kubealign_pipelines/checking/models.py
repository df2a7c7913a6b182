"""Models at second 0: is there one, of which kind, and does its chat template work. No weights are read.

Tokenizer and template are tried with the libraries that transformers uses for them, not with transformers,
which takes seconds to import.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from kubealign_components.config import Path as SettingPath
from kubealign_components.data.chat import ChatTemplate, TemplateSettings
from kubealign_components.data.chat.tokenizer_files import TOKENIZER_FILE, TokenizerFiles
from kubealign_components.data.model_files import text_config
from kubealign_components.data.models import A_MODEL, ModelFiles, find_model, instead_of_model
from kubealign_components.engines.reward_labels import DECLARED, Labels
from kubealign_components.errors import ConfigError, KubeAlignError
from kubealign_components.json_types import JsonObject
from kubealign_components.named_paths import FILE, kind_at, named_path
from kubealign_components.store import scheme_of, store_for
from kubealign_pipelines.checking.across import room
from kubealign_pipelines.checking.findings import Finding, error_at, warning_at
from kubealign_pipelines.checking.reach import in_time, near_path, unserved
from kubealign_pipelines.checking.stages import LATER, REWARDS, Checked, Stage
from kubealign_pipelines.checking.volumes import is_below

CLASSIFIERS = ("ForSequenceClassification",)
DECODERS = ("ForCausalLM", "LMHeadModel")
_OF_SEVERAL = "ForConditionalGeneration"
"""What models of images and text, and encoder-decoders, are called; of some of them there is a part that
writes text."""
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_TEMPLATE_FILE = "chat_template.jinja"


@dataclass(frozen=True, slots=True)
class Named:
    """A setting that names a model."""

    stage: Stage
    setting: SettingPath
    name: str
    revision: str | None
    rewards: bool = False
    """Whether it scores, and does not write."""
    writes: bool = True
    """Whether it is given prompts by its chat template."""
    label_weights: Mapping[str, float] = field(default_factory=dict)
    """Of one that scores, what its labels count."""
    label_activation: str = DECLARED
    """And what their values go through first."""

    @property
    def path(self) -> SettingPath:
        """Where the run file has it."""
        return self.stage.path(self.setting)


class Folder:
    """A model directory on this machine."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self._chats: list[tuple[TemplateSettings, ChatTemplate | None]] = []

    @cached_property
    def config(self) -> JsonObject:
        """Its ``config.json``."""
        return _read_json(self.path / "config.json")

    @property
    def architecture(self) -> str:
        """The name of its class, or an empty text."""
        return str(next(iter(self.config.get("architectures") or ()), ""))

    @property
    def weight_bytes(self) -> int:
        """Bytes of its weights; 0 where they are not here."""
        try:
            return ModelFiles(name=self.path.name, path=self.path).weight_bytes()
        except KubeAlignError:
            return 0

    @property
    def labels(self) -> Labels:
        """Outputs of a classifier."""
        return Labels.of(self.config)

    @property
    def classifies(self) -> bool:
        """Whether it is a classifier, or one by code of its own, whose weights may fit a class of
        transformers; what is not named may be one."""
        own_code = self.config.get("auto_map") or {}
        kind = self.architecture
        return not kind or kind.endswith(CLASSIFIERS) or "AutoModelForSequenceClassification" in own_code

    @property
    def writes_text(self) -> bool:
        """Whether transformers loads it as a model that writes one text; what is not named may be one."""
        kind = self.architecture
        if not kind.endswith(_OF_SEVERAL):
            return not kind or kind.endswith(DECODERS)
        try:
            from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        except ImportError:  # in an image without: the stage that loads it will tell
            return True
        return self.config.get("model_type") in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    @property
    def context(self) -> int | None:
        """Most tokens that it was made for."""
        limit = text_config(self.config).get("max_position_embeddings")
        return int(limit) if limit else None

    @cached_property
    def tokenizer_config(self) -> dict[str, object]:
        """Its ``tokenizer_config.json``, empty where there is none."""
        path = self.path / "tokenizer_config.json"
        return _read_json(path) if path.is_file() else {}

    @property
    def template(self) -> str:
        """The chat template, or an empty text."""
        path = self.path / _TEMPLATE_FILE
        if path.is_file():
            return path.read_text(encoding="utf-8")
        template = self.tokenizer_config.get("chat_template") or ""
        if isinstance(template, list):
            template = {entry["name"]: entry["template"] for entry in template}.get("default", "")
        return str(template)

    def chat(self, settings: TemplateSettings) -> ChatTemplate | None:
        """Its chat template as the stages have it; None where its tokenizer has no ``tokenizer.json``. Built
        once, which takes a second for a large vocabulary: every stage with the model asks for it.

        Raises:
            ConfigError, EngineError: it cannot be used.
        """
        for own, chat in self._chats:
            if own == settings:
                return chat
        chat = None
        if (self.path / TOKENIZER_FILE).is_file():
            model = ModelFiles(name=self.path.name, path=self.path)
            chat = ChatTemplate(model, settings, TokenizerFiles(self.path))
        self._chats.append((settings, chat))
        return chat


Looked = tuple[Folder | None, str, bool]
"""The model's folder here, else why there is none, and whether that is certain to fail the run."""


def models_of(checked: Checked) -> Iterator[Named]:
    """Every setting that names a model which is known before the run."""
    for stage in checked.stages:
        config = stage.config
        if hasattr(config, "policy"):
            yield Named(stage, ("policy",), config.policy, getattr(config, "revision", None))
        reference = getattr(config, "reference", "")
        if isinstance(reference, str) and reference:
            revision = getattr(config, "reference_revision", None)
            yield Named(stage, ("reference",), reference, revision, writes=False)
        for name in REWARDS:
            reward = getattr(config, name, None)
            if reward is not None and reward.model:
                yield Named(
                    stage,
                    (name, "model"),
                    reward.model,
                    reward.model_revision,
                    rewards=True,
                    label_weights=reward.label_weights,
                    label_activation=reward.label_activation,
                )
        judge = getattr(config, "judge", None)
        if isinstance(judge, str):
            yield Named(stage, ("judge",), judge, config.revision)
        # One whose endpoint is refused is no model here all the same.
        elif judge is not None and ("judge", "endpoint") not in stage.settings.origins:
            yield Named(stage, ("judge", "judge"), judge.judge, judge.revision)


def check_models(checked: Checked, *, here: bool, unseen: Collection[str] = ()) -> Iterator[Finding]:
    """Findings on the models of a run.

    Args:
        checked: the settings.
        here: whether the run is on this machine, and must find them here.
        unseen: folders that are not mounted here, but in pods of the run.
    """
    for named in models_of(checked):
        is_setting = named.name and named.name != LATER and named.stage.is_given(named.setting)
        if not is_setting or is_below(named.name, unseen):
            continue
        folder, problem, certain = _looked_for(checked, named.name, named.revision, here=here)
        if folder is None:
            finding = error_at(named.path, named.name, problem)
            yield finding if certain else replace(finding, warning=True)
        else:
            yield from _look(named, folder, checked)
    yield from _look_for_template(checked, here=here, unseen=unseen)


def _look_for_template(checked: Checked, *, here: bool, unseen: Collection[str]) -> Iterator[Finding]:
    """A finding where the file of a chat template cannot be read; pods may see it all the same."""
    for stage in checked.of("filter"):
        file = stage.config.chat_template if stage.config is not None else None
        if file is None or file == LATER or is_below(file, unseen):
            continue
        try:
            stage.config.template_settings()
        except ConfigError as error:
            finding = error_at(
                stage.path(("chat_template",)), file, f"{error.expected}; it was not found here"
            )
        except KubeAlignError as error:
            finding = error_at(stage.path(("chat_template",)), file, f"a file that can be read ({error})")
        else:
            continue
        yield finding if here else replace(finding, warning=True)


def find_folder(name: str, revision: str | None, *, here: bool) -> Looked:
    """The model's folder here, else why there is none, and whether that is certain to fail the run."""
    if expected := unserved(name):
        return None, expected, True
    if scheme_of(name) != "file":
        missing = in_time(lambda: not store_for(name).exists(f"{name.rstrip('/')}/config.json"))
        if missing is True:
            return None, "a prefix that holds a Hugging Face model; config.json was not found there", True
        return (
            None,
            f"cannot be looked at from here ({missing})" if missing else "is there; it was not read",
            False,
        )
    path = named_path(name)
    if kind_at(path / "config.json") == FILE:
        return Folder(path), "", True
    if kind_at(path) or name.startswith(("/", ".", "~")) or name.count("/") != 1:
        return None, f"{A_MODEL}{instead_of_model(path) or near_path(path)}", True
    return _cached(name, revision, path, here=here)


def policy_folder(checked: Checked, policy: str) -> Folder | None:
    """The folder here of the ``policy`` of a run, at the revision that its stages take."""
    revisions = (named.revision for named in models_of(checked) if named.name == policy)
    return _looked_for(checked, policy, next(revisions, None), here=False)[0] if policy else None


def _looked_for(checked: Checked, name: str, revision: str | None, *, here: bool) -> Looked:
    """As :func:`find_folder`, which is asked once: a store or the hub may take seconds to give no answer."""
    if (name, revision) not in checked.folders:
        checked.folders[name, revision] = find_folder(name, revision, here=here)
    return checked.folders[name, revision]


def _cached(name: str, revision: str | None, path: Path, *, here: bool) -> Looked:
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    cached = in_time(lambda: try_to_load_from_cache(name, "config.json", revision=revision))
    if not isinstance(cached, (str, Path)) and not constants.HF_HUB_OFFLINE:
        cached = in_time(lambda: hf_hub_download(name, "config.json", revision=revision))
    if isinstance(cached, (str, Path)) and Path(cached).is_file():
        return Folder(Path(cached).parent), "", True
    if constants.HF_HUB_OFFLINE and here:
        expected = (
            "a model directory on this machine, or a hub id that is in its cache (HF_HUB_OFFLINE is set)"
        )
        return None, f"{expected}{near_path(path)}", True
    return (
        None,
        f"could not be looked up: neither a folder here nor a model of the hub's cache{near_path(path)}",
        False,
    )


def _look(named: Named, folder: Folder, checked: Checked) -> Iterator[Finding]:
    path, name = named.path, named.name
    try:
        kind = folder.architecture
    except (OSError, ValueError, AttributeError) as error:
        yield error_at(path, name, f"a model whose config.json can be read ({error})")
        return
    if named.rewards:
        yield from _look_at_reward_model(named, folder)
    elif not folder.writes_text:
        expected = f"a model that writes text, such as …ForCausalLM; this is a {kind}"
        yield error_at(path, name, expected)
    elif named.writes:
        try:
            settings = template_settings(checked, name)
        except KubeAlignError:  # told of the file itself
            settings = None
        if settings is not None:
            yield from _look_at_template(path, name, folder, settings)
        yield from _look_at_context(named.stage, folder, checked)
    if folder.path.parent.name != "snapshots":
        yield from _look_at_weights(path, name, folder)


def _look_at_weights(path: SettingPath, name: str, folder: Folder) -> Iterator[Finding]:
    try:
        weights = find_model(str(folder.path)).weights()
    except KubeAlignError as error:
        yield error_at(path, name, f"a whole model ({error})")
    else:
        if not weights:
            yield error_at(path, name, "a folder with weights, model*.safetensors or pytorch_model*.bin")


def _look_at_reward_model(named: Named, folder: Folder) -> Iterator[Finding]:
    if not folder.classifies:
        expected = f"a reward model, …ForSequenceClassification; this is a {folder.architecture}"
        yield error_at(named.path, named.name, expected)
        return
    try:
        folder.labels.weighted(named.label_weights)
        if named.label_weights:
            folder.labels.activation_for(named.label_activation)
    except ConfigError as error:
        if named.label_weights:
            path = named.stage.path((*named.setting[:-1], error.field))
            yield error_at(path, error.value, error.expected)
        else:
            yield error_at(named.path, named.name, f"label_weights beside it: {error.expected}")


def template_settings(checked: Checked, policy: str) -> TemplateSettings:
    """How the run has the chat template of ``policy``.

    Raises:
        ConfigError: a file with a template cannot be read.
    """
    for stage in checked.of("filter"):
        if stage.config is not None and stage.config.policy == policy:
            settings: TemplateSettings = stage.config.template_settings()
            return settings
    return TemplateSettings()


def _look_at_template(
    path: SettingPath, name: str, folder: Folder, settings: TemplateSettings
) -> Iterator[Finding]:
    in_cache = folder.path.parent.name == "snapshots"
    if not any((folder.path / file).is_file() for file in TOKENIZERS):
        if not in_cache:
            yield error_at(path, name, "a model with its tokenizer; save one beside it")
    elif not (folder.template or settings.text):
        yield error_at(
            path, name, f"a tokenizer with a chat template; save one as {_TEMPLATE_FILE} beside it"
        )
    else:
        try:
            chat = folder.chat(settings)
            lost = chat.lost_bos if chat else ""
        except Exception as error:  # ours, and whatever strangers' files make the libraries raise
            yield error_at(path, name, f"a chat template that can be used ({error})")
        else:
            if lost:
                yield warning_at(path, name, lost)


def _look_at_context(stage: Stage, folder: Folder, checked: Checked) -> Iterator[Finding]:
    spec, limit = getattr(stage.config, "sampling", None), folder.context
    if spec is None or limit is None:
        return
    if spec.max_model_len > limit:
        path = stage.path(("sampling", "max_model_len"))
        yield error_at(
            path, spec.max_model_len, f"at most {limit}, what the policy was made for; 0 takes that"
        )
    elif not spec.max_model_len:
        yield from room(stage, ("sampling",), spec.max_new_tokens, limit, checked)


def _read_json(path: Path) -> dict[str, object]:
    body = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(body, dict):
        raise ValueError(f"{path.name} holds no object")
    return body
