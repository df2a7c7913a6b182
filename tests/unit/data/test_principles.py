"""Principle sets: the shipped ones, users' own, and what is refused by file, principle and field."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from kubealign_components.data.principles import SHIPPED, PrincipleSet, load_principles
from kubealign_components.errors import ConfigError

ROOT = Path(__file__).parents[3]
CONCISE = {"name": "Concise", "positive": "Short.", "negative": "Long.", "weight": 2, "tags": ["reasoning"]}


def own(tmp_path: Path, *principles: Any, **members: Any) -> str:
    body = {"schema": "kubealign.principles/v1", "name": "mine", "version": 3, "principles": list(principles)}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.dump(body | members))
    return str(path)


def weights(principles: PrincipleSet) -> dict[str, float]:
    return {p.name: p.weight for p in principles}


def test_the_judging_set_has_eleven_principles_that_can_be_negated_in_equal_detail() -> None:
    judging = load_principles("judging")
    assert len(judging) == 11
    assert judging.of_stage("judge") == judging
    for principle in judging:
        length = len(principle.statement(negated=True)) / len(principle.statement())
        assert 0.75 < length < 1.35, principle.name
        assert principle.statement(negated=True) != principle.statement()


def test_the_published_reward_model_uses_eight_of_them() -> None:
    assert load_principles("judging").of_stage("reward_model").names == (
        "Concise",
        "Honest and Accurate",
        "Ethical",
        "Specific",
        "Educational and Engaging",
        "Methodical",
        "Creative",
        "Comprehensive",
    )


def test_the_rl_set_has_the_published_weights() -> None:
    assert weights(load_principles("rl")) == {
        "Honest and Accurate": 3,
        "Ethical": 2,
        "Educational and Engaging": 1,
        "Creative": 1,
        "Multilingual": 1,
        "Comprehensive": 3,
        "Natural Language": 3,
        "Consistent Reasoning": 1,
        "Numerical Sensitive": 1,
        "Analytical Structure": 3,
        "Vivid": 1,
        "Privacy Protection": 1,
        "Candor": 4,
        "Stand-Alone": 2,
    }


def test_the_interventions_are_three_and_have_no_negatives() -> None:
    interventions = load_principles("interventions")
    assert len(interventions) == 3
    with pytest.raises(ConfigError, match=r"No Self-Praise.*negative"):
        interventions.get("No Self-Praise").statement(negated=True)


def test_shipped_sets_have_digests_of_their_own_and_keep_them() -> None:
    digests = {load_principles(name).digest() for name in SHIPPED}
    assert len(digests) == len(SHIPPED)
    assert {load_principles(name).digest() for name in SHIPPED} == digests


def test_a_users_own_file_is_read_whole(tmp_path: Path) -> None:
    mine = load_principles(own(tmp_path, CONCISE, {"name": "Kind", "positive": " Friendly.\n"}))
    assert (mine.name, mine.version, mine.names) == ("mine", 3, ("Concise", "Kind"))
    concise, kind = mine
    assert (concise.weight, concise.tags) == (2.0, ("reasoning",))
    assert (kind.positive, kind.negative, kind.weight) == ("Friendly.", None, 1.0)


@pytest.mark.parametrize("change", ["name", "version", "positive", "negative", "weight", "tags", "stages"])
def test_the_digest_covers_every_field(tmp_path: Path, change: str) -> None:
    before = load_principles(own(tmp_path, CONCISE)).digest()
    other: dict[str, Any] = {"version": 4, "weight": 3, "tags": ["general"], "stages": ["rl"]}
    value = other.get(change, "Other.")
    if change == "version":
        assert load_principles(own(tmp_path, CONCISE, version=value)).digest() != before
    else:
        assert load_principles(own(tmp_path, CONCISE | {change: value})).digest() != before


def test_a_part_of_a_set_keeps_its_order_and_refuses_unknown_names() -> None:
    judging = load_principles("judging")
    assert judging.only(["Creative", "Concise"]).names == ("Concise", "Creative")
    with pytest.raises(ConfigError, match=r"'Brief'.*Concise"):
        judging.only(["Brief"])


@pytest.mark.parametrize(
    ("principle", "message"),
    [
        pytest.param({"name": "Kind"}, r"mine\.yaml: principle 'Kind' \(number 1\): positive", id="missing"),
        pytest.param({"positive": "P."}, r"mine\.yaml: principle None \(number 1\): name", id="nameless"),
        pytest.param(CONCISE | {"weight": 0}, r"'Concise' \(number 1\): weight=0: expected a pos", id="zero"),
        pytest.param(CONCISE | {"weight": "2"}, r"'Concise' .*weight='2'", id="text-weight"),
        pytest.param(CONCISE | {"weight": float("nan")}, r"'Concise' .*weight=nan", id="nan"),
        pytest.param(CONCISE | {"negative": ""}, r"'Concise' .*negative='': expected text", id="empty"),
        pytest.param(CONCISE | {"negative": 7}, r"'Concise' .*negative=7: expected text", id="number"),
        pytest.param(CONCISE | {"tags": ["math"]}, r"'Concise' .*tags=\['math'\].*red-teaming", id="tag"),
        pytest.param(CONCISE | {"stages": "rl"}, r"'Concise' .*stages='rl'.*reward_model", id="stage"),
        pytest.param(CONCISE | {"wieght": 2}, r"'Concise' .*wieght=2: expected no such field", id="unknown"),
        pytest.param("Concise", r"principle None \(number 1\)='Concise': expected a mapping", id="text"),
    ],
)
def test_a_bad_principle_is_named_with_its_file_and_field(
    tmp_path: Path, principle: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_principles(own(tmp_path, principle))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"schema": "kubealign.principles/v2"}, r"mine\.yaml: schema='kubealign.principles/v2'"),
        ({"version": 0}, r"mine\.yaml: version=0"),
        ({"version": True}, r"mine\.yaml: version=True"),
        ({"name": " "}, r"mine\.yaml: name=' '"),
        ({"principles": []}, r"mine\.yaml: principles=\[\]"),
        ({"author": "me"}, r"mine\.yaml: author='me': expected no such field"),
    ],
)
def test_a_bad_file_is_named_with_its_field(tmp_path: Path, members: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_principles(own(tmp_path, CONCISE, **members))


def test_a_name_stands_once(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"'concise' \(number 2\): name='concise': expected a name of its own"
    ):
        load_principles(own(tmp_path, CONCISE, CONCISE | {"name": "concise"}))


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(Path(own(tmp_path, CONCISE)).read_text() + "version: 9\n")
    with pytest.raises(ConfigError, match="'version' stands twice"):
        load_principles(str(path))


@pytest.mark.parametrize("content", [b"a: [", b"\xff\xfe\xfd", b"- 1\n", b""])
def test_what_is_no_set_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"mine\.yaml"):
        load_principles(str(path))


def test_a_set_that_is_not_there_says_which_are_shipped() -> None:
    with pytest.raises(ConfigError, match="judging, rl, interventions"):
        load_principles("jugding")


def test_the_sets_are_in_the_installed_package(tmp_path: Path) -> None:
    source = tmp_path / "source"  # a copy: a build leaves its folders behind
    for name in ("components", "pipelines", "sdk"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("*.egg-info"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    built = subprocess.run([*command, "-w", tmp_path, source], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"kubealign_components/principles/{name}.yaml" for name in SHIPPED} <= names
