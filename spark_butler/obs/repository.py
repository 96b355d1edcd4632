"""Functions that obs commands share: the butler, instruments' descriptions, dataset types, collections."""

from __future__ import annotations

__all__ = (
    "check_run",
    "define_collections",
    "describe_instruments",
    "expand_paths",
    "get_description",
    "open_butler",
    "register_dataset_types",
    "writing_butler",
)

import contextlib
import errno
import fnmatch
import logging
from collections.abc import Iterable, Iterator, Sequence

import sqlalchemy.exc
from lsst.daf.butler import Butler, CollectionType, DatasetNotFoundError, DatasetType, MissingCollectionError
from lsst.resources import ResourcePath, ResourcePathExpression

from ..errors import RepositoryError, UserError
from ..repository.checks import check_repository, check_writeable
from ..repository.output_checks import check_name
from ..text import brief, suggest
from .camera.description import CameraDescription
from .instrument import YamlInstrument, make_instrument_class

logger = logging.getLogger(__name__)

# Without IntegrityError, a conflict of what is written with what is there.
_DATABASE_ERRORS = (
    sqlalchemy.exc.OperationalError,
    sqlalchemy.exc.ProgrammingError,
    sqlalchemy.exc.InternalError,
    sqlalchemy.exc.InterfaceError,
)
_UNWRITEABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)

_IMAGE = "ImageV2"
_MASTER = "MaskedImageV2"
_TABLE = "ArrowAstropy"
_DATASET_TYPES: tuple[tuple[str, tuple[str, ...], str, bool], ...] = (
    ("raw", ("instrument", "exposure", "detector"), _IMAGE, False),
    ("camera", ("instrument",), "StructuredDataDict", True),
    ("bias", ("instrument", "detector"), _MASTER, True),
    ("dark", ("instrument", "detector"), _MASTER, True),
    ("flat", ("instrument", "detector", "physical_filter"), _MASTER, True),
    ("defects", ("instrument", "detector"), _TABLE, True),
    ("linearizer", ("instrument", "detector"), _TABLE, True),
    ("ptc", ("instrument", "detector"), _TABLE, True),
)


def open_butler(repo: ResourcePathExpression) -> Butler:
    """Open a repository for writing."""
    check_writeable(check_repository(str(repo)))
    with _refusing_to_write(repo):
        return Butler.from_config(repo, writeable=True)


@contextlib.contextmanager
def writing_butler(repo: ResourcePathExpression) -> Iterator[Butler]:
    """Open a repository for as long as it is written to, and explain what is refused in between."""
    with open_butler(repo) as butler, _refusing_to_write(repo):
        yield butler


@contextlib.contextmanager
def _refusing_to_write(repo: ResourcePathExpression) -> Iterator[None]:
    """Turn what databases and file systems raise where nothing can be written into a `RepositoryError`."""
    try:
        yield
    except (*_DATABASE_ERRORS, OSError) as exc:
        if isinstance(exc, OSError) and exc.errno not in _UNWRITEABLE:
            raise
        origin = getattr(exc, "orig", None) or exc
        raise RepositoryError(
            f"Can't write to the Butler repository {str(repo)!r}: {brief(origin)}; this command needs write "
            "access to the database of its registry and to its datastore."
        ) from exc


def register_dataset_types(butler: Butler) -> None:
    """Register the dataset types of raw data and calibrations."""
    for name, dimensions, storage_class, is_calibration in _DATASET_TYPES:
        if storage_class == _MASTER and any(butler.registry.queryDatasetTypes(name)):
            # In repositories of earlier releases masters are plain images, and stay so.
            continue
        dataset_type = DatasetType(
            name, dimensions, storage_class, universe=butler.dimensions, isCalibration=is_calibration
        )
        butler.registry.registerDatasetType(dataset_type)


def check_run(butler: Butler, run: str) -> None:
    """Check that a collection is a RUN, or may become one."""
    check_name("--output-run", run)
    try:
        found = butler.collections.get_info(run).type
    except MissingCollectionError:
        return
    if found is not CollectionType.RUN:
        raise RepositoryError(f"output run {run} is a {found.name} collection; give another name")


def define_collections(butler: Butler, instrument: YamlInstrument) -> None:
    """Register an instrument's collections and put them into its chain of defaults, where missing."""
    members = {
        instrument.makeDefaultRawIngestRunName(): CollectionType.RUN,
        instrument.makeCalibrationCollectionName(): CollectionType.CALIBRATION,
        instrument.makeUnboundedCalibrationRunName(): CollectionType.RUN,
        instrument.makeRefCatCollectionName(): CollectionType.CHAINED,
    }
    defaults = instrument.makeUmbrellaCollectionName()
    for name, collection_type in {**members, defaults: CollectionType.CHAINED}.items():
        butler.collections.register(name, collection_type)
    present = butler.collections.get_info(defaults).children
    if missing := [name for name in members if name not in present]:
        butler.collections.extend_chain(defaults, missing)


def get_description(butler: Butler, instrument: str) -> CameraDescription:
    """Return the description that an instrument was registered with."""
    known = [str(record.name) for record in butler.query_dimension_records("instrument", explain=False)]
    if instrument not in known:
        raise RepositoryError(
            f"instrument {instrument!r} is not registered in the repository; {suggest(instrument, known)}"
        )
    collection = make_instrument_class(instrument)().makeUnboundedCalibrationRunName()
    try:
        content = butler.get("camera", instrument=instrument, collections=collection)
    except (DatasetNotFoundError, LookupError, MissingCollectionError):
        raise RepositoryError(
            f"instrument {instrument!r} has no camera dataset in {collection}; "
            "register it with 'spark-butler obs register-instrument'"
        ) from None
    return CameraDescription.from_dict(content, origin=f"camera dataset of {instrument}")


def describe_instruments(butler: Butler, instrument: str | None = None) -> list[CameraDescription]:
    """Return the description of one instrument, or of all that were registered with one."""
    if instrument is not None:
        return [get_description(butler, instrument)]
    prefix = "spark_butler.obs.instruments."
    names = [
        str(record.name)
        for record in butler.query_dimension_records("instrument", explain=False)
        if str(record.class_name).startswith(prefix)
    ]
    if not names:
        raise RepositoryError(
            "the repository has no instrument with a camera description; "
            "register one with 'spark-butler obs register-instrument'"
        )
    return [get_description(butler, name) for name in names]


def expand_paths(paths: Iterable[ResourcePathExpression], suffixes: Sequence[str]) -> list[ResourcePath]:
    """Return the files that paths, directories, globs and URIs stand for; raise for one without files.

    A directory stands for the files below it with one of the ``suffixes`` (lower case); a ``*``, ``?`` or
    ``[`` in the last part of a path for the files that match.
    """
    found: dict[str, ResourcePath] = {}
    for given in paths:
        files = _expand(given, suffixes)
        if not files:
            raise UserError(f"{given}: no such file, or no files ending in {', '.join(suffixes)} there")
        found.update((str(file), file) for file in files)
    return list(found.values())


def _expand(given: ResourcePathExpression, suffixes: Sequence[str]) -> list[ResourcePath]:
    path = ResourcePath(given, forceAbsolute=True)
    name = path.basename()
    if any(character in name for character in "*?[") and not path.exists():
        pattern = fnmatch.translate(name)
        return sorted(ResourcePath.findFileResources([path.parent()], file_filter=rf"^{pattern}"), key=str)
    if path.isdir():
        directory = ResourcePath(given, forceAbsolute=True, forceDirectory=True)
        files = ResourcePath.findFileResources([directory])
        return sorted((f for f in files if f.basename().lower().endswith(tuple(suffixes))), key=str)
    return [path] if path.exists() else []
