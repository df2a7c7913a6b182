"""What ends a run: the model that it made, or chose, goes into the registry.

A registry that does not answer is no reason to lose a run of days, whose model lies in the store: it is asked
again for a while, and then told how to be asked by hand.
"""

from __future__ import annotations

import logging
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from kubealign_components.data.choice_rows import CHOICE
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.schemas import EVALUATION, MODEL
from kubealign_components.data.trained import chosen_row
from kubealign_components.errors import ConfigError, DataError, StoreError
from kubealign_components.evaluate.verdict import verdict
from kubealign_components.registry.server import TOKEN, RegistryServer
from kubealign_components.registry.versions import PipelineRun, Registration, register, registration

log = logging.getLogger(__name__)

NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
"""What a pod is told of its own namespace."""
ATTEMPTS, PAUSE = 5, 5.0
"""How often a registry is asked, and seconds from the first time to the second; then twice as many each."""


def register_compared(
    compared: Dataset,
    *,
    server: str,
    name: str = "",
    author: str = "",
    ca_cert: str = "",
    run_id: str = "",
    run_name: str = "",
    pause: float = PAUSE,
) -> str:
    """Register the model of a comparison that passed its gates; says in a sentence what became of it.

    Args:
        compared: the comparison (kubealign.evaluation/v1), or the choice among several (kubealign.choice/v1).
        server: address of the registry; the token is that of :data:`TOKEN`.
        name: of the registered model; by default what its manifest calls it.
        author: of the version.
        ca_cert: file with the certificate authority of the server.
        run_id: of the run on Kubeflow Pipelines.
        run_name: of the same.
        pause: seconds between the first two attempts.

    Raises:
        DataError: of another kind of dataset, or one that names no model.
        StoreError: the model's manifest cannot be read.
    """
    compared = _chosen(compared)
    if compared.ended_early:
        return f"not registered: there is no model: {compared.ended_early}"
    numbers = compared.manifest.numbers
    namespace = NAMESPACE_FILE.read_text(encoding="utf-8").strip() if NAMESPACE_FILE.is_file() else ""
    what = registration(
        _input_of(compared, MODEL),
        name=name,
        author=author,
        evaluation=numbers,
        description=verdict(numbers),
        run=PipelineRun(id=run_id, name=run_name, namespace=namespace) if run_id else None,
    )
    pauses = [pause * 2**attempt for attempt in range(ATTEMPTS - 1)]
    sentence = register_or_say(what, server, ca_cert, target=run_id or what.uri, pauses=pauses)
    sys.stderr.write(f"register: {sentence}\n")
    return sentence


def register_or_say(
    what: Registration, server: str, ca_cert: str, *, target: str, pauses: Sequence[float] = ()
) -> str:
    """Write ``what`` to the registry; says in a sentence what became of it, and how to do it by hand where it
    could not be done.

    Args:
        what: to register.
        server: address of the registry; the token is that of :data:`TOKEN`.
        ca_cert: file with the certificate authority of the server.
        target: what ``kubealign register`` is given by hand.
        pauses: seconds before each further attempt.
    """
    try:
        registry = RegistryServer(address=server, token=os.environ.get(TOKEN, ""), ca_cert=ca_cert)
        for pause in pauses:
            try:
                return what.sentence(register(registry, what))
            except StoreError as error:
                log.warning("%s; it is asked again in %g s", error, pause)
            time.sleep(pause)
        return what.sentence(register(registry, what))
    except (ConfigError, StoreError) as error:
        by_hand = shlex.join(["kubealign", "register", target, "--name", what.name, "--server", server])
        return f"not registered: {error}. The model is whole; by hand: {by_hand}"


def _chosen(compared: Dataset) -> Dataset:
    """The comparison, of a choice the one that was chosen."""
    if compared.manifest.schema != CHOICE:
        return compared
    chosen = chosen_row(compared)["evaluation"]
    for parent in compared.manifest.parents:
        if parent["fingerprint"] == chosen:
            return Dataset.open(parent["uri"], EVALUATION, allow_empty=True)
    raise DataError(f"{compared.uri}: it names no chosen evaluation, expected one whose model is registered")


def _input_of(compared: Dataset, schema: str) -> Dataset:
    for parent in compared.manifest.parents:
        if parent["schema"] == schema:
            return Dataset.open(parent["uri"], schema, allow_empty=True)
    raise DataError(f"{compared.uri}: it was made of no {schema}, expected the comparison of a trained model")
