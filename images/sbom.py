#!/usr/bin/env python3
"""Writes a CycloneDX bill of materials of the Python packages in each image: ``make sbom``.

All that pip puts into an image is pinned with its hashes, so that the locks say what is in it before it is
built. What Debian brings is told by the attestation that ``build.py --push`` makes of the built image.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from build import KINDS, ROOT, reference

IMAGES = ROOT / "images"
SOURCES = {
    "data": ("kfp-server-api",),
    "sample": ("kfp-server-api", "rouge-score", "sqlitedict", "word2number"),
    "train": ("kfp-server-api", "deepspeed"),
}
"""Packages of ``locks/sources.txt`` whose wheels an image gets."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the bills of all images, or of those that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", metavar="KIND", help="all by default")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "sbom", metavar="FOLDER")
    options = parser.parse_args(arguments)
    if unknown := set(options.kinds) - set(KINDS):
        parser.error(f"no such image: {', '.join(sorted(unknown))}; there are {', '.join(KINDS)}")
    options.output.mkdir(parents=True, exist_ok=True)
    for kind in options.kinds or KINDS:
        for variant in ("cuda",) if kind == "data" else ("cuda", "cpu"):
            name = reference(kind, variant).replace("/", "-").replace(":", "-")
            path = options.output / f"{name}.cdx.json"
            write(kind, variant, path)
            sys.stdout.write(f"{path}\n")
    return 0


def locks(kind: str, variant: str) -> list[str]:
    """The locks that the Dockerfile of ``kind`` installs, in its order."""
    if kind == "data":
        return ["data/requirements.txt"]
    return ["data/requirements.txt", f"locks/torch-{variant}.txt", f"{kind}/{variant}.txt"]


def requirements(kind: str, variant: str) -> str:
    """All pins of an image, with their hashes, as one requirements file; a later lock has the last word."""
    pins: dict[str, str] = {}
    for lock in locks(kind, variant):
        pins |= _pins(lock)
    sources = _pins("locks/sources.txt")
    pins |= {name: sources[name] for name in SOURCES[kind]}
    return "\n".join(pin for _, pin in sorted(pins.items()))


def write(kind: str, variant: str, path: Path) -> None:
    """Write the bill of an image to ``path``, held against CycloneDX's schema."""
    command = [sys.executable, "-m", "cyclonedx_py", "requirements", "-", "--pyproject", "pyproject.toml"]
    command += ["--output-reproducible", "--of", "JSON", "-o", str(path)]
    text = requirements(kind, variant).encode()
    subprocess.run(command, cwd=ROOT, input=text, check=True)


def _pins(lock: str) -> dict[str, str]:
    """Pins of ``lock`` by package."""
    text = (IMAGES / lock).read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {line.partition("==")[0]: line for line in lines}


if __name__ == "__main__":
    raise SystemExit(main())
