"""A simulated night in a repository, which is made again only if its parameters or the code change.

Runs in the process of ``spark-butler demo``, and in tests.
"""

from __future__ import annotations

__all__ = ["INSTRUMENT", "NIGHT_COLLECTION", "DemoNight", "ingest_night"]

import dataclasses
import hashlib
import os
import shutil
from pathlib import Path

from lsst.daf.butler import Butler

from ..obs.calibs import ingest_calibs
from ..obs.raws import ingest_raws
from ..obs.refcats import BandColumns, ingest_refcats
from ..obs.register import register_instrument
from ..obs.visits import define_visits
from .repository import make_repository
from .s3server import EmbeddedS3
from .simulation import SimulatedData, simulate

INSTRUMENT = "SimCam"

NIGHT_COLLECTION = f"{INSTRUMENT}/defaults"
"""Collection with the raws, calibrations and reference catalog of a prepared repository."""

_BUCKET = "demo"


@dataclasses.dataclass(frozen=True)
class DemoNight:
    """Parameters of a simulated night, and the folders of its files.

    The other parameters are those of `~spark_butler.demo.simulation.simulate`.
    """

    directory: Path
    """Directory of the repository, the S3 server's data and the simulation."""
    visits: int = 3
    detectors: int = 4
    size: int = 1024
    seed: int = 1

    @property
    def simulation(self) -> Path:
        """Raw frames, reference catalog and truth."""
        return self.directory / "night"

    @property
    def objects(self) -> Path:
        """Data of the S3 server."""
        return self.directory / "s3"

    @property
    def repo(self) -> Path:
        """The repository: its configuration, and its registry in SQLite."""
        return self.directory / "repo"

    def is_prepared(self) -> bool:
        """Return whether the repository exists, made with the same parameters by the same code."""
        return self._stamp.is_file() and self._stamp.read_text() == self._digest()

    def clear(self) -> None:
        """Remove the repository, the objects and the simulation; the S3 server must not be running."""
        self._stamp.unlink(missing_ok=True)
        for each in (self.repo, self.objects, self.simulation):
            shutil.rmtree(each, ignore_errors=True)

    def prepare(self, server: EmbeddedS3) -> None:
        """Simulate the night and ingest it, as the ``spark-butler obs`` commands would.

        The server runs on the folder `objects`, and the environment has its address and keys.
        """
        night = simulate(
            self.simulation, visits=self.visits, detectors=self.detectors, size=self.size, seed=self.seed
        )
        server.make_bucket(_BUCKET)
        make_repository(self.repo, f"s3://{_BUCKET}/repo/")
        with Butler.from_config(self.repo, writeable=True) as butler:
            ingest_night(butler, night)
        self._stamp.write_text(self._digest())

    def open(self, collection: str) -> Butler:
        """Open the prepared repository to read a collection."""
        return Butler.from_config(self.repo, collections=[collection], instrument=INSTRUMENT)

    @property
    def _stamp(self) -> Path:
        return self.directory / "prepared"

    def _digest(self) -> str:
        digest = hashlib.sha256(repr(self).encode())
        package = Path(__file__).resolve().parents[1]
        for room in ("demo/simulation", "obs"):
            for path in sorted((package / room).glob("*.py")):
                digest.update(os.fsencode(path.name) + path.read_bytes())
        return digest.hexdigest()


def ingest_night(butler: Butler, night: SimulatedData) -> None:
    """Ingest a simulated night in an empty repository, as the ``spark-butler obs`` commands would."""
    register_instrument(butler, night.camera)
    ingest_raws(butler, [night.raw_dir], transfer="copy", fail_fast=True)
    for kind in ("bias", "dark", "flat"):
        ingest_calibs(butler, kind, [night.raw_dir])
    ingest_refcats(butler, "ref_cat", [night.refcat], bands=[BandColumns("r", "r_mag", "r_mag_err")])
    define_visits(butler, INSTRUMENT)
