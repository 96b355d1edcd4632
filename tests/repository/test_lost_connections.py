"""Runs whose connections to PostgreSQL are cut, or whose server is killed, at each of their steps."""

from __future__ import annotations

import collections
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy.event
from click.testing import CliRunner, Result
from lsst.daf.butler import Butler
from lsst.daf.butler.cli.cliLog import CliLog
from sqlalchemy.engine import Engine

from spark_butler.cli.main import main
from tests.support.job_harness import PIPELINE
from tests.support.mock_night import fill_mock_night
from tests.support.postgres import PostgresServer

pytestmark = [pytest.mark.slow, pytest.mark.pipeline]

_STEPS = (
    *("build_graph", "check_output", "make_plan", "_acquire", "_register_collections", "_fill"),
    *("take_inventory", "export_input_records", "_write", "_release"),
)


class Cutter:
    """Counts the statements of each function of the engine, and does something before one of them."""

    def __init__(self) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self._where = ("", 0)
        self._act: Callable[[], None] | None = None

    def prepare(self, step: str, number: int, act: Callable[[], None]) -> None:
        """Choose a statement of the next run."""
        self.counts.clear()
        self._where, self._act = (step, number), act

    @property
    def has_acted(self) -> bool:
        """Whether the statement has come."""
        return self._act is None

    def __call__(self, conn: sqlalchemy.engine.Connection, *_: object) -> None:
        if conn.dialect.name == "postgresql":
            stack = traceback.extract_stack()
            self.counts.update({frame.name for frame in stack if "/spark_butler/" in frame.filename})
            step, number = self._where
            if self._act is not None and self.counts[step] == number > 0:
                act, self._act = self._act, None
                act()


@pytest.fixture
def cutter() -> Iterator[Cutter]:
    """Cuts connections of this process."""
    found = Cutter()
    sqlalchemy.event.listen(Engine, "before_cursor_execute", found)
    yield found
    sqlalchemy.event.remove(Engine, "before_cursor_execute", found)
    CliLog.resetLog()


def _cut_connections(postgres: PostgresServer) -> None:
    """Cut the connections of all users that tests have made."""
    postgres.ask("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename LIKE 'r%'")


def _make_night(postgres_repo: Callable[..., Path], folder: Path) -> tuple[Path, Path]:
    """Make a repository with a mock night; return it and the file of the pipeline."""
    pipeline = folder / "pipeline.yaml"
    pipeline.write_text(PIPELINE)
    repo = postgres_repo()
    fill_mock_night(repo, pipeline, visits=1, detectors=4, inputs=("mock_raw",))
    return repo, pipeline


def _run(repo: Path, name: str, pipeline: Path, *more: str) -> Result:
    CliLog.resetLog()
    data = ["run", "-b", str(repo), "-i", "inputs", "-p", str(pipeline), "--output-run", name, *more]
    return CliRunner().invoke(main, [*data, "--backend", "serial", "--register-dataset-types"])


def _contents(repo: Path, name: str) -> tuple[collections.Counter[str], list[str]]:
    """Count the datasets of a run, and list the leases that are left."""
    with Butler.from_config(repo) as butler:
        refs = butler.query_all_datasets(name, find_first=False)
        assert all(butler.stored_many(refs).values())
        leases = list(butler.collections.query("spark-butler/*"))
        return collections.Counter(ref.datasetType.name for ref in refs), leases


@pytest.fixture
def starter(postgres: PostgresServer) -> Iterator[ThreadPoolExecutor]:
    """A thread that lasts as long as the test."""
    with ThreadPoolExecutor(1) as pool:
        yield pool
    postgres.kill()
    postgres.start()


@pytest.mark.parametrize("fault", ["connections", "server"])
def test_run_goes_on_after_lost_connections(
    fault: str,
    cutter: Cutter,
    postgres: PostgresServer,
    starter: ThreadPoolExecutor,
    postgres_repo: Callable[..., Path],
    tmp_path: Path,
) -> None:
    def act() -> None:
        if fault == "server":
            postgres.kill()
            # The server ends with the thread that starts it.
            starter.submit(postgres.start).result()
        else:
            _cut_connections(postgres)

    repo, pipeline = _make_night(postgres_repo, tmp_path)
    # The second run finds dataset types registered, as later ones do.
    for name in ("u/first", "u/whole"):
        cutter.prepare("", 0, act)
        result = _run(repo, name, pipeline)
        assert result.exit_code == 0, result.output
    numbers = dict(cutter.counts)
    expected = _contents(repo, "u/whole")
    assert not expected[1]
    for step in _STEPS:
        cutter.prepare(step, (numbers[step] + 1) // 2, act)
        result = _run(repo, f"u/{step}", pipeline)
        assert cutter.has_acted, step
        assert result.exit_code == 0, (step, result.output)
        assert _contents(repo, f"u/{step}") == expected, step


def test_chain_is_replaced_and_rebased_once(
    cutter: Cutter, postgres: PostgresServer, postgres_repo: Callable[..., Path], tmp_path: Path
) -> None:
    def act() -> None:
        _cut_connections(postgres)

    repo, pipeline = _make_night(postgres_repo, tmp_path)
    assert _run(repo, "u/chain/0", pipeline, "-o", "u/chain").exit_code == 0
    assert _run(repo, "u/chain/1", pipeline, "-o", "u/chain").exit_code == 0
    with Butler.from_config(repo) as butler:
        inputs = butler.collections.get_info("u/chain").children[2:]
    more = ("-o", "u/chain", "--replace-run", "--rebase")
    n = 1
    for step in ("_register_collections", "_fill"):
        n += 1
        cutter.prepare("", 0, act)
        assert _run(repo, f"u/chain/{n}", pipeline, *more).exit_code == 0
        last = cutter.counts[step]
        for number in (1, last // 2, last):
            n += 1
            cutter.prepare(step, number, act)
            result = _run(repo, f"u/chain/{n}", pipeline, *more)
            assert cutter.has_acted, (step, number)
            assert result.exit_code == 0, (step, number, result.output)
            with Butler.from_config(repo) as butler:
                assert butler.collections.get_info("u/chain").children == (
                    f"u/chain/{n}",
                    "u/chain/0",
                    *inputs,
                )
