"""Algorithms on pixel arrays: artifacts, background, PSF, detection, deblending, PSF photometry.

The tasks call them in the worker or child process.  None of them imports the middleware.
"""

from __future__ import annotations

__all__ = ("BoolArray", "FloatArray", "FloatImage", "Image32", "IntArray")

from typing import Any

import numpy as np
import numpy.typing as npt

type FloatArray = npt.NDArray[np.float64]
type IntArray = npt.NDArray[np.intp]
type BoolArray = npt.NDArray[np.bool_]
type Image32 = npt.NDArray[np.float32]
type FloatImage = npt.NDArray[np.floating[Any]]
