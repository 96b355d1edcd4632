"""Cache of files of object stores that many quanta read, in the memory of a worker.

Runs in workers, which read the files before they fork children, and in the children,
which share this memory.
"""

from __future__ import annotations

__all__ = ["FileCache", "answer_from_memory"]

import io
import uuid
from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from botocore.awsrequest import AWSResponse

type Answer = tuple[AWSResponse, dict[str, Any]]
"""Response of a store, in the form that botocore accepts from an event handler."""


class FileCache:
    """Cache of the contents of the most recently used files, of ``most_bytes`` altogether."""

    def __init__(self, most_bytes: int = 0):
        self.most_bytes = most_bytes
        self._files: OrderedDict[str, tuple[uuid.UUID, bytes]] = OrderedDict()
        self._urls: dict[uuid.UUID, str] = {}

    def __contains__(self, dataset_id: uuid.UUID) -> bool:
        return dataset_id in self._urls

    def want(self, dataset_ids: Collection[uuid.UUID]) -> None:
        """Mark files as recently used."""
        for dataset_id in dataset_ids:
            if dataset_id in self._urls:
                self._files.move_to_end(self._urls[dataset_id])

    def keep(self, dataset_id: uuid.UUID, url: str, data: bytes) -> None:
        """Add a file, and drop the least recently used ones beyond the limit."""
        self.drop(url)
        self._files[url] = dataset_id, data
        self._urls[dataset_id] = url
        while sum(len(content) for _, content in self._files.values()) > self.most_bytes:
            self.drop(next(iter(self._files)))

    def drop(self, url: str) -> None:
        """Drop a file, if it is cached."""
        dataset_id, _ = self._files.pop(url, (None, b""))
        if dataset_id is not None:
            del self._urls[dataset_id]

    def get(self, url: str) -> bytes | None:
        """Return the contents of a file; `None` if it is not cached."""
        return self._files[url][1] if url in self._files else None


def answer_from_memory(operation: str, url: str, headers: Mapping[str, Any], data: bytes) -> Answer | None:
    """Build the store's response to ``HeadObject`` or ``GetObject``; `None` if the request must be sent."""
    from botocore.awsrequest import AWSResponse
    from botocore.response import StreamingBody

    start, end = 0, len(data)
    more: dict[str, Any] = {}
    if span := str(headers.get("Range", "")):
        first, _, last = span.removeprefix("bytes=").partition("-")
        if not first.isdecimal() or (last and not last.isdecimal()) or int(first) >= len(data):
            return None
        start = int(first)
        end = min(end, int(last) + 1) if last else end
        more["ContentRange"] = f"bytes {start}-{end - 1}/{len(data)}"
    length = end - start
    status = 206 if span else 200
    answer = {"ContentLength": length, "ResponseMetadata": {"HTTPStatusCode": status}, **more}
    if operation == "GetObject":
        part = data if length == len(data) else memoryview(data)[start:end]
        answer["Body"] = StreamingBody(io.BytesIO(part), length)
    return AWSResponse(url, status, {}, None), answer
