"""A repository with all that process_ccd needs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from lsst.daf.butler import Butler

from spark_butler.demo.s3server import EmbeddedS3

CONF = Path(__file__).resolve().parents[2] / "conf"
PIPELINE = CONF / "pipelines" / "process_ccd.yaml"


@dataclasses.dataclass(frozen=True)
class Night:
    """A repository with all that process_ccd needs."""

    repo: Path
    bucket: str
    instrument: str
    server: EmbeddedS3

    def open(self, collection: str) -> Butler:
        """Open a collection of outputs."""
        return Butler.from_config(self.repo, collections=[collection, f"{self.instrument}/defaults"])

    def list_folders(self, prefix: str) -> set[str]:
        """Names of the folders of dataset types that objects of a run lie in."""
        start = f"repo/{prefix}/"
        return {
            folder
            for key in self.server.list_keys(self.bucket, start)
            for folder in key.removeprefix(start).split("/")[:2]
            if not folder[:1].isdigit()
        }
