"""Real prompts for the benchmarks."""

from __future__ import annotations

from pathlib import Path

from kubealign import quickstart
from kubealign_components.data.dataset import Dataset
from kubealign_components.filter.stage import FilterConfig
from kubealign_components.filter.stage import run as run_filter
from kubealign_components.import_prompts.stage import ImportConfig, SourceConfig
from kubealign_components.import_prompts.stage import run as run_import


def tokenized(model: Path, folder: Path, *, rows: int, file: str = "dpo_en_demo.json") -> Dataset:
    """At most ``rows`` prompts of one of the demo's files with their completions, tokenised for ``model``."""
    source = SourceConfig(name="demo", uri=str(quickstart.preferences() / file), max_rows=rows)
    run_import(ImportConfig(sources=(source,)), output=str(folder / "prompts"))
    config = FilterConfig(policy=str(model), max_seq_len=2048, max_prompt_len=400)
    prompts = Dataset.open(str(folder / "prompts"))
    run_filter(config, prompts=prompts, output=str(folder / "tokenized"))
    return Dataset.open(str(folder / "tokenized"))
