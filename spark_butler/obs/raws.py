"""Ingest raw frames: exposure records from their headers, the files as ``raw`` datasets."""

from __future__ import annotations

__all__ = ("RawIngestResult", "ingest_raws", "read_raw_files")

import concurrent.futures
import dataclasses
import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence

from lsst.daf.butler import Butler, DatasetRef, FileDataset
from lsst.daf.butler.registry import ConflictingDefinitionError
from lsst.resources import ResourcePath, ResourcePathExpression

from ..errors import UserError
from .camera.description import CameraDescription
from .camera.exposures import RawFile, read_raw_file
from .camera.raw_fits import display_name
from .formatters import RawFitsFormatter, UncheckedRawFitsFormatter
from .instrument import make_instrument_class
from .repository import check_run, describe_instruments, expand_paths

logger = logging.getLogger(__name__)

_THREADS = 8

RAW_SUFFIXES = tuple(".fits .fit .fts .fits.fz .fits.gz .fit.gz .fts.gz .fits.bz2 .fit.bz2".split())


@dataclasses.dataclass
class RawIngestResult:
    """Datasets of ingested files, and failures."""

    ingested: list[DatasetRef] = dataclasses.field(default_factory=list)
    existing: list[DatasetRef] = dataclasses.field(default_factory=list)
    """Data IDs that the output run had before."""
    failures: dict[str, str] = dataclasses.field(default_factory=dict)
    """Reason for each file that could not be ingested."""


def read_raw_files(
    files: Sequence[ResourcePath], cameras: Sequence[CameraDescription], *, fail_fast: bool
) -> tuple[list[RawFile], dict[str, str]]:
    """Read the headers of raw files; return those that make sense, in order, and the reasons for the others.

    With ``fail_fast``, the first failure is raised.
    """
    raws: list[RawFile] = []
    failures: dict[str, str] = {}
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        futures = [pool.submit(read_raw_file, file, cameras) for file in files]
        for file, future in zip(files, futures, strict=True):
            try:
                raws.append(future.result())
            except UserError as err:
                if fail_fast:
                    pool.shutdown(cancel_futures=True)
                    raise
                failures[display_name(file)] = str(err)
    return raws, failures


def ingest_raws(
    butler: Butler,
    paths: Iterable[ResourcePathExpression],
    *,
    instrument: str | None = None,
    output_run: str | None = None,
    transfer: str | None = "auto",
    fail_fast: bool = False,
    ignore_checksums: bool = False,
) -> RawIngestResult:
    """Ingest raw files of science and calibration exposures.

    Parameters
    ----------
    paths
        Files, directories (searched for FITS files), globs or URIs.
    instrument
        Instrument that the files are from; by default their headers tell which of the registered ones.
    output_run
        RUN collection, by default the instrument's ``INSTRUMENT/raw/all``.
    transfer
        As in `lsst.daf.butler.Butler.ingest`.
    fail_fast
        Whether the first bad file ends the ingest before a dataset is written.
    ignore_checksums
        Whether these files are read even where pixels disagree with their ``DATASUM``. Files that the output
        run has already are ingested again for it.
    """
    cameras = describe_instruments(butler, instrument)
    if output_run is not None:
        check_run(butler, output_run)
    raws, failures = read_raw_files(expand_paths(paths, RAW_SUFFIXES), cameras, fail_fast=fail_fast)
    result = RawIngestResult(failures=failures)
    formatter = UncheckedRawFitsFormatter if ignore_checksums else RawFitsFormatter
    by_exposure: dict[tuple[str, int], list[RawFile]] = defaultdict(list)
    for raw in raws:
        by_exposure[raw.instrument, raw.exposure["id"]].append(raw)
    datasets: dict[str, list[FileDataset]] = defaultdict(list)
    for exposure in by_exposure.values():
        consistent = _consistent_files(exposure, result.failures)
        if fail_fast and len(consistent) < len(exposure):
            raise UserError(next(iter(result.failures.values())))
        run = output_run or make_instrument_class(exposure[0].instrument)().makeDefaultRawIngestRunName()
        try:
            with butler.registry.transaction():
                for element in ("day_obs", "group", "exposure"):
                    butler.registry.syncDimensionData(element, getattr(consistent[0], element))
        except ConflictingDefinitionError as err:
            number, text = exposure[0].exposure["id"], " ".join(str(err).split())
            reason = f"the repository has another exposure {number}: {text}"
            if fail_fast:
                raise UserError(f"{display_name(consistent[0].uri)}: {reason}") from None
            result.failures.update(
                (display_name(raw.uri), f"{display_name(raw.uri)}: {reason}") for raw in consistent
            )
            continue
        butler.collections.register(run)
        if ignore_checksums:
            _remove_existing(butler, consistent, run)
        datasets[run].extend(_new_datasets(butler, consistent, run, result, formatter))
    for run, batch in datasets.items():
        if batch:
            butler.ingest(*batch, transfer=transfer)
            result.ingested.extend(ref for dataset in batch for ref in dataset.refs)
            logger.info("Ingested %d raw files into %s.", len(batch), run)
    return result


def _consistent_files(raws: list[RawFile], failures: dict[str, str]) -> list[RawFile]:
    """Return the files of an exposure that agree with its first one, each detector once."""
    first = raws[0]
    kept: dict[int, RawFile] = {}
    for raw in raws:
        name = display_name(raw.uri)
        differing = [key for key, value in raw.exposure.items() if value != first.exposure[key]]
        if differing:
            key = differing[0]
            failures[name] = (
                f"{name}: {key} = {raw.exposure[key]} where {display_name(first.uri)} of the same exposure "
                f"{first.exposure['id']} has {first.exposure[key]}"
            )
        elif raw.detector in kept:
            failures[name] = (
                f"{name}: exposure {raw.exposure['id']} detector {raw.detector} is also in "
                f"{display_name(kept[raw.detector].uri)}"
            )
        else:
            kept[raw.detector] = raw
    return list(kept.values())


def _remove_existing(butler: Butler, raws: Sequence[RawFile], run: str) -> None:
    """Remove the datasets of files that are to be ingested again, but never the files themselves."""
    roots = [root for root in butler.get_datastore_roots().values() if root is not None]
    existing = []
    for raw in raws:
        if (ref := butler.find_dataset("raw", raw.data_id, collections=run)) is None:
            continue
        if any(raw.uri.relative_to(root) is not None for root in roots):
            raise UserError(
                f"{display_name(raw.uri)} is the repository's own file, which removing its dataset would "
                "delete: copy it to another place and ingest the copy"
            )
        existing.append(ref)
    butler.pruneDatasets(existing, disassociate=True, unstore=True, purge=True)


def _new_datasets(
    butler: Butler,
    raws: Sequence[RawFile],
    run: str,
    result: RawIngestResult,
    formatter: type[RawFitsFormatter],
) -> list[FileDataset]:
    dataset_type = butler.get_dataset_type("raw")
    datasets = []
    for raw in raws:
        existing = butler.find_dataset(dataset_type, raw.data_id, collections=run)
        if existing is not None:
            result.existing.append(existing)
            continue
        data_id = butler.registry.expandDataId(raw.data_id)
        ref = DatasetRef(dataset_type, data_id, run=run)
        datasets.append(FileDataset(path=raw.uri, refs=[ref], formatter=formatter))
    return datasets
