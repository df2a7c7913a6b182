"""How a pipeline is compiled: what KFP fixes at compile time, from images and retries to pod labels.

Pipeline parameters say *what* to compute and stay open until a run starts. What stands here cannot
change after compiling, because KFP takes only constants for it; ``kubealign compile -f run.yaml``
reads it from the run file's ``compile`` section.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

from kfp import dsl
from kfp.dsl.pipeline_channel import PipelineParameterChannel

from kubealign_components import images
from kubealign_components.config import require, require_choice
from kubealign_components.data.limits import MAX_CHUNKS
from kubealign_components.forwarding import forwarded
from kubealign_components.pod_use import POD_VARIABLE
from kubealign_components.stages import own_stages
from kubealign_components.supervisor import supervised
from kubealign_components.trainjob.settings import TORCHRUN
from kubealign_pipelines.first_check import check_component
from kubealign_pipelines.graph import CHECK, REGISTER
from kubealign_pipelines.kubernetes_values import cores
from kubealign_pipelines.late_client import kfp_kubernetes
from kubealign_pipelines.registration import RegistrySettings, register
from kubealign_pipelines.stage_resources import (
    DEFAULTS,
    INSTALLATIONS,
    PART_OF,
    SCRATCH,
    SHARED_MEMORY,
    STREAMED,
    TRAINING,
    StageResources,
)

if TYPE_CHECKING:
    from kfp.dsl import PipelineTask
    from kfp.dsl.base_component import BaseComponent
    from kfp.dsl.pipeline_channel import PipelineChannel

kubernetes = kfp_kubernetes()
_GPU_NAME = "nvidia.com/gpu"
_RETRY_WINDOW = "720h"
"""Argo retries nothing that fails later than this after its first pod was made, time in a queue included."""
IMAGES = {"data": images.DATA, "sample": images.SAMPLE, "train": images.TRAIN}


PRICED = ("gpu", "cpu")
NOTHING_NEW = ("repeat", "stop")
SEEN = "seen"
"""Argument of stages that read sources: what lay there when the run was checked."""
READS_OUTSIDE = ("import_prompts", "clean_prompts", "clean_pmp", "rl_prompts")
"""Stages whose sources may have grown under the same name, of which KFP's cache knows nothing but
:data:`SEEN`. All tasks that begin are of these."""
ALWAYS_RUN = (CHECK, REGISTER, "benchmark")
"""Stages that KFP's cache never answers: they read what stands below a name, such as a folder of tasks, or
write where no run looks."""
_KEPT = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}
"""Annotation of a pod that is not to be moved for another's sake."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CompileSettings:
    """The ``compile`` section of a run file."""

    retries: int = 2
    """How often a stage that died is started again: its process in its pod, and a pod that is lost. Finished
    slices of its work are not repeated."""
    parallelism: int = 16
    """Most GPUs of a fan-out that work at once, or pods where these have none. A pod's GPUs have an engine
    each, or one between them where that needs them all: pods with 8 are an eighth as many."""
    max_chunks: int = 0
    """Most chunks of a fan-out, each a pod's; 0 for as many as run at once. In any case no more than the
    object of a run has room for. Chunks grow with the data: a pod that is lost loses a slice and not its
    chunk."""
    check: bool = True
    """Whether a task checks all parameters of a run as ``kubealign check`` does, before any other starts."""
    caching: bool = True
    """Whether KFP may take a task's outputs from an earlier run with equal inputs. What reads sources is run
    again, but for ``when_nothing_new``; finished rows are found by content."""
    when_nothing_new: str = "repeat"
    """What a run does whose sources and models are those of one before, by names, sizes and versions:
    "repeat" all stages, which find their finished rows, or "stop" after the check: KFP's cache answers the
    others, whose pods do not start."""
    installation: str = "profile"
    """Where pods get the store's keys, the model cache and a hub token from: "profile", the namespace's
    PodDefaults, or "standalone", for Kubeflow Pipelines by itself, the tasks, which name KFP's own store."""
    registry: str = ""
    """Registry, with a path if need be, that the images are pulled from; empty: as they are named."""
    images: Mapping[str, str] = field(default_factory=dict)
    """Full image references by kind (data, sample, train), such as a digest; these win over ``registry``."""
    name_images: bool = True
    """Whether tasks are told their image, which manifests then name; processes on this machine have none."""
    image_pull_secrets: tuple[str, ...] = ()
    """Secrets with the keys of the registry."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of every pod."""
    secrets: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of every pod from secrets, as "secret/key" or "secret/key?"."""
    volumes: Mapping[str, str] = field(default_factory=dict)
    """Volume claims of every pod by name, and where it sees them, such as "/models"."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Labels of every pod."""
    annotations: Mapping[str, str] = field(default_factory=dict)
    """Annotations of every pod."""
    model_registry: RegistrySettings = field(default_factory=RegistrySettings)
    """Kubeflow's model registry: a run's last task registers its model there."""
    prices: Mapping[str, float] = field(default_factory=dict)
    """What an hour of a GPU (``gpu``) and of a requested processor core (``cpu``) costs, in a currency of
    yours: pages and manifests tell then what the pods took. Empty: they do not."""
    stages: Mapping[str, StageResources] = field(default_factory=dict)
    """Resources by stage name, over the defaults."""

    def __post_init__(self) -> None:
        require(self.retries >= 0, "retries", self.retries, "0 or more")
        require(self.parallelism > 0, "parallelism", self.parallelism, "a positive number")
        most = f"0 (as many as run at once) to {MAX_CHUNKS}"
        require(0 <= self.max_chunks <= MAX_CHUNKS, "max_chunks", self.max_chunks, most)
        require_choice("when_nothing_new", self.when_nothing_new, NOTHING_NEW)
        stops = self.when_nothing_new == "stop"
        both = "repeat, or check and caching beside it, which tell that nothing is new"
        require(not stops or (self.check and self.caching), "when_nothing_new", "stop", both)
        require_choice("installation", self.installation, INSTALLATIONS)
        self._everywhere()
        for kind in self.images:
            require_choice(f"images.{kind}", kind, IMAGES)
        for name, price in self.prices.items():
            require_choice(f"prices.{name}", name, PRICED)
            require(0 <= price < math.inf, f"prices.{name}", price, "0 or more, for an hour of one")
        for stage, pod in self.stages.items():
            require_choice(f"stages.{stage}", stage, (*DEFAULTS, *own_stages()))
            several = pod.nodes is not None and pod.nodes > 1
            where, which = f"stages.{stage}.nodes", " or ".join(TRAINING)
            require(not several or stage in TRAINING, where, pod.nodes, f"1: only {which} takes several")
            reserved = ", ".join(
                sorted(TORCHRUN & self.resources(stage).environment.keys()) if several else ()
            )
            where = f"stages.{stage}.environment"
            require(not reserved, where, reserved, "variables that Kubeflow Trainer does not set itself")

    def engines(self, stage: str) -> int:
        """GPUs of a pod of ``stage``, or 1 for the processors of one that has none."""
        return self.resources(stage).accelerators or 1

    def at_once(self, stage: str) -> int:
        """Most pods of a fan-out of ``stage`` that run at once."""
        return max(self.parallelism // self.engines(stage), 1)

    def chunks(self, stage: str) -> int:
        """Most chunks of a fan-out of ``stage``, if the object of a run has room for them."""
        return min(self.max_chunks or self.at_once(stage), MAX_CHUNKS)

    def of_stages(self) -> dict[str, object]:
        """What a check of the parameters must know of this section: where pods see volumes, and nodes."""
        sections = {
            name: {"volumes": dict(stage.volumes)} | ({"nodes": stage.nodes} if stage.nodes else {})
            for name, stage in self.stages.items()
            if stage.volumes or stage.nodes
        }
        everywhere = {"volumes": dict(self.volumes)} if self.volumes else {}
        return {**everywhere, **({"stages": sections} if sections else {})}

    def image(self, reference: str) -> str:
        """The image to pull for ``reference``, one of :data:`IMAGES`."""
        kind = next((kind for kind, name in IMAGES.items() if name == reference), None)
        if kind is not None and kind in self.images:
            return self.images[kind]
        return f"{self.registry.rstrip('/')}/{reference}" if self.registry else reference

    def resources(self, stage: str) -> StageResources:
        """What the pods of ``stage`` ask for."""
        own = self.stages.get(stage, StageResources())
        default = DEFAULTS.get(stage, STREAMED)
        pod = own.over(default.over(self._everywhere().over(INSTALLATIONS[self.installation])))
        shared = pod.shared_memory or (f"{8 * pod.accelerators}Gi" if pod.accelerators else None)
        return replace(pod, shared_memory=shared)

    def _everywhere(self) -> StageResources:
        return StageResources(
            retries=self.retries,
            environment=self.environment,
            secrets=self.secrets,
            volumes=self.volumes,
            labels=PART_OF | dict(self.labels),
            annotations=self.annotations,
        )


class Placement:
    """Applies compile settings to the tasks of one pipeline.

    Args:
        settings: the run file's ``compile`` section.
    """

    def __init__(self, settings: CompileSettings) -> None:
        self.settings = settings
        self._check: dsl.PipelineTask | None = None
        self.gates: list[dsl.PipelineTask] = []
        """Tasks that may fail a run beside the comparison: its model is registered after them."""

    def title(self, component: BaseComponent, about: str = "") -> str:
        """How the UI shows a task of ``component``; ``about`` tells tasks of one stage apart."""
        return f"{_stage(component).replace('_', ' ')} {about}".rstrip()

    def at_once(self, worker: BaseComponent) -> int:
        """Most pods of ``worker`` that run at once."""
        return self.settings.at_once(_stage(worker))

    def cut(
        self, worker: BaseComponent, *, work: PipelineChannel, rows_per_chunk: PipelineChannel
    ) -> dict[str, PipelineChannel]:
        """Arguments of a stage after which ``worker`` takes chunks: how these are planned."""
        stage = _stage(worker)
        return {
            "work": work,
            "rows_per_chunk": rows_per_chunk,
            "max_chunks": self.settings.chunks(stage),
            "engines": self.settings.engines(stage),
        }

    def __call__(
        self, component: BaseComponent, about: str = "", /, **arguments: PipelineChannel
    ) -> PipelineTask:
        """A task of ``component`` under its stage's name, with image, resources, retries and labels.

        Args:
            component: of a stage.
            about: tells two tasks of one stage apart, in their name and their title.
            arguments: of the component.
        """
        stage, title = _stage(component), self.title(component, about)
        pod = self.settings.resources(stage)
        seen = self._seen(stage)
        task = _named(component, title)(**arguments, **_nodes(stage, pod), **seen)
        # Before every setting KFP looks up the caller's source for a message about tasks that have no
        # container, which is a third of the time of compiling; these all have one.
        task._ensure_container_spec_exists = lambda: None
        task.set_display_name(title)
        task.set_container_image(image := self.settings.image(task.container_spec.image))
        if self.settings.name_images:
            task.set_env_variable(images.IMAGE_VARIABLE, image)
        if prices := self.settings.prices:
            task.set_env_variable(POD_VARIABLE, _priced(pod, prices))
        unseen = stage in ALWAYS_RUN or (stage in READS_OUTSIDE and not seen)
        task.set_caching_options(self.settings.caching and not unseen)
        if self._check is not None and stage in READS_OUTSIDE:
            task.after(self._check)
        torch = _image(component) != images.DATA and (stage not in TRAINING or (pod.nodes or 1) == 1)
        _restart(task, pod.retries or 0, torch=torch)
        if stage in TRAINING:
            pod = _on_nodes(task, pod)
        _compute(task, pod)
        _pod(task, pod)
        _admit(task, self.settings)
        return task

    def _seen(self, stage: str) -> dict[str, object]:
        """The argument by which KFP's cache tells whether ``stage`` would find anything new."""
        stops = self.settings.when_nothing_new == "stop" and stage in READS_OUTSIDE
        return {SEEN: self._check.output} if stops and self._check is not None else {}

    def check_first(self, pipeline: str, shape: Mapping[str, object], values: Mapping[str, object]) -> None:
        """Let a task check every parameter before any other starts.

        Args:
            pipeline: by name.
            shape: the parameters by which its stages were chosen.
            values: the parameters, as the pipeline's function got them, among whatever else.
        """
        if self.settings.check:
            given = {n: v for n, v in sorted(values.items()) if isinstance(v, PipelineParameterChannel)}
            component = check_component({name: str(one.channel_type) for name, one in given.items()})
            compiled = self.settings.of_stages()
            self._check = self(component, pipeline=pipeline, compiled=compiled, shape=dict(shape), **given)

    def register_model(self, compared: PipelineChannel) -> None:
        """Let a task register the model of the run, where a registry is configured.

        Args:
            compared: what ``evaluate`` made, or ``choose``.
        """
        registry = self.settings.model_registry
        if registry.server:
            named = {field.name: getattr(registry, field.name) for field in fields(registry)}
            run = {"run_id": dsl.PIPELINE_JOB_ID_PLACEHOLDER, "run_name": dsl.PIPELINE_JOB_NAME_PLACEHOLDER}
            self(register, compared=compared, **named, **run).after(*self.gates)


def _priced(pod: StageResources, prices: Mapping[str, float]) -> str:
    """What the pods of a task ask for together, and what an hour of it costs."""
    nodes = pod.nodes or 1
    asked = {"gpus": nodes * (pod.accelerators or 0), "cpus": nodes * cores(pod.cpu)}
    price = asked["gpus"] * prices.get("gpu", 0.0) + asked["cpus"] * prices.get("cpu", 0.0)
    return json.dumps({**asked, "price": price})


def _restart(task: PipelineTask, retries: int, *, torch: bool) -> None:
    """Let what dies begin again, ``retries`` times: its process, which may load ``torch``, and its pod."""
    task.container_spec.command = supervised(task.container_spec.command, retries, torch=torch)
    if retries:
        task.set_retry(retries, backoff_duration="30s", backoff_factor=2, backoff_max_duration=_RETRY_WINDOW)


def _on_nodes(task: PipelineTask, pod: StageResources) -> StageResources:
    """What the pod of a training ``task`` asks for, which only watches where several nodes train."""
    nodes = pod.nodes or 1
    # One component, compiled for here or for a TrainJob: the spec is its own for each task.
    task.component_spec = replace(task.component_spec, task_config_passthroughs=forwarded(nodes))
    return _watching(pod) if nodes > 1 else pod


def _watching(pod: StageResources) -> StageResources:
    """What the pod gets that waits for a TrainJob, whose pods are as ``pod``."""
    annotations = {**pod.annotations, **_KEPT}
    return replace(pod, annotations=annotations, cpu="500m", memory="4Gi", accelerators=0, shared_memory=None)


def _requirements(pod: StageResources) -> dict[str, dict[str, str]]:
    """The requests and limits of a pod, as Kubernetes writes them."""
    memory = {"memory": pod.memory} if pod.memory is not None else {}
    requests = ({"cpu": str(pod.cpu)} if pod.cpu is not None else {}) | memory
    limits = dict(memory)
    if pod.accelerators:
        limits[pod.accelerator or _GPU_NAME] = str(pod.accelerators)
    both = {"limits": limits, "requests": requests}
    return {name: amounts for name, amounts in both.items() if amounts}


def _image(component: BaseComponent) -> str:
    """The image that ``component`` is written for; in that of data nothing needs torch."""
    return str(component.component_spec.implementation.container.image)


def _stage(component: BaseComponent) -> str:
    return str(component.python_func.__name__)


def _named(component: BaseComponent, title: str) -> BaseComponent:
    """``component`` under the name that its task gets: KFP would number the tasks of one component."""
    named = copy.copy(component)
    named.component_spec = replace(component.component_spec, name=title.replace(" ", "-").lower())
    return named


def _nodes(stage: str, pod: StageResources) -> dict[str, object]:
    """Arguments of the component of ``stage`` that say on how many nodes it runs, and how."""
    if stage not in TRAINING or (pod.nodes or 1) == 1:
        return {}
    own = {
        "labels": dict(pod.labels),
        "annotations": dict(pod.annotations),
        "resources": _requirements(pod),
        "shared_memory": pod.shared_memory,
    }
    job = {**{name: value for name, value in own.items() if value}, **pod.train_job}
    return {"nodes": pod.nodes, "train_job": job}


def _compute(task: PipelineTask, pod: StageResources) -> None:
    if pod.cpu is not None:
        task.set_cpu_request(str(pod.cpu))
    if pod.memory is not None:
        task.set_memory_request(pod.memory)
        task.set_memory_limit(pod.memory)
    if pod.accelerators:
        task.set_accelerator_type(pod.accelerator or _GPU_NAME)
        task.set_accelerator_limit(pod.accelerators)
    for name, value in sorted(pod.environment.items()):
        task.set_env_variable(name, value)


def _pod(task: PipelineTask, pod: StageResources) -> None:
    for name, value in sorted(pod.labels.items()):
        kubernetes.add_pod_label(task, name, value)
    for name, value in sorted(pod.annotations.items()):
        kubernetes.add_pod_annotation(task, name, value)
    for name, value in sorted(pod.node_selector.items()):
        kubernetes.add_node_selector(task, name, value)
    for toleration in pod.tolerations:
        kubernetes.add_toleration(task, **toleration)
    for claim, path in sorted(pod.volumes.items()):
        kubernetes.mount_pvc(task, pvc_name=claim, mount_path=path)
    if pod.shared_memory is not None:
        kubernetes.empty_dir_mount(
            task,
            volume_name="shared-memory",
            mount_path=SHARED_MEMORY,
            medium="Memory",
            size_limit=pod.shared_memory,
        )
    if pod.scratch is not None:
        kubernetes.empty_dir_mount(task, volume_name="scratch", mount_path=SCRATCH, size_limit=pod.scratch)
        task.set_env_variable("TMPDIR", SCRATCH)
    for variable, secret in sorted(pod.secrets.items()):
        name, _, key = secret.partition("/")
        optional = key.endswith("?")
        kubernetes.use_secret_as_env(task, name, {key.removesuffix("?"): variable}, optional=optional)
    if pod.timeout is not None:
        kubernetes.set_timeout(task, pod.timeout)


def _admit(task: PipelineTask, settings: CompileSettings) -> None:
    """What the restricted pod security standard asks of a pod, and its registry; KFP sets the rest of it."""
    # The user is the image's own, or the one that an OpenShift namespace gives it.
    kubernetes.set_security_context(task, run_as_non_root=True)
    if settings.image_pull_secrets:
        kubernetes.set_image_pull_secrets(task, list(settings.image_pull_secrets))
