"""Checks of a repository before anything is spent."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable

import pytest

from spark_butler.errors import RepositoryError
from spark_butler.repository.checks import register_run
from tests.support.engine_harness import Repo

MakeRepo = Callable[[str], Repo]


@pytest.mark.parametrize("exists", [False, True])
def test_read_only_registry_is_detected_by_registering_the_run(exists: bool, make_repo: MakeRepo) -> None:
    repo = make_repo("repo")
    with repo.open() as helper:
        butler = helper.butler
        if exists:
            butler.collections.register("some/run", doc="Mine.")
        with contextlib.closing(sqlite3.connect(repo.root / "gen3.sqlite3")) as connection, connection:
            for event in ("INSERT", "UPDATE"):
                connection.execute(
                    f"CREATE TRIGGER refuse_{event} BEFORE {event} ON collection "
                    "BEGIN SELECT RAISE(ABORT, 'permission denied for table collection'); END"
                )
        with pytest.raises(RepositoryError, match="run 'some/run' can't be written to: .*permission denied"):
            register_run(butler, "some/run")


def test_registering_a_run_again_keeps_its_documentation(make_repo: MakeRepo) -> None:
    with make_repo("repo").open() as helper:
        helper.butler.collections.register("some/run", doc="Mine.")
        register_run(helper.butler, "some/run")
        assert helper.butler.registry.getCollectionDocumentation("some/run") == "Mine."
