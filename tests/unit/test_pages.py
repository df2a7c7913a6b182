"""The pages for users hold what they say: their tables, links, and every block of Python and YAML."""

import dataclasses
import http.server
import re
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from kfp import compiler, dsl

from kubealign.errors import ClusterError, RunFailed, RunStopped, Unavailable
from kubealign.runfile import RunFile
from kubealign_components.config import check_mapping
from kubealign_components.data.principles import parse_principles
from kubealign_components.engines.reward_functions import RewardFunctionSpec
from kubealign_components.engines.rewards import Rewarder, RewardInput, RewardSpec
from kubealign_components.errors import KubeAlignError, error_kinds
from kubealign_components.import_prompts.component import import_prompts
from kubealign_components.select.pairs import STRATEGIES
from kubealign_components.select.stage import ALL, LABELLED, LABELS
from kubealign_components.train.config import TrainConfig
from kubealign_components.training.config import PAIRWISE, POINTWISE
from kubealign_pipelines import build
from kubealign_pipelines.catalogue import write_catalogue
from kubealign_pipelines.checking.across import USUAL_BETA
from kubealign_pipelines.checking.describe import meanings_of
from kubealign_pipelines.compiler import graph_of
from kubealign_pipelines.flat import flat_names
from kubealign_pipelines.resources import CompileSettings
from support.benchmarks import CAPITALS
from support.documents import DOCUMENTS, ROOT, blocks, table

PYTHON = {
    "components/README.md": ["from kubealign_components.select", "from kfp import components"],
    "pipelines/README.md": ["def short(", "# my_pipeline.py", "# short_prompts.py"],
    "sdk/README.md": ["from kubealign import stage", "from pathlib import Path"],
}
"""Every block of Python by how it begins: tests here, test_own_pipelines.py and tests/local run them."""


def python(page: str, start: str) -> str:
    (block,) = [text for text in blocks(page, "python") if text.startswith(start)]
    return block


def test_every_strategy_is_told() -> None:
    named = [row[0] for row in table("pipelines/README.md", "strategies")]
    assert sorted(named) == sorted([*STRATEGIES, ALL, LABELS, LABELLED])


def test_every_objective_is_told_with_its_range() -> None:
    rows = table("pipelines/README.md", "objectives")
    told = {name: (looks, beta) for name, looks, beta, _ in rows}
    usual = {name: f"{low:g} to {high:g}" for name, (low, high) in USUAL_BETA.items()}
    looks = dict.fromkeys(PAIRWISE, "pairs") | dict.fromkeys(POINTWISE, "one completion")
    assert told == {name: (looks[name], usual.get(name, "any")) for name in (*PAIRWISE, *POINTWISE)}
    assert all(beta in meanings_of(TrainConfig)["beta"] for beta in usual.values())


def test_every_error_is_told() -> None:
    errors = {*error_kinds(), ClusterError, Unavailable, RunFailed, RunStopped} - {KubeAlignError}
    assert {row[0] for row in table("sdk/README.md", "errors")} == {kind.__name__ for kind in errors}


def test_a_term_of_the_glossary_means_one_thing_and_is_used() -> None:
    terms = [row[0] for row in table("components/README.md", "glossary")]
    assert terms == sorted(set(terms))
    texts = [(ROOT / page).read_text() for page in DOCUMENTS]
    texts += [path.read_text() for path in ROOT.glob("*/kubealign*/**/*.py")]
    everywhere = " ".join(" ".join(texts).split()).lower()
    own = " ".join((ROOT / "components/README.md").read_text().partition("<!-- glossary -->")[2].split())
    assert [term for term in terms if everywhere.count(term) <= own.lower().count(term)] == []


def test_what_a_reward_function_gets_is_told() -> None:
    page = (ROOT / "pipelines/README.md").read_text()
    text = page.partition("A completion (`item`) has ")[2].partition("`kubealign")[0]
    named = set(re.findall(r"`(\w+)`", text)) - {"stop", "length", "offline"}
    assert named == {field.name for field in dataclasses.fields(RewardInput)}


@pytest.mark.parametrize("page", DOCUMENTS)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


def anchors(file: Path) -> set[str]:
    """The anchors of the headings of ``file``, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_block_of_python_is_run_by_a_test() -> None:
    shown = {page: blocks(page, "python") for page in DOCUMENTS if blocks(page, "python")}
    assert shown.keys() == PYTHON.keys()
    for page, texts in shown.items():
        assert len(texts) == len(PYTHON[page])
        for text, start in zip(texts, PYTHON[page]):
            assert text.startswith(start)


def test_a_stage_is_a_task(tmp_path: Path) -> None:
    block = python("components/README.md", "from kubealign_components.select")

    @dsl.pipeline(name="shown")
    def shown() -> None:
        exec(block, {"rewarded": import_prompts(sources=[{"uri": "a"}])})

    compiler.Compiler().compile(shown, str(tmp_path / "shown.yaml"))
    assert "quantile_bands" in (tmp_path / "shown.yaml").read_text()


def test_a_component_is_loaded_by_its_address(tmp_path: Path) -> None:
    write_catalogue(tmp_path, CompileSettings(), verified=datetime(2026, 1, 1, tzinfo=UTC))

    class Served(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(tmp_path / "sample"))  # type: ignore[arg-type]

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Served) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        block = python("components/README.md", "from kfp import components")
        here = f"http://127.0.0.1:{server.server_address[1]}"
        made: dict[str, object] = {}
        exec(re.sub(r"https://\S+?(?=\")", here, block), made)
        server.shutdown()
    assert "chunk" in made["sample"].component_spec.inputs  # type: ignore[attr-defined]


def test_the_functions_of_the_page_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rewards.py").write_text(python("pipelines/README.md", "def short("))
    listed = next(yaml.safe_load(b) for b in blocks("pipelines/README.md", "yaml") if "rewards.py:short" in b)
    specs = [{"function": f} if isinstance(f, str) else f for f in listed["reward_functions"]]
    specs.append({"function": "rewards.py:right"})
    item = RewardInput(
        messages=[{"role": "user", "content": "6 * 7?"}],
        completion=[{"role": "assistant", "content": "It is 42."}],
        text="It is 42.",
        answers=["42"],
    )
    spec = RewardSpec(functions=tuple(RewardFunctionSpec(**one) for one in specs))
    rewarder = Rewarder(spec)
    (reward,) = rewarder.score([item])
    rewarder.close()
    assert reward == 1.0 + 0.5 + 1.0


@pytest.mark.parametrize("page", DOCUMENTS)
def test_blocks_of_yaml_are_settings(page: str) -> None:
    for block in blocks(page, "yaml"):
        content = yaml.safe_load(block.replace("…", "0"))
        if content.get("schema") == "kubealign.principles/v1":
            assert parse_principles(block.encode(), page).principles
        elif "output_type" in content:  # a task of lm-eval
            assert {**CAPITALS, **content}.keys() == CAPITALS.keys()
        elif content.keys() & {"parameters", "compile", "local"}:
            assert check_mapping(RunFile, content, page)[1] == []
        else:
            graph = graph_of(build("offline_alignment"), "offline_alignment")
            assert content.keys() <= {p.name for p in graph.settings()} | set(flat_names(graph).values())


def test_five_lines_give_a_frame(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model").symlink_to(tiny_model)
    Path("prompts.jsonl").write_text("".join(f'{{"prompt": "Is {number} even?"}}\n' for number in range(6)))
    exec(python("sdk/README.md", "from kubealign import stage"), {})
    assert "rows x 13 columns]" in capsys.readouterr().out
    assert {path.name for path in Path("stages").iterdir()} > {"sample", "select", "work"}
