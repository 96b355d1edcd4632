"""The process_ccd pipeline tasks: isr, characterize, calibrate, visit_summary.

They are ordinary `lsst.pipe.base.PipelineTask` classes and don't depend on Spark; any executor can run them.
The algorithms are in modules of their own: those on pixels in `pixels`, and `astrometry` and `photometry`.
"""

from __future__ import annotations

__all__ = ()
