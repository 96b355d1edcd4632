"""Scratch files: files in the object store for temporaries that are too large for a shuffle.

Workers and their children write and read them; the driver removes them.  Each run has
a folder for them, below a fixed folder of the datastore's root, so that they can be
found after a crash.
"""

from __future__ import annotations

__all__ = [
    "ScratchPart",
    "cut_pieces",
    "fetch_scratch",
    "find_scratch",
    "list_scratch_runs",
    "remove_scratch",
    "scratch_folder",
    "scratch_root",
    "store_scratch",
]

import hashlib
import logging
import re
import uuid
from collections.abc import Collection, Iterable, Iterator, Sequence

from lsst.resources import ResourcePath

from ..errors import RepositoryError
from ..run_folders import path_below, run_folder
from ..text import translate_errors

logger = logging.getLogger(__name__)

type ScratchPart = tuple[str, int, bytes]
"""Address, length and SHA-256 digest of a file."""

_FOLDER = "spark-butler-scratch/"
_PART_BYTES = 256 * 2**20
# Each attempt has a folder.  The name of a run may begin with that of another run, as in `u/me` and `u/me/2`.
_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_OF_ATTEMPT = re.compile(rf"{_UUID}/(?:[^/]+)?")
_OF_RUN = re.compile(rf"(.+)/{_UUID}/[^/]+", re.DOTALL)


def scratch_root(datastore_root: ResourcePath) -> ResourcePath:
    """Return the folder of all runs' scratch files, below the root of the datastore."""
    return datastore_root.join(_FOLDER, forceDirectory=True)


def scratch_folder(datastore_root: ResourcePath, run: str) -> ResourcePath:
    """Return the folder of a run's scratch files; raise a `RepositoryError` for an impossible name."""
    return run_folder(scratch_root(datastore_root), run)


def list_scratch_runs(datastore_root: ResourcePath) -> set[str]:
    """List the runs that have left scratch files."""
    top = scratch_root(datastore_root)
    paths = (path_below(top, uri) for uri in find_scratch(top))
    return {match[1] for path in paths if path is not None and (match := _OF_RUN.fullmatch(path))}


def store_scratch(
    folder: str, dataset_id: uuid.UUID, pieces: Iterable[memoryview], part_bytes: int = _PART_BYTES
) -> list[ScratchPart]:
    """Write a serialized object to the object store, and return the files in order."""
    parts: list[ScratchPart] = []
    attempt = uuid.uuid4()
    for number, part in enumerate(cut_pieces(pieces, part_bytes)):
        uri = ResourcePath(folder, forceDirectory=True).join(f"{dataset_id}.{attempt}.{number}")
        data = b"".join(part)
        uri.write(data)
        parts.append((str(uri), len(data), hashlib.sha256(data).digest()))
    return parts


def cut_pieces(pieces: Iterable[memoryview], nbytes: int) -> Iterator[list[memoryview]]:
    """Yield lists of consecutive pieces, each of ``nbytes`` but the last; one empty list without pieces."""
    part: list[memoryview] = []
    free = nbytes
    is_first = True
    for piece in pieces:
        view = memoryview(piece).cast("B")
        while len(view):
            part.append(view[:free])
            view = view[len(part[-1]) :]
            free -= len(part[-1])
            if not free:
                yield part
                part, free, is_first = [], nbytes, False
    if part or is_first:
        yield part


def fetch_scratch(parts: Sequence[ScratchPart]) -> bytearray:
    """Read a serialized object back from its files; raise an `OSError` if one has changed."""
    data = bytearray(sum(length for _, length, _ in parts))
    offset = 0
    for address, length, digest in parts:
        content = ResourcePath(address).read()
        if len(content) != length:
            raise OSError(f"Scratch file {address} has {len(content)} bytes; {length} were written.")
        if hashlib.sha256(content).digest() != digest:
            # The content would be unpickled, which must not run code of another writer of the bucket.
            raise OSError(f"Scratch file {address} has changed since it was written; it was not read.")
        data[offset : offset + length] = content
        offset += length
    return data


def find_scratch(folder: ResourcePath, *, one_run: bool = False) -> list[ResourcePath]:
    """List the scratch files of a run, or those of all runs below `scratch_root`.

    With ``one_run``, the files of other runs whose names begin with the run's name are left out.
    """
    return [uri for uri in _list(folder, one_run=one_run) if not uri.geturl().endswith("/")]


def _list(folder: ResourcePath, *, one_run: bool) -> list[ResourcePath]:
    """List all keys; some stores show a folder that has become empty as one."""
    found = ResourcePath.findFileResources([folder], grouped=False)
    if not one_run:
        return list(found)
    return [uri for uri in found if _OF_ATTEMPT.fullmatch(path_below(folder, uri) or "")]


def remove_scratch(
    folder: ResourcePath, dataset_ids: Collection[uuid.UUID] | None = None, *, one_run: bool = False
) -> int:
    """Remove the scratch files of some datasets, or all, and return how many were removed.

    ``folder`` and ``one_run`` are those of `find_scratch`.  A `RepositoryError` is raised if the
    object store refuses to list or to remove files.
    """
    with translate_errors(RepositoryError, f"Scratch files in {folder} can't be removed"):
        found = _list(folder, one_run=one_run)
        if dataset_ids is not None:
            names = {str(dataset_id) for dataset_id in dataset_ids}
            found = [uri for uri in found if uri.basename().partition(".")[0] in names]
        removals = ResourcePath.mremove(found, do_raise=False)
    for uri, result in removals.items():
        if not result.success:
            logger.warning("Could not remove scratch file %s: %s", uri, result.exception)
    return sum(result.success and not uri.geturl().endswith("/") for uri, result in removals.items())
