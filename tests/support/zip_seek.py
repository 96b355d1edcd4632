"""Put right how some releases of CPython seek in the uncompressed members of a ZIP file.

In 3.12.1 and 3.13.0, among others, a seek in one member starts from where
another was read last (issue gh-127847 of CPython): what is read then are wrong
bytes, or `EOFError`.  Quantum graph files are such ZIP files.  As a pytest plugin
(``-p zip_seek``) this module does it for a whole session.
"""

from __future__ import annotations

__all__ = ["has_bug", "seek_by_reading"]

import contextlib
import io
import os
import zipfile
from collections.abc import Iterator
from typing import Any

_CHUNK = 1 << 20
_seek = zipfile.ZipExtFile.seek


def has_bug() -> bool:
    """Whether this Python has the bug, whatever else is in the process."""
    data = bytes(range(251)) * 400
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as file:
        file.writestr("member", data)
        file.writestr("next", bytes(len(data)))
    with zipfile.ZipFile(archive) as file, file.open("member") as stream, file.open("next") as other:
        stream.read(10)
        other.read(10)
        try:
            stream.seek(50_000)
            return stream.read(300) != data[50_000:50_300]
        except EOFError:
            return True


def _careful_seek(self: Any, offset: int, whence: int = os.SEEK_SET) -> int:
    """Go to a place by reading all before it."""
    start = {os.SEEK_SET: 0, os.SEEK_CUR: self.tell(), os.SEEK_END: self._orig_file_size}[whence]
    place = min(max(start + offset, 0), self._orig_file_size)
    if place < self.tell():
        _seek(self, 0)
    while (left := place - self.tell()) > 0:
        self.read(min(left, _CHUNK))
    return int(self.tell())


@contextlib.contextmanager
def seek_by_reading() -> Iterator[None]:
    """Read ZIP files correctly with any Python."""
    before = zipfile.ZipExtFile.seek
    zipfile.ZipExtFile.seek = _careful_seek  # type: ignore[method-assign]
    try:
        yield
    finally:
        zipfile.ZipExtFile.seek = before  # type: ignore[method-assign]


def pytest_configure() -> None:
    """Do it for a whole session."""
    zipfile.ZipExtFile.seek = _careful_seek  # type: ignore[method-assign]
