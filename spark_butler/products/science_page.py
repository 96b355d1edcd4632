"""Science page of a run of process_ccd.  Runs in the command's process, or in a notebook's kernel."""

from __future__ import annotations

__all__ = ["make_science_page"]

import base64
import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from lsst.daf.butler import Butler
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from scipy.stats import binned_statistic_2d

from ..report.html import render
from .pictures import frame_focal_plane, outline
from .science import MAX_CATALOGS, FloatArray, ScienceSummary, StarTable, read_science

_INK = "#7d838d"
"""Color of text and axes that is readable on light and on dark pages."""
_FLAG = "#e0453a"
_POINT = "#3b82d6"
_MOST_VISITS_DRAWN = 12
_FEWEST_STARS = 3
_WIDTH = 10.0


class _Quantity(NamedTuple):
    """Quantity of each image that is drawn as a map of the focal plane."""

    name: str
    short: str
    unit: str
    of: Callable[[Any], FloatArray]
    format: str


def _column(name: str, scale: float = 1.0) -> Callable[[Any], FloatArray]:
    return lambda images: scale * np.asarray(images[name], dtype=np.float64)


def _zero_point_deviation(images: Any) -> FloatArray:
    """Return zero points minus the median of their visit, in millimagnitudes."""
    values, visits = np.asarray(images["zeroPoint"], dtype=np.float64), np.asarray(images["visit"])
    middle = {visit: _median(values[visits == visit]) for visit in np.unique(visits)}
    return np.asarray(1000.0 * (values - np.array([middle[visit] for visit in visits])))


def _fwhm(images: Any) -> FloatArray:
    return np.asarray(_column("psfFwhm")(images) * _column("pixelScale")(images))


_QUANTITIES = (
    _Quantity("PSF FWHM", "FWHM", "arcsec", _fwhm, "{:.2f}"),
    _Quantity("PSF ellipticity", "ellipticity", "", _column("quality_psf_ellipticity"), "{:.3f}"),
    _Quantity("Depth, 5 sigma", "depth", "mag", _column("magLim"), "{:.2f}"),
    _Quantity("Zero point, less the visit's", "zero point", "mmag", _zero_point_deviation, "{:+.0f}"),
    _Quantity(
        "Zero-point scatter", "zero-point scatter", "mmag", _column("zeroPointScatter", 1000.0), "{:.0f}"
    ),
    _Quantity(
        "Astrometric scatter", "astrometric scatter", "mas", _column("astromScatter", 1000.0), "{:.0f}"
    ),
)


def make_science_page(butler: Butler, collection: str, *, where: str = "") -> str:
    """Return the page of an output of process_ccd as HTML that needs no network to be shown."""
    parts = [_describe(summary) for summary in read_science(butler, collection, where=where)]
    return render("science.html.j2", collection=collection, where=where, parts=parts)


def _describe(summary: ScienceSummary) -> dict[str, Any]:
    images, stars = summary.images, summary.stars
    flagged = np.asarray(images["image_flag"], dtype=bool)
    visits = np.unique(np.asarray(images["visit"]))
    return {
        "instrument": summary.instrument,
        "tiles": [
            (f"{len(visits):,}", "visits" if len(visits) != 1 else "visit"),
            (f"{len(images):,}", "images" if len(images) != 1 else "image"),
            (f"{int(np.sum(images['nSource'])):,}", "sources"),
            (f"{np.count_nonzero(flagged):,}", "flagged images"),
            *(
                (_format(quantity, _median(quantity.of(images))), f"{quantity.name}, median")
                for quantity in _VISIT_COLUMNS
            ),
        ],
        "flagged": [
            {
                "visit": int(row["visit"]),
                "detector": f"{row['detector']} {row['detector_name']}",
                "reasons": [
                    (name.replace("_", " "), float(row[f"quality_{name}"]))
                    for name in str(row["image_flag_reasons"]).split(",")
                ],
            }
            for row in images[flagged]
        ],
        "visits": [_visit_row(images[np.asarray(images["visit"]) == visit], int(visit)) for visit in visits],
        "columns": [f"{quantity.short} [{quantity.unit}]".replace(" []", "") for quantity in _VISIT_COLUMNS],
        "focal_plane": _picture(_draw_focal_planes(summary, visits[:_MOST_VISITS_DRAWN])),
        "visits_left_out": max(len(visits) - _MOST_VISITS_DRAWN, 0),
        "psf": _picture(_draw_psf(summary, stars)) if stars.is_psf_star.sum() >= _FEWEST_STARS else None,
        "astrometry": _picture(_draw_astrometry(summary, stars)) if _enough(stars.offset_ra) else None,
        "photometry": _picture(_draw_photometry(summary, stars)) if _enough(stars.flux_residual) else None,
        "n_psf_stars": int(stars.is_psf_star.sum()),
        "n_matched": int(np.isfinite(stars.offset_ra).sum()),
        "n_calibrators": int(stars.is_calibrator.sum()),
        "n_catalogs": summary.n_catalogs,
        "is_sample": summary.n_catalogs < len(images) and len(images) > MAX_CATALOGS,
    }


_VISIT_COLUMNS = tuple(quantity for quantity in _QUANTITIES if quantity.of is not _zero_point_deviation)


def _visit_row(images: Any, visit: int) -> dict[str, Any]:
    zero_point = _median(_column("zeroPoint")(images))
    return {
        "visit": visit,
        "filter": str(images["physical_filter"][0]),
        "n_images": len(images),
        "n_sources": int(np.sum(images["nSource"])),
        "n_flagged": int(np.count_nonzero(images["image_flag"])),
        "zero_point": f"{zero_point:.3f}" if np.isfinite(zero_point) else "–",
        "values": [
            _format(quantity, _median(quantity.of(images)), unit=False) for quantity in _VISIT_COLUMNS
        ],
    }


def _format(quantity: _Quantity, value: float, *, unit: bool = True) -> str:
    if not np.isfinite(value):
        return "–"
    return f"{quantity.format.format(value)} {quantity.unit if unit else ''}".strip()


def _median(values: FloatArray) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if known.size else float("nan")


def _enough(values: FloatArray) -> bool:
    return int(np.isfinite(values).sum()) >= _FEWEST_STARS


def _picture(figure: Figure) -> str:
    """Return a figure as a data URI."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120, transparent=True)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _make_grid(rows: int, columns: int, height: float) -> tuple[Figure, npt.NDArray[Any]]:
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.tick_params(colors=_INK, labelsize=8)
        axes.set_facecolor("none")
        axes.spines[:].set(color=_INK, alpha=0.5)
    return figure, grid


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, color=_INK, fontsize=9.5)


def _label(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x, color=_INK, fontsize=8.5)
    axes.set_ylabel(y, color=_INK, fontsize=8.5)


def _draw_outlines(axes: Axes, summary: ScienceSummary) -> None:
    """Draw the edges of the detectors, and set the limits of the axes around them."""
    corners = [outline(detector) for detector in summary.camera.detectors]
    axes.add_collection(PolyCollection(corners, facecolors="none", edgecolors=_INK, linewidths=0.5))
    _frame(axes, np.concatenate(corners))


def _frame(axes: Axes, corners: FloatArray) -> None:
    frame_focal_plane(axes, corners, margin=0.03)
    axes.set(xticks=[], yticks=[])


def _add_colorbar(
    figure: Figure, artist: Any, axes: Sequence[Axes], label: str, location: str = "right"
) -> None:
    bar = figure.colorbar(artist, ax=list(axes), location=location, fraction=0.05, pad=0.02)
    bar.set_label(label, color=_INK, fontsize=8.5)
    bar.ax.tick_params(colors=_INK, labelsize=8)
    bar.outline.set_edgecolor(_INK)


def _draw_focal_planes(summary: ScienceSummary, visits: npt.NDArray[Any]) -> Figure:
    """Draw maps of the focal plane: a column per quantity, a row per visit."""
    images = summary.images
    corners = np.concatenate([outline(detector) for detector in summary.camera.detectors])
    span = np.ptp(corners, axis=0)
    height = min(max(_WIDTH / len(_QUANTITIES) * float(span[1] / span[0]), 0.6), 4.0)
    figure, grid = _make_grid(len(visits), len(_QUANTITIES), height * len(visits) + 1.0)
    for quantity, column in zip(_QUANTITIES, grid.T, strict=True):
        every = quantity.of(images)
        known = every[np.isfinite(every)]
        low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
        scale = Normalize(low, high if high > low else low + 1e-9)
        artist = None
        for axes, visit in zip(column, visits, strict=True):
            rows = images[np.asarray(images["visit"]) == visit]
            artist = PolyCollection(
                [outline(summary.camera.get_detector(int(number))) for number in rows["detector"]],
                array=quantity.of(rows),
                norm=scale,
                cmap=colormaps["viridis"],
                edgecolors=[_FLAG if flag else _INK for flag in rows["image_flag"]],
                linewidths=[2.0 if flag else 0.5 for flag in rows["image_flag"]],
            )
            axes.add_collection(artist)
            _frame(axes, corners)
            if axes in grid[:, 0]:
                axes.set_ylabel(str(visit), color=_INK, fontsize=8)
        _title(column[0], quantity.name.replace(", ", ",\n"))
        _add_colorbar(figure, artist, column, quantity.unit, location="bottom")
    return figure


def _cell_medians(
    summary: ScienceSummary, stars: StarTable, chosen: npt.NDArray[np.bool_], values: Sequence[FloatArray]
) -> tuple[FloatArray, FloatArray, list[FloatArray]]:
    """Return the centers of cells of the focal plane, and the median of the values in each cell."""
    corners = np.concatenate([outline(detector) for detector in summary.camera.detectors])
    low, high = corners.min(axis=0), corners.max(axis=0)
    side = float((high - low).max()) / np.clip(np.sqrt(chosen.sum() / 10.0), 4, 32)
    edges = [np.arange(low[axis], high[axis] + side, side) for axis in (0, 1)]
    found = binned_statistic_2d(
        stars.x[chosen], stars.y[chosen], [each[chosen] for each in values], "median", bins=edges
    )
    # Cells at the edges may have only one or two stars.
    count = np.histogram2d(stars.x[chosen], stars.y[chosen], bins=edges)[0]
    x, y = (0.5 * (each[1:] + each[:-1]) for each in (found.x_edge, found.y_edge))
    grid = np.meshgrid(x, y, indexing="ij")
    known = count >= _FEWEST_STARS if (count >= _FEWEST_STARS).any() else count > 0
    return grid[0][known], grid[1][known], [each[known] for each in found.statistic]


def _draw_map(axes: Axes, summary: ScienceSummary, x: FloatArray, y: FloatArray, values: FloatArray) -> Any:
    """Draw a map of residuals in the focal plane, with a color scale that is symmetric about zero."""
    _draw_outlines(axes, summary)
    limit = max(float(np.quantile(np.abs(values), 0.98)), 1e-9)
    return axes.scatter(x, y, c=values, s=42, marker="s", cmap="RdBu_r", vmin=-limit, vmax=limit)


def _draw_whiskers(
    axes: Axes, summary: ScienceSummary, x: FloatArray, y: FloatArray, u: FloatArray, v: FloatArray, key: str
) -> None:
    """Draw a map of vectors in the focal plane, with a vector of a round length as the key."""
    _draw_outlines(axes, summary)
    typical = float(np.median(np.hypot(u, v))) or 1e-9
    length = float(f"{typical:.0e}")
    # An outlier must not hide the vectors of the neighboring cells.
    shrink = np.minimum(1.0, 3.0 * typical / np.maximum(np.hypot(u, v), 1e-12))
    arrows = bool(key)
    head: dict[str, Any] = {} if arrows else {"headwidth": 0.0, "headlength": 0.0, "headaxislength": 0.0}
    drawn = axes.quiver(
        x,
        y,
        u * shrink,
        v * shrink,
        pivot="tail" if arrows else "middle",
        angles="xy",
        scale=18.0 * typical,
        width=0.004,
        color=_POINT,
        **head,
    )
    axes.quiverkey(
        drawn, 0.8, -0.06, length, f"{length:g} {key}".strip(), labelpos="E", color=_INK, labelcolor=_INK
    )


def _draw_psf(summary: ScienceSummary, stars: StarTable) -> Figure:
    """Draw the ellipticity of the PSF, and how sizes and ellipticities of stars differ from the PSF."""
    chosen = stars.is_psf_star & np.isfinite(stars.size_residual)
    ellipticity, residual = stars.ellipticity, stars.ellipticity_residual
    x, y, (size, e1, e2, r1, r2) = _cell_medians(
        summary,
        stars,
        chosen,
        [stars.size_residual, ellipticity.real, ellipticity.imag, residual.real, residual.imag],
    )
    figure, grid = _make_grid(1, 3, 3.6)
    for axes, (real, imaginary), words in (
        (grid[0, 0], (e1, e2), "Ellipticity of the PSF"),
        (grid[0, 1], (r1, r2), "Ellipticity, stars less PSF"),
    ):
        angle, length = 0.5 * np.arctan2(imaginary, real), np.hypot(real, imaginary)
        _draw_whiskers(axes, summary, x, y, length * np.cos(angle), length * np.sin(angle), "")
        _title(axes, words)
    artist = _draw_map(grid[0, 2], summary, x, y, 100.0 * size)
    _title(grid[0, 2], "Size, stars less PSF")
    _add_colorbar(figure, artist, [grid[0, 2]], "% of Ixx + Iyy")
    return figure


def _draw_astrometry(summary: ScienceSummary, stars: StarTable) -> Figure:
    """Draw position offsets from references, in the sky and as a map of the focal plane."""
    chosen = np.isfinite(stars.offset_ra)
    figure, grid = _make_grid(1, 2, 4.4)
    east, north = stars.offset_ra[chosen], stars.offset_dec[chosen]
    axes = grid[0, 0]
    limit = max(float(np.quantile(np.hypot(east, north), 0.98)), 1e-3)
    axes.scatter(east, north, s=4, alpha=0.4, color=_POINT, linewidths=0)
    axes.axhline(0.0, color=_INK, linewidth=0.6)
    axes.axvline(0.0, color=_INK, linewidth=0.6)
    axes.set(xlim=(limit, -limit), ylim=(-limit, limit), aspect="equal")
    spread = [1.4826 * _median(np.abs(each - _median(each))) for each in (east, north)]
    _title(axes, f"Scatter {spread[0]:.1f} mas in right ascension, {spread[1]:.1f} mas in declination")
    _label(axes, "right ascension, source less reference [mas]", "declination [mas]")
    x, y, (along_ra, along_dec) = _cell_medians(summary, stars, chosen, [stars.offset_ra, stars.offset_dec])
    _draw_whiskers(grid[0, 1], summary, x, y, along_ra, along_dec, "mas")
    _title(grid[0, 1], "Median offset over the focal plane (right: +RA, up: +Dec)")
    return figure


def _draw_photometry(summary: ScienceSummary, stars: StarTable) -> Figure:
    """Draw differences from reference magnitudes, by magnitude and as a map of the focal plane."""
    known = np.isfinite(stars.flux_residual)
    used = known & stars.is_calibrator
    figure, grid = _make_grid(1, 2, 4.0)
    axes = grid[0, 0]
    for chosen, color, words in ((known & ~used, _INK, "matched"), (used, _POINT, "used for the zero point")):
        axes.scatter(
            stars.magnitude[chosen],
            stars.flux_residual[chosen],
            s=5,
            alpha=0.5,
            color=color,
            linewidths=0,
            label=words,
        )
    limit = max(float(np.quantile(np.abs(stars.flux_residual[known]), 0.95)), 1e-3)
    axes.set_ylim(-1.2 * limit, 1.2 * limit)
    axes.axhline(0.0, color=_INK, linewidth=0.6)
    axes.legend(frameon=False, fontsize=8, labelcolor=_INK, markerscale=2.0)
    _label(axes, "magnitude of the reference (AB)", "magnitude, source less reference [mmag]")
    _title(axes, "Residuals by magnitude")
    chosen = used if _enough(stars.flux_residual[used]) else known
    x, y, (residual,) = _cell_medians(summary, stars, chosen, [stars.flux_residual])
    artist = _draw_map(grid[0, 1], summary, x, y, residual)
    _title(grid[0, 1], "Median residual over the focal plane")
    _add_colorbar(figure, artist, [grid[0, 1]], "mmag")
    return figure
