"""Functions that obs commands share: the butler, instruments' descriptions, files."""

from __future__ import annotations

__all__ = (
    "check_run",
    "describe_instruments",
    "expand_paths",
    "get_description",
    "writing_butler",
)

import contextlib
import errno
import fnmatch
import logging
from collections.abc import Iterable, Iterator, Sequence

import sqlalchemy.exc
from lsst.daf.butler import Butler, CollectionType, DatasetNotFoundError, MissingCollectionError
from lsst.resources import ResourcePath, ResourcePathExpression

from ..errors import RepositoryError, UserError
from ..repository.checks import check_repository, check_writeable
from ..repository.output_checks import check_name
from ..text import brief, suggest
from .camera.description import CameraDescription
from .instrument import make_instrument_class

logger = logging.getLogger(__name__)

# Without IntegrityError, a conflict of what is written with what is there.
_DATABASE_ERRORS = (
    sqlalchemy.exc.OperationalError,
    sqlalchemy.exc.ProgrammingError,
    sqlalchemy.exc.InternalError,
    sqlalchemy.exc.InterfaceError,
)
_UNWRITEABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def writing_butler(repo: ResourcePathExpression) -> Iterator[Butler]:
    """Open a repository for as long as it is written to; raise `RepositoryError` if it may not be."""
    check_writeable(check_repository(str(repo)))
    try:
        with Butler.from_config(repo, writeable=True) as butler:
            yield butler
    except (*_DATABASE_ERRORS, OSError) as exc:
        if isinstance(exc, OSError) and exc.errno not in _UNWRITEABLE:
            raise
        origin = getattr(exc, "orig", None) or exc
        raise RepositoryError(
            f"Can't write to the Butler repository {str(repo)!r}: {brief(origin)}; this command needs write "
            "access to the database of its registry and to its datastore."
        ) from exc


def check_run(butler: Butler, run: str) -> None:
    """Check that a collection is a RUN, or may become one."""
    check_name("--output-run", run)
    try:
        found = butler.collections.get_info(run).type
    except MissingCollectionError:
        return
    if found is not CollectionType.RUN:
        raise RepositoryError(f"output run {run} is a {found.name} collection; give another name")


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
