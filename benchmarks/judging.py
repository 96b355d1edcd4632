"""Catalogs of simulated frames compared with the truth, and tables of many frames together."""

from __future__ import annotations

__all__ = ["SCALE", "Found", "Judged", "format_bins", "format_program", "heads", "judge", "pool"]

import dataclasses
import itertools
import math
from collections.abc import Sequence

import astropy.table
import numpy as np
import scipy.ndimage
import scipy.spatial
from lsst.images import MaskedImage

SCALE = 0.2
"""Arcseconds in a pixel of the simulated camera."""

BINS = (10.0, 20.0, 50.0, 100.0, 300.0, math.inf)
"""Limits of the signal-to-noise ratios whose pulls are told apart."""

_MEDIAN_ERROR = 1.17
"""Error of a width that comes from the median deviation of n numbers, times the root of n, in such widths."""


@dataclasses.dataclass
class Found:
    """Sources that a program found: positions, fluxes in electrons and their errors."""

    x: np.ndarray
    y: np.ndarray
    flux: np.ndarray
    error: np.ndarray
    seconds: float
    ra: np.ndarray | None = None
    dec: np.ndarray | None = None
    """Degrees; None without an astrometric solution."""
    fwhm: float = math.nan
    """Width in pixels of the PSF's profile, without the pixels."""
    zero_point: float = math.nan
    flag: str = ""
    """Reasons for which the program flags the image."""


@dataclasses.dataclass
class Judged:
    """Comparison of sources with the truth, of one frame or more; arrays have an element for each star."""

    complete: np.ndarray
    """Whether a single star was found."""
    pure: np.ndarray
    """Whether a source above ten times its error is there."""
    ratio: np.ndarray
    """Flux over the true one, of single stars with a signal-to-noise ratio above 50."""
    snr: np.ndarray
    pull: np.ndarray
    """Error of a single star's flux less the frame's median error, in units of the estimated error."""
    split: np.ndarray
    """Whether a single star was found twice."""
    mas: np.ndarray
    """Position error on the sky of single stars above 100."""
    zero_point: list[float]
    fwhm: list[float]
    """Relative error."""
    seconds: list[float]
    flags: list[str]


def pool(parts: Sequence[Judged]) -> Judged:
    """Return the stars of all frames together."""
    names = [field.name for field in dataclasses.fields(Judged)]
    values = {name: [getattr(part, name) for part in parts] for name in names}
    return Judged(
        **{
            name: np.concatenate(each) if isinstance(each[0], np.ndarray) else list(itertools.chain(*each))
            for name, each in values.items()
        }
    )


def judge(found: Found, truth: astropy.table.Table, post: MaskedImage) -> Judged:
    """Compare with the truth: stars that are apart from others, away from edges and defects."""
    fwhm = float(truth["fwhm"][0]) / SCALE
    x, y = np.asarray(truth["x"]), np.asarray(truth["y"])
    flux = 10.0 ** (0.4 * (np.asarray(truth["zero_point"]) - np.asarray(truth["mag"])))
    noise = np.median(np.sqrt(post.variance.array)) * np.sqrt(4.0 * np.pi) * fwhm / 2.355
    snr = flux / np.sqrt(noise**2 + flux)
    tree = scipy.spatial.cKDTree(np.column_stack([x, y]))
    near = tree.query_ball_point(tree.data, 2.0 * fwhm)
    alone = np.array([flux[list(group)].sum() < 1.1 * f for group, f in zip(near, flux, strict=True)])
    wanted = alone & _is_clean(x, y, post, fwhm) & np.asarray(truth["is_star"]) & (snr > 10.0)
    places = np.column_stack([found.x, found.y])
    found_tree = scipy.spatial.cKDTree(places)
    radius = max(1.0, 0.5 * fwhm)
    distance, index = found_tree.query(tree.data)
    backward, origin = tree.query(places)
    good = wanted & (distance < radius)
    bright = good & (snr > 50.0)
    ratio = found.flux[index] / flux
    middle = float(np.median(ratio[bright])) if bright.any() else 1.0
    # A star is split if another source near it is no other star.
    split = np.zeros(len(x), dtype=bool)
    for star in np.flatnonzero(good):
        others = [k for k in found_tree.query_ball_point(tree.data[star], 1.5 * fwhm) if k != index[star]]
        split[star] = any(backward[k] > radius or origin[k] == star for k in others)
    mas = np.zeros(0)
    if found.ra is not None and found.dec is not None:
        best = good & (snr > 100.0)
        east = (found.ra[index] - np.asarray(truth["ra"])) * np.cos(np.deg2rad(np.asarray(truth["dec"])))
        mas = 3.6e6 * np.hypot(east, found.dec[index] - np.asarray(truth["dec"]))[best]
    return Judged(
        complete=distance[wanted] < radius,
        pure=backward[found.flux > 10.0 * found.error] < max(2.0, fwhm),
        ratio=ratio[bright],
        snr=snr[good],
        pull=((found.flux[index] - middle * flux) / found.error[index])[good],
        split=split[good],
        mas=mas,
        zero_point=[found.zero_point - float(truth["zero_point"][0])],
        fwhm=[found.fwhm / fwhm - 1.0],
        seconds=[found.seconds],
        flags=[found.flag] if found.flag else [],
    )


def _is_clean(x: np.ndarray, y: np.ndarray, post: MaskedImage, fwhm: float) -> np.ndarray:
    """Return which positions are away from the edges, defects and saturated pixels."""
    ny, nx = post.image.array.shape
    margin = 2.0 * fwhm + 3.0
    inside = (x > margin) & (y > margin) & (x < nx - margin) & (y < ny - margin)
    spoiled = scipy.ndimage.maximum_filter(post.mask.get("BAD") | post.mask.get("SATURATED"), 9)
    columns, rows = (
        np.clip(np.rint(v), 0, n - 1).astype(int) for v, n in ((np.nan_to_num(x), nx), (np.nan_to_num(y), ny))
    )
    return np.asarray(inside & ~spoiled[rows, columns])


def heads() -> tuple[str, str]:
    """Return the heads of the table of programs and of the one of bins."""
    programs = "scene|program|completeness|purity|flux, %|pull|mas|zero point|FWHM, %|CPU-s"
    last = len(BINS) - 2
    bins = [f"{low:g}–{high:g}" if i < last else "above" for i, (low, high) in enumerate(_pairs())]
    columns = [
        "scene",
        "stars",
        "completeness",
        "purity",
        "S/N " + bins[0],
        *bins[1:],
        "split, %",
        "flux, %",
        "zero point",
        "FWHM, %",
    ]
    columns += ["mas", "flagged"]
    return tuple(
        f"| {' | '.join(names)} |\n|{'---|' * len(names)}" for names in (programs.split("|"), columns)
    )  # type: ignore[return-value]


def _pairs() -> list[tuple[float, float]]:
    return list(itertools.pairwise(BINS))


def format_program(scene: str, program: str, judged: Judged) -> str:
    """Return a row of the table of programs; of zero points and FWHM the frame that is farthest off."""
    cells = [f"{judged.complete.mean():.3f}", f"{judged.pure.mean():.3f}" if judged.pure.size else ""]
    cells += [_bias(judged), f"{_width(judged.pull):.2f}", _mas(judged)]
    cells += [_worst(judged.zero_point, 1.0, 3), _worst(judged.fwhm, 100.0, 1)]
    return f"| {scene} | {program} | {' | '.join(cells)} | {np.mean(judged.seconds):.1f} |"


def format_bins(scene: str, judged: Judged) -> str:
    """Return a row of the table of pulls by signal-to-noise ratio, with their statistical errors."""
    cells = [f"{judged.complete.mean():.3f}", f"{judged.pure.mean():.3f}" if judged.pure.size else ""]
    for low, high in _pairs():
        pull = judged.pull[(judged.snr > low) & (judged.snr <= high)]
        width = _width(pull)
        cells.append(f"{width:.2f} ± {_MEDIAN_ERROR * width / math.sqrt(pull.size):.2f}" if pull.size else "")
    cells += [f"{100.0 * judged.split.mean():.1f}", _bias(judged), _worst(judged.zero_point, 1.0, 3)]
    cells += [_worst(judged.fwhm, 100.0, 1), _mas(judged)]
    flags = sorted({reason for flag in judged.flags for reason in flag.split(",")})
    cells.append(f"{len(judged.flags)}: {', '.join(flags)}" if flags else "")
    return f"| {scene} | {judged.complete.size} | {' | '.join(cells)} |"


def _width(values: np.ndarray) -> float:
    return 1.4826 * float(np.median(np.abs(values - np.median(values)))) if values.size else math.nan


def _bias(judged: Judged) -> str:
    return f"{100.0 * (float(np.median(judged.ratio)) - 1.0):+.1f}" if judged.ratio.size else ""


def _mas(judged: Judged) -> str:
    return f"{np.median(judged.mas):.0f}" if judged.mas.size else ""


def _worst(values: Sequence[float], factor: float, digits: int) -> str:
    known = [value for value in values if math.isfinite(value)]
    return f"{factor * max(known, key=abs):+.{digits}f}" if known else ""
