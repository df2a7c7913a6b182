"""Kubeflow's model registry: where it is, and as whom to speak to it."""

from __future__ import annotations

import urllib.parse
from dataclasses import dataclass
from pathlib import Path

from kubealign_components.config import require
from kubealign_components.errors import ConfigError

TOKEN = "KUBEALIGN_REGISTRY_TOKEN"
"""Environment variable with a bearer token of the registry."""
NAME_LETTERS = 200
"""Most letters of a model's name: the registry's database has 255 for it, with an id before it."""
PORTS = {"http": 8080, "https": 443}
"""Where a registry listens if its address does not say: as its client has it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RegistryServer:
    """Where the registry is, and as whom to speak to it."""

    address: str
    """Such as http://model-registry-service.kubeflow:8080."""
    token: str = ""
    """A bearer token."""
    ca_cert: str = ""
    """File with the certificate authority of the server."""

    def __post_init__(self) -> None:
        require_address("--server", self.address)
        if self.ca_cert and not Path(self.ca_cert).is_file():
            raise ConfigError("--registry-ca-cert", self.ca_cert, "a file")

    @property
    def origin(self) -> tuple[str, int]:
        """Address without its port, and the port."""
        parts = urllib.parse.urlsplit(self.address.rstrip("/"))
        port = parts.port or PORTS[parts.scheme]
        host = f"[{parts.hostname}]" if ":" in str(parts.hostname) else parts.hostname
        return f"{parts.scheme}://{host}:{port}{parts.path}", port


def require_address(setting: str, address: str) -> None:
    """Raise :class:`ConfigError` for ``setting`` unless ``address`` is one of a model registry."""
    parts = urllib.parse.urlsplit(address)
    usable = (
        parts.scheme in PORTS and bool(parts.hostname) and not parts.query and address.split() == [address]
    )
    require(usable, setting, address, "the address of a model registry, http://… or https://…")
    try:
        _ = parts.port
    except ValueError as error:
        raise ConfigError(setting, address, f"a port below 65536 ({error})") from error


def require_name(setting: str, name: str) -> None:
    """Raise :class:`ConfigError` for ``setting`` unless a registered model can be called ``name``."""
    fits = 0 < len(name) <= NAME_LETTERS and name.isprintable() and name == name.strip()
    require(fits, setting, name, f"1 to {NAME_LETTERS} letters, without spaces around them")
