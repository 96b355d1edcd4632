"""Names of runs that mean other places reach nothing outside the folders of runs."""

from __future__ import annotations

import contextlib
import json
import posixpath
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from lsst.daf.butler import Butler, CollectionType
from lsst.resources import ResourcePath

from spark_butler.cli.cleanup import find_folders
from spark_butler.cli.main import main
from spark_butler.demo.repository import make_repository
from spark_butler.demo.s3server import EmbeddedS3
from spark_butler.errors import RepositoryError
from spark_butler.report import find_attempts
from spark_butler.repository.checks import store_roots
from spark_butler.run_folders import path_below, run_folder
from spark_butler.temporaries.scratch import find_scratch, scratch_folder, scratch_root, store_scratch

_HOSTILE = [
    *("", ".", "..", "../..", "../../other", "./", "/", "//", "~", "~root", "*", "u/*", "?", "\0", "\n"),
    *(
        "%2e%2e",
        "%2e%2e/",
        "%2e%2e%2fother",
        "..%2f..",
        "u/..",
        "u/me/..",
        "u/me/../..",
        "u/me/first/../../..",
    ),
    *("u/me/first/", "u/me/first//", "./u/me/first", "u//me/first", "u/me/./first", "/u/me/first"),
    *("u/me/first\0", "u/me/first\n", "u/me/first#", "u/me/first?", "u/me/%66irst", "u\\me\\first", "\ud800"),
    *("x" * 400, "file:///", "file:///etc", "s3://other/"),
    *("../spark-butler-reports", "../spark-butler-scratch/u/me/first"),
]
_PIECE = st.sampled_from("..|.||~|u|me|first|%2e%2e|%2f|%252e|\0|#|?|*| |s3:|file:".split("|"))
_NAMES = st.one_of(
    st.sampled_from(_HOSTILE),
    st.lists(_PIECE | st.text(max_size=4), min_size=1, max_size=6).map("/".join),
    st.lists(_PIECE, min_size=1, max_size=4).map("".join),
    st.text(max_size=12),
)
_RUN = "u/me/first"


def _make(kind: str, folder: Path, server: EmbeddedS3) -> Path:
    """Make a repository with files of a run, of another below its name, of a removed one, and other files."""
    root = folder / "hostile"
    if kind == "s3":
        bucket = f"hostile-{uuid.uuid4().hex[:8]}"
        server.make_bucket(bucket)
        make_repository(root, f"s3://{bucket}/repo/")
    else:
        Butler.makeRepo(root)
    with Butler.from_config(root, writeable=True) as butler:
        butler.collections.register(_RUN)
        butler.collections.register("u/me/second")
        butler.collections.register("u/me", CollectionType.CHAINED)
    store = _store(root)
    for run in (_RUN, f"{_RUN}/below", "u/me/removed"):
        _leave(store, run)
        attempt = f"spark-butler-reports/{run}/20260101T000000000Z/status.json"
        status = {"run": run, "state": "succeeded", "tasks": []}
        store.join(attempt).write(json.dumps(status).encode())
    for path in ("u/me/first/file", "data", "spark-butler-scratch/stray", "../other/file", "../file"):
        store.join(path).write(b"x")
    return root


@pytest.fixture(params=["posix", "s3"])
def repo(request: pytest.FixtureRequest, s3_server: EmbeddedS3, tmp_path: Path) -> Path:
    """A repository for one test."""
    return _make(request.param, tmp_path, s3_server)


@pytest.fixture(scope="module", params=["posix", "s3"])
def read_only(
    request: pytest.FixtureRequest, s3_server: EmbeddedS3, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, Butler]]:
    """A repository that no test changes, and its butler."""
    root = _make(request.param, tmp_path_factory.mktemp("read_only"), s3_server)
    with Butler.from_config(root, writeable=False) as butler:
        yield root, butler


def _store(repo: Path) -> ResourcePath:
    with Butler.from_config(repo, writeable=False) as butler:
        (root,) = store_roots(butler)
    return root


def _leave(store: ResourcePath, run: str) -> None:
    folder = scratch_folder(store, run).join(f"{uuid.uuid4()}/", forceDirectory=True)
    store_scratch(str(folder), uuid.uuid4(), [memoryview(b"x" * 10)], part_bytes=5)


def _contents(repo: Path) -> set[str]:
    """All files of the store, those beside the repository included."""
    everything = _store(repo).join("../", forceDirectory=True)
    found = map(str, ResourcePath.findFileResources([everything], grouped=False))
    # Some stores show a folder that has become empty.
    return {address for address in found if not address.endswith("/")}


@pytest.mark.parametrize("address", ["file:///data/repo/", "s3://bucket/repo/", "s3://profile@bucket/repo/"])
@settings(max_examples=200, deadline=None)
@given(run=_NAMES)
@example(run="u/me/first")
def test_folder_of_a_run_spells_its_name_or_is_refused(address: str, run: str) -> None:
    top = ResourcePath(address, forceDirectory=True)
    try:
        folder = run_folder(top, run)
    except RepositoryError:
        assert run != _RUN
        return
    assert folder.netloc == top.netloc
    assert folder.unquoted_path == f"/{'data/' if top.isLocal else ''}repo/{run}/"
    assert posixpath.normpath(folder.unquoted_path) == folder.unquoted_path.removesuffix("/")
    # Workers get it as text.
    again = ResourcePath(str(folder), forceDirectory=True)
    assert again == folder
    assert path_below(top, again) == f"{run}/"


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(run=_NAMES)
def test_hostile_name_is_refused_in_one_line(read_only: tuple[Path, Butler], run: str) -> None:
    repo, butler = read_only
    with pytest.raises(RepositoryError) as refusal:
        find_folders(butler, str(repo), run)
    if run not in ("u", "u/me"):
        with contextlib.suppress(RepositoryError):
            assert find_attempts(store_roots(butler), run) == []
    (line,) = str(refusal.value).splitlines()
    assert line.startswith(f"The repository {str(repo)!r} has no run {run!r}; expected ")


def test_commands_with_hostile_names_remove_nothing(repo: Path) -> None:
    before = _contents(repo)
    for run in ("", "../../other", "%2e%2e", "u/me/first/"):
        for command in (
            ["cleanup", str(repo), f"--run={run}"],
            [("status", "report", "cancel")[len(run) % 3], str(repo), run],
        ):
            result = CliRunner().invoke(main, command)
            assert (result.exit_code, result.stdout) == (2, ""), (command, result.output)
            (line,) = result.stderr.splitlines()
            assert line.startswith(f"Error: The repository {str(repo)!r} has no run {run!r}; expected ")
    assert _contents(repo) == before


def test_cleanup_removes_only_files_of_the_run(repo: Path) -> None:
    before = _contents(repo)
    own = {str(uri) for uri in find_scratch(scratch_folder(_store(repo), _RUN), one_run=True)}
    assert len(own) == 2
    listed = CliRunner().invoke(main, ["cleanup", str(repo), "--run", _RUN, "--dry-run"])
    assert set(listed.stdout.split()) == own
    result = CliRunner().invoke(main, ["cleanup", str(repo), "--run", _RUN])
    assert (result.exit_code, result.stdout) == (0, "2 scratch files removed.\n")
    assert _contents(repo) == before - own


@pytest.mark.parametrize(
    ("run", "near"),
    [
        ("u/me", ["u/me/first", "u/me/second"]),
        ("u/me/frist", ["u/me/first"]),
        ("u/me/first/", ["u/me/first"]),
        ("u/me/remove", ["u/me/removed"]),
        ("qqqqqqqqqqq", ["spark-butler status"]),
    ],
)
def test_refusal_suggests_similar_runs(read_only: tuple[Path, Butler], run: str, near: list[str]) -> None:
    repo, butler = read_only
    with pytest.raises(RepositoryError) as refusal:
        find_folders(butler, str(repo), run)
    for each in near:
        assert each in str(refusal.value)


def test_run_removed_from_registry_can_be_cleaned_up(repo: Path) -> None:
    result = CliRunner().invoke(main, ["cleanup", str(repo), "--run", "u/me/removed"])
    assert (result.exit_code, result.stdout) == (0, "2 scratch files removed.\n")


def test_collection_with_a_hostile_name_is_refused(repo: Path) -> None:
    names = ["", "..", "../../other", "/abs", "u//me", "u/me/first/", "./x", "a\0b"]
    with Butler.from_config(repo, writeable=True) as butler:
        for name in names:
            butler.collections.register(name)
    before = _contents(repo)
    for name in names:
        with (
            Butler.from_config(repo, writeable=False) as butler,
            pytest.raises(RepositoryError, match=r"^The run is .*, which can't name a folder below"),
        ):
            find_folders(butler, str(repo), name)
    result = CliRunner().invoke(main, ["cleanup", str(repo), "--run=.."])
    assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
    assert _contents(repo) == before
    assert len(find_scratch(scratch_root(_store(repo)))) == 7
