"""Runs with the registry in PostgreSQL, by a role that owns only its schema."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from lsst.daf.butler import Butler, DataCoordinate, DatasetRef, DatasetType
from lsst.daf.butler.direct_butler import DirectButler
from lsst.pipe.base.tests.mocks import DirectButlerRepo

from spark_butler._daf_butler import butler_config
from spark_butler.driver.serial import SerialBackend
from spark_butler.repository.output_ingest import Ingester
from tests.integration.test_conformance import CASES
from tests.support.engine_harness import Repo, run_engine, run_reference
from tests.support.mock_night import insert_dimensions
from tests.support.postgres import PostgresServer

MakeRepo = Callable[[str], Repo]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["gather", "failure-in-diamond", "init-datasets", "no-work-in-chain", "components"]
)
def test_engine_runs_with_postgresql_as_pipe_base_without(
    name: str, postgres_repo: Callable[..., Path], make_repo: MakeRepo
) -> None:
    with make_repo("reference").open() as helper:
        reference = run_reference(helper, CASES[name])
    with Butler.from_config(postgres_repo(), writeable=True) as butler:
        insert_dimensions(butler)
        assert run_engine(DirectButlerRepo(butler), CASES[name], SerialBackend()) == reference


@pytest.mark.parametrize("fault", ["connections", "server"])
def test_ingest_survives_lost_connections(
    fault: str, postgres: PostgresServer, postgres_repo: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    with Butler.from_config(postgres_repo(), run="some/run", writeable=True) as butler:
        kind = DatasetType("note", (), "StructuredDataDict", universe=butler.dimensions)
        butler.registry.registerDatasetType(kind)
        ref = DatasetRef(kind, DataCoordinate.make_empty(butler.dimensions), run="some/run")
        ingester = Ingester(butler, {"note": kind})
        ingester.add([ref], [ref.id], {})
        if fault == "server":
            postgres.kill()
            postgres.start()
        else:
            postgres.ask(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = "
                "(SELECT nspname FROM pg_namespace WHERE nspname LIKE 'r%' ORDER BY oid DESC LIMIT 1)"
            )
        ingester.flush()
        assert ingester.n_ingested == 1
        assert [each.id for each in butler.query_all_datasets("some/run")] == [ref.id]


def test_credentials_may_come_as_a_variable(
    postgres: PostgresServer, postgres_repo: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = postgres_repo()
    with Butler.from_config(root) as butler:
        assert isinstance(butler, DirectButler)
        name = str(butler_config(butler)["registry", "namespace"])
    monkeypatch.delenv("LSST_DB_AUTH")
    where = f"postgresql://127.0.0.1:{postgres.port}/lsst"
    given = [{"url": where, "username": name, "password": postgres.password}]
    monkeypatch.setenv("LSST_DB_AUTH_CREDENTIALS", json.dumps(given))
    with Butler.from_config(root) as butler:
        assert not butler.collections.query("*")
