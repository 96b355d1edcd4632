"""A run whose inputs are behind a Butler server, with outputs in the user's own repository on S3."""

from __future__ import annotations

import logging
import pickle
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from click.testing import Result
from lsst.ctrl.mpexec.cli.utils import make_pipeline_actions

from spark_butler.driver.backend import Backend, ReportOutcome
from spark_butler.model.work import UnitWork, WorkerContext
from spark_butler.planning.request import build_request
from spark_butler.run import open_run, prepare
from spark_butler.spark.backend import SparkBackend
from tests.support.butler_server import ButlerServer, server_is_missing
from tests.support.engine_harness import WrappedBackend
from tests.support.job_harness import JobRepo
from tests.support.own_repo import EVERYTHING, OUTPUT, OwnRepo

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(server_is_missing()), reason=server_is_missing() or "there is a server"),
]


class _RecordingBackend(WrappedBackend):
    """Keeps what workers are sent, and takes the registry away while they copy files."""

    def __init__(self, inner: Backend, root: Path):
        super().__init__(inner)
        self._registry = root / "gen3.sqlite3"
        self.sent: list[bytes] = []

    def run(self, context: WorkerContext, batch: Sequence[UnitWork], report: ReportOutcome) -> None:
        self.sent += [cloudpickle.dumps(context), pickle.dumps(batch)]
        super().run(context, batch, report)

    def apply[T, R](self, context: WorkerContext, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
        self.sent += [cloudpickle.dumps(context), pickle.dumps(items)]
        hidden = self._registry.rename(self._registry.with_suffix(".hidden"))
        self._registry.write_bytes(b"not a database" * 1000)
        try:
            return super().apply(context, function, items)
        finally:
            hidden.replace(self._registry)


def _make_request(own: OwnRepo, source: str, **more: Any) -> Any:
    values = {
        "butler_config": str(own.root),
        "input_repo": source,
        "input": ["defaults"],
        "output": OUTPUT,
        "pipeline": str(own.pipeline),
        "pipeline_actions": make_pipeline_actions([]),
        "register_dataset_types": True,
        **more,
    }
    return build_request(values)


@pytest.fixture
def server(job_repo: JobRepo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ButlerServer]:
    with ButlerServer(job_repo.root, tmp_path, first_address_expires=True) as server:
        monkeypatch.setenv("BUTLER_RUBIN_ACCESS_TOKEN", server.token)
        yield server


def test_run_with_inputs_behind_a_server(
    spark: Any, server: ButlerServer, own_repo: OwnRepo, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "spark_butler")
    caplog.set_level(logging.DEBUG, "lsst")
    backend = _RecordingBackend(SparkBackend(spark), own_repo.root)
    request = _make_request(own_repo, server.url)
    prepared = prepare(request, slots=lambda: backend.slots)
    assert prepared.inputs is not None
    assert len(prepared.inputs.files) == 4
    with open_run(prepared, backend, on_cancel=lambda: None) as active:
        end = active.drive()
        active.reporter.finish(end.state, end.reason)
    assert end.state == "succeeded"
    assert own_repo.count() == EVERYTHING
    # Each address was asked for twice, since the first one had expired.
    requests = re.findall(r'"GET \S+/v1/get_file/(\S+) HTTP/1.1" 200', server.log.read_text())
    assert sorted(Counter(requests).values()) == [2, 2, 2, 2]
    sent = b"".join(backend.sent)
    assert b"mock_first" in sent
    assert b"gen3.sqlite3" not in sent
    assert b"/api/butler/" not in sent
    assert b"Signature=" in sent
    assert server.token.encode() not in sent
    assert server.token not in caplog.text
    assert "Signature=" not in caplog.text.replace("Signature=***", "")
    assert "s copied again" in caplog.text
    # Nothing is left to copy, and another run needs no file of the server.
    again = prepare(_make_request(own_repo, server.url), slots=lambda: 1)
    assert again.inputs is not None
    assert not again.inputs.files


def test_server_without_the_right_token_is_refused(
    server: ButlerServer, own_repo: OwnRepo, run_job: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUTLER_RUBIN_ACCESS_TOKEN", "wrong-token")
    result = run_job(*own_repo.arguments(server.url))
    assert result.exit_code == 2
    assert "Check the token in BUTLER_RUBIN_ACCESS_TOKEN" in result.output
    assert "wrong-token" not in result.output
    monkeypatch.delenv("BUTLER_RUBIN_ACCESS_TOKEN")
    result = run_job(*own_repo.arguments(server.url))
    assert result.exit_code == 2
    assert "Put your token for the server into BUTLER_RUBIN_ACCESS_TOKEN" in result.output
