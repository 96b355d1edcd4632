"""Fixtures for the tests of drivers that die: a repository, and processes to be killed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from spark_butler.demo.repository import make_repository
from spark_butler.demo.s3server import EmbeddedS3

if TYPE_CHECKING:
    from tests.integration.kills.kill_harness import Drivers, Site

pytest.register_assert_rewrite("tests.integration.kills.kill_harness")


@pytest.fixture(scope="session")
def drivers(s3_server: EmbeddedS3) -> Iterator[Drivers]:
    """A process that makes drivers, with the way to the object store in its environment."""
    from tests.integration.kills.kill_harness import Drivers

    drivers = Drivers()
    yield drivers
    drivers.close()


def _make_site(s3_server: EmbeddedS3, drivers: Drivers, directory: Path, **more: int) -> Site:
    from tests.integration.kills.kill_harness import Site

    bucket = f"{directory.name.rstrip('0123456789')}-tests"
    s3_server.make_bucket(bucket)
    root = make_repository(directory / "repo", f"s3://{bucket}/repo/")
    return Site.make(directory, root, drivers, **more)


@pytest.fixture(scope="session")
def shared_site(s3_server: EmbeddedS3, drivers: Drivers, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A repository on S3 with inputs, and with a run that nothing has happened to."""
    return _make_site(s3_server, drivers, tmp_path_factory.mktemp("resume"))


@pytest.fixture
def site(shared_site: Site) -> Site:
    """The repository, with a new record of what runs."""
    shared_site.record.unlink(missing_ok=True)
    return shared_site


@pytest.fixture(scope="session")
def shared_large_site(
    s3_server: EmbeddedS3, drivers: Drivers, tmp_path_factory: pytest.TempPathFactory
) -> Site:
    """One with more visits."""
    return _make_site(s3_server, drivers, tmp_path_factory.mktemp("large"), n_visits=10)


@pytest.fixture
def large_site(shared_large_site: Site) -> Site:
    """The repository with more visits, with a new record of what runs."""
    shared_large_site.record.unlink(missing_ok=True)
    return shared_large_site
