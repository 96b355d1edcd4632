"""Shared S3 clients that count requests and answer some of them from memory.

Runs in workers and their children; in the driver for the serial backend.
`lsst.resources` creates the clients and keeps them; `spark_butler.s3_retries`
sets their timeouts and the settings for older stores.  A worker creates the clients
before it forks a child, and handles botocore's events.
"""

from __future__ import annotations

__all__ = ["S3Clients"]

import contextlib
import logging
import os
import threading
import time
import uuid
import weakref
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsst.daf.butler import LocationFactory
from lsst.daf.butler.datastore.stored_file_info import StoredFileInfo
from lsst.resources import ResourcePath

from .._lsst_resources import forget_s3_clients, is_in_s3
from ..model.outcomes import Traffic, TrafficCounter
from ..s3_retries import close_client, prepare_client
from ..text import best_effort
from .file_cache import Answer, FileCache, answer_from_memory
from .prefetch_queue import PrefetchQueue

if TYPE_CHECKING:
    from botocore.awsrequest import AWSPreparedRequest

_LONGEST_LIFE_SECONDS = 300.0
# Smaller objects are sent without asking the store first (``Expect: 100-continue``): this costs less, even if
# the store refuses the object.
_ASK_FIRST_BYTES = 2**20

_CREDENTIAL_FILES = {
    "AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials",
    "AWS_CONFIG_FILE": "~/.aws/config",
    "AWS_WEB_IDENTITY_TOKEN_FILE": "",
}


class _ThreadState(threading.local):
    """State of one thread."""

    last_url = ""
    asks_always = False
    apart: TrafficCounter | None = None


class S3Clients:
    """The S3 clients of this process, and of the processes that it forks."""

    def __init__(self) -> None:
        self._counter = TrafficCounter()
        self._cache = FileCache()
        self._queue: PrefetchQueue | None = None
        self._listened: weakref.WeakSet[Any] = weakref.WeakSet()
        self._opened: tuple[float, object] | None = None
        self._written: tuple[tuple[str, str], int] | None = None
        self._parts: dict[str, int] = {}
        self._thread = _ThreadState()
        itself = weakref.ref(self)

        def after_fork() -> None:
            if (clients := itself()) is not None:
                clients._forget_threads()

        os.register_at_fork(after_in_child=after_fork)

    def _forget_threads(self) -> None:
        """Replace locks that threads of the parent process may have held at the fork."""
        self._counter = TrafficCounter(self._counter.traffic)
        self._queue = None

    @property
    def traffic(self) -> Traffic:
        """Traffic of the clients in this process and in its parent processes."""
        return self._counter.traffic

    def add_traffic(self, traffic: Traffic) -> None:
        """Add traffic that was counted apart."""
        self._counter.add(traffic)

    @contextlib.contextmanager
    def counted_apart(self) -> Iterator[TrafficCounter]:
        """Return a context in which this thread bypasses the cache and its traffic is counted separately."""
        counter = self._thread.apart = TrafficCounter()
        try:
            yield counter
        finally:
            self._thread.apart = None

    @contextlib.contextmanager
    def look_ahead(self, queue: PrefetchQueue) -> Iterator[bool]:
        """Answer requests from prefetched files, unless another queue is in use; yield whether it does."""
        is_on = self._queue is None
        if is_on:
            self._queue = queue
        try:
            yield is_on
        finally:
            if self._queue is queue:
                self._queue = None

    def is_cached(self, dataset_id: uuid.UUID) -> bool:
        """Return whether the file of a dataset is kept in memory; see `cache_files`."""
        return dataset_id in self._cache

    def find_client(self, uri: ResourcePath) -> Any:
        """Return the client that reads a file; `None` outside of S3, and for a store that wasn't opened."""
        client = uri.client if is_in_s3(uri) else None
        return client if client is not None and client in self._listened else None

    def open(self, stores: Iterable[str]) -> None:
        """Build the clients that reading and writing will need, unless they exist; other stores need none.

        A client has no connection before its first request, so a process may
        build it for the processes that it forks.  Building takes about 0.1 s.
        Clients are rebuilt after five minutes, and when a credentials file
        has changed.
        """
        places = [uri for uri in map(ResourcePath, stores) if is_in_s3(uri)]
        if not places:
            return
        credentials = _describe_credentials()
        now = time.monotonic()
        opened = self._opened
        if opened is None or now - opened[0] > _LONGEST_LIFE_SECONDS or opened[1] != credentials:
            self.forget()
            self._opened = now, credentials
        for uri in places:
            # The quantum that needs the store fails with its own error.
            with best_effort(f"No client can be made for {uri}", level=logging.DEBUG):
                client = prepare_client(uri)
                if client not in self._listened:
                    self._listen_to(client)

    def forget(self) -> None:
        """Discard the clients, after an error that old credentials or addresses may have caused."""
        self._opened = None
        forget_s3_clients()

    def cache_files(self, store: str, files: Mapping[uuid.UUID, StoredFileInfo], most_bytes: int) -> None:
        """Cache files that will be read often, for this process and the processes that it forks.

        ``store`` is the address of the folder of the files, which are not cached outside of S3.
        """
        root = ResourcePath(store, forceDirectory=True)
        if not is_in_s3(root):
            return
        cache = self._cache
        cache.most_bytes = most_bytes
        cache.want(files)
        factory = LocationFactory(root)
        room = most_bytes
        has_read = False
        # A cached file at the same place may be that of an older dataset.
        self._thread.asks_always = True
        # The quantum that needs the file fails with its own error.
        with best_effort(f"Files that are read often can't be read from {store}", level=logging.DEBUG):
            for dataset_id, info in files.items():
                room -= info.file_size
                if room < 0:
                    break
                uri = info.file_location(factory).uri
                if dataset_id not in cache and is_in_s3(uri):
                    has_read = True
                    data = uri.read()
                    if len(data) == info.file_size:
                        cache.keep(dataset_id, self._thread.last_url, data)
        self._thread.asks_always = False
        if has_read:
            # Children must not inherit a connection.
            close_client(root.client)

    def _listen_to(self, client: Any) -> None:
        events = client.meta.events
        events.register("before-parameter-build.s3", self._name)
        events.register("before-send.s3", self._count)
        events.register("before-call.s3", self._begin)
        events.register("after-call.s3", self._end)
        self._listened.add(client)

    def _name(self, params: Mapping[str, Any], context: dict[str, Any], **_: Any) -> None:
        context["spark_butler_key"] = params.get("Bucket", ""), params.get("Key", "")

    def _count(self, request: AWSPreparedRequest, **_: Any) -> None:
        sent = int(request.headers.get("Content-Length") or 0)
        (self._thread.apart or self._counter).add(Traffic({request.method: 1}, sent))

    def _begin(
        self, model: Any, params: Mapping[str, Any], context: dict[str, Any], **_: Any
    ) -> Answer | None:
        """Answer a request for a cached or prefetched file, or for the size of the file written last.

        daf_butler requests the size of each file that it has written.
        """
        from botocore.awsrequest import AWSResponse
        from botocore.utils import determine_content_length

        if "spark_butler_key" not in context:
            # Another thread began this request before the client was known.
            return None
        url, _, query = params["url"].partition("?")
        context["spark_butler_url"] = self._thread.last_url = url
        if self._thread.apart is not None:
            # Another thread may send requests in between.
            return None
        written, self._written = self._written, None
        key = context["spark_butler_key"]
        if model.name in ("HeadObject", "GetObject"):
            if model.name == "HeadObject" and written is not None and written[0] == key:
                known = {"ContentLength": written[1], "ResponseMetadata": {"HTTPStatusCode": 200}}
                return AWSResponse(url, 200, {}, None), known
            data = None if query or self._thread.asks_always else self._recall(url, key)
            if data is not None and (answer := answer_from_memory(model.name, url, params["headers"], data)):
                context["spark_butler_cached"] = True
                return answer
            return None
        if self._queue is not None:
            self._queue.drop(key)
        self._cache.drop(url)
        if model.name in ("PutObject", "UploadPart"):
            context["spark_butler_size"] = size = determine_content_length(params.get("body"))
            if size is not None and size < _ASK_FIRST_BYTES:
                # Botocore adds the header to objects of any size, and waits for the answer.
                params["headers"].pop("Expect", None)
        elif model.name == "CreateMultipartUpload":
            self._parts[url] = 0
        return None

    def _recall(self, url: str, key: tuple[str, str]) -> bytes | None:
        data = self._cache.get(url)
        if data is None and self._queue is not None:
            data, traffic = self._queue.get(key)
            self._counter.add(traffic)
        return data

    def _end(
        self, http_response: Any, parsed: Mapping[str, Any], model: Any, context: Mapping[str, Any], **_: Any
    ) -> None:
        """Record the size of a file that the store has accepted."""
        if http_response.status_code >= 300 or "spark_butler_url" not in context:
            return
        url, size = context["spark_butler_url"], context.get("spark_butler_size")
        match model.name:
            case "PutObject" if size is not None:
                self._written = context["spark_butler_key"], size
            case "UploadPart" if url in self._parts:
                if size is None:
                    del self._parts[url]
                else:
                    self._parts[url] += size
            case "CompleteMultipartUpload" if url in self._parts:
                self._written = context["spark_butler_key"], self._parts.pop(url)
            case "GetObject":
                self._record_read(parsed, context)

    def _record_read(self, parsed: Mapping[str, Any], context: Mapping[str, Any]) -> None:
        """Count the bytes that were read, and pass their number on to the prefetch."""
        length = int(parsed.get("ContentLength") or 0)
        if "spark_butler_cached" not in context:
            (self._thread.apart or self._counter).add(Traffic(received=length))
        queue = self._queue
        if queue is not None and self._thread.apart is None:
            size = str(parsed.get("ContentRange", "")).rpartition("/")[2]
            queue.record_read(context["spark_butler_key"], int(size) if size.isdecimal() else length)
            if size in ("", str(length)):
                queue.drop(context["spark_butler_key"])


def _describe_credentials() -> object:
    """Return the sizes and times of the files with credentials; their contents are not read."""
    marks = []
    for name, default in _CREDENTIAL_FILES.items():
        if path := os.environ.get(name, default):
            try:
                status = Path(path).expanduser().stat()
            except (OSError, RuntimeError):
                continue
            marks.append((name, status.st_mtime_ns, status.st_size, status.st_ino))
    return tuple(marks)
