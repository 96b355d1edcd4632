"""Calls of SExtractor and PSFEx (Bertin & Arnouts 1996; Bertin 2011), to compare them with process_ccd."""

from __future__ import annotations

__all__ = ["find_programs", "run_sextractor"]

import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import astropy.io.fits
import numpy as np
from lsst.images import MaskedImage

_STARS = (
    *("NUMBER", "X_IMAGE", "Y_IMAGE", "FLUX_RADIUS", "FLUX_APER(1)", "FLUXERR_APER(1)", "ELONGATION"),
    *("FLAGS", "SNR_WIN", "VIGNET(35,35)", "FLUX_AUTO", "FLUXERR_AUTO", "FLUX_MAX", "BACKGROUND"),
)
_SOURCES = ("XPSF_IMAGE", "YPSF_IMAGE", "FLUX_PSF", "FLUXERR_PSF", "FLAGS")
_FILTER = "CONV NORM\n1 2 1\n2 4 2\n1 2 1\n"


def find_programs() -> tuple[str, str] | None:
    """Return the paths of SExtractor and PSFEx; `None` if one of them is not installed."""
    sextractor = shutil.which("source-extractor") or shutil.which("sex")
    psfex = shutil.which("psfex")
    return (sextractor, psfex) if sextractor and psfex else None


def run_sextractor(programs: tuple[str, str], post: MaskedImage, fwhm: float) -> np.ndarray:
    """Run SExtractor, PSFEx, and SExtractor with that PSF, with their default settings.

    Parameters
    ----------
    programs
        The return value of `find_programs`.
    post
        Image in electrons.
    fwhm
        Width of the PSF in pixels, for the aperture of the stars.

    Returns
    -------
    sources
        Rows of x and y (first pixel 0), PSF flux and its error.
    """
    sextractor, psfex = programs
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = np.asarray(post.image.array, dtype=np.float32)
        weight = np.where(post.mask.get("BAD"), 0.0, 1.0 / np.maximum(post.variance.array, 1e-6))
        astropy.io.fits.writeto(folder / "image.fits", data)
        astropy.io.fits.writeto(folder / "weight.fits", weight.astype(np.float32))
        (folder / "default.conv").write_text(_FILTER)
        common = {
            **{"WEIGHT_IMAGE": "weight.fits", "WEIGHT_TYPE": "MAP_WEIGHT", "GAIN": "1.0", "FILTER": "Y"},
            **{"FILTER_NAME": "default.conv", "PHOT_APERTURES": f"{5.0 * fwhm:.2f}", "VERBOSE_TYPE": "QUIET"},
            **{"SEEING_FWHM": f"{fwhm:.2f}", "PIXEL_SCALE": "1.0", "SATUR_LEVEL": "1e9"},
        }
        _call(folder, sextractor, _STARS, {**common, "CATALOG_NAME": "stars.cat"})
        subprocess.run(
            [psfex, "stars.cat", "-SAMPLE_FWHMRANGE", "1.0,20.0", "-VERBOSE_TYPE", "QUIET"]
            + ["-CHECKPLOT_TYPE", "NONE", "-CHECKIMAGE_TYPE", "NONE", "-WRITE_XML", "N"],
            cwd=folder,
            check=True,
            capture_output=True,
        )
        _call(
            folder, sextractor, _SOURCES, {**common, "CATALOG_NAME": "sources.cat", "PSF_NAME": "stars.psf"}
        )
        table = astropy.io.fits.getdata(folder / "sources.cat", 2)
        columns = [np.asarray(table[column], dtype=np.float64) for column in _SOURCES[:4]]
        rows = np.column_stack([columns[0] - 1.0, columns[1] - 1.0, columns[2], columns[3]])
        return rows[np.isfinite(rows).all(axis=1) & (rows[:, 3] > 0.0)]


def _call(folder: Path, sextractor: str, columns: Sequence[str], options: Mapping[str, str]) -> None:
    (folder / "default.param").write_text("\n".join(columns) + "\n")
    (folder / "default.sex").write_text("PARAMETERS_NAME default.param\nCATALOG_TYPE FITS_LDAC\n")
    words = [word for key, value in options.items() for word in (f"-{key}", value)]
    subprocess.run([sextractor, "image.fits", *words], cwd=folder, check=True, capture_output=True)
