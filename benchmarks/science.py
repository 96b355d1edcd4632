"""Benchmark of the catalogs of process_ccd beside those of other programs, on the same simulated frames.

The task isr calibrates each scene once.  Each program then finds and measures the sources of the result: sep,
photutils, and, if they are installed, SExtractor with PSFEx.  The table goes to standard output, in Markdown.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import logging
import os
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import astropy.io.fits
import astropy.table
import astropy.units as u
import numpy as np
import photutils.aperture
import photutils.background
import photutils.detection
import scipy.ndimage
import scipy.spatial
import sep
from astro_metadata_translator import makeObservationInfo
from lsst.images import Image, MaskedImage
from lsst.pipe.base import InMemoryDatasetHandle, Struct
from sextractor import find_programs, run_sextractor

from spark_butler.demo.simulation import SCENES, SimulatedData, read_table, simulate
from spark_butler.obs import CameraDescription
from spark_butler.obs._combine import combine, normalize
from spark_butler.obs.assembly import assemble
from spark_butler.tasks.calibrate import CalibrateTask
from spark_butler.tasks.characterize import CharacterizeTask
from spark_butler.tasks.isr import IsrTask

SCALE = 0.2
"""Pixel scale of the simulated camera in arcseconds."""

KEPT = (
    "overscan_ramp",
    "vignetted",
    "varying_psf",
    "undersampled",
    "oversampled",
    "dense",
    "distorted",
    "mispointed",
)


@dataclasses.dataclass
class Found:
    """Sources that a program found: positions, fluxes in electrons and their errors."""

    x: np.ndarray
    y: np.ndarray
    flux: np.ndarray
    error: np.ndarray
    seconds: float
    summary: astropy.table.Row | None = None
    ra: np.ndarray | None = None
    dec: np.ndarray | None = None


@dataclasses.dataclass
class RawFrame:
    """Raw science frame with its calibrations."""

    camera: CameraDescription
    raw: np.ndarray
    header: dict[str, float]
    bias: np.ndarray
    dark: np.ndarray
    flat: np.ndarray
    references: astropy.table.Table

    @classmethod
    def of_night(cls, night: SimulatedData) -> RawFrame:
        """Return the first science frame, with masters combined from the calibration frames of the night."""
        camera = CameraDescription.from_yaml(night.camera)
        detector = camera.detectors[0]

        def read(kind: str) -> list[tuple[np.ndarray, astropy.io.fits.Header]]:
            return [
                astropy.io.fits.getdata(path, header=True) for path in sorted(night.raw_dir.glob(f"{kind}_*"))
            ]

        bias = combine([assemble(pixels, detector).image for pixels, _ in read("bias")])
        darks = [(assemble(p, detector).image - bias) / np.float32(h["EXPTIME"]) for p, h in read("dark")]
        dark = combine(darks)
        flats = []
        for pixels, header in read("flat"):
            assembled = assemble(pixels, detector)
            light = (assembled.image - bias - dark * np.float32(header["EXPTIME"])) * assembled.gain
            flats.append(normalize(light))
        raw, header = read("object")[0]
        stars = astropy.table.Table.read(night.refcat, format="ascii.ecsv")
        references = astropy.table.Table(
            {
                "id": stars["id"],
                "coord_ra": np.deg2rad(np.asarray(stars["ra"])),
                "coord_dec": np.deg2rad(np.asarray(stars["dec"])),
                "r_flux": 10.0 ** (-0.4 * (np.asarray(stars["r_mag"]) - 31.4)),
            }
        )
        known = {name: header[name] for name in ("EXPTIME", "RA", "DEC", "ROTPA")}
        return cls(camera, raw, known, bias, dark, normalize(combine(flats)), references)

    def run_isr(self) -> MaskedImage:
        """Return the frame after isr."""
        post = IsrTask(config=IsrTask.ConfigClass()).run(
            Image(self.raw),
            self.camera,
            detector=0,
            bias=Image(self.bias),
            dark=Image(self.dark),
            flat=Image(self.flat),
            exposure_time=self.header["EXPTIME"],
            boresight=(self.header["RA"], self.header["DEC"], self.header["ROTPA"]),
        )
        return post.post_isr_image

    def run_characterize(self, post: MaskedImage) -> Struct:
        """Return the result of characterize for a frame after isr."""
        info = makeObservationInfo(
            instrument="SimCam",
            exposure_id=1,
            visit_id=1,
            physical_filter="r",
            exposure_time=30 * u.s,
            detector_num=0,
        )
        task = CharacterizeTask(config=CharacterizeTask.ConfigClass())
        return task.run(post, self.camera, detector=0, band="r", obs_info=info)

    def run_calibrate(self, found: Struct) -> Struct:
        """Return the result of calibrate for the result of characterize."""
        return CalibrateTask(config=CalibrateTask.ConfigClass()).run(
            found.preliminary_visit_image,
            found.preliminary_source,
            [InMemoryDatasetHandle(self.references, storageClass="ArrowAstropy")],
        )


def run_ours(frame: RawFrame, post: MaskedImage) -> Found:
    """Run characterize and calibrate."""
    start = time.process_time()
    done = frame.run_calibrate(frame.run_characterize(post))
    names = ("x", "y", "instFlux", "instFluxErr")
    columns = [np.asarray(done.source[name]) for name in names]
    return Found(
        *columns,
        seconds=time.process_time() - start,
        summary=done.detector_summary[0],
        ra=np.asarray(done.source["coord_ra"]),
        dec=np.asarray(done.source["coord_dec"]),
    )


def make_frame(size: int, seed: int) -> RawFrame:
    """Simulate a frame with 12 stars per square arcminute: about 2,000 sources on 4096 x 4096 pixels."""
    with tempfile.TemporaryDirectory() as folder:
        options = {"stars_per_arcmin2": 12.0, "galaxies_per_arcmin2": 1.0}
        night = simulate(Path(folder), visits=1, detectors=1, size=size, seed=seed, **options)
        return RawFrame.of_night(night)


def print_speed(sizes: Sequence[int], seed: int) -> None:
    """Print the CPU-s of each task for good nights of these sizes, and the peak memory so far."""
    head = "size sources isr characterize calibrate together GB load".split()
    sys.stdout.write(f"| {' | '.join(head)} |\n|{'---|' * len(head)}\n")
    for size in sorted(sizes):
        # Simulated in another process, whose memory is not part of the measurement.
        with concurrent.futures.ProcessPoolExecutor(1) as pool:
            frame = pool.submit(make_frame, size, seed).result()
        clock = [time.process_time()]
        post = frame.run_isr()
        clock.append(time.process_time())
        found = frame.run_characterize(post)
        clock.append(time.process_time())
        number = len(frame.run_calibrate(found).source)
        clock.append(time.process_time())
        times = " | ".join(f"{seconds:.1f}" for seconds in (*np.diff(clock), clock[-1] - clock[0]))
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        row = f"| {size} | {number} | {times} | {memory:.1f} | {os.getloadavg()[0]:.0f} |\n"
        sys.stdout.write(row)
        sys.stdout.flush()


def run_sep(post: MaskedImage, fwhm: float) -> Found:
    """Run sep as its documentation shows, with an aperture of three half widths."""
    start = time.process_time()
    data = np.ascontiguousarray(post.image.array, dtype=np.float32)
    mask = np.ascontiguousarray(post.mask.get("BAD"))
    background = sep.Background(data, mask=mask)
    data = data - background
    error = np.sqrt(post.variance.array).astype(np.float32)
    objects = sep.extract(data, 1.5, err=np.full_like(data, background.globalrms), mask=mask)
    flux, flux_error, _ = sep.sum_circle(data, objects["x"], objects["y"], 1.5 * fwhm, err=error, mask=mask)
    return Found(objects["x"], objects["y"], flux, flux_error, time.process_time() - start)


def run_photutils(post: MaskedImage, fwhm: float) -> Found:
    """Run photutils: Background2D, DAOStarFinder at five sigma, an aperture of three half widths."""
    start = time.process_time()
    data, mask = np.asarray(post.image.array, dtype=np.float64), post.mask.get("BAD")
    background = photutils.background.Background2D(data, 64, mask=mask, exclude_percentile=50.0)
    data = data - background.background
    finder = photutils.detection.DAOStarFinder(
        threshold=5.0 * background.background_rms_median, fwhm=max(fwhm, 1.5)
    )
    table = finder(data, mask=mask)
    x, y = (np.asarray(table[name]) for name in ("x_centroid", "y_centroid"))
    aperture = photutils.aperture.CircularAperture(np.column_stack([x, y]), 1.5 * fwhm)
    sums = photutils.aperture.aperture_photometry(
        data, aperture, error=np.sqrt(post.variance.array), mask=mask
    )
    flux, error = np.asarray(sums["aperture_sum"]), np.asarray(sums["aperture_sum_err"])
    return Found(x, y, flux, error, time.process_time() - start)


def run_sextractor_and_psfex(programs: tuple[str, str], post: MaskedImage, fwhm: float) -> Found:
    """Run SExtractor with PSFEx's PSF, both in processes of their own."""
    before = os.times()
    x, y, flux, error = run_sextractor(programs, post, fwhm).T
    after = os.times()
    seconds = (after.children_user + after.children_system) - (before.children_user + before.children_system)
    return Found(x, y, flux, error, seconds)


def judge(found: Found, truth: astropy.table.Table, post: MaskedImage) -> dict[str, float]:
    """Compare stars with the truth, if they have no close neighbors and are far from edges and defects."""
    ny, nx = post.image.array.shape
    fwhm = float(truth["fwhm"][0]) / SCALE
    median_response = 10.0 ** (0.4 * (np.asarray(truth["zero_point"]) - np.asarray(truth["mag"])))
    x, y, flux = np.asarray(truth["x"]), np.asarray(truth["y"]), median_response
    noise = np.median(np.sqrt(post.variance.array)) * np.sqrt(4.0 * np.pi) * fwhm / 2.355
    snr = flux / np.sqrt(noise**2 + flux)
    tree = scipy.spatial.cKDTree(np.column_stack([x, y]))
    near = tree.query_ball_point(tree.data, 2.0 * fwhm)
    alone = np.array([flux[list(group)].sum() < 1.1 * f for group, f in zip(near, flux, strict=True)])
    margin = 2.0 * fwhm + 3.0
    inside = (x > margin) & (y > margin) & (x < nx - margin) & (y < ny - margin)
    spoiled = scipy.ndimage.maximum_filter(post.mask.get("BAD") | post.mask.get("SATURATED"), 9)
    clean = ~spoiled[np.clip(np.rint(y), 0, ny - 1).astype(int), np.clip(np.rint(x), 0, nx - 1).astype(int)]
    wanted = alone & inside & clean & np.asarray(truth["is_star"]) & (snr > 10.0)
    found_tree = scipy.spatial.cKDTree(np.column_stack([found.x, found.y]))
    distance, index = found_tree.query(np.column_stack([x, y]))
    radius = max(1.0, 0.5 * fwhm)
    backward = tree.query(np.column_stack([found.x, found.y]))[0]
    strong = found.flux > 10.0 * found.error
    result = {
        "completeness": float(np.mean(distance[wanted] < radius)),
        "purity": float(np.mean(backward[strong] < max(2.0, fwhm))) if strong.any() else np.nan,
    }
    good = wanted & (distance < radius)
    bright = good & (snr > 50.0)
    ratio = found.flux[index] / flux
    result["bias"] = float(np.median(ratio[bright])) - 1.0
    pull = (found.flux[index] - np.median(ratio[bright]) * flux)[good] / found.error[index][good]
    result["pull"] = 1.4826 * float(np.median(np.abs(pull - np.median(pull))))
    if found.ra is not None and found.dec is not None:
        best = good & (snr > 100.0)
        east = (found.ra[index] - np.asarray(truth["ra"])) * np.cos(np.deg2rad(np.asarray(truth["dec"])))
        north = found.dec[index] - np.asarray(truth["dec"])
        result["mas"] = 3.6e6 * float(np.median(np.hypot(east, north)[best]))
    if found.summary is not None:
        result["zp"] = float(found.summary["zeroPoint"]) - float(truth["zero_point"][0])
        result["fwhm"] = float(found.summary["psfFwhm"]) / fwhm - 1.0
    return result


def format_row(scene: str, program: str, found: Found, numbers: dict[str, float]) -> str:
    """Return a row of the table."""
    cells = [f"{numbers['completeness']:.3f}", f"{numbers['purity']:.3f}", f"{100 * numbers['bias']:+.1f}"]
    cells.append(f"{numbers['pull']:.2f}")
    if found.summary is None:
        cells += ["", "", "", ""]
    else:
        cells += [f"{numbers['mas']:.0f}", f"{numbers['zp']:+.3f}", f"{100 * numbers['fwhm']:+.1f}"]
        cells.append(str(found.summary["image_flag_reasons"]).replace(",", ", "))
    return f"| {scene} | {program} | {' | '.join(cells)} | {found.seconds:.1f} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all programs on all scenes, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument(
        "--speed", type=int, nargs="+", metavar="SIZE", help="only time process_ccd on frames of these sizes"
    )
    parser.add_argument("--scenes", nargs="*", default=["good night", *KEPT, "crowded"])
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    logging.getLogger("lsst").setLevel(logging.ERROR)
    if options.speed:
        print_speed(options.speed, options.seed)
        return
    head = "scene program completeness purity flux,% pull mas zero-point FWHM,% flag CPU-s".split()
    sys.stdout.write(f"| {' | '.join(head)} |\n|{'---|' * len(head)}\n")
    for scene in options.scenes:
        with tempfile.TemporaryDirectory() as folder:
            night = simulate(
                Path(folder),
                visits=1,
                detectors=1,
                size=options.size,
                seed=options.seed,
                galaxies_per_arcmin2=5.0,
                scene=scene if scene in SCENES else None,
            )
            frame = RawFrame.of_night(night)
            post = frame.run_isr()
            truth = read_table(night.truth)
            fwhm = float(truth["fwhm"][0]) / SCALE
            programs: dict[str, Callable[[], Found]] = {
                "process_ccd": lambda f=frame, p=post: run_ours(f, p),
                "sep": lambda p=post, w=fwhm: run_sep(p, w),
                "photutils": lambda p=post, w=fwhm: run_photutils(p, w),
            }
            if (others := find_programs()) is not None:
                programs["SExtractor, PSFEx"] = lambda p=post, w=fwhm, o=others: run_sextractor_and_psfex(
                    o, p, w
                )
            for name, program in programs.items():
                found = program()
                sys.stdout.write(format_row(scene, name, found, judge(found, truth, post)) + "\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
