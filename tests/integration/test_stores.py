"""Whole runs on each object store, over http and TLS; ``make test-stores`` makes the table of the docs."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import os
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import botocore.config
import pytest
from botocore.exceptions import ClientError
from click.testing import CliRunner
from lsst.daf.butler import Butler
from lsst.daf.butler.cli.cliLog import CliLog
from lsst.pipe.base.tests.mocks import DirectButlerRepo
from lsst.resources import ResourcePath

from spark_butler._lsst_resources import forget_s3_clients
from spark_butler.cli.main import main
from spark_butler.cli.run import make_run_command
from spark_butler.demo.night import ingest_night
from spark_butler.demo.repository import make_repository
from spark_butler.demo.simulation import SimulatedData, simulate
from spark_butler.driver import context
from spark_butler.driver.serial import SerialBackend
from spark_butler.repository.checks import check_repository
from spark_butler.temporaries.scratch import find_scratch, scratch_folder, scratch_root, store_scratch
from tests.integration.test_conformance import CASES, check_engine
from tests.support.engine_harness import Observed, make_graph, run_reference
from tests.support.mock_night import insert_dimensions
from tests.support.night_harness import PIPELINE
from tests.support.stores import SERVERS, Store, missing, serve, serve_tls

pytestmark = [pytest.mark.stores, pytest.mark.pipeline, pytest.mark.usefixtures("log_level")]

_DOCS = Path(__file__).resolve().parents[2] / "docs" / "stores.md"
_BEGIN, _END = "<!-- table of make test-stores -->\n", "<!-- end of table -->\n"
_HEAD = (
    "store",
    "",
    "runs, resume, cleanup",
    "`butler` removes",
    "100 kB put/get per s",
    "10 MB put/get MB/s",
)
# A signal would kill this process: the serial backend has no isolation.
_CASES = [name for name, case in CASES.items() if case.unhurt is None]
# TLS changes nothing of what a server answers.
_CASES_OF_TLS = ("gather", "temporary-and-failure")
_BUCKET = "butler-stores"
_PLUGIN = {"BOTOCORE_EXPERIMENTAL__PLUGINS": "spark_butler=spark_butler.s3_retries"}
_BUTLER = "from lsst.daf.butler.cli.butler import cli; import sys; cli(sys.argv[1:])"


@dataclasses.dataclass
class Place:
    """Where the datasets of a repository go."""

    name: str
    address: str
    variables: dict[str, str]
    store: Store | None = None
    notes: dict[str, str] = dataclasses.field(default_factory=dict)


@pytest.fixture(scope="module")
def table() -> Iterator[list[tuple[str, ...]]]:
    """Rows of the table in the documentation, which is written if ``STORES_TABLE`` is set."""
    rows: list[tuple[str, ...]] = []
    yield rows
    if os.environ.get("STORES_TABLE"):
        lines = [_HEAD, ("---",) * len(_HEAD), *rows]
        text = "".join(f"| {' | '.join(row)} |\n" for row in lines)
        page = _DOCS.read_text()
        before, _, rest = page.partition(_BEGIN)
        _DOCS.write_text(f"{before}{_BEGIN}\n{text}\n{_END}{rest.partition(_END)[2]}")


@pytest.fixture(scope="module", params=[*SERVERS, "posix"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Each server in turn; `None` for the local file system."""
    if request.param == "posix":
        yield request.param, None
        return
    if reason := missing(request.param):
        request.getfixturevalue("table").append(
            (SERVERS[request.param].name, "", "not installed here", "", "", "")
        )
        pytest.skip(reason)
    with serve(request.param, tmp_path_factory.mktemp(request.param)) as store:
        yield request.param, store


@pytest.fixture(params=["http", "TLS"])
def place(
    request: pytest.FixtureRequest, server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    """A place in a store, to which the environment points as a user would set it."""
    name, store = server
    with contextlib.ExitStack() as stack:
        variables: dict[str, str] = {}
        if name in ("posix", "webdav") and (request.param == "http") != (name == "posix"):
            pytest.skip("has one way only")
        if name == "posix":
            place = Place("local file system", f"{tmp_path}/data/", {})
        else:
            if request.param == "TLS":
                store, authority = stack.enter_context(serve_tls(store, tmp_path / "tls"))
                variables = {"AWS_CA_BUNDLE": str(authority)}
            variables |= store.environment()
            place = Place(SERVERS[name].name, f"s3://{_BUCKET}/{request.param}/", variables, store)
            if name == "webdav":
                place.address = f"davs://127.0.0.1:{store.port}/repo/"
                config = tmp_path / "webdav.yaml"
                where = f"davs://127.0.0.1:{store.port}/"
                config.write_text(f"- base_url: {where}\n  trusted_authorities: {authority}\n")
                variables["LSST_RESOURCES_WEBDAV_CONFIG"] = str(config)
        for variable in (*context_variables(), "AWS_CA_BUNDLE"):
            monkeypatch.delenv(variable, raising=False)
        for variable, value in variables.items():
            monkeypatch.setenv(variable, value)
        forget_s3_clients()
        if place.address.startswith("s3:"):
            with contextlib.suppress(ClientError):
                _client(place).create_bucket(Bucket=_BUCKET)
        place.notes["way"] = "" if name == "posix" else request.param
        yield place
        forget_s3_clients()


def context_variables() -> tuple[str, ...]:
    """Return the variables that other tests may have set."""
    return ("AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION", "AWS_PROFILE")


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> SimulatedData:
    """A visit of two detectors."""
    folder = tmp_path_factory.mktemp("simulated")
    return simulate(folder / "night", visits=1, detectors=2, size=200, seed=3, stars_per_arcmin2=60.0)


def _client(place: Place) -> Any:
    """A client as anybody would make it, but for the checksums that old stores refuse."""
    assert place.store is not None
    config = botocore.config.Config(
        request_checksum_calculation="when_required", response_checksum_validation="when_required"
    )
    return boto3.client(
        "s3",
        endpoint_url=place.store.endpoint,
        aws_access_key_id=place.store.key,
        aws_secret_access_key=place.store.secret,
        config=config,
    )


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Observed]:
    """Outputs of pipe_base's own executor for each case, on a local disk."""
    found = {}
    # As the commands log, so that the log datasets have something in them.
    logging.getLogger("lsst").setLevel(logging.INFO)
    for case in _CASES:
        folder = tmp_path_factory.mktemp(case)
        repo = make_repository(folder / "repo", f"{folder}/files/")
        with Butler.from_config(repo, writeable=True) as butler:
            insert_dimensions(butler)
            found[case] = run_reference(DirectButlerRepo(butler), CASES[case])
    return found


def _check_conformance(place: Place, references: dict[str, Observed], folder: Path) -> None:
    """Compare runs of mock tasks with those of pipe_base's own executor."""
    for case in _CASES_OF_TLS if "AWS_CA_BUNDLE" in place.variables else _CASES:
        repo = make_repository(folder / case, f"{place.address}{case}/")
        # As every command does first.
        check_repository(str(repo))
        with Butler.from_config(repo, writeable=True) as butler:
            insert_dimensions(butler)
            try:
                graph = make_graph(DirectButlerRepo(butler), CASES[case])
                check_engine(CASES[case], references[case], butler, graph, SerialBackend())
            except AssertionError as exc:
                exc.add_note(f"case {case}")
                raise


def _call(*arguments: str | Path) -> str:
    CliLog.resetLog()
    command = main if arguments[0] == "cleanup" else make_run_command("process_ccd.py", PIPELINE)
    result = CliRunner().invoke(command, [str(each) for each in arguments])
    CliLog.resetLog()
    assert result.exit_code == 0, result.output
    return result.output


def _leave_scratch(folder: ResourcePath) -> None:
    folder = folder.join(f"{uuid.uuid4()}/", forceDirectory=True)
    store_scratch(str(folder), uuid.uuid4(), [memoryview(bytes(3000))], part_bytes=1000)


def _check_process_ccd(place: Place, repo: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run process_ccd with its temporaries in the store, resume it, and clean up; return the run."""
    monkeypatch.setattr(context, "MAX_SHUFFLE_BYTES", 1)
    run = "u/stores/run"
    arguments = ["-b", str(repo), "-i", "SimCam/defaults", "--output-run", run, "-d", "instrument='SimCam'"]
    arguments += ["--backend", "serial", "--temporary", "auto", "--register-dataset-types"]
    (root,) = check_repository(str(repo))
    _call(*arguments, "-d", "instrument='SimCam' AND detector=0")
    _leave_scratch(scratch_folder(root, run))
    _call(*arguments, "--extend-run", "--skip-existing", "--clobber-outputs")
    with Butler.from_config(repo, writeable=False) as butler:
        found = Counter(ref.datasetType.name for ref in butler.query_all_datasets(run, find_first=False))
    assert (found["visit_image"], found["source"], found["preliminary_visit_image"]) == (2, 2, 0)
    _check_spark(repo)
    _leave_scratch(scratch_folder(root, "u/crashed"))
    assert "3 scratch files removed" in _call("cleanup", repo, "--run", "u/crashed")
    _call("cleanup", repo)
    assert not find_scratch(scratch_root(root))
    return run


def _check_spark(repo: Path) -> None:
    """Run process_ccd on Spark, from a shell: workers have only what the driver's environment gives them."""
    command = [sys.executable, "-m", "spark_butler.cli", "run", "-b", str(repo), "-p", str(PIPELINE)]
    command += ["-i", "SimCam/defaults", "--output-run", "u/stores/spark", "--temporary", "auto"]
    command += ["-d", "instrument='SimCam' AND detector=0", "--backend", "spark"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    with Butler.from_config(repo, writeable=False) as butler:
        assert len(butler.query_datasets("visit_image", collections="u/stores/spark")) == 1


def _check_other_clients(place: Place, repo: Path, run: str, folder: Path) -> None:
    """Read what was written by boto3 and by rclone."""
    with Butler.from_config(repo, writeable=False) as butler:
        uris = [butler.getURI(ref) for ref in butler.query_all_datasets(run, find_first=False)]
    if place.store is None or not place.address.startswith("s3:"):
        assert all(uri.size() for uri in uris)
        return
    client = _client(place)
    contents = {uri.unquoted_path.lstrip("/"): uri.read() for uri in uris}
    for key, data in contents.items():
        assert client.get_object(Bucket=_BUCKET, Key=key)["Body"].read() == data
    if reason := missing("rclone"):
        pytest.skip(reason)
    settings = {"TYPE": "s3", "PROVIDER": "Other", "ENDPOINT": place.store.endpoint, "ENV_AUTH": "true"}
    subprocess.run(
        [
            str(Path(sys.executable).with_name("rclone")),
            "copy",
            f"it:{_BUCKET}/{min(contents)}",
            f"{folder}/copy",
        ]
        + (["--ca-cert", place.variables["AWS_CA_BUNDLE"]] if "AWS_CA_BUNDLE" in place.variables else []),
        env={**os.environ, **{f"RCLONE_CONFIG_IT_{name}": value for name, value in settings.items()}},
        check=True,
        capture_output=True,
        timeout=120,
    )
    (copy,) = (folder / "copy").iterdir()
    assert copy.read_bytes() == contents[min(contents)]


def _check_removal(place: Place, repo: Path, run: str) -> str:
    """Remove datasets and the run by ``butler``, as in a shell; return what it needs for that."""

    def call(setting: dict[str, str], *arguments: str) -> None:
        command = [sys.executable, "-c", _BUTLER, *arguments, "--no-confirm"]
        done = subprocess.run(command, env={**os.environ, **setting}, capture_output=True, text=True)
        assert done.returncode == 0 or not setting, done.stderr[-2000:]

    def find_files(below: str) -> list[ResourcePath]:
        folder = root.join(f"{run}/{below}", forceDirectory=True)
        # Some stores show a folder that has become empty.
        return [uri for uri in ResourcePath.findFileResources([folder]) if not uri.geturl().endswith("/")]

    (root,) = check_repository(str(repo))
    needs = "yes"
    for setting, name in (({}, "source"), (_PLUGIN, "visit_image")):
        assert find_files(name)
        call(setting, "prune-datasets", str(repo), run, "--datasets", name, "--purge", run)
        if not find_files(name):
            break
        assert not setting, "the plugin has no effect"
        needs = "with the plugin"
    call(_PLUGIN if needs != "yes" else {}, "remove-runs", str(repo), run, "--force")
    with Butler.from_config(repo, writeable=False) as butler:
        assert run not in butler.collections.query("*")
    # What `butler` could not remove at first, it has forgotten.
    assert not [uri for uri in find_files("") if needs == "yes" or "/source/" not in uri.geturl()]
    return needs


def _measure(place: Place) -> tuple[str, str]:
    """Return objects a second and megabytes a second, written and read one after another."""
    root = ResourcePath(place.address, forceDirectory=True)
    cells = []
    for size, count, scale in ((100_000, 40, 1.0), (10_000_000, 4, 10.0)):
        data = os.urandom(size)
        uris = [root.join(f"rates/{size}-{n}") for n in range(count)]
        times = [time.perf_counter()]
        for uri in uris:
            uri.write(data)
        times.append(time.perf_counter())
        for uri in uris:
            assert uri.read() == data
        times.append(time.perf_counter())
        cells.append(" / ".join(f"{count * scale / (b - a):.0f}" for a, b in itertools.pairwise(times)))
    return cells[0], cells[1]


def test_store_takes_whole_runs(
    place: Place,
    night: SimulatedData,
    references: dict[str, Observed],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    table: list[tuple[str, ...]],
) -> None:
    _check_conformance(place, references, tmp_path)
    repo = make_repository(tmp_path / "night", f"{place.address}night/")
    check_repository(str(repo))
    with Butler.from_config(repo, writeable=True) as butler:
        ingest_night(butler, night)
    run = _check_process_ccd(place, repo, monkeypatch)
    _check_other_clients(place, repo, run, tmp_path)
    removal = _check_removal(place, repo, run)
    table.append((place.name, place.notes["way"], "yes", removal, *_measure(place)))
