"""Benchmark of the catalogs of process_ccd beside those of other programs, on the same simulated frames.

Each frame is calibrated once by isr; from there each program finds and measures the sources by itself: sep,
photutils, and, where they are installed, SExtractor with PSFEx and SCAMP.  Piff fits the PSF to the
brightest of process_ccd's PSF stars, and process_ccd measures with it.  Frames of several seeds are counted
together.  The tables go to standard output, in Markdown.
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
from collections.abc import Sequence
from pathlib import Path

import astropy.io.fits
import astropy.table
import astropy.units as u
import numpy as np
import photutils.aperture
import photutils.background
import photutils.detection
import sep
from astro_metadata_translator import makeObservationInfo
from judging import SCALE, Found, Judged, format_bins, format_program, heads, judge, pool
from lsst.images import Image, MaskedImage
from lsst.pipe.base import InMemoryDatasetHandle, Struct
from piff_fit import fit_piff
from sextractor import Programs, find_programs, run_sextractor

from spark_butler.demo.simulation import SCENES, SimulatedData, read_table, simulate
from spark_butler.errors import UserError
from spark_butler.obs import CameraDescription
from spark_butler.obs.masters import NEEDED, CalibrationKind, correct_frame, make_master, pixels_of
from spark_butler.tasks.calibrate import CalibrateTask
from spark_butler.tasks.characterize import CharacterizeTask
from spark_butler.tasks.isr import IsrTask
from spark_butler.tasks.pixels.measurement import model_radius

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
class RawFrame:
    """Raw science frame with its calibrations."""

    camera: CameraDescription
    raw: np.ndarray
    header: dict[str, float]
    masters: dict[CalibrationKind, MaskedImage]
    references: astropy.table.Table

    @classmethod
    def of_night(cls, night: SimulatedData) -> RawFrame:
        """Return the first science frame, with masters from the calibration frames of the night."""
        camera = CameraDescription.from_yaml(night.camera)
        detector = camera.detectors[0].id
        masters: dict[CalibrationKind, MaskedImage] = {}

        def read(kind: str) -> dict[str, tuple[np.ndarray, astropy.io.fits.Header]]:
            paths = sorted(night.raw_dir.glob(f"{kind}_*"))
            return {path.name: astropy.io.fits.getdata(path, header=True) for path in paths}

        for kind in ("bias", "dark", "flat"):
            frames = {}
            for name, (pixels, header) in read(kind).items():
                corrections = {label: pixels_of(masters[label]) for label in NEEDED[kind]}
                frames[name] = correct_frame(
                    kind,
                    pixels,
                    header,
                    camera,
                    detector=detector,
                    seconds=header["EXPTIME"],
                    corrections=corrections,
                )
            masters[kind], _ = make_master(kind, frames)
        raw, header = next(iter(read("object").values()))
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
        return cls(camera, raw, known, masters, references)

    def run_isr(self) -> MaskedImage:
        """Return the frame after isr."""
        post = IsrTask(config=IsrTask.ConfigClass()).run(
            Image(self.raw),
            self.camera,
            detector=0,
            **self.masters,
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


def run_ours(frame: RawFrame, post: MaskedImage, *, alone: bool) -> dict[str, Found]:
    """Run characterize and calibrate; then, unless alone, calibrate with Piff's fit of the PSF."""
    clock = [time.process_time()]
    characterized = frame.run_characterize(post)
    clock.append(time.process_time())
    ours = frame.run_calibrate(characterized)
    clock.append(time.process_time())
    found = {"process_ccd": _as_found(ours, clock[2] - clock[0])}
    if alone:
        return found
    image = characterized.preliminary_visit_image
    psf = fit_piff(image, characterized.preliminary_source)
    image.psf = psf.to_piff(image.bbox, 2 * model_radius(psf) + 1)
    piffs = frame.run_calibrate(characterized)
    clock.append(time.process_time())
    seconds = clock[1] - clock[0] + clock[3] - clock[2]
    return found | {"process_ccd, Piff's fit": _as_found(piffs, seconds)}


def _as_found(done: Struct, seconds: float) -> Found:
    names = ("x", "y", "instFlux", "instFluxErr", "coord_ra", "coord_dec")
    x, y, flux, error, ra, dec = (np.asarray(done.source[name]) for name in names)
    summary = done.detector_summary[0]
    quality = {"fwhm": float(summary["psfFwhm"]), "zero_point": float(summary["zeroPoint"])}
    flag = str(summary["image_flag_reasons"])
    return Found(x, y, flux, error, seconds, ra=ra, dec=dec, flag=flag, **quality)


def simulate_frame(
    folder: str, size: int, seed: int, scene: str = "good night", **options: float
) -> SimulatedData:
    """Simulate one frame of one detector, and its calibration frames; an unknown scene is a good night."""
    known = scene if scene in SCENES else None
    return simulate(Path(folder), visits=1, detectors=1, size=size, seed=seed, scene=known, **options)


def make_frame(size: int, seed: int) -> RawFrame:
    """Simulate a frame with 12 stars per square arcminute: about 2,000 sources on 4096 x 4096 pixels."""
    with tempfile.TemporaryDirectory() as folder:
        options = {"stars_per_arcmin2": 12.0, "galaxies_per_arcmin2": 1.0}
        return RawFrame.of_night(simulate_frame(folder, size, seed, **options))


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


def run_all(
    scene: str, size: int, seed: int, others: Programs | None, *, alone: bool = False
) -> dict[str, Judged]:
    """Simulate one frame, and judge the catalogs of all programs, or of process_ccd alone."""
    with tempfile.TemporaryDirectory() as folder:
        night = simulate_frame(folder, size, seed, scene, galaxies_per_arcmin2=5.0)
        frame = RawFrame.of_night(night)
        truth = read_table(night.truth)
    post = frame.run_isr()
    fwhm = float(truth["fwhm"][0]) / SCALE
    found = run_ours(frame, post, alone=alone)
    if not alone:
        found |= {"sep": run_sep(post, fwhm), "photutils": run_photutils(post, fwhm)}
    if others is not None and not alone:
        beta = SCENES[scene].beta if scene in SCENES else 3.0
        found[others.label] = run_sextractor(others, post, fwhm, beta, frame.references)
    return {name: judge(one, truth, post) for name, one in found.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[3], help="a frame of each scene for each seed"
    )
    parser.add_argument(
        "--speed", type=int, nargs="+", metavar="SIZE", help="only time process_ccd on frames of these sizes"
    )
    parser.add_argument("--scenes", nargs="*", default=["good night", *KEPT, "crowded"])
    parser.add_argument("--alone", action="store_true", help="measure process_ccd without the other programs")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    logging.getLogger("lsst").setLevel(logging.ERROR)
    if options.speed:
        print_speed(options.speed, options.seeds[0])
        return
    others, missing = find_programs()
    if missing and not options.alone:
        sys.stdout.write(f"Not installed: {', '.join(missing)}.\n\n")
    head, head_of_bins = heads()
    sys.stdout.write(head + "\n")
    rows = []
    for scene in options.scenes:
        try:
            frames = [
                run_all(scene, options.size, seed, others, alone=options.alone) for seed in options.seeds
            ]
        except UserError as exc:
            sys.stdout.write(f"| {scene} | process_ccd | failed: {exc} |\n")
            continue
        for name in frames[0]:
            together = pool([frame[name] for frame in frames])
            sys.stdout.write(format_program(scene, name, together) + "\n")
            if name == "process_ccd":
                rows.append(format_bins(scene, together))
        sys.stdout.flush()
    sys.stdout.write("\n".join(["", head_of_bins, *rows]) + "\n")


if __name__ == "__main__":
    main()
