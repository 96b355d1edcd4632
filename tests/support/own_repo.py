"""A user's own repository, into which a run copies its inputs."""

from __future__ import annotations

__all__ = ["EVERYTHING", "OUTPUT", "OwnRepo"]

import dataclasses
from pathlib import Path
from typing import Any

from lsst.daf.butler import Butler

from spark_butler.demo.s3server import EmbeddedS3

OUTPUT = "u/me/out"

EVERYTHING = {"mock_raw": 4, "mock_first": 4, "mock_second": 4, "mock_gather": 1, "mock_scatter": 4}
"""Number of datasets that a run of the pipeline of `JobRepo` reads and makes, by dataset type."""


@dataclasses.dataclass(frozen=True)
class OwnRepo:
    """A repository that is empty before the first run."""

    root: Path
    bucket: str
    server: EmbeddedS3
    pipeline: Path

    def arguments(self, source: object, *more: str) -> list[str]:
        """The options of a run with inputs from elsewhere."""
        return [
            *("-b", str(self.root), "--input-repo", str(source), "-i", "defaults", "-p", str(self.pipeline)),
            *("-o", OUTPUT, "--register-dataset-types", "--backend", "serial", *more),
        ]

    def count(self) -> dict[str, int]:
        """Number of datasets in the output chain, all of them stored, by dataset type."""
        counts: dict[str, int] = {}
        with Butler.from_config(self.root, collections=OUTPUT, writeable=False) as butler:
            for name in EVERYTHING:
                refs = butler.query_datasets(name, explain=False)
                assert all(butler.stored_many(refs).values())
                counts[name] = len(refs)
        return counts

    def times(self) -> dict[str, Any]:
        """Time of the last write of each input file."""
        listed = self.server.client().list_objects_v2(Bucket=self.bucket, Prefix="repo/raw/")
        return {each["Key"]: each["LastModified"] for each in listed.get("Contents", ())}

    def state(self) -> tuple[set[str], list[str]]:
        """Collections and objects."""
        with Butler.from_config(self.root, writeable=False) as butler:
            return set(butler.collections.query("*")), self.server.list_keys(self.bucket)
