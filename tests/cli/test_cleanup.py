"""Remains of a crashed run in the object store can be found and removed."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from lsst.daf.butler import Butler
from lsst.resources import ResourcePath
from lsst.resources._resourcePath import MBulkResult

from spark_butler.cli.main import main
from spark_butler.temporaries.scratch import (
    ScratchPart,
    fetch_scratch,
    find_scratch,
    scratch_root,
    store_scratch,
)


@pytest.fixture(params=["s3", "posix"])
def repo(request: pytest.FixtureRequest, s3_repo: Callable[[str], Path], tmp_path: Path) -> Path:
    if request.param == "s3":
        return s3_repo("cleanup")
    root = tmp_path / "posix"
    Butler.makeRepo(root)
    return root


def _leave(repo: Path, run: str) -> list[ScratchPart]:
    with Butler.from_config(repo) as butler:
        (root,) = butler.get_datastore_roots().values()
    assert root is not None
    folder = scratch_root(root).join(f"{run}/{uuid.uuid4()}/", forceDirectory=True)
    return store_scratch(str(folder), uuid.uuid4(), [memoryview(b"x" * 1000)], part_bytes=300)


def _list(repo: Path) -> list[str]:
    with Butler.from_config(repo) as butler:
        (root,) = butler.get_datastore_roots().values()
    assert root is not None
    return list(map(str, find_scratch(scratch_root(root))))


def test_cleanup_of_empty_repository_finds_nothing(repo: Path) -> None:
    result = CliRunner().invoke(main, ["cleanup", str(repo)])
    assert (result.exit_code, result.output) == (0, "0 scratch files removed.\n")
    result = CliRunner().invoke(main, ["cleanup", str(repo), "--dry-run"])
    assert (result.exit_code, result.output) == (0, "There are no scratch files to remove.\n")


def test_cleanup_removes_all_runs_or_one(repo: Path) -> None:
    parts = _leave(repo, "u/me/one")
    _leave(repo, "u/me/two")
    assert fetch_scratch(parts) == b"x" * 1000
    assert len(_list(repo)) == 8
    listed = CliRunner().invoke(main, ["cleanup", str(repo), "--dry-run"])
    assert len(listed.output.splitlines()) == 8
    result = CliRunner().invoke(main, ["cleanup", str(repo), "--run", "u/me/one"])
    assert result.output == "4 scratch files removed.\n"
    left = _list(repo)
    assert len(left) == 4, left
    result = CliRunner().invoke(main, ["cleanup", str(repo)])
    assert result.output == "4 scratch files removed.\n"
    assert not _list(repo)


def test_unknown_run_is_refused_and_clean_run_is_not(repo: Path) -> None:
    for more in ([], ["--dry-run"], ["--format", "json"]):
        result = CliRunner().invoke(main, ["cleanup", str(repo), "--run", "nope", *more])
        assert (result.exit_code, result.stdout) == (2, "")
        (line,) = result.stderr.splitlines()
        assert line.startswith(f"Error: The repository {str(repo)!r} has no run 'nope'")
    with Butler.from_config(repo, writeable=True) as butler:
        butler.collections.register("u/me/clean")
    result = CliRunner().invoke(main, ["cleanup", str(repo), "--run", "u/me/clean"])
    assert (result.exit_code, result.stdout) == (0, "0 scratch files removed.\n")


def test_files_that_cannot_be_removed_are_not_counted(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _leave(repo, "u/me/kept")

    def refuse(uris: list[ResourcePath], *, do_raise: bool) -> dict[ResourcePath, MBulkResult]:
        return {
            uri: MBulkResult(n == 0, None if n == 0 else PermissionError("no")) for n, uri in enumerate(uris)
        }

    monkeypatch.setattr(ResourcePath, "mremove", refuse)
    result = CliRunner().invoke(main, ["cleanup", str(repo), "--format", "json"])
    assert json.loads(result.stdout) == {"removed": 1}


def test_repository_that_is_not_there_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["cleanup", str(tmp_path / "nowhere")])
    assert result.exit_code == 2
    assert "There is no Butler repository" in result.output
