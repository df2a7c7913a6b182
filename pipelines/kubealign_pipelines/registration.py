"""The task that ends a run where a model registry is configured."""

# No postponed annotations: KFP reads them as they stand.
from dataclasses import dataclass

from kfp import dsl

from kubealign_components import images
from kubealign_components.registry.server import require_address, require_name


@dataclass(frozen=True, kw_only=True, slots=True)
class RegistrySettings:
    """Kubeflow's model registry, into which a run's model goes when its comparison has passed all gates."""

    server: str = ""
    """Address, such as http://model-registry-service.kubeflow:8080; empty: nothing is registered."""
    name: str = ""
    """Of the registered model, whose versions the models of all runs are; by default what its manifest calls
    the model."""
    author: str = ""
    """Of the version."""
    ca_cert: str = ""
    """File with the registry's certificate authority, where pods see it."""

    def __post_init__(self) -> None:
        if self.server or self.name:
            require_address("server", self.server)
        if self.name:
            require_name("name", self.name)


@dsl.component(base_image=images.DATA, install_kfp_package=False)
def register(
    compared: dsl.Input[dsl.Dataset],
    server: str,
    name: str,
    author: str,
    ca_cert: str,
    run_id: str,
    run_name: str,
) -> str:
    """Register the model that was compared, or chosen, in Kubeflow's model registry.

    Args:
        compared: the comparison (kubealign.evaluation/v1), or the choice among several (kubealign.choice/v1).
        server: address of the registry.
        name: of the registered model; empty for what its manifest calls it.
        author: of the version.
        ca_cert: file with the certificate authority of the server.
        run_id: of the run.
        run_name: of the run.

    Returns:
        what became of it: a registry that does not answer is no reason to fail.
    """
    from kubealign_components.artifacts import open_dataset
    from kubealign_components.registry.after_run import register_compared

    return register_compared(
        open_dataset(compared, allow_empty=True),
        server=server,
        name=name,
        author=author,
        ca_cert=ca_cert,
        run_id=run_id,
        run_name=run_name,
    )
