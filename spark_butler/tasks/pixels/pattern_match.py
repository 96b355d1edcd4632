"""Match two lists of positions that differ by a shift, a rotation, a scale and perhaps a reflection.

Runs in workers.  Pairs of bright sources and pairs of bright references vote for a rotation and a scale;
under each of the best ones single pairs vote for a shift.  A map is accepted only above chance alignments.
"""

from __future__ import annotations

__all__ = ("find_shift", "find_similarity", "measure_doubling", "mutual_matches")

import math

import numpy as np
import scipy.ndimage
import scipy.spatial

from . import FloatArray, IntArray

_ANGLE_BINS = 720
_SCALE_STEP = 0.005
_PEAKS = 6
_BRIGHTEST, _MAX_SCALE = 30, 0.1
"""Number of sources that vote, and the largest relative error of the scale."""

_MOST_DOUBLED = 1000
"""Largest number of sources whose offsets from each other are compared."""

_PART, _STEP, _MOST_STEPS = 1.5, 0.75, 15.0
"""Size of the parts of a field that are searched, their distance, and the size of a field beyond which they
grow with it, in sizes of the image."""


def find_similarity(sources: FloatArray, references: FloatArray) -> FloatArray | None:
    """Return the affine map from references to sources, or `None` if chance explains all matches.

    Of a field larger than the image, overlapping parts are searched, the nearest to the sources first.
    Positions are sorted, the brightest first.  The map ``A`` means ``sources = references @ A[:2] + A[2]``.
    """
    if len(sources) < 5 or len(references) < 5:
        return None
    low, high = sources.min(axis=0), sources.max(axis=0)
    middle = 0.5 * (low + high)
    # A few sources, close together, don't show the size of the image.
    size = max(float((high - low).max()), float(np.ptp(references, axis=0).max()) / _MOST_STEPS)
    area = max(float(np.prod(high - low)), 0.5 * size**2)
    for center in _centers(middle, size, references):
        near = references[(np.abs(references - center) < 0.5 * _PART * size).all(axis=1)]
        # As faint as the sources in the image, which is only a part of this part.
        ratio = 1.5 * float(np.prod(np.ptp(near, axis=0))) / area if len(near) >= 5 else 0.0
        found = _match_part(sources - middle, near - center, max(int(ratio * _BRIGHTEST), _BRIGHTEST))
        if found is None:
            continue
        found[2] += middle - center @ found[:2]
        # The part may contain only some of the references on the image.
        found_in_all = _sharpen(sources, references, found, _cell(size))
        if found_in_all is not None:
            return found_in_all[1]
    return None


def _cell(size: float) -> float:
    """Return the error of a reference's place, under a rotation that is wrong by half a bin."""
    return max(0.006 * size, 3.0)


def _centers(middle: FloatArray, size: float, references: FloatArray) -> FloatArray:
    """Return the centers of the parts of the field, the nearest to the image's middle first."""
    axes = []
    for axis in (0, 1):
        reach = np.abs(references[:, axis] - middle[axis]).max() / size
        steps = math.ceil(max(reach - 0.5 * _PART, 0.0) / _STEP)
        axes.append(_STEP * size * np.arange(-steps, steps + 1))
    offsets = np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 2)
    return np.asarray(middle + offsets[np.argsort(np.hypot(*offsets.T), kind="stable")])


def _match_part(sources: FloatArray, references: FloatArray, most: int) -> FloatArray | None:
    """Return the most significant map from references, of which the brightest vote, to sources."""
    few, many = sources[:_BRIGHTEST], references[:most]
    if len(many) < 5:
        return None
    size = float(np.ptp(sources, axis=0).max())
    best: tuple[float, FloatArray] | None = None
    for parity in (1.0, -1.0):
        for angle, scale in _vote(few, many * np.array([1.0, parity])):
            cosine, sine = scale * math.cos(angle), scale * math.sin(angle)
            linear = np.array([[cosine, sine], [-parity * sine, parity * cosine]])
            turned = references @ linear
            shift = find_shift(few, turned[: len(many)], 2.0 * size, _cell(size))
            if shift is None:
                continue
            found = _sharpen(sources, references, np.vstack([linear, shift]), _cell(size))
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
    bins = 2 * math.ceil(half / _SCALE_STEP) + 1
    scale = np.floor((length_a[first] - length_b[second] + half) * (bins / (2.0 * half))).astype(np.intp)
    angle = np.mod(angle_a[first] - angle_b[second], 2.0 * math.pi) * (_ANGLE_BINS / (2.0 * math.pi))
    cells = np.clip(scale, 0, bins - 1) * _ANGLE_BINS + angle.astype(np.intp) % _ANGLE_BINS
    votes = np.bincount(cells, minlength=bins * _ANGLE_BINS).reshape(bins, _ANGLE_BINS).astype(float)
    # Distortions spread the votes over neighboring bins.
    smooth = scipy.ndimage.uniform_filter(votes, 3, mode=("constant", "wrap"))
    peaks = smooth == scipy.ndimage.maximum_filter(smooth, 7, mode=("constant", "wrap"))
    rows, columns = np.nonzero(peaks)
    top = np.argsort(-smooth[rows, columns], kind="stable")[:_PEAKS]
    scales = (rows[top] + 0.5) * (2.0 * half / bins) - half
    angles = (columns[top] + 0.5) * (2.0 * math.pi / _ANGLE_BINS)
    return list(zip(angles.tolist(), np.exp(scales).tolist(), strict=True))


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


def measure_doubling(positions: FloatArray, reach: float, cell: float) -> float:
    """Return the share of sources that have another one at the same offset; 0 if chance explains it.

    Positions are sorted, the brightest first.  Offsets up to ``reach`` count; they are the same if they
    differ by no more than ``cell``.
    """
    positions = positions[:_MOST_DOUBLED]
    pairs = scipy.spatial.cKDTree(positions).query_pairs(reach + 3.0 * cell, output_type="ndarray")
    if not len(pairs):
        return 0.0
    offsets = positions[pairs[:, 1]] - positions[pairs[:, 0]]
    plane = scipy.spatial.cKDTree(np.concatenate([offsets, -offsets]))
    # Sources of a clump have small offsets from each other.
    distance = np.hypot(*offsets.T)
    tested = offsets[(distance >= 4.0 * cell) & (distance <= reach)]
    same = plane.query_ball_point(tested, cell, return_length=True)
    # Offsets around say how many there are by chance, in clusters, too.
    around = plane.query_ball_point(tested, 3.0 * cell, return_length=True) - same
    excess = same - around / 8.0
    excess[excess <= 6.0 * np.sqrt(around / 8.0 + 1.0)] = 0.0
    if not excess.any():
        return 0.0
    # A star of a grid has neighbors on both sides.
    best, near = tested[np.argmax(excess)], 3.0 * cell
    tree = scipy.spatial.cKDTree(positions)
    before, after = (
        np.isfinite(tree.query(positions + d, distance_upper_bound=near)[0]) for d in (-best, best)
    )
    if np.count_nonzero(before & after) > 0.5 * np.count_nonzero(after):
        return 0.0
    return float(excess.max()) / len(positions)
