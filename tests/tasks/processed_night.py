"""A simulated night that has been processed."""

from __future__ import annotations

import dataclasses

from lsst.daf.butler import Butler

from spark_butler.demo.simulation import SimulatedData


@dataclasses.dataclass(frozen=True)
class ProcessedNight:
    """A simulated night, a repository with it, and the collection of the outputs."""

    simulated: SimulatedData
    repo: str
    output: str

    @property
    def butler(self) -> Butler:
        return Butler.from_config(self.repo, collections=[self.output, "SimCam/defaults"])
