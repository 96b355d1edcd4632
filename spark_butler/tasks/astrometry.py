"""Match sources to a reference catalog and refine a projection on the sky."""

from __future__ import annotations

__all__ = ("AstrometrySolution", "project_references", "refine_wcs")

import dataclasses
import math

import astropy.wcs
import numpy as np
import numpy.typing as npt
import scipy.spatial

type FloatArray = npt.NDArray[np.float64]
type IntArray = npt.NDArray[np.intp]

_NOTHING: IntArray = np.zeros(0, dtype=np.intp)


@dataclasses.dataclass(frozen=True)
class AstrometrySolution:
    """A projection and the matches behind it."""

    wcs: astropy.wcs.WCS
    """The refined projection, or the first one where there was no match."""

    sources: IntArray
    references: IntArray
    """Indices of the matched sources and references, in pairs."""

    offset: float
    """How far the refinement moved the image's center on the sky, in arcseconds."""

    scatter: float
    """Robust standard deviation of the residuals per axis, in arcseconds."""

    failure: str = ""
    """Why there is no solution; empty if there is one."""


def project_references(
    wcs: astropy.wcs.WCS, ra: FloatArray, dec: FloatArray, shape: tuple[int, int], margin: float
) -> tuple[IntArray, FloatArray, FloatArray]:
    """Return the references that fall on the image, and where.

    Parameters
    ----------
    wcs
        Projection.
    ra, dec
        Positions in degrees.
    shape
        Rows and columns of the image.
    margin
        Pixels by which references may lie outside.

    Returns
    -------
    index, x, y
        Which references, and their pixel positions.
    """
    # A gnomonic projection also maps the far side of the sky to finite pixels.
    center = wcs.pixel_to_world_values(0.5 * (shape[1] - 1), 0.5 * (shape[0] - 1))
    ra0, dec0 = (np.radians(float(value)) for value in center)
    cosine = np.sin(dec0) * np.sin(np.radians(dec)) + np.cos(dec0) * np.cos(np.radians(dec)) * np.cos(
        np.radians(ra) - ra0
    )
    near = np.nonzero(cosine > 0.5)[0]
    x, y = wcs.world_to_pixel_values(ra[near], dec[near])
    inside = (x > -margin) & (y > -margin) & (x < shape[1] - 1 + margin) & (y < shape[0] - 1 + margin)
    return near[inside], np.asarray(x)[inside], np.asarray(y)[inside]


def refine_wcs(
    wcs: astropy.wcs.WCS,
    x: FloatArray,
    y: FloatArray,
    brightness: FloatArray,
    ra: FloatArray,
    dec: FloatArray,
    reference_flux: FloatArray,
    shape: tuple[int, int],
    *,
    max_offset: float,
    match_radius: float,
    min_matches: int = 5,
    min_linear: int = 10,
    n_brightest: int = 200,
) -> AstrometrySolution:
    """Find the offset between sources and references, match them and fit a linear correction.

    The offset is the most frequent one among all pairs of bright sources and references.  It is believed only
    if it is well above what chance alignments give: a wrong projection does harm, an unrefined one is only
    coarse.

    Parameters
    ----------
    wcs
        First projection.
    x, y
        Source positions in pixels.
    brightness
        Source fluxes in any unit; where not positive or not finite the source isn't used.
    ra, dec
        Reference positions in degrees.
    reference_flux
        Their fluxes in any unit.
    shape
        Rows and columns of the image.
    max_offset
        Largest offset to look for, in pixels.
    match_radius
        Largest distance of a match in pixels, once the offset is known.
    min_matches
        Least number of matches for a solution.
    min_linear
        Least number for a fit of scale, rotation and shear; with fewer only the offset is corrected.
    n_brightest
        Number of sources that the offset is looked for with.
    """

    def fail(reason: str) -> AstrometrySolution:
        return AstrometrySolution(wcs, _NOTHING, _NOTHING, math.nan, math.nan, reason)

    on_image, ref_x, ref_y = project_references(wcs, ra, dec, shape, max_offset)
    usable = np.nonzero(np.isfinite(brightness) & (brightness > 0.0))[0]
    if on_image.size < min_matches or usable.size < min_matches:
        return fail(f"{on_image.size} references and {usable.size} usable sources; {min_matches} are needed")
    bright = usable[np.argsort(-brightness[usable], kind="stable")[:n_brightest]]
    order = np.argsort(-np.nan_to_num(reference_flux[on_image]), kind="stable")
    bright_refs = order[: int(1.5 * n_brightest)]
    shift = _find_offset(
        x[bright], y[bright], ref_x[bright_refs], ref_y[bright_refs], max_offset, match_radius
    )
    if shift is None:
        return fail(f"no offset up to {max_offset:.0f} pixels stands out among chance alignments")

    tree_positions = np.column_stack([x[usable], y[usable]])
    correction = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    correction[2] = -np.asarray(shift)
    pixels = np.column_stack([ref_x, ref_y])
    for step in range(4):
        # The correction maps projected references onto sources.
        predicted = pixels @ correction[:2] + correction[2]
        radius = 2.0 * match_radius if step < 2 else match_radius
        source, reference = _mutual_matches(tree_positions, predicted, radius)
        kept = _clip(tree_positions[source] - predicted[reference])
        source, reference = source[kept], reference[kept]
        if source.size < min_matches:
            return fail(f"{source.size} matches; {min_matches} are needed")
        correction = _fit(pixels[reference], tree_positions[source], source.size >= min_linear)
    matched = usable[source]
    refined = _corrected(wcs, correction)
    residual = np.column_stack([x[matched], y[matched]]) - np.column_stack(
        refined.world_to_pixel_values(ra[on_image[reference]], dec[on_image[reference]])
    )
    scale = math.sqrt(abs(float(np.linalg.det(wcs.pixel_scale_matrix)))) * 3600.0
    return AstrometrySolution(
        wcs=refined,
        sources=matched,
        references=on_image[reference],
        offset=scale * float(np.hypot(*_shift_at_center(correction, shape))),
        scatter=scale * 1.4826 * float(np.median(np.abs(residual - np.median(residual, axis=0)))),
    )


def _find_offset(
    x: FloatArray, y: FloatArray, ref_x: FloatArray, ref_y: FloatArray, max_offset: float, cell: float
) -> tuple[float, float] | None:
    """Most frequent offset of references from sources, or `None` if chance explains it."""
    sources = scipy.spatial.cKDTree(np.column_stack([x, y]))
    references = scipy.spatial.cKDTree(np.column_stack([ref_x, ref_y]))
    pairs = sources.sparse_distance_matrix(references, max_offset, output_type="coo_matrix")
    if not pairs.nnz:
        return None
    dx, dy = ref_x[pairs.col] - x[pairs.row], ref_y[pairs.col] - y[pairs.row]
    offsets = scipy.spatial.cKDTree(np.column_stack([dx, dy]))
    counts = offsets.query_ball_point(offsets.data, cell, return_length=True)
    best = int(np.argmax(counts))
    by_chance = pairs.nnz * (cell / max_offset) ** 2
    # Six sigma of the chance number, and a tenth of what could match at all.
    possible = min(len(x), len(ref_x))
    if counts[best] < max(by_chance + 6.0 * math.sqrt(by_chance + 1.0) - 3.0, 0.1 * possible, 3.0):
        return None
    near = offsets.query_ball_point(offsets.data[best], cell)
    return float(np.median(dx[near])), float(np.median(dy[near]))


def _mutual_matches(sources: FloatArray, references: FloatArray, radius: float) -> tuple[IntArray, IntArray]:
    """Pairs that are each other's nearest neighbor."""
    forward_distance, forward = scipy.spatial.cKDTree(references).query(sources, distance_upper_bound=radius)
    _, backward = scipy.spatial.cKDTree(sources).query(references, distance_upper_bound=radius)
    source = np.nonzero(np.isfinite(forward_distance))[0]
    source = source[backward[forward[source]] == source]
    return source, forward[source].astype(np.intp)


def _clip(residual: FloatArray) -> npt.NDArray[np.bool_]:
    if len(residual) < 5:
        return np.ones(len(residual), dtype=bool)
    centered = residual - np.median(residual, axis=0)
    spread = 1.4826 * np.median(np.abs(centered), axis=0)
    return np.asarray((np.abs(centered) < 4.0 * np.maximum(spread, 0.02)).all(axis=1))


def _fit(from_pixels: FloatArray, to_pixels: FloatArray, linear: bool) -> FloatArray:
    """Least-squares map ``to = from @ A[:2] + A[2]``; with ``linear`` false only the offset."""
    if not linear:
        return np.vstack([np.eye(2), np.mean(to_pixels - from_pixels, axis=0)])
    center = from_pixels.mean(axis=0)
    design = np.column_stack([from_pixels - center, np.ones(len(from_pixels))])
    solution = np.linalg.lstsq(design, to_pixels, rcond=None)[0]
    solution[2] -= center @ solution[:2]
    return np.asarray(solution)


def _shift_at_center(correction: FloatArray, shape: tuple[int, int]) -> FloatArray:
    center = np.array([0.5 * (shape[1] - 1), 0.5 * (shape[0] - 1)])
    return np.asarray(center @ correction[:2] + correction[2] - center)


def _corrected(wcs: astropy.wcs.WCS, correction: FloatArray) -> astropy.wcs.WCS:
    """Return a projection of the same kind that sends sky positions to ``pixels @ A[:2] + A[2]``.

    ``CD (p - crpix)`` must be what it was at the uncorrected pixel, so ``CD' = CD inv(A)`` and the reference
    pixel moves with the rest.
    """
    forward = correction[:2].T
    refined = astropy.wcs.WCS(naxis=2)
    old = wcs.wcs
    refined.wcs.ctype, refined.wcs.cunit, refined.wcs.crval = list(old.ctype), list(old.cunit), old.crval
    refined.wcs.radesys = old.radesys or "ICRS"
    refined.wcs.cd = wcs.pixel_scale_matrix @ np.linalg.inv(forward)
    refined.wcs.crpix = forward @ (old.crpix - 1.0) + correction[2] + 1.0
    refined.array_shape = wcs.array_shape
    refined.wcs.set()
    return refined
