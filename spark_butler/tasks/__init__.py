"""The process_ccd pipeline tasks: isr, characterize, calibrate, visit_summary.

They are ordinary `lsst.pipe.base.PipelineTask` classes and don't depend on Spark; any executor can run them.
The modules without ``Task`` in them (`cosmic_rays`, `background`, `psf`, `detection`, `measurement`,
`astrometry`, `photometry`) are the algorithms, on plain arrays.
"""

from __future__ import annotations

__all__ = ()
