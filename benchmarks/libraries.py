"""Benchmark of single steps of process_ccd beside libraries that do the same, on the same simulated frames.

The steps are: cosmic rays (astroscrappy), the sky (photutils, sep), the combination of calibration frames
(ccdproc), and the first match of stars with references (astroalign).  The tables go to standard output, in
Markdown.  ``benchmarks/science.py`` compares whole catalogs.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import math
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import astroalign
import astropy.nddata
import astropy.stats
import astropy.table
import astropy.units as u
import astroscrappy
import ccdproc
import numpy as np
import photutils.background
import scipy.ndimage
import sep
from judging import SCALE
from lsst.images import MaskedImage
from science import RawFrame, simulate_frame

from spark_butler.demo.simulation import read_table
from spark_butler.obs.masters import combine
from spark_butler.tasks.pixels.artifacts import find_cosmic_rays, star_contrast
from spark_butler.tasks.pixels.background import estimate_background
from spark_butler.tasks.pixels.pattern_match import find_shift, find_similarity

SIGNIFICANCE, NEIGHBORS, CONTRAST = 4.5, 0.3, 5.0
"""Parameters of L.A.Cosmic, the same for all programs."""

CELL = 64


@dataclasses.dataclass
class Frame:
    """Simulated frame after isr, with the true sources and cosmic rays."""

    name: str
    post: MaskedImage
    truth: astropy.table.Table
    rays: np.ndarray
    """Electrons of cosmic rays in each pixel."""

    @property
    def fwhm(self) -> float:
        """FWHM of the PSF in pixels."""
        return float(self.truth["fwhm"][0]) / SCALE

    @property
    def ignored(self) -> np.ndarray:
        """Mask of the pixels that the comparison ignores."""
        return np.asarray(self.post.mask.get("BAD") | self.post.mask.get("SATURATED"))

    @property
    def flux(self) -> np.ndarray:
        """Flux of each true source in electrons."""
        return np.asarray(
            10.0 ** (0.4 * (np.asarray(self.truth["zero_point"]) - np.asarray(self.truth["mag"])))
        )


def make_frame(scene: str, size: int, seed: int) -> Frame:
    """Simulate one frame."""
    with tempfile.TemporaryDirectory() as folder:
        night = simulate_frame(folder, size, seed, scene)
        post = RawFrame.of_night(night).run_isr()
        truth, hits = read_table(night.truth), read_table(night.cosmic_rays)
    rays = np.zeros(post.image.array.shape)
    x, y = np.asarray(hits["x"], dtype=int), np.asarray(hits["y"], dtype=int)
    inside = (x >= 0) & (y >= 0) & (x < rays.shape[1]) & (y < rays.shape[0])
    np.add.at(rays, (y[inside], x[inside]), np.asarray(hits["electrons"])[inside])
    return Frame(scene, post, truth, rays)


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """Call a function; return its result and its processor time."""
    start = time.process_time()
    return function(), time.process_time() - start


def compare_cosmic_rays(frames: Sequence[Frame]) -> Iterator[Sequence[str]]:
    """Yield the share of found pixels above 10 sigma, the false detections, and the harmed stars."""
    for frame in frames:
        data = np.asarray(frame.post.image.array, dtype=np.float32)
        variance = np.asarray(frame.post.variance.array, dtype=np.float32)
        floor = np.maximum(variance - np.clip(data, 0.0, None), 1.0)
        contrast = max(CONTRAST, 2.0 * star_contrast(frame.fwhm))
        common = {
            **{"inmask": frame.ignored, "invar": variance, "gain": 1.0, "satlevel": 1e9, "niter": 2},
            **{"readnoise": float(np.sqrt(np.median(floor))), "sigclip": SIGNIFICANCE, "sigfrac": NEIGHBORS},
            "cleantype": "meanmask",
        }
        gauss = {"fsmode": "convolve", "psfmodel": "gauss", "psffwhm": frame.fwhm}
        programs: Mapping[str, Callable[[], np.ndarray]] = {
            "process_ccd": lambda d=data, f=floor, c=contrast, i=frame.ignored: find_cosmic_rays(
                d, np.sqrt(f), ignore=i, threshold=SIGNIFICANCE, neighbor_fraction=NEIGHBORS, contrast=c
            ),
            "astroscrappy, median": lambda d=data, o=common, c=contrast: astroscrappy.detect_cosmics(
                d, objlim=c, **o
            )[0],
            "astroscrappy, PSF": lambda d=data, o=common, g=gauss, c=contrast: astroscrappy.detect_cosmics(
                d, objlim=c, **o, **g
            )[0],
        }
        noise = float(np.median(np.sqrt(variance)))
        strong = (frame.rays > 10.0 * noise) & ~frame.ignored
        near = scipy.ndimage.binary_dilation(frame.rays > noise, iterations=2)
        for program, find in programs.items():
            found, seconds = timed(find)
            other = found & ~near & ~frame.ignored
            harmed, stars = _count_harmed(frame, other, noise)
            cells = [f"{np.mean(found[strong]):.3f}", str(np.count_nonzero(other)), f"{harmed} of {stars}"]
            yield [frame.name, program, *cells, f"{seconds:.2f}"]


def _count_harmed(frame: Frame, flagged: np.ndarray, noise: float) -> tuple[int, int]:
    """Return the number of bright stars with a flag in their central nine pixels, and of all bright stars."""
    x, y = np.asarray(frame.truth["x"]), np.asarray(frame.truth["y"])
    ny, nx = flagged.shape
    chosen = (frame.flux > 75.0 * noise * frame.fwhm) & (x > 5) & (y > 5) & (x < nx - 6) & (y < ny - 6)
    spread = scipy.ndimage.maximum_filter(flagged, 3)
    hit = spread[np.rint(y[chosen]).astype(int), np.rint(x[chosen]).astype(int)]
    return int(np.count_nonzero(hit)), int(np.count_nonzero(chosen))


def compare_skies(frames: Sequence[Frame]) -> Iterator[Sequence[str]]:
    """Yield mean and scatter of the error of the sky between sources, in units of the noise of a pixel."""
    for frame in frames:
        data = np.asarray(frame.post.image.array, dtype=np.float32)
        noise = float(np.median(np.sqrt(frame.post.variance.array)))
        bad = frame.ignored | (frame.rays > 0)
        # A second round knows the footprints of the sources that the first round found.
        smooth = scipy.ndimage.gaussian_filter(data - np.median(data), frame.fwhm / 2.355)
        detected = smooth > 3.0 * astropy.stats.mad_std(smooth)
        masked = bad | scipy.ndimage.binary_dilation(detected, iterations=round(frame.fwhm))
        programs: Mapping[str, Callable[[], np.ndarray]] = {
            "process_ccd": lambda d=data, m=masked, p=frame.post: (
                estimate_background(d, m, cell=CELL).as_field(p.bbox).render(dtype=np.float32).array
            ),
            "photutils": lambda d=data, m=masked: (
                photutils.background.Background2D(d, CELL, mask=m, exclude_percentile=90.0).background
            ),
            "sep": lambda d=data, m=masked: sep.Background(d, mask=m, bw=CELL, bh=CELL).back(),
        }
        empty = _empty_blocks(frame, bad)
        for program, measure in programs.items():
            sky, seconds = timed(measure)
            error = [float(np.mean((data - sky)[block])) / noise for block in empty]
            cells = [f"{np.mean(error):+.3f}", f"{np.std(error):.3f}"]
            yield [frame.name, program, *cells, f"{seconds:.2f}"]


def _empty_blocks(frame: Frame, bad: np.ndarray) -> list[np.ndarray]:
    """Return a mask per block of 128 × 128 pixels, true for pixels without light of any true source."""
    covered = bad.copy()
    x, y = np.rint(frame.truth["x"]).astype(int), np.rint(frame.truth["y"]).astype(int)
    noise = float(np.median(np.sqrt(frame.post.variance.array)))
    reach = np.clip(frame.fwhm * (1.5 + 0.7 * np.log10(1.0 + frame.flux / noise)), 2.0, 60.0)
    rows, columns = np.indices(bad.shape)
    for a, b, radius in zip(x, y, np.ceil(reach).astype(int), strict=True):
        window = (slice(max(b - radius, 0), b + radius + 1), slice(max(a - radius, 0), a + radius + 1))
        covered[window] |= (rows[window] - b) ** 2 + (columns[window] - a) ** 2 <= radius**2
    blocks = []
    for j in range(0, bad.shape[0], 128):
        for i in range(0, bad.shape[1], 128):
            block = np.zeros_like(bad)
            block[j : j + 128, i : i + 128] = True
            block &= ~covered
            if np.count_nonzero(block) > 500:
                blocks.append(block)
    return blocks


def compare_combinations(seed: int) -> Iterator[Sequence[str]]:
    """Yield scatter and largest error of masters of frames with cosmic rays, in units of the ideal sigma."""
    rng = np.random.default_rng(seed)
    for count in (3, 5, 9, 21):
        frames = [rng.normal(1000.0, 10.0, (512, 512)).astype(np.float32) for _ in range(count)]
        for frame in frames:
            frame[rng.random(frame.shape) < 1e-3] += 2000.0
        programs: Mapping[str, Callable[[], np.ndarray]] = {
            "process_ccd": lambda each=frames: combine(each),
            "ccdproc": lambda each=frames: np.asarray(
                ccdproc.combine(
                    [astropy.nddata.CCDData(frame, unit=u.adu) for frame in each],
                    sigma_clip=True,
                    sigma_clip_low_thresh=5,
                    sigma_clip_high_thresh=5,
                    sigma_clip_func=np.ma.median,
                    sigma_clip_dev_func=astropy.stats.mad_std,
                ).data
            ),
        }
        for program, make in programs.items():
            master, seconds = timed(make)
            error = (master - 1000.0) / (10.0 / math.sqrt(count))
            cells = [f"{np.std(error):.3f}", f"{np.max(np.abs(error)):.1f}"]
            yield [f"{count} frames", program, *cells, f"{seconds:.2f}"]


def compare_matches(seed: int, trials: int = 20) -> Iterator[Sequence[str]]:
    """Yield how often the transformation between stars and references is found to within two pixels."""
    for stars, common, words in (
        (60, 0.9, "60 stars"),
        (60, 0.5, "60 stars, half of them in both"),
        (500, 0.7, "500 stars"),
    ):
        cases = [_make_lists(np.random.default_rng((seed, trial)), stars, common) for trial in range(trials)]
        programs: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray | None]] = {
            "process_ccd": _match_ours,
            "astroalign": _match_astroalign,
        }
        for program, match in programs.items():
            right = wrong = 0
            start = time.process_time()
            for sources, references, true in cases:
                found = match(sources, references)
                if found is None:
                    continue
                corners = np.array([[0.0, 0.0], [1000.0, 0.0], [0.0, 1000.0], [1000.0, 1000.0]])
                error = corners @ (found[:2] - true[:2]) + found[2] - true[2]
                good = float(np.hypot(*error.T).max()) < 2.0
                right, wrong = right + good, wrong + (not good)
            seconds = (time.process_time() - start) / trials
            yield [words, program, f"{right} of {trials}", str(wrong), f"{seconds:.2f}"]


def _make_lists(
    rng: np.random.Generator, stars: int, common: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return sources and references, brightest first, and the map that takes references to sources."""
    positions = rng.uniform(0.0, 1000.0, (stars, 2))
    angle, scale = rng.uniform(0.0, 2.0 * math.pi), rng.uniform(0.93, 1.07)
    turn = scale * np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    shift = rng.uniform(-300.0, 300.0, 2)
    back = np.linalg.inv(turn)
    seen = positions[rng.random(stars) < common] + 0.0
    known = positions[rng.random(stars) < common]
    # The rows of both lists are in the order of brightness; only the positions have errors.
    sources = seen + rng.normal(0.0, 0.1, seen.shape)
    references = (known - shift) @ back
    return sources, references, np.vstack([turn, shift])


def _match_ours(sources: np.ndarray, references: np.ndarray) -> np.ndarray | None:
    shift = find_shift(sources, references, 600.0, 2.0)
    return np.vstack([np.eye(2), shift]) if shift is not None else find_similarity(sources, references)


def _match_astroalign(sources: np.ndarray, references: np.ndarray) -> np.ndarray | None:
    try:
        found, _ = astroalign.find_transform(references, sources, max_control_points=50)
    except (astroalign.MaxIterError, TypeError, ValueError):
        return None
    return np.asarray(np.vstack([found.params[:2, :2].T, found.params[:2, 2]]))


def write_table(title: str, head: str, rows: Iterator[Sequence[str]]) -> None:
    """Print a table, each row as soon as it is known."""
    names = head.split("|")
    sys.stdout.write(f"\n### {title}\n\n| {' | '.join(names)} |\n|{'---|' * len(names)}\n")
    for row in rows:
        sys.stdout.write(f"| {' | '.join(row)} |\n")
        sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--scenes", nargs="*", default=["good night", "undersampled", "oversampled", "dense"])
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    logging.getLogger("lsst").setLevel(logging.ERROR)
    frames = [make_frame(scene, options.size, options.seed) for scene in options.scenes]
    sys.stdout.write(f"Load of the machine: {os.getloadavg()[0]:.1f}\n")
    write_table(
        "Cosmic rays", "scene|program|found|other pixels|stars harmed|CPU-s", compare_cosmic_rays(frames)
    )
    write_table("Sky", "scene|program|mean error|scatter|CPU-s", compare_skies(frames))
    write_table("Masters", "frames|program|error|largest error|CPU-s", compare_combinations(options.seed))
    write_table("First match", "lists|program|right|wrong|CPU-s each", compare_matches(options.seed))


if __name__ == "__main__":
    main()
