"""Tests of a release: one version everywhere, workflows, pages of all versions."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml

from spark_butler import __version__

_ROOT = Path(__file__).resolve().parents[2]
_WORKFLOWS = _ROOT / ".github" / "workflows"


def test_version_is_the_same_everywhere() -> None:
    citation = yaml.safe_load((_ROOT / "CITATION.cff").read_text())
    recipe = yaml.safe_load((_ROOT / "conf" / "conda" / "recipe.yaml").read_text())
    assert str(citation["version"]) == recipe["context"]["version"] == __version__


def test_matrix_has_all_supported_pythons() -> None:
    jobs = yaml.safe_load((_WORKFLOWS / "ci.yml").read_text())["jobs"]
    matrix = jobs["spark-versions"]["strategy"]["matrix"]
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
    named = [each.rpartition(" ")[2] for each in project["classifiers"] if re.search(r":: 3\.\d", each)]
    assert matrix["python"] == named
    assert matrix["spark"] == ["3.5", "4.0", "newest"]


def test_workflows_call_targets_of_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (_ROOT / "Makefile").read_text(), re.MULTILINE))
    for file in _WORKFLOWS.glob("*.yml"):
        jobs = yaml.safe_load(file.read_text())["jobs"].values()
        commands = [step["run"] for job in jobs for step in job["steps"] if "run" in step]
        assert commands
        for command in commands:
            assert set(re.findall(r"^make ([a-z-]+)", command, re.MULTILINE)) <= targets, command


def test_page_of_versions_lists_the_newest_release_first(tmp_path: Path) -> None:
    for name in ("dev", "v0.9.0", "v0.10.1"):
        (tmp_path / name / "docs").mkdir(parents=True)
        (tmp_path / name / "docs" / "index.html").touch()
    (tmp_path / "unfinished").mkdir()
    subprocess.run([sys.executable, _ROOT / "tools" / "list_versions.py", tmp_path], check=True)
    page = (tmp_path / "index.html").read_text()
    assert re.findall(r'href="([^/]+)/docs/index.html"', page) == ["v0.10.1", "v0.9.0", "dev"]
