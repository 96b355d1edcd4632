"""The projection on the sky in a raw file's header, for the assembled image.  Runs in workers."""

from __future__ import annotations

__all__ = ("header_wcs",)

import math
import warnings
from collections.abc import Mapping
from typing import Any

import astropy.io.fits
import astropy.wcs
import numpy as np
import numpy.typing as npt
from astropy.wcs.utils import proj_plane_pixel_area

from .description import DetectorDescription

_SCALE_TOLERANCE = 0.2


def header_wcs(header: Mapping[str, Any], detector: DetectorDescription) -> astropy.wcs.WCS | None:
    """Return the header's projection for the detector's assembled pixels, or `None`.

    It is believed only if all amplifiers are shifted alike from the raw to the assembled image, and the pixel
    scale agrees with that of the frame's detector within a fifth.
    """
    if not (
        str(header.get("CTYPE1", "")).startswith("RA--") and str(header.get("CTYPE2", "")).startswith("DEC-")
    ):
        return None
    shifts = {
        (a.raw_data_section.x_start - a.section.x_start, a.raw_data_section.y_start - a.section.y_start)
        for a in detector.amplifiers
    }
    if len(shifts) != 1 or any(a.transpose or a.mirror != "none" for a in detector.amplifiers):
        return None
    ((shift_x, shift_y),) = shifts
    cards = astropy.io.fits.Header()
    for name, value in header.items():
        if len(name) <= 8 and isinstance(value, bool | int | float | str) and not name.startswith("NAXIS"):
            cards[name] = value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            wcs = astropy.wcs.WCS(cards, naxis=2)
            scale = math.sqrt(proj_plane_pixel_area(wcs)) * 3600.0
        except (ValueError, KeyError, TypeError, MemoryError, astropy.wcs.WcsError):
            return None
    if not abs(scale / detector.pixel_scale - 1.0) < _SCALE_TOLERANCE:
        return None
    if not np.isfinite(wcs.wcs.crval).all() or (wcs.wcs.radesys or "ICRS") not in ("ICRS", "FK5", "GAPPT"):
        return None
    first, step = np.array([shift_x, shift_y], dtype=np.float64), 1
    if detector.mosaic is not None:
        # The center of the color's pixels in a cell, from the cell's first pixel.
        row, column = np.mean(detector.mosaic.places, axis=0)
        first, step = first + [column, row], 2
    if step > 1 or first.any():
        if any((wcs.cpdis1, wcs.cpdis2, wcs.det2im1, wcs.det2im2)):
            return None
        _change_pixels(wcs, first, step)
    wcs.array_shape = (detector.assembled.ny, detector.assembled.nx)
    return wcs


def _change_pixels(wcs: astropy.wcs.WCS, first: npt.NDArray[np.float64], step: int) -> None:
    """Change a projection in place: ``first`` is its new first pixel, a pixel is ``step`` old ones wide."""
    wcs.wcs.crpix = (wcs.wcs.crpix - 1.0 - first) / step + 1.0
    if wcs.wcs.has_cd():
        wcs.wcs.cd = wcs.wcs.cd * step
    else:
        wcs.wcs.cdelt = wcs.wcs.cdelt * step
    if (sip := wcs.sip) is not None:
        scaled = [
            None if terms is None else terms * float(step) ** (np.add.outer(*map(np.arange, terms.shape)) - 1)
            for terms in (sip.a, sip.b, sip.ap, sip.bp)
        ]
        wcs.sip = astropy.wcs.Sip(*scaled, (sip.crpix - 1.0 - first) / step + 1.0)
