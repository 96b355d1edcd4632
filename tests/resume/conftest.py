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


@pytest.fixture
def site(s3_server: EmbeddedS3, drivers: Drivers, s3_bucket: str, tmp_path: Path) -> Site:
    """A repository with inputs on S3."""
    from resume_harness import Site

    root = make_repository(tmp_path / "repo", f"s3://{s3_bucket}/repo/")
    return Site.make(tmp_path, root, s3_bucket, s3_server, drivers)
