"""SExtractor, PSFEx and SCAMP (Bertin & Arnouts 1996; Bertin 2006, 2011), as programs beside process_ccd."""

from __future__ import annotations

__all__ = ["Programs", "find_programs", "run_scamp", "run_sextractor"]

import dataclasses
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import astropy.io.fits
import astropy.table
import astropy.wcs
import galsim
import numpy as np
import scipy.optimize
from judging import Found
from lsst.images import MaskedImage

_STARS = (
    *("NUMBER", "X_IMAGE", "Y_IMAGE", "FLUX_RADIUS", "FLUX_APER(1)", "FLUXERR_APER(1)", "ELONGATION"),
    *("FLAGS", "SNR_WIN", "VIGNET(35,35)", "FLUX_AUTO", "FLUXERR_AUTO", "FLUX_MAX", "BACKGROUND"),
    *("XWIN_IMAGE", "YWIN_IMAGE", "ERRAWIN_IMAGE", "ERRBWIN_IMAGE", "ERRTHETAWIN_IMAGE", "A_IMAGE"),
    *("B_IMAGE", "THETA_IMAGE"),
)
_SOURCES = ("XPSF_IMAGE", "YPSF_IMAGE", "FLUX_PSF", "FLUXERR_PSF", "FLAGS")
_FILTER = "CONV NORM\n1 2 1\n2 4 2\n1 2 1\n"


@dataclasses.dataclass(frozen=True)
class Programs:
    """Paths of programs."""

    sextractor: str
    psfex: str
    scamp: str | None

    @property
    def label(self) -> str:
        """Name in the table."""
        return "SExtractor, PSFEx" + (", SCAMP" if self.scamp else "")


def find_programs() -> tuple[Programs | None, list[str]]:
    """Return what is installed, and the names of what is not; SCAMP alone may be missing."""
    sextractor = shutil.which("source-extractor") or shutil.which("sex")
    psfex, scamp = shutil.which("psfex"), shutil.which("scamp")
    paths = {"SExtractor": sextractor, "PSFEx": psfex, "SCAMP": scamp}
    missing = [name for name, path in paths.items() if path is None]
    return (Programs(sextractor, psfex, scamp) if sextractor and psfex else None), missing


def run_sextractor(
    programs: Programs, post: MaskedImage, fwhm: float, beta: float, references: astropy.table.Table
) -> Found:
    """Run SExtractor, PSFEx, SExtractor with that PSF, and SCAMP, with their default settings.

    SCAMP's limits of rotation and position are wide enough for the mispointed scene.

    Parameters
    ----------
    programs
        The return value of `find_programs`.
    post
        Image in electrons.
    fwhm
        Width of the PSF in pixels, for the aperture of the stars.
    beta
        Exponent of the true profile, which tells by how much a pixel widens it.
    references
        Positions ``coord_ra`` and ``coord_dec`` [rad] and ``r_flux`` [nJy].
    """
    before = os.times()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        header = _plain_header(post.fits_wcs)
        data = np.asarray(post.image.array, dtype=np.float32)
        weight = np.where(post.mask.get("BAD"), 0.0, 1.0 / np.maximum(post.variance.array, 1e-6))
        astropy.io.fits.writeto(folder / "image.fits", data, header)
        astropy.io.fits.writeto(folder / "weight.fits", weight.astype(np.float32))
        (folder / "default.conv").write_text(_FILTER)
        common = {
            **{"WEIGHT_IMAGE": "weight.fits", "WEIGHT_TYPE": "MAP_WEIGHT", "GAIN": "1.0", "FILTER": "Y"},
            **{"FILTER_NAME": "default.conv", "PHOT_APERTURES": f"{5.0 * fwhm:.2f}", "VERBOSE_TYPE": "QUIET"},
            **{"SEEING_FWHM": f"{fwhm:.2f}", "PIXEL_SCALE": "1.0", "SATUR_LEVEL": "1e9"},
        }
        _call(folder, programs.sextractor, _STARS, {**common, "CATALOG_NAME": "stars.cat"})
        subprocess.run(
            [programs.psfex, "stars.cat", "-SAMPLE_FWHMRANGE", "1.0,20.0", "-VERBOSE_TYPE", "QUIET"]
            + ["-CHECKPLOT_TYPE", "NONE", "-CHECKIMAGE_TYPE", "NONE", "-WRITE_XML", "N", "-NTHREADS", "1"],
            cwd=folder,
            check=True,
            capture_output=True,
        )
        sources = {**common, "CATALOG_NAME": "sources.cat", "PSF_NAME": "stars.psf"}
        _call(folder, programs.sextractor, _SOURCES, sources)
        table = astropy.io.fits.getdata(folder / "sources.cat", 2)
        wcs = run_scamp(programs.scamp, folder, references) if programs.scamp else None
        width = _profile_width(folder / "stars.psf", post.image.array.shape, beta)
    after = os.times()
    columns = [np.asarray(table[column], dtype=np.float64) for column in _SOURCES[:4]]
    rows = np.column_stack([columns[0] - 1.0, columns[1] - 1.0, columns[2], columns[3]])
    x, y, flux, error = rows[np.isfinite(rows).all(axis=1) & (rows[:, 3] > 0.0)].T
    ra, dec = (None, None) if wcs is None else wcs.all_pix2world(x, y, 0)
    seconds = (after.children_user + after.children_system) - (before.children_user + before.children_system)
    return Found(x, y, flux, error, seconds, ra=ra, dec=dec, fwhm=width)


def run_scamp(scamp: str, folder: Path, references: astropy.table.Table) -> astropy.wcs.WCS | None:
    """Return the projection that SCAMP fits to ``stars.cat``; None if it does not fit any.

    Parameters
    ----------
    scamp
        Path of the program.
    folder
        Where the catalog is.
    references
        As of `run_sextractor`.
    """
    count = len(references)
    columns = {
        "X_WORLD": ("1D", np.rad2deg(references["coord_ra"])),
        "Y_WORLD": ("1D", np.rad2deg(references["coord_dec"])),
        "ERRA_WORLD": ("1E", np.full(count, 0.01 / 3600.0)),
        "ERRB_WORLD": ("1E", np.full(count, 0.01 / 3600.0)),
        "ERRTHETA_WORLD": ("1E", np.zeros(count)),
        "MAG": ("1E", 31.4 - 2.5 * np.log10(references["r_flux"])),
        "MAGERR": ("1E", np.full(count, 0.01)),
        "OBSDATE": ("1D", np.full(count, 2026.0)),
    }
    objects = astropy.io.fits.BinTableHDU.from_columns(
        [astropy.io.fits.Column(name, form, array=values) for name, (form, values) in columns.items()],
        name="LDAC_OBJECTS",
    )
    # Each table of the format follows one with the header of an image.
    card = astropy.io.fits.Column("Field Header Card", "2880A", array=["END".ljust(2880)])
    image = astropy.io.fits.BinTableHDU.from_columns([card], name="LDAC_IMHEAD")
    astropy.io.fits.HDUList([astropy.io.fits.PrimaryHDU(), image, objects]).writeto(folder / "ref.cat")
    options = {
        **{"ASTREF_CATALOG": "FILE", "ASTREFCAT_NAME": "ref.cat", "ASTREFCENT_KEYS": "X_WORLD,Y_WORLD"},
        **{"ASTREFERR_KEYS": "ERRA_WORLD,ERRB_WORLD,ERRTHETA_WORLD", "ASTREFMAG_KEY": "MAG"},
        **{"ASTREFMAGERR_KEY": "MAGERR", "ASTREFOBSDATE_KEY": "OBSDATE", "POSANGLE_MAXERR": "15.0"},
        **{"POSITION_MAXERR": "2.0", "CHECKPLOT_TYPE": "NONE", "WRITE_XML": "N", "NTHREADS": "1"},
        **{"VERBOSE_TYPE": "QUIET", "SOLVE_PHOTOM": "N", "PROJECTION_TYPE": "TPV"},
    }
    words = [word for key, value in options.items() for word in (f"-{key}", value)]
    subprocess.run([scamp, "stars.cat", *words], cwd=folder, check=True, capture_output=True, timeout=600)
    head = folder / "stars.head"
    if not head.exists():
        return None
    text = head.read_text(errors="replace")
    cards = [line for line in text.splitlines() if not line.startswith(("HISTORY", "COMMENT"))]
    return astropy.wcs.WCS(astropy.io.fits.Header.fromstring("\n".join(cards), sep="\n"))


def _plain_header(wcs: astropy.wcs.WCS) -> astropy.io.fits.Header:
    """Return a projection as SCAMP reads it: a CD matrix, and no PV, which would be distortions."""
    header = astropy.io.fits.Header()
    for i in range(2):
        header[f"CTYPE{i + 1}"], header[f"CUNIT{i + 1}"] = wcs.wcs.ctype[i], "deg"
        header[f"CRPIX{i + 1}"], header[f"CRVAL{i + 1}"] = wcs.wcs.crpix[i], wcs.wcs.crval[i]
        for j in range(2):
            header[f"CD{i + 1}_{j + 1}"] = wcs.pixel_scale_matrix[i, j]
    return header


def _profile_width(path: Path, shape: tuple[int, ...], beta: float) -> float:
    """Return the width in pixels of the profile whose image in the middle is PSFEx's."""
    table, header = astropy.io.fits.getdata(path, 1, header=True)
    parts = np.asarray(table["PSF_MASK"][0], dtype=np.float64)
    u, v = (
        (0.5 * (size + 1) - header[f"POLZERO{k}"]) / header[f"POLSCAL{k}"]
        for k, size in ((1, shape[1]), (2, shape[0]))
    )
    degree = int(header["POLDEG1"])
    terms = [u**i * v**j for j in range(degree + 1) for i in range(degree + 1 - j)]
    pixels = np.tensordot(terms, parts, axes=1)
    scale = float(header["PSF_SAMP"])
    drawn = galsim.InterpolatedImage(galsim.Image(np.ascontiguousarray(pixels), scale=scale))
    wanted = drawn.calculateFWHM()

    def excess(width: float) -> float:
        profile = galsim.Convolve(galsim.Moffat(beta=beta, fwhm=width), galsim.Pixel(1.0))
        return float(profile.calculateFWHM() - wanted)

    return float(scipy.optimize.brentq(excess, 0.2, wanted + 1.0)) if wanted > 1.0 else math.nan


def _call(folder: Path, sextractor: str, columns: Sequence[str], options: Mapping[str, str]) -> None:
    (folder / "default.param").write_text("\n".join(columns) + "\n")
    (folder / "default.sex").write_text("PARAMETERS_NAME default.param\nCATALOG_TYPE FITS_LDAC\n")
    words = [word for key, value in options.items() for word in (f"-{key}", value)]
    subprocess.run([sextractor, "image.fits", *words], cwd=folder, check=True, capture_output=True)
