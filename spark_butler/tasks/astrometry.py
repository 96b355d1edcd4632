"""Match sources to a reference catalog and fit a projection on the sky.

Runs in workers.
"""

from __future__ import annotations

__all__ = ("AstrometrySolution", "no_indices", "pixel_scale", "project_references", "refine_wcs")

import dataclasses
import math
import warnings

import astropy.table
import astropy.wcs
import numpy as np
from astropy.coordinates import SkyCoord, angular_separation
from astropy.wcs.utils import fit_wcs_from_points, proj_plane_pixel_area

from .pixels import BoolArray, FloatArray, IntArray
from .pixels.pattern_match import find_shift, find_similarity, mutual_matches
from .pixels.psf_model import polynomial_terms
from .pixels.robust import MAD_TO_SIGMA, choose_reserved, lowest_sufficient, robust_sigma

_PARTS = 4
"""Number of parts of the stars; each part is predicted once by a fit to the others."""

_RESERVED = 0.2
"""Share of the stars that is left out of the final fit, to judge it."""

_BRIGHTEST, _MOST_FITTED = 200, 600
"""Most sources in the search for a shift, and in a fit."""

_GRID = 15
"""Points along each axis at which the fitted map from pixels to the sky is turned into a projection."""


def no_indices() -> IntArray:
    """Return an empty array of indices."""
    return np.zeros(0, dtype=np.intp)


@dataclasses.dataclass(frozen=True)
class AstrometrySolution:
    """A projection, and the matches that it comes from."""

    wcs: astropy.wcs.WCS
    """The refined projection; the initial one without a match."""

    sources: IntArray = dataclasses.field(default_factory=no_indices)
    references: IntArray = dataclasses.field(default_factory=no_indices)
    """Indices of the matched sources and references, in pairs."""

    offset: float = math.nan
    """Distance by which the refinement moved the image's center on the sky, in arcseconds."""

    scatter: float = math.nan
    """Robust standard deviation of the residuals per axis in arcseconds.

    It is computed from stars left out of the fit, if there are enough.
    """

    failure: str = ""
    """Why there is no solution; empty if there is one."""

    reserved: IntArray = dataclasses.field(default_factory=no_indices)
    """Matched sources that were left out of the fit, from which ``scatter`` is computed.

    Of few matches, none are left out, and each is compared with a fit to three quarters of the others.
    """

    fitted: IntArray = dataclasses.field(default_factory=no_indices)
    """Matched sources that the projection was fitted to, without outliers and the faintest sources."""

    sip_degree: int = 0
    """Degree of the distortion's polynomials; 0 without them."""

    @property
    def pixel_scale(self) -> float:
        """Arcseconds per pixel."""
        return pixel_scale(self.wcs)

    def about(
        self, wcs: astropy.wcs.WCS, x: FloatArray, y: FloatArray, references: astropy.table.Table
    ) -> AstrometrySolution:
        """Return the same matches with another projection, and their scatter about it.

        Parameters
        ----------
        wcs
            Projection that was not fitted to them.
        x, y
            Positions of all sources in pixels.
        references
            Catalog with ``ra`` and ``dec`` in degrees.
        """
        partners = references[self.references]
        expected = _place(wcs, np.asarray(partners["ra"]), np.asarray(partners["dec"]))
        distance = np.hypot(*(np.column_stack([x, y])[self.sources] - expected).T)
        # The median of the distances is this multiple of the standard deviation per axis (Rayleigh).
        sigma = float(np.median(distance)) / math.sqrt(2.0 * math.log(2.0))
        return AstrometrySolution(wcs, self.sources, self.references, 0.0, sigma * pixel_scale(wcs))


def pixel_scale(wcs: astropy.wcs.WCS) -> float:
    """Return the arcseconds per pixel of a projection."""
    return math.sqrt(proj_plane_pixel_area(wcs)) * 3600.0


def project_references(
    wcs: astropy.wcs.WCS, ra: FloatArray, dec: FloatArray, shape: tuple[int, ...], margin: float
) -> tuple[IntArray, FloatArray, FloatArray]:
    """Return the indices of the references on the image, and their columns and rows.

    Parameters
    ----------
    ra, dec
        Positions in degrees.
    shape
        Rows and columns of the image.
    margin
        Pixels by which references may lie outside.
    """
    # A gnomonic projection also maps the far side of the sky to finite pixels.
    center = np.radians(wcs.pixel_to_world_values(*_middle(shape)))
    reach = math.radians((math.hypot(*shape[:2]) + margin) * pixel_scale(wcs) / 3600.0)
    near = np.nonzero(angular_separation(*center, np.radians(ra), np.radians(dec)) < min(reach, 1.0))[0]
    x, y = _place(wcs, ra[near], dec[near]).T
    inside = (x > -margin) & (y > -margin) & (x < shape[1] - 1 + margin) & (y < shape[0] - 1 + margin)
    return near[inside], x[inside], y[inside]


def _middle(shape: tuple[int, ...]) -> tuple[float, float]:
    """Return the column and row of an image's center."""
    return 0.5 * (shape[1] - 1), 0.5 * (shape[0] - 1)


def refine_wcs(  # noqa: PLR0913
    wcs: astropy.wcs.WCS,
    x: FloatArray,
    y: FloatArray,
    brightness: FloatArray,
    ra: FloatArray,
    dec: FloatArray,
    reference_flux: FloatArray,
    shape: tuple[int, ...],
    *,
    max_offset: float,
    match_radius: float,
    errors: FloatArray | None = None,
    min_matches: int = 5,
    max_sip_degree: int = 3,
    blind: bool = True,
) -> AstrometrySolution:
    """Match sources and references and fit a projection to the matches.

    The search is first for a shift, then, if ``blind``, for any rotation and reflection and a scale within a
    tenth.  A match is accepted only well above the level of chance alignments: a wrong projection does more
    harm than a coarse one.  Distortions are fitted if they improve stars that are left out of the fit.

    Parameters
    ----------
    wcs, shape
        Initial projection; rows and columns of the image.
    x, y, brightness
        Source positions in pixels, and fluxes; sources whose flux is not positive and finite aren't used.
    ra, dec, reference_flux
        Reference positions in degrees, and fluxes.
    max_offset
        Largest error of the pointing in the search, in pixels.
    match_radius
        Largest distance of a match in pixels, once the projection is known.
    errors
        Errors of the source positions in pixels: the weights of the fit.
    min_matches
        Least number of matches for a solution.
    max_sip_degree
        Largest degree of the distortion's polynomials; below 2 no distortion is fitted.
    blind
        Whether to search for more than a shift.
    """
    on_image, ref_x, ref_y = project_references(wcs, ra, dec, shape, max_offset)
    usable = np.nonzero(np.isfinite(brightness) & (brightness > 0.0))[0]
    if on_image.size < min_matches or usable.size < min_matches:
        few = f"{on_image.size} references and {usable.size} usable sources; {min_matches} are needed"
        return AstrometrySolution(wcs, failure=few)
    usable = usable[np.argsort(-brightness[usable], kind="stable")]
    order = np.argsort(-np.nan_to_num(reference_flux[on_image]), kind="stable")
    sources = np.column_stack([x[usable], y[usable]])
    noise = np.broadcast_to(0.1 if errors is None else np.asarray(errors, dtype=np.float64), x.shape)[usable]
    on_image, references = on_image[order], np.column_stack([ref_x[order], ref_y[order]])
    start = _first_match(sources, references, max_offset, match_radius, blind)
    if start is None:
        chance = f"no offset up to {max_offset:.0f} pixels stands out among chance alignments"
        return AstrometrySolution(wcs, failure=chance)
    placed = references @ start[:2] + start[2]
    radii = (6.0 * match_radius, 3.0 * match_radius, 2.0 * match_radius, match_radius, match_radius)
    refined, degree, floor = wcs, 0, 0.01
    for step, radius in enumerate(radii):
        source, reference = _match_clipped(sources, placed, radius)
        if source.size < min_matches:
            return AstrometrySolution(wcs, failure=f"{source.size} matches; {min_matches} are needed")
        fitted, partners = (index[: _best_count(noise[source])] for index in (source, reference))
        plane = _tangent_plane(refined, shape)
        on_plane = _place(plane, ra[on_image[partners]], dec[on_image[partners]])
        pairs = _Pairs(sources[fitted], on_plane, np.hypot(noise[fitted], max(floor, 0.01)), shape)
        degree = _choose_degree(pairs, max_sip_degree) if step in (1, len(radii) - 1) else degree
        used = ~choose_reserved(brightness[usable[fitted]], _RESERVED if step + 1 == len(radii) else 0.0)
        refined = _solve(wcs, plane, pairs.part(used), degree)
        placed = _place(refined, ra[on_image], dec[on_image])
        floor = max(_unexplained(sources[fitted] - placed[partners], noise[fitted]), 0.01)
    return AstrometrySolution(
        wcs=refined,
        sources=usable[source],
        references=on_image[reference],
        offset=_offset_at_center(wcs, refined, shape),
        scatter=pixel_scale(plane) * _validate(pairs, used, degree),
        reserved=usable[fitted[~used]],
        fitted=usable[fitted[used]],
        sip_degree=degree,
    )


def _match_clipped(sources: FloatArray, placed: FloatArray, radius: float) -> tuple[IntArray, IntArray]:
    """Return the indices of sources and references that match; of five or more, without outliers."""
    source, reference = mutual_matches(sources, placed, radius)
    if source.size < 5:
        return source, reference
    residual = sources[source] - placed[reference]
    centered = residual - np.median(residual, axis=0)
    spread = MAD_TO_SIGMA * np.median(np.abs(centered), axis=0)
    kept = (np.abs(centered) < 4.0 * np.maximum(spread, 0.02)).all(axis=1)
    return source[kept], reference[kept]


def _offset_at_center(before: astropy.wcs.WCS, after: astropy.wcs.WCS, shape: tuple[int, ...]) -> float:
    """Return the distance in arcseconds between the centers of an image under two projections."""
    first, second = (SkyCoord(*wcs.all_pix2world(*_middle(shape), 0), unit="deg") for wcs in (before, after))
    return float(first.separation(second).arcsec)


def _first_match(
    sources: FloatArray, references: FloatArray, max_offset: float, match_radius: float, blind: bool
) -> FloatArray | None:
    """Return the affine map from projected references to sources."""
    inner, outer = sources[:_BRIGHTEST], references[: int(1.5 * _BRIGHTEST)]
    shift, moved = find_shift(inner, outer, max_offset, match_radius), None
    if shift is not None:
        moved = np.vstack([np.eye(2), shift])
        found = mutual_matches(sources, references + shift, 2.0 * match_radius)[0].size
        if not blind or found > 0.5 * min(len(inner), len(outer)):
            return moved
    turned = find_similarity(sources, references) if blind else None
    return moved if turned is None else turned


def _best_count(noise: FloatArray) -> int:
    """Return the number of brightest stars that minimizes the error of an unweighted fit."""
    count = np.arange(1, len(noise) + 1)
    error = np.cumsum(np.nan_to_num(noise, nan=1.0) ** 2 + 0.01**2) / count**2
    start = min(40, len(noise)) - 1
    return min(start + int(np.argmin(error[start:])) + 1, _MOST_FITTED)


def _place(wcs: astropy.wcs.WCS, ra: FloatArray, dec: FloatArray) -> FloatArray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.column_stack(wcs.all_world2pix(ra, dec, 0, quiet=True))


@dataclasses.dataclass(frozen=True)
class _Pairs:
    """Matched positions, brightest first."""

    pixels: FloatArray
    plane: FloatArray
    """Where the references are on the tangential plane, in pixels of the first projection."""

    errors: FloatArray
    shape: tuple[int, ...]

    def part(self, used: BoolArray) -> _Pairs:
        """Return some of the pairs."""
        return _Pairs(self.pixels[used], self.plane[used], self.errors[used], self.shape)

    def terms(self, pixels: FloatArray, degree: int) -> FloatArray:
        """Return the terms of the polynomials that map pixels to the plane."""
        return polynomial_terms(pixels[:, 0] / self.shape[1], pixels[:, 1] / self.shape[0], max(degree, 1))

    def fit(self, used: BoolArray, degree: int) -> FloatArray:
        """Return the coefficients of the map of the weighted least squares."""
        weight = (1.0 / self.errors[used])[:, None]
        terms = self.terms(self.pixels[used], degree)
        return np.asarray(np.linalg.lstsq(terms * weight, self.plane[used] * weight, rcond=None)[0])

    def residuals(self, fitted: BoolArray, tested: BoolArray, degree: int) -> FloatArray:
        """Return the distances of the tested references from their positions in a fit to the others."""
        if np.count_nonzero(fitted) < _LEAST_LINEAR:
            return self.plane[tested] - self.pixels[tested]
        expected = self.terms(self.pixels[tested], degree) @ self.fit(fitted, degree)
        return np.asarray(self.plane[tested] - expected)


_LEAST_LINEAR = 10
"""With fewer stars only a shift is fitted."""


def _unexplained(residual: FloatArray, noise: FloatArray) -> float:
    """Return the scatter per axis of the better half of the stars that their errors don't explain."""
    better = noise <= np.median(noise)
    spread = robust_sigma(residual[better])
    return math.sqrt(max(spread**2 - float(np.median(noise[better])) ** 2, 0.0))


def _choose_degree(pairs: _Pairs, max_degree: int) -> int:
    """Return the lowest degree of distortion that predicts stars left out of the fit as well as any other."""
    count = len(pairs.pixels)
    degrees = [0, *(d for d in range(2, max_degree + 1) if 2 * count >= 3 * (d + 1) * (d + 2))]
    misfit = np.zeros((len(degrees), count))
    for row, degree in enumerate(degrees if len(degrees) > 1 else ()):
        deviation = _predict(pairs, degree) / pairs.errors[:, None]
        misfit[row] = np.minimum((deviation**2).sum(axis=1), 25.0)
    return degrees[lowest_sufficient(misfit)]


def _predict(pairs: _Pairs, degree: int) -> FloatArray:
    """Return the distance of each reference from its position in a fit without its part of the stars."""
    part = np.arange(len(pairs.pixels)) % _PARTS
    residual = np.zeros_like(pairs.plane)
    for k in range(_PARTS):
        residual[part == k] = pairs.residuals(part != k, part == k, degree)
    return residual


def _validate(pairs: _Pairs, used: BoolArray, degree: int) -> float:
    """Return the scatter in pixels of stars about fits to others: of the reserved stars, or of all parts."""
    residual = _predict(pairs, degree) if used.all() else pairs.residuals(used, ~used, degree)
    return robust_sigma(residual - np.median(residual, axis=0))


def _tangent_plane(first: astropy.wcs.WCS, shape: tuple[int, ...]) -> astropy.wcs.WCS:
    """Return a gnomonic projection about the image's center, as ``first`` has it, without distortion."""
    plane = astropy.wcs.WCS(naxis=2)
    plane.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    plane.wcs.radesys = "ICRS"
    plane.wcs.crval = [float(value) for value in first.all_pix2world(*_middle(shape), 0)]
    plane.wcs.crpix = np.array(_middle(shape)) + 1.0
    plane.wcs.cd = first.pixel_scale_matrix
    plane.wcs.set()
    return plane


def _solve(first: astropy.wcs.WCS, plane: astropy.wcs.WCS, pairs: _Pairs, degree: int) -> astropy.wcs.WCS:
    """Return a gnomonic projection fitted to pairs; with few of them only the first one's shift is."""
    shape = pairs.shape
    if len(pairs.pixels) < _LEAST_LINEAR:
        moved = first.deepcopy()
        there = _place(first, *plane.wcs_pix2world(pairs.plane, 0).T)
        moved.wcs.crpix = moved.wcs.crpix + np.median(pairs.pixels - there, axis=0)
        moved.wcs.set()
        return moved
    # The library's fit has no weights, so it gets points of the weighted fit, the center among them.
    x, y = np.meshgrid(*(np.linspace(0.0, size - 1.0, _GRID) for size in (shape[1], shape[0])))
    grid = np.column_stack([x.ravel(), y.ravel()])
    coefficients = pairs.fit(np.ones(len(pairs.pixels), dtype=bool), degree)
    ra, dec = plane.wcs_pix2world(pairs.terms(grid, degree) @ coefficients, 0).T
    center = len(grid) // 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wcs = fit_wcs_from_points(
            tuple(grid.T),
            SkyCoord(ra, dec, unit="deg"),
            # The library puts this point on the image, whatever the stars say.
            proj_point=SkyCoord(ra[center], dec[center], unit="deg"),
            sip_degree=degree or None,
        )
    wcs.wcs.radesys = "ICRS"
    wcs.array_shape = first.array_shape
    return wcs
