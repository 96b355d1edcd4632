"""Algorithms on pixel arrays: artifacts, background, PSF, detection, deblending, PSF photometry.

The tasks call them in the worker or child process.  None of them imports the middleware.
"""

from __future__ import annotations

__all__: tuple[str, ...] = ()
