"""Pictures of the outputs of process_ccd: the focal plane of a visit, and a detector with its sources.

For a butler whose default collections hold the outputs::

    draw_focal_plane(butler, "visit.png", instrument="SimCam", visit=202601010101)
    draw_detector(butler, "detector.png", instrument="SimCam", visit=202601010101, detector=0)
"""

from __future__ import annotations

__all__ = ("draw_detector", "draw_focal_plane")


import math
import os
from typing import Any

import astropy.table
import numpy as np
import numpy.typing as npt
from astropy.nddata import block_reduce
from lsst.daf.butler import Butler
from lsst.images import VisitImage
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection, LineCollection
from matplotlib.colors import AsinhNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.transforms import Affine2D

from ..obs.camera.description import DetectorDescription
from ..obs.repository import get_description

type FloatImage = npt.NDArray[np.floating[Any]]

_BACKGROUND, _TEXT, _FAINT_TEXT = "#14161a", "#e8e8e8", "#9aa0a8"
_STAR, _EXTENDED, _FLAGGED = "#4fd1ff", "#ffb347", "#ff5c7a"
_MASKS = (
    ("BAD", "defect", "#3b6fd4"),
    ("SATURATED", "saturated", "#d43b3b"),
    ("COSMIC_RAY", "cosmic ray", "#b455e0"),
)
_MOST_PIXELS = 1400  # of the longer side of a focal plane


def draw_focal_plane(butler: Butler, path: str | os.PathLike[str], *, instrument: str, visit: int) -> None:
    """Write a picture of all detectors of one visit, binned, at their positions in the focal plane.

    Raises
    ------
    LookupError
        Raised if the collections have no ``visit_image`` of this visit.
    """
    refs = sorted(
        butler.query_datasets("visit_image", instrument=instrument, visit=visit, explain=False),
        key=lambda ref: ref.dataId["detector"],
    )
    if not refs:
        raise LookupError(f"no visit_image of visit {visit} of {instrument} in {butler.collections.defaults}")
    camera = get_description(butler, instrument)
    summary = butler.get("visit_summary", instrument=instrument, visit=visit)
    rows = {int(row["detector"]): row for row in summary}
    described = [camera.get_detector(int(ref.dataId["detector"])) for ref in refs]
    corners = np.concatenate([outline(detector) for detector in described])
    span = np.ptp(corners, axis=0)
    binning = max(1, math.ceil(float(span.max()) / _MOST_PIXELS))

    width = 10.0
    plot_height = min(max(width * 0.94 * float(span[1] / span[0]), 3.0), 12.0)
    figure, axes = _make_figure(width, plot_height + 1.25, plot_height)
    image: VisitImage | None = None
    stretch: AsinhNorm | None = None
    for ref, detector in zip(refs, described, strict=True):
        image = butler.get(ref)
        stretch = stretch or _make_stretch(image)
        _draw_placed(axes, block_reduce(image.image.array, binning, func=np.mean), detector, stretch)
        _label_detector(axes, detector, rows.get(detector.id))
    assert image is not None, "There is at least one reference."
    frame_focal_plane(axes, corners, margin=0.012)
    _set_titles(
        figure,
        f"{instrument}  visit {visit}",
        f"{image.physical_filter}, {_exposure_time(image)}; {len(refs)} detectors, "
        f"{int(np.sum(summary['nSource']))} sources, PSF FWHM {_median_seeing(summary)}; "
        f"zero point {_median_zero_point(summary)}",
    )
    figure.savefig(path, dpi=130, facecolor=_BACKGROUND)


def draw_detector(
    butler: Butler, path: str | os.PathLike[str], *, instrument: str, visit: int, detector: int
) -> None:
    """Write a picture of the image of one detector, with masked pixels in color and sources marked."""
    data_id = {"instrument": instrument, "visit": visit, "detector": detector}
    image = butler.get("visit_image", data_id)
    source = butler.get("source", data_id)
    summaries = butler.get("visit_summary", instrument=instrument, visit=visit)
    (summary,) = summaries[summaries["detector"] == detector]
    height, width = image.image.array.shape
    plot_height = min(max(10.0 * 0.94 * height / width, 3.0), 14.0)
    figure, axes = _make_figure(10.0, plot_height + 1.55, plot_height, bottom=0.45)
    axes.imshow(
        image.image.array, origin="lower", cmap="gray", norm=_make_stretch(image), interpolation="nearest"
    )
    handles: list[Any] = _draw_masks(axes, image)
    handles = _draw_sources(axes, source, image.summary_stats.psfSigma) + handles
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(-0.5, height - 0.5)
    legend = figure.legend(
        handles=handles,
        loc="lower center",
        ncols=len(handles),
        frameon=False,
        fontsize=9.5,
        labelcolor=_TEXT,
        handletextpad=0.4,
        columnspacing=1.6,
    )
    legend.set_in_layout(False)
    _set_titles(
        figure,
        f"{instrument}  visit {visit}  detector {detector} ({image.detector.name})",
        f"{image.physical_filter}, {_exposure_time(image)}; {len(source)} sources, PSF FWHM "
        f"{summary['psfFwhm']:.2f} pixels; zero point "
        f"{_zero_point_text(summary)}; astrometry {_astrometry_text(summary)}",
    )
    figure.savefig(path, dpi=130, facecolor=_BACKGROUND)


def _make_figure(width: float, height: float, plot_height: float, bottom: float = 0.2) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), facecolor=_BACKGROUND)
    axes = figure.add_axes((0.03, bottom / height, 0.94, plot_height / height))
    axes.set_axis_off()
    return figure, axes


def _set_titles(figure: Figure, title: str, subtitle: str) -> None:
    height = figure.get_figheight()
    figure.text(0.03, 1.0 - 0.42 / height, title, color=_TEXT, fontsize=17, fontweight="bold", va="center")
    figure.text(0.03, 1.0 - 0.78 / height, subtitle, color=_FAINT_TEXT, fontsize=10.5, va="center")


def _make_stretch(image: VisitImage) -> AsinhNorm:
    """Return a stretch that is linear up to a few times the sky noise (Lupton et al. 2004, PASP 116, 133)."""
    scaling = image.photometric_scaling
    factor = 1.0 if scaling is None else float(scaling(x=image.bbox.x.center, y=image.bbox.y.center))
    noise = max(image.summary_stats.skyNoise * factor, 1e-30)
    return AsinhNorm(2.0 * noise, vmin=-2.0 * noise, vmax=300.0 * noise)


def to_focal_plane(detector: DetectorDescription) -> Affine2D:
    """Return the transformation from pixels of the detector to pixels of the focal plane."""
    return (
        Affine2D()
        .translate(-0.5 * (detector.nx - 1), -0.5 * (detector.ny - 1))
        .rotate_deg(detector.rotation)
        .translate(*detector.offset)
    )


def outline(detector: DetectorDescription) -> npt.NDArray[np.float64]:
    right, top = detector.nx - 0.5, detector.ny - 0.5
    corners = np.array([[-0.5, -0.5], [right, -0.5], [right, top], [-0.5, top]])
    return np.asarray(to_focal_plane(detector).transform(corners))


def frame_focal_plane(axes: Axes, corners: npt.NDArray[np.float64], *, margin: float) -> None:
    """Set the limits of axes around the corners of detectors, with a margin as a part of the focal plane."""
    low, high = corners.min(axis=0), corners.max(axis=0)
    width = margin * float((high - low).max())
    (left, bottom), (right, top) = low - width, high + width
    axes.set(xlim=(left, right), ylim=(bottom, top), aspect="equal")


def _draw_placed(axes: Axes, image: FloatImage, detector: DetectorDescription, stretch: AsinhNorm) -> None:
    axes.imshow(
        image,
        origin="lower",
        cmap="gray",
        norm=stretch,
        extent=(-0.5, detector.nx - 0.5, -0.5, detector.ny - 0.5),
        transform=to_focal_plane(detector) + axes.transData,
        interpolation="antialiased",
    )
    corners = outline(detector)
    axes.add_collection(
        LineCollection([np.vstack([corners, corners[:1]])], colors=_FAINT_TEXT, linewidths=0.6, alpha=0.6)
    )


def _label_detector(axes: Axes, detector: DetectorDescription, row: Any) -> None:
    corners = outline(detector)
    text = f"{detector.id}  {detector.name}"
    if row is not None:
        text += f"\n{row['nSource']} sources\n{_zero_point_text(row)}"
    axes.annotate(
        text,
        (corners[:, 0].min(), corners[:, 1].max()),
        xytext=(7, -7),
        textcoords="offset points",
        va="top",
        color=_TEXT,
        fontsize=9.5,
        linespacing=1.35,
        bbox={"boxstyle": "round,pad=0.35", "facecolor": _BACKGROUND, "edgecolor": "none", "alpha": 0.75},
    )


def _draw_masks(axes: Axes, image: VisitImage) -> list[Patch]:
    handles = []
    for plane, label, color in _MASKS:
        pixels = image.mask.get(plane)
        if not pixels.any():
            continue
        axes.imshow(
            np.ma.masked_where(~pixels, pixels),
            origin="lower",
            cmap=ListedColormap([color]),
            alpha=0.75,
            interpolation="nearest",
        )
        handles.append(Patch(facecolor=color, alpha=0.85, label=label))
    return handles


def _draw_sources(axes: Axes, source: astropy.table.Table, psf_sigma: float) -> list[Line2D]:
    flags = ["psfFlux_flag", "centroid_flag"]
    flags += [f"pixelFlags_{name}" for name in ("edge", "saturated", "badCenter", "crCenter")]
    flagged = np.any([np.asarray(source[name]) for name in flags], axis=0)
    extended = np.asarray(source["sizeExtendedness"]) > 0.5
    handles = []
    for chosen, label, color in (
        (~flagged & ~extended, "point source", _STAR),
        (~flagged & extended, "extended", _EXTENDED),
        (flagged, "flagged", _FLAGGED),
    ):
        if color == _EXTENDED:
            major, minor, angle = _ellipses(source[chosen], psf_sigma)
        else:
            major = minor = psf_sigma * _star_radius(np.asarray(source["snr"])[chosen])
            angle = np.zeros(len(major))
        positions = np.column_stack([np.asarray(source["x"])[chosen], np.asarray(source["y"])[chosen]])
        axes.add_collection(
            EllipseCollection(
                5.0 * major,
                5.0 * minor,
                angle,
                units="xy",
                offsets=positions,
                offset_transform=axes.transData,
                facecolors="none",
                edgecolors=color,
                linewidths=0.9,
            )
        )
        handles.append(
            Line2D(
                [],
                [],
                linestyle="none",
                marker="o",
                markersize=9,
                markerfacecolor="none",
                markeredgecolor=color,
                label=f"{label} ({np.count_nonzero(chosen)})",
            )
        )
    return handles


def _star_radius(snr: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the radii of markers relative to the normal radius; they grow with the signal-to-noise ratio."""
    return np.asarray(1.0 + 0.6 * np.log10(np.clip(np.nan_to_num(snr) / 50.0, 1.0, None)))


def _ellipses(
    source: astropy.table.Table, psf_sigma: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return semi-axes in pixels and angles in degrees; sources without moments get those of the PSF."""
    ixx, iyy, ixy = (np.asarray(source[name], dtype=np.float64) for name in ("ixx", "iyy", "ixy"))
    half_sum, half_difference = 0.5 * (ixx + iyy), 0.5 * (ixx - iyy)
    root = np.hypot(half_difference, ixy)
    major, minor = np.sqrt(half_sum + root), np.sqrt(np.maximum(half_sum - root, 0.0))
    measured = np.isfinite(major)
    angle = np.where(measured, np.degrees(0.5 * np.arctan2(ixy, half_difference)), 0.0)
    return np.where(measured, major, psf_sigma), np.where(measured, minor, psf_sigma), angle


def _exposure_time(image: VisitImage) -> str:
    seconds = image.summary_stats.expTime
    return f"{seconds:g} s" if math.isfinite(seconds) else "exposure time unknown"


def _zero_point_text(row: Any) -> str:
    if not math.isfinite(row["zeroPoint"]):
        return "not calibrated"
    return f"{row['zeroPoint']:.3f} \N{PLUS-MINUS SIGN} {row['zeroPointErr']:.3f} mag"


def _astrometry_text(row: Any) -> str:
    if not math.isfinite(row["astromScatter"]):
        return "not refined"
    return f"\N{PLUS-MINUS SIGN} {1000.0 * row['astromScatter']:.0f} mas ({row['nRefMatched']} matches)"


def _median_zero_point(summary: astropy.table.Table) -> str:
    values = np.asarray(summary["zeroPoint"], dtype=np.float64)
    if not np.isfinite(values).any():
        return "not calibrated"
    return f"{np.nanmedian(values):.3f} mag"


def _median_seeing(summary: astropy.table.Table) -> str:
    pixels = float(np.nanmedian(summary["psfFwhm"]))
    return f"{pixels * float(np.nanmedian(summary['pixelScale'])):.2f}\N{DOUBLE PRIME}"
