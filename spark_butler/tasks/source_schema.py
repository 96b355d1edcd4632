"""Units and descriptions of the columns of ``source``, with the names that Rubin's schema has for the same.

Runs in workers.
"""

from __future__ import annotations

__all__ = ("describe_columns", "name_aperture")

from collections.abc import Sequence

import astropy.table
import astropy.units as u

_NO_UNIT = u.dimensionless_unscaled

_COLUMNS: dict[u.UnitBase, dict[str, str]] = {
    u.pix: {
        "x": "Column of the centroid; the center of the first pixel is 0.",
        "y": "Row of the centroid; the center of the first pixel is 0.",
        "xErr": "One-sigma uncertainty of x.",
        "yErr": "One-sigma uncertainty of y.",
    },
    u.deg: {
        "coord_ra": "ICRS right ascension of the centroid.",
        "coord_dec": "ICRS declination of the centroid.",
        "ra": "Position in right ascension, ICRS; the same as coord_ra.",
        "dec": "Position in declination, ICRS; the same as coord_dec.",
        "raErr": "Error in right ascension on the sky, with cos(dec), from that of the centroid.",
        "decErr": "Error in declination, from that of the centroid.",
    },
    u.deg**2: {"ra_dec_Cov": "Covariance of right ascension, with cos(dec), and declination."},
    u.nJy: {
        "psfFlux": "Flux of the fit of the PSF, with aperture correction.",
        "psfFluxErr": "Uncertainty of psfFlux; that of the aperture correction is not in it.",
        "sky": "Background around the source, in one pixel, that psfFlux was measured above, beyond the sky "
        "that was subtracted from the image.",
        "refFlux": "Flux of the matched reference.",
    },
    u.electron: {
        "instFlux": "The PSF flux before calibration, with aperture correction.",
        "instFluxErr": "Uncertainty of instFlux.",
    },
    u.pix**2: {
        "ixx": "Adaptive second moment along x, PSF included; NaN where shape_flag is set.",
        "iyy": "Adaptive second moment along y, PSF included; NaN where shape_flag is set.",
        "ixy": "Adaptive mixed second moment, PSF included; NaN where shape_flag is set.",
        "ixxPSF": "The adaptive moment along x of the PSF at the source.",
        "iyyPSF": "The adaptive moment along y of the PSF at the source.",
        "ixyPSF": "The adaptive mixed moment of the PSF at the source.",
    },
    u.arcsec: {
        "refOffset_ra": "Right ascension less the reference's at the time of the image, on the sky.",
        "refOffset_dec": "Declination less the reference's at the time of the image.",
    },
    _NO_UNIT: {
        "sourceId": "Unique identifier: visit and detector in the upper bits, a counter in the lower ones.",
        "parentSourceId": "Identifier of the blend, shared by the sources of one footprint, which were "
        "deblended together; it has no row of its own. 0 for a source that is alone.",
        "deblend_nChild": "Number of children; 0, as blends have no rows of their own.",
        "snr": "PSF flux over its error by the variance of the pixels alone.",
        "psfFlux_apCorr": "Aperture correction applied to psfFlux.",
        "psfFlux_apCorrErr": "Standard deviation of the aperture correction, which all sources share.",
        "psfFlux_flag": "Failure flag: too few good pixels to fit the PSF.",
        "centroid_flag": "Failure flag: x and y are those of the peak.",
        "shape_flag": "Failure flag of the adaptive moments.",
        "sizeExtendedness": "1 for a source that is wider than the PSF by its moments, as galaxies are, else "
        "0; NaN if unknown.",
        "blendedness": "Share of the neighbors' light under the source's PSF.",
        "pixelFlags_bad": "Bad pixel within two sigma of the PSF.",
        "pixelFlags_badCenter": "Bad pixel among the central nine.",
        "pixelFlags_cr": "Cosmic ray within two sigma of the PSF.",
        "pixelFlags_crCenter": "Cosmic ray among the central nine pixels.",
        "pixelFlags_saturated": "Saturated pixel within two sigma of the PSF.",
        "pixelFlags_saturatedCenter": "Saturated pixel among the central nine.",
        "pixelFlags_nodata": "Pixel without data within two sigma of the PSF.",
        "pixelFlags_edge": "Within three sigma of the PSF of the image's edge.",
        "refId": "Identifier of the matched reference; -1 without one.",
        "calib_psf_used": "Used for the PSF.",
        "calib_psf_reserved": "Reserved: left out of the PSF's fit, which such stars judge.",
        "calib_astrometry_used": "The projection was fitted to it; not to outliers and reserved sources.",
        "calib_astrometry_reserved": "Matched, but left out of the fit; these give the astrometric scatter.",
        "calib_photometry_used": "The zero point was fitted to it; not to outliers and reserved stars.",
        "calib_photometry_reserved": "Reserved: left out of the zero point's fit, which such stars judge.",
        "streak_flag": "On a long and narrow feature or a line of sources: a satellite's trail, a spectrum.",
        "image_flag": "The image is beyond a limit of its quality.",
        "visit": "Identifier of the visit.",
        "detector": "Identifier of the detector.",
        "band": "Name of the band, which does not depend on the instrument.",
        "physical_filter": "Name of the instrument's filter.",
    },
}


def name_aperture(radius: float) -> tuple[str, str]:
    """Return the prefixes of the calibrated and instrumental columns of an aperture; radius in pixels."""
    return f"ap{radius:02g}Flux", "apFlux_{}_{}".format(*f"{radius:.1f}".split("."))


def describe_columns(table: astropy.table.Table, radii: Sequence[float]) -> None:
    """Set unit and description of each column of a ``source`` table, all of which are described here."""
    described = {name: (unit, text) for unit, names in _COLUMNS.items() for name, text in names.items()}
    for radius in radii:
        calibrated, instrumental = name_aperture(radius)
        flux = f"lux within {radius:.1f} pixels of the center, neighbors subtracted, without correction"
        described |= {
            calibrated: (u.nJy, f"F{flux}."),
            f"{calibrated}Err": (u.nJy, f"Uncertainty of the f{flux}."),
            f"{calibrated}_flag": (
                _NO_UNIT,
                "Failure flag: masked pixels in the aperture, or off the image.",
            ),
            f"{instrumental}_instFlux": (u.electron, f"F{flux}, before calibration."),
            f"{instrumental}_instFluxErr": (u.electron, f"Uncertainty of the f{flux}, before calibration."),
        }
    for name in table.colnames:
        unit, table[name].description = described[name]
        table[name].unit = None if unit == _NO_UNIT else unit
