"""Match two lists of positions that differ by a shift, a rotation, a scale and perhaps a reflection.

Runs in workers.  Pairs of bright sources and pairs of bright references vote for a rotation and a scale;
under each of the best ones single pairs vote for a shift.  A map is accepted only above chance alignments.
"""

from __future__ import annotations

__all__ = ("find_shift", "find_similarity", "mutual_matches")

import math

import numpy as np
import numpy.typing as npt
import scipy.ndimage
import scipy.spatial

type FloatArray = npt.NDArray[np.float64]
type IntArray = npt.NDArray[np.intp]

_ANGLE_BINS = 720
_SCALE_STEP = 0.005
_PEAKS = 6
_BRIGHTEST, _MAX_SCALE = 45, 0.1
"""Number of sources that vote, and the largest relative error of the scale."""


def find_similarity(sources: FloatArray, references: FloatArray) -> FloatArray | None:
    """Return the affine map from references to sources, or `None` if chance explains all matches.

    Parameters
    ----------
    sources, references
        Positions in pixels, brightest first, shape ``(n, 2)``.

    Returns
    -------
    map
        Array ``A`` of shape ``(3, 2)``: ``sources = references @ A[:2] + A[2]``.
    """
    few, many = sources[:_BRIGHTEST], references[: int(1.5 * _BRIGHTEST)]
    if len(few) < 5 or len(many) < 5:
        return None
    size = float(np.ptp(sources, axis=0).max())
    best: tuple[float, FloatArray] | None = None
    for parity in (1.0, -1.0):
        for angle, scale in _vote(few, many * np.array([1.0, parity])):
            cosine, sine = scale * math.cos(angle), scale * math.sin(angle)
            linear = np.array([[cosine, sine], [-parity * sine, parity * cosine]])
            turned = references @ linear
            # Half a bin of the angle, at the edge of the field.
            cell = max(0.006 * size, 3.0)
            shift = find_shift(few, turned[: len(many)], 2.0 * size, cell)
            if shift is None:
                continue
            found = _sharpen(sources, references, np.vstack([linear, shift]), cell)
            if found is not None and (best is None or found[0] > best[0]):
                best = found
    return None if best is None else best[1]


def _vote(few: FloatArray, many: FloatArray) -> list[tuple[float, float]]:
    """Return the rotations and scales with the most votes of pairs of pairs."""
    length_a, angle_a = _pairs(few, both=False)
    length_b, angle_b = _pairs(many, both=True)
    half = math.log1p(_MAX_SCALE)
    order = np.argsort(length_b)
    length_b, angle_b = length_b[order], angle_b[order]
    low = np.searchsorted(length_b, length_a - half)
    count = np.searchsorted(length_b, length_a + half) - low
    first = np.repeat(np.arange(len(length_a)), count)
    second = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + np.repeat(low, count)
    scale = length_a[first] - length_b[second]
    angle = np.mod(angle_a[first] - angle_b[second], 2.0 * math.pi)
    bins = 2 * math.ceil(half / _SCALE_STEP) + 1
    votes, scale_edges, angle_edges = np.histogram2d(
        scale, angle, bins=(bins, _ANGLE_BINS), range=((-half, half), (0.0, 2.0 * math.pi))
    )
    # Distortions spread the votes over neighboring bins.
    smooth = scipy.ndimage.uniform_filter(votes, 3, mode=("constant", "wrap"))
    peaks = smooth == scipy.ndimage.maximum_filter(smooth, 7, mode=("constant", "wrap"))
    rows, columns = np.nonzero(peaks)
    top = np.argsort(-smooth[rows, columns], kind="stable")[:_PEAKS]
    scales, angles = 0.5 * (scale_edges[1:] + scale_edges[:-1]), 0.5 * (angle_edges[1:] + angle_edges[:-1])
    return [(float(angles[columns[k]]), float(np.exp(scales[rows[k]]))) for k in top]


def _pairs(positions: FloatArray, *, both: bool) -> tuple[FloatArray, FloatArray]:
    """Return logarithmic lengths and angles of all pairs, in one direction or both."""
    i, j = np.triu_indices(len(positions), 1)
    if both:
        i, j = np.concatenate([i, j]), np.concatenate([j, i])
    dx, dy = (positions[j] - positions[i]).T
    length = np.hypot(dx, dy)
    # Short pairs have no direction.
    keep = length > 0.03 * np.ptp(positions, axis=0).max()
    return np.log(length[keep]), np.arctan2(dy[keep], dx[keep])


def _sharpen(
    sources: FloatArray, references: FloatArray, start: FloatArray, cell: float
) -> tuple[float, FloatArray] | None:
    """Refine a map with smaller and smaller tolerances; return how far it exceeds chance, and the map."""
    current = start
    for radius in (2.0 * cell, 1.5 * cell, cell, 0.7 * cell, max(0.5 * cell, 3.0)):
        placed = references @ current[:2] + current[2]
        source, reference = mutual_matches(sources, placed, radius)
        if source.size < 5:
            return None
        design = np.column_stack([references[reference], np.ones(reference.size)])
        current = np.linalg.lstsq(design, sources[source], rcond=None)[0]
    placed = references @ current[:2] + current[2]
    source, _ = mutual_matches(sources, placed, radius)
    low, high = sources.min(axis=0), sources.max(axis=0)
    inside = int(np.count_nonzero(((placed > low) & (placed < high)).all(axis=1)))
    area = max(float(np.prod(high - low)), 1.0)
    possible, most = sorted((len(sources), inside))
    by_chance = possible * (1.0 - math.exp(-most * math.pi * radius**2 / area))
    excess = (source.size - by_chance) / math.sqrt(by_chance + 1.0)
    # Six sigma, and a third of all possible matches.
    singular = np.linalg.svd(current[:2], compute_uv=False)
    if excess < 6.0 or source.size < max(6, 0.33 * possible) or singular[0] > 1.05 * singular[1]:
        return None
    return excess, current


def find_shift(
    sources: FloatArray, references: FloatArray, max_offset: float, cell: float
) -> FloatArray | None:
    """Return the most frequent shift from references to sources, or `None` if chance explains it.

    Shifts that differ by no more than ``cell`` are the same.
    """
    tree, other = scipy.spatial.cKDTree(sources), scipy.spatial.cKDTree(references)
    pairs = other.sparse_distance_matrix(tree, max_offset, output_type="coo_matrix")
    if not pairs.nnz:
        return None
    offsets = scipy.spatial.cKDTree(sources[pairs.col] - references[pairs.row])
    counts = offsets.query_ball_point(offsets.data, cell, return_length=True)
    best = int(np.argmax(counts))
    by_chance = pairs.nnz * (cell / max_offset) ** 2
    # Six sigma of the chance number, and a tenth of all possible matches.
    possible = min(len(sources), len(references))
    if counts[best] < max(by_chance + 6.0 * math.sqrt(by_chance + 1.0) - 3.0, 0.1 * possible, 3.0):
        return None
    near = offsets.query_ball_point(offsets.data[best], cell)
    return np.asarray(np.median(offsets.data[near], axis=0))


def mutual_matches(sources: FloatArray, references: FloatArray, radius: float) -> tuple[IntArray, IntArray]:
    """Return pairs that are each other's nearest neighbor, as two arrays of indices."""
    distance, forward = scipy.spatial.cKDTree(references).query(sources, distance_upper_bound=radius)
    _, backward = scipy.spatial.cKDTree(sources).query(references, distance_upper_bound=radius)
    source = np.nonzero(np.isfinite(distance))[0]
    source = source[backward[forward[source]] == source]
    return source, forward[source].astype(np.intp)
