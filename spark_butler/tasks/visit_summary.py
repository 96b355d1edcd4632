"""Gather the summaries of a visit's detectors into one table."""

from __future__ import annotations

__all__ = ("VisitSummaryConfig", "VisitSummaryConnections", "VisitSummaryTask")

from collections.abc import Sequence
from typing import ClassVar

import astropy.table
import lsst.pipe.base as pipe_base
import lsst.pipe.base.connectionTypes as cT
import numpy as np


class VisitSummaryConnections(pipe_base.PipelineTaskConnections, dimensions=("instrument", "visit")):
    detector_summary = cT.Input(
        doc="One row for each detector.",
        name="detector_summary",
        storageClass="ArrowAstropy",
        dimensions=("instrument", "visit", "detector"),
        multiple=True,
    )
    visit_summary = cT.Output(
        doc="The rows of all the visit's detectors, sorted by detector.",
        name="visit_summary",
        storageClass="ArrowAstropy",
        dimensions=("instrument", "visit"),
    )


class VisitSummaryConfig(pipe_base.PipelineTaskConfig, pipelineConnections=VisitSummaryConnections):
    pass


class VisitSummaryTask(pipe_base.PipelineTask):
    """Stack the detectors' summary rows of one visit."""

    ConfigClass: ClassVar[type[pipe_base.PipelineTaskConfig]] = VisitSummaryConfig
    _DefaultName: ClassVar[str] = "visit_summary"

    def run(self, detector_summary: Sequence[astropy.table.Table]) -> pipe_base.Struct:
        """Stack summaries.

        Parameters
        ----------
        detector_summary
            Tables of one row.

        Returns
        -------
        result
            ``visit_summary`` (`astropy.table.Table`).
        """
        table = astropy.table.vstack(list(detector_summary), metadata_conflicts="silent")
        table.sort("detector")
        zero_points = np.asarray(table["zeroPoint"], dtype=np.float64)
        self.metadata["nDetectors"] = len(table)
        self.metadata["nCalibrated"] = int(np.count_nonzero(np.isfinite(zero_points)))
        flagged = np.asarray(table["image_flag"], dtype=bool)
        self.metadata["nFlagged"] = int(np.count_nonzero(flagged))
        for row in table[flagged]:
            self.log.warning("Detector %s is flagged: %s.", row["detector_name"], row["image_flag_reasons"])
        self.log.info(
            "%d detectors, %d with a zero point, %d flagged; %d sources.",
            len(table),
            self.metadata["nCalibrated"],
            self.metadata["nFlagged"],
            int(np.sum(table["nSource"])),
        )
        return pipe_base.Struct(visit_summary=table)
