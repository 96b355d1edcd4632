"""Fixtures for the tests of drivers that die: a repository, and processes to be killed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from spark_butler.demo.repository import make_repository
from spark_butler.demo.s3server import EmbeddedS3

if TYPE_CHECKING:
    from resume_harness import Drivers, Site

for _folder in ("engine", "temporaries"):
    sys.path.append(str(Path(__file__).resolve().parent.with_name(_folder)))

pytest.register_assert_rewrite("resume_harness")


@pytest.fixture(scope="session")
def drivers(s3_server: EmbeddedS3) -> Iterator[Drivers]:
    """A process that makes drivers, with the way to the object store in its environment."""
    from resume_harness import Drivers

    drivers = Drivers()
    yield drivers
    drivers.close()


@pytest.fixture(scope="session")
def shared_site(s3_server: EmbeddedS3, drivers: Drivers, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A repository on S3 with inputs, and with a run that nothing has happened to."""
    from resume_harness import Site

    directory = tmp_path_factory.mktemp("resume")
    s3_server.make_bucket("resume-tests")
    root = make_repository(directory / "repo", "s3://resume-tests/repo/")
    return Site.make(directory, root, drivers)


@pytest.fixture
def site(shared_site: Site) -> Site:
    """The repository, with a new record of what runs."""
    shared_site.record.unlink(missing_ok=True)
    return shared_site
