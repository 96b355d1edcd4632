"""Combination of raw frames into master calibrations, and certification of masters."""

from __future__ import annotations

__all__ = ("CalibrationKind", "ingest_calibs", "parse_validity")

import contextlib
import itertools
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import astropy.table
import astropy.time
import numpy as np
from lsst.daf.butler import Butler, DatasetRef, Timespan
from lsst.images import MaskedImage
from lsst.pipe.base import Instrument
from lsst.resources import ResourcePath, ResourcePathExpression

from ..errors import RepositoryError, UserError
from .camera.defects import read_defects, to_table
from .camera.description import CameraDescription
from .camera.exposures import RawFile, describe_master
from .camera.raw_fits import display_name, read_raw_pixels
from .instrument import make_instrument_class
from .masters import (
    LINEARIZED,
    NEEDED,
    CalibrationKind,
    as_master,
    as_response,
    correct_frame,
    make_master,
    pixels_of,
    size_of,
)
from .raws import RAW_SUFFIXES, read_raw_files
from .repository import check_run, describe_instruments, expand_paths

logger = logging.getLogger(__name__)

type CalibrationKey = tuple[int, str | None]
"""Detector and, for flats, physical filter."""


def parse_validity(begin: str | None, end: str | None) -> Timespan:
    """Make a validity range of two ISO dates in UTC, either of which may be open."""
    times: list[astropy.time.Time | None] = []
    for label, text in (("begin", begin), ("end", end)):
        try:
            times.append(None if text is None else astropy.time.Time(text, scale="utc").tai)
        except ValueError:
            raise UserError(f"{label} of validity = {text!r} is not an ISO date or time") from None
    validity = Timespan(begin=times[0], end=times[1])
    if validity.isEmpty():
        raise UserError(f"validity from {begin} to {end} is empty")
    return validity


def ingest_calibs(  # noqa: PLR0913
    butler: Butler,
    kind: CalibrationKind | Literal["defects"],
    paths: Iterable[ResourcePathExpression],
    *,
    instrument: str | None = None,
    detector: str | None = None,
    master: bool = False,
    output_run: str | None = None,
    validity: Timespan | None = None,
    replace: bool = False,
    failures: dict[str, str] | None = None,
) -> list[DatasetRef]:
    """Combine raw calibration frames into a master for each detector, and certify it.

    Parameters
    ----------
    kind
        ``bias``: clipped mean in ADU, without the level of an overscan.  ``dark``: ADU per second,
        bias-subtracted.  ``flat``: relative response with median 1 over the detector, from bias- and
        dark-subtracted frames in electrons, so that gains are not in it; one for each physical filter.
        ``defects``: bad pixels of one detector, from tables or mask images as `read_defects` takes them.
    paths
        Files, directories, globs or URIs.  Raw frames of other kinds are ignored.
    instrument
        Instrument of the files; by default the registered one that their headers match.
    detector
        Identifier or name of the detector whose defects the files have; not needed if there is one only.
    master
        Whether the files are masters already: assembled images in the units above.  Flats in counts are
        divided by their median.
    output_run
        RUN collection, by default ``INSTRUMENT/calib/KIND/TIMESTAMP``.
    validity
        Validity of the masters; by default unbounded.
    replace
        Whether to decertify earlier masters for the overlapping part of their validity; otherwise they raise.
    failures
        Receives the reason for each unusable file; without it, the first such file raises.
    """
    cameras = describe_instruments(butler, instrument)
    if output_run is not None:
        check_run(butler, output_run)
    files = expand_paths(paths, RAW_SUFFIXES)
    validity = Timespan(None, None) if validity is None else validity
    images: Mapping[CalibrationKey, MaskedImage | astropy.table.Table]
    if kind == "defects":
        camera, images = _read_defects(files, cameras, detector, failures)
    elif master:
        camera, images = _read_masters(kind, files, cameras, failures)
    else:
        camera, images = _make_masters(butler, kind, files, cameras, failures)
    owner = make_instrument_class(camera.name)()
    calib = owner.makeCalibrationCollectionName()
    data_ids = [_data_id(camera, key) for key in images]
    are_certified = _are_certified(butler, kind, data_ids, calib, validity, replace)
    if output_run is None:
        stem = owner.makeCollectionName("calib", kind, Instrument.makeCollectionTimestamp())
        run = _register_new(butler, stem)
    else:
        run = output_run
        butler.collections.register(run)
    # Repositories of earlier releases have plain images.
    is_plain = butler.get_dataset_type(kind).storageClass_name == "ImageV2"
    with butler.transaction():
        refs = [
            butler.put(image.image if is_plain else image, kind, data_id, run=run)
            for image, data_id in zip(images.values(), data_ids, strict=True)
        ]
        if are_certified:
            butler.registry.decertify(calib, kind, validity, dataIds=data_ids)
        butler.registry.certify(calib, refs, validity)
    logger.info("Certified %d %s masters from %s in %s.", len(refs), kind, run, calib)
    return refs


def _register_new(butler: Butler, name: str) -> str:
    """Register a new RUN collection; its name has a number if a run of the same second has the name."""
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(run for run in names if butler.collections.register(run))


def _data_id(camera: CameraDescription, key: CalibrationKey) -> dict[str, Any]:
    detector, physical_filter = key
    data_id: dict[str, Any] = {"instrument": camera.name, "detector": detector}
    return data_id if physical_filter is None else {**data_id, "physical_filter": physical_filter}


def _are_certified(
    butler: Butler,
    kind: str,
    data_ids: Sequence[dict[str, Any]],
    calib: str,
    validity: Timespan,
    replace: bool,
) -> bool:
    """Return whether there are masters for overlapping times; raise if they may not be replaced."""
    wanted = [frozenset(data_id.items()) for data_id in data_ids]
    for association in butler.registry.queryDatasetAssociations(kind, collections=[calib]):
        found = frozenset(association.ref.dataId.required.items())
        if found in wanted and association.timespan is not None and association.timespan.overlaps(validity):
            if replace:
                return True
            raise RepositoryError(
                f"{kind} of detector {association.ref.dataId['detector']} is certified in {calib} for "
                f"{association.timespan} (from {association.ref.run}); give "
                "--replace, or another validity (--begin-date, --end-date)"
            )
    return False


def _only_camera(names: Iterable[str], cameras: Sequence[CameraDescription]) -> CameraDescription:
    found = sorted(set(names))
    if len(found) != 1:
        raise UserError(f"the files are from several instruments ({', '.join(found)}); give one")
    return next(camera for camera in cameras if camera.name == found[0])


def _make_masters(
    butler: Butler,
    kind: CalibrationKind,
    files: Sequence[ResourcePath],
    cameras: Sequence[CameraDescription],
    failures: dict[str, str] | None,
) -> tuple[CameraDescription, dict[CalibrationKey, MaskedImage]]:
    raws, failed = read_raw_files(files, cameras, fail_fast=failures is None)
    if failures is not None:
        failures |= failed
    frames = [raw for raw in raws if raw.observation_type == kind]
    if not frames:
        present = ", ".join(sorted({raw.observation_type for raw in raws}))
        no_frame = f"none of the {len(raws)} files is a {kind} frame; they are {present}"
        raise UserError(next(iter(failed.values()), no_frame))
    logger.info("%d of %d files are %s frames.", len(frames), len(raws), kind)
    camera = _only_camera((raw.instrument for raw in frames), cameras)
    if kind not in camera.calibrations:
        raise UserError(f"{camera.name} has no {kind} calibration; it has {', '.join(camera.calibrations)}")
    groups: dict[CalibrationKey, list[RawFile]] = defaultdict(list)
    for raw in sorted(frames, key=lambda raw: int(raw.exposure["id"])):
        groups[raw.detector, raw.exposure["physical_filter"] if kind == "flat" else None].append(raw)
    images = {}
    for key, group in sorted(groups.items(), key=str):
        corrections, linearizer = _find_corrections(butler, kind, camera, group[0])
        pixels: dict[str, np.ndarray] = {}
        for raw in group:
            with _collecting(failures, raw.uri):
                frame = _read_frame(raw, kind, camera, corrections, linearizer)
                first = next(iter(pixels.values()), frame)
                if frame.shape != first.shape:
                    raise UserError(
                        f"{display_name(raw.uri)}: {size_of(frame)} pixels; the frames before have "
                        f"{size_of(first)}: a master is of one binning, so give only its frames"
                    )
                pixels[display_name(raw.uri)] = frame
        if pixels:
            images[key], excluded = make_master(kind, pixels)
            for name, reason in excluded.items():
                logger.warning("Left out %s: it %s.", name, reason)
                if failures is not None:
                    failures[name] = f"{name}: {reason}"
    return camera, _some(images, failures)


@contextlib.contextmanager
def _collecting(failures: dict[str, str] | None, file: ResourcePath) -> Iterator[None]:
    """Record the reason why a file can't be used, if reasons are collected."""
    try:
        yield
    except UserError as err:
        if failures is None:
            raise
        failures[display_name(file)] = str(err)


def _some[K, V](found: dict[K, V], failures: dict[str, str] | None) -> dict[K, V]:
    """Return the usable content of files; raise the first failure if no file is usable."""
    if not found and failures:
        raise UserError(next(iter(failures.values())))
    return found


def _find_corrections(
    butler: Butler, kind: CalibrationKind, camera: CameraDescription, raw: RawFile
) -> tuple[dict[str, np.ndarray], astropy.table.Table | None]:
    """Return the masters that frames of this kind must be corrected with, and the linearizer if any."""
    calib = make_instrument_class(camera.name)().makeCalibrationCollectionName()

    def find(name: str) -> DatasetRef | None:
        return butler.find_dataset(
            name,
            instrument=camera.name,
            detector=raw.detector,
            collections=calib,
            timespan=raw.exposure["timespan"],
        )

    found: dict[str, np.ndarray] = {}
    for name in NEEDED[kind]:
        if name not in camera.calibrations:
            continue
        if (ref := find(name)) is None:
            raise UserError(
                f"a {kind} of {camera.name} needs its {name}, and none is certified in {calib} for detector "
                f"{raw.detector} at {raw.exposure['timespan'].begin.isot}; ingest the {name} frames first"
            )
        found[name] = pixels_of(butler.get(ref))
    # Repositories of earlier releases don't know it.
    is_known = any(butler.registry.queryDatasetTypes("linearizer"))
    linearizer = find("linearizer") if is_known and kind in LINEARIZED else None
    return found, None if linearizer is None else butler.get(linearizer)


def _read_frame(
    raw: RawFile,
    kind: CalibrationKind,
    camera: CameraDescription,
    corrections: dict[str, np.ndarray],
    linearizer: astropy.table.Table | None,
) -> np.ndarray:
    name = display_name(raw.uri)
    with raw.uri.open("rb") as stream:
        pixels, header = read_raw_pixels(stream, name)
    seconds = raw.exposure["dark_time"] or 0.0
    try:
        return correct_frame(
            kind,
            pixels,
            header,
            camera,
            detector=raw.detector,
            seconds=seconds,
            corrections=corrections,
            linearizer=linearizer,
        )
    except UserError as err:
        raise UserError(f"{name}: {err}") from None


def _read_masters(
    kind: CalibrationKind,
    files: Sequence[ResourcePath],
    cameras: Sequence[CameraDescription],
    failures: dict[str, str] | None,
) -> tuple[CameraDescription, dict[CalibrationKey, MaskedImage]]:
    owners: list[str] = []
    images: dict[CalibrationKey, MaskedImage] = {}
    for file in files:
        with _collecting(failures, file):
            owner, key, image = _read_master(kind, file, cameras)
            if key in images:
                raise UserError(f"{display_name(file)}: another file is the {kind} of detector {key[0]} too")
            owners.append(owner)
            images[key] = image
    _some(images, failures)
    return _only_camera(owners, cameras), images


def _read_defects(
    files: Sequence[ResourcePath],
    cameras: Sequence[CameraDescription],
    detector: str | None,
    failures: dict[str, str] | None,
) -> tuple[CameraDescription, dict[CalibrationKey, astropy.table.Table]]:
    """Join the defects of one detector."""
    camera = _only_camera((camera.name for camera in cameras), cameras)
    if detector is None and len(camera.detectors) > 1:
        names = ", ".join(each.name for each in camera.detectors)
        raise UserError(f"{camera.name} has several detectors ({names}); give the one of these defects")
    try:
        described = camera.get_detector(camera.detectors[0].id if detector is None else detector).assembled
    except LookupError as err:
        raise UserError(str(err)) from None
    tables = {}
    for file in files:
        with _collecting(failures, file):
            sections = read_defects(file)
            for section in sections:
                if not section.fits_in(described.nx, described.ny):
                    raise UserError(
                        f"{display_name(file)}: the defect {section} leaves the assembled detector "
                        f"{described.name} of {described.nx} x {described.ny} pixels"
                    )
            tables[display_name(file)] = to_table(sections)
    joined = astropy.table.vstack(list(_some(tables, failures).values()))
    return camera, {(described.id, None): joined}


def _read_master(
    kind: CalibrationKind, file: ResourcePath, cameras: Sequence[CameraDescription]
) -> tuple[str, CalibrationKey, MaskedImage]:
    """Read a master calibration; return its instrument, its detector and filter, and its pixels."""
    name = display_name(file)
    with file.open("rb") as stream:
        pixels, header = read_raw_pixels(stream, name)
    camera, detector, physical_filter = describe_master(file, header, cameras, with_filter=kind == "flat")
    detector = detector.assembled
    if pixels.shape != (detector.ny, detector.nx):
        raise UserError(
            f"{name}: {pixels.shape[1]} x {pixels.shape[0]} pixels; a master of detector "
            f"{detector.id} has {detector.nx} x {detector.ny}"
        )
    frame = pixels.astype(np.float32)
    if kind == "flat":
        frame = as_response(frame, name)
    return camera.name, (detector.id, physical_filter), as_master(kind, frame, None, dict(header))
