"""Clients of object stores: made once for a worker and its children, counted, and spared needless questions.

`lsst.resources` makes the clients and keeps them; here they are made before
a child is forked, and given listeners by botocore's event system.
"""

from __future__ import annotations

__all__ = [
    "add_traffic",
    "counted_apart",
    "find_client",
    "forget_clients",
    "hold_files",
    "is_held",
    "look_ahead",
    "open_clients",
    "traffic_so_far",
]

import contextlib
import logging
import os
import threading
import time
import uuid
import weakref
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.utils import determine_content_length
from lsst.daf.butler import LocationFactory
from lsst.daf.butler.datastore.stored_file_info import StoredFileInfo
from lsst.resources import ResourcePath
from lsst.resources.s3 import S3ResourcePath

from .._lsst_resources import forget_s3_clients
from ..model.traffic import Traffic, TrafficCounter
from .file_cache import Answer, FileCache, answer_from_memory
from .prefetch_queue import PrefetchQueue

logger = logging.getLogger(__name__)

_LONGEST_LIFE_SECONDS = 300.0
# Below it, to ask the store whether it would take an object costs more than to send it in vain.
_ASK_FIRST_BYTES = 2**20

_CREDENTIAL_FILES = {
    "AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials",
    "AWS_CONFIG_FILE": "~/.aws/config",
    "AWS_WEB_IDENTITY_TOKEN_FILE": "",
}


class _ThreadState(threading.local):
    """What each thread has for itself."""

    last_url = ""
    asks_always = False
    apart: TrafficCounter | None = None


class _Watch:
    """Listens to the clients of this process."""

    def __init__(self) -> None:
        self.counter = TrafficCounter()
        self._written: tuple[tuple[str, str], int] | None = None
        self.held = FileCache()
        self.ahead: PrefetchQueue | None = None
        self.thread = _ThreadState()
        self._parts: dict[str, int] = {}

    def attach(self, client: Any) -> None:
        """Listen to a client."""
        events = client.meta.events
        events.register("before-parameter-build.s3", self._name)
        events.register("before-send.s3", self._count)
        events.register("before-call.s3", self._begin)
        events.register("after-call.s3", self._end)

    def after_fork(self) -> None:
        """Do without the threads of the process that this one was forked from."""
        self.counter = TrafficCounter(self.counter.traffic)
        self.ahead = None

    def _name(self, params: Mapping[str, Any], context: dict[str, Any], **_: Any) -> None:
        context["spark_butler_key"] = params.get("Bucket", ""), params.get("Key", "")

    def _count(self, request: AWSPreparedRequest, **_: Any) -> None:
        sent = int(request.headers.get("Content-Length") or 0)
        (self.thread.apart or self.counter).add(Traffic({request.method: 1}, sent))

    def _begin(
        self, model: Any, params: Mapping[str, Any], context: dict[str, Any], **_: Any
    ) -> Answer | None:
        """Answer what need not be asked: all about files that are held or were read ahead, and the length
        of the object that was written last, for which daf_butler asks after each write.
        """
        url, _, query = params["url"].partition("?")
        context["spark_butler_url"] = self.thread.last_url = url
        if self.thread.apart is not None:
            # Nobody's next question.
            return None
        written, self._written = self._written, None
        if model.name in ("HeadObject", "GetObject"):
            if model.name == "HeadObject" and written and written[0] == context["spark_butler_key"]:
                known = {"ContentLength": written[1], "ResponseMetadata": {"HTTPStatusCode": 200}}
                return AWSResponse(url, 200, {}, None), known
            data = None if query or self.thread.asks_always else self._recall(url, context)
            if data is not None and (answer := answer_from_memory(model.name, url, params["headers"], data)):
                context["spark_butler_held"] = True
                return answer
            return None
        if (ahead := self.ahead) is not None:
            ahead.drop(context["spark_butler_key"])
        self.held.drop(url)
        if model.name in ("PutObject", "UploadPart"):
            context["spark_butler_size"] = size = determine_content_length(params.get("body"))
            if size is not None and size < _ASK_FIRST_BYTES:
                # Botocore sends it with objects of any size, and waits for the answer.
                params["headers"].pop("Expect", None)
        elif model.name == "CreateMultipartUpload":
            self._parts[url] = 0
        return None

    def _recall(self, url: str, context: Mapping[str, Any]) -> bytes | None:
        """Find a file in memory."""
        data, ahead = self.held.get(url), self.ahead
        if data is None and ahead is not None:
            data, traffic = ahead.ask(context["spark_butler_key"])
            self.counter.add(traffic)
        return data

    def _end(
        self, http_response: Any, parsed: Mapping[str, Any], model: Any, context: Mapping[str, Any], **_: Any
    ) -> None:
        """Keep in mind what the store has confirmed."""
        url, size = context["spark_butler_url"], context.get("spark_butler_size")
        if http_response.status_code >= 300:
            return
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
                self._note_read(parsed, context)

    def _note_read(self, parsed: Mapping[str, Any], context: Mapping[str, Any]) -> None:
        """Count what an object, or a part of one, has brought, and tell who reads ahead."""
        length = int(parsed.get("ContentLength") or 0)
        if "spark_butler_held" not in context:
            (self.thread.apart or self.counter).add(Traffic(received=length))
        ahead = self.ahead
        if ahead is not None and self.thread.apart is None:
            size = str(parsed.get("ContentRange", "")).rpartition("/")[2]
            ahead.record_read(context["spark_butler_key"], int(size) if size.isdecimal() else length)
            if size in ("", str(length)):
                ahead.drop(context["spark_butler_key"])


_watch = _Watch()
os.register_at_fork(after_in_child=_watch.after_fork)
_watched: weakref.WeakSet[Any] = weakref.WeakSet()
_opened: tuple[float, object] | None = None


def traffic_so_far() -> Traffic:
    """Count what this process, and those that it was forked from, have done with watched clients."""
    return _watch.counter.traffic


def add_traffic(traffic: Traffic) -> None:
    """Count what was counted apart.

    Parameters
    ----------
    traffic
        What `counted_apart` has counted.
    """
    _watch.counter.add(traffic)


@contextlib.contextmanager
def counted_apart() -> Iterator[TrafficCounter]:
    """Read files in this thread for others: nothing is answered from memory, and all is counted apart.

    Yields
    ------
    counter
        What counts the requests.
    """
    counter = _watch.thread.apart = TrafficCounter()
    try:
        yield counter
    finally:
        _watch.thread.apart = None


@contextlib.contextmanager
def look_ahead(files: PrefetchQueue) -> Iterator[bool]:
    """Answer what is asked for from files that are read ahead.

    Parameters
    ----------
    files
        The files.

    Yields
    ------
    is_on
        Whether they are asked for; not where others are already.
    """
    is_on = _watch.ahead is None
    if is_on:
        _watch.ahead = files
    try:
        yield is_on
    finally:
        if _watch.ahead is files:
            _watch.ahead = None


def is_held(dataset_id: uuid.UUID) -> bool:
    """Whether the file of a dataset is kept in memory; see `hold_files`.

    Parameters
    ----------
    dataset_id
        The dataset.
    """
    return dataset_id in _watch.held


def find_client(uri: ResourcePath) -> Any:
    """Find the client that reads a file, if it is one that is watched.

    Parameters
    ----------
    uri
        The file.

    Returns
    -------
    client
        The client; `None` for other stores than S3, and where `open_clients`
        has made none.
    """
    client = uri.client if isinstance(uri, S3ResourcePath) else None
    return client if client is not None and client in _watched else None


def open_clients(stores: Iterable[str]) -> None:
    """Make the clients that reading and writing will need, unless they are there.

    A client has no connection before its first request, so that a process may
    make it for those that it forks; to make one takes about 0.1 s.  Clients
    are made anew after five minutes, and when a file with credentials has
    changed.

    Parameters
    ----------
    stores
        Addresses of places in stores; those that are not in an S3 store are
        left alone.
    """
    global _opened
    places = [uri for uri in map(ResourcePath, stores) if isinstance(uri, S3ResourcePath)]
    if not places:
        return
    credentials = _describe_credentials()
    now = time.monotonic()
    if _opened is None or now - _opened[0] > _LONGEST_LIFE_SECONDS or _opened[1] != credentials:
        forget_clients()
        _opened = now, credentials
    for uri in places:
        try:
            # Where another thread makes one at the same time, it may be that one that is kept.
            _, client = uri.client, uri.client
        except Exception:  # noqa: BLE001  (the quantum that needs it fails with its own error)
            logger.debug("No client could be made for %s.", uri, exc_info=True)
            continue
        if client not in _watched:
            _watch.attach(client)
            _watched.add(client)


def forget_clients() -> None:
    """Let clients be made anew, as after an error that may lie in what they keep."""
    global _opened
    _opened = None
    forget_s3_clients()


def hold_files(store: str, files: Mapping[uuid.UUID, StoredFileInfo], most_bytes: int) -> None:
    """Read files that will be wanted often, for this process and those that it forks.

    Parameters
    ----------
    store
        Address of the place that the files are in; other stores than S3 are
        left alone.
    files
        Datastore records of the files, by ID of the dataset.
    most_bytes
        How much memory the files may take up.
    """
    root = ResourcePath(store, forceDirectory=True)
    if not isinstance(root, S3ResourcePath):
        return
    held = _watch.held
    held.most_bytes = most_bytes
    held.want(files)
    factory = LocationFactory(root)
    room = most_bytes
    has_read = False
    # What is held at the same place may be an older dataset.
    _watch.thread.asks_always = True
    try:
        for dataset_id, info in files.items():
            room -= info.file_size
            if room < 0:
                break
            uri = info.file_location(factory).uri
            if dataset_id not in held and isinstance(uri, S3ResourcePath):
                has_read = True
                data = uri.read()
                if len(data) == info.file_size:
                    held.keep(dataset_id, _watch.thread.last_url, data)
    except Exception:  # noqa: BLE001  (the quantum that needs it fails with its own error)
        logger.debug("Files that are wanted often could not be read from %s.", store, exc_info=True)
    finally:
        _watch.thread.asks_always = False
    if has_read:
        # Children must not inherit a connection.
        root.client.close()


def _describe_credentials() -> object:
    """See from what credentials are made, to notice a change; nothing of them is read."""
    marks = []
    for name, default in _CREDENTIAL_FILES.items():
        if path := os.environ.get(name, default):
            try:
                status = Path(path).expanduser().stat()
            except (OSError, RuntimeError):
                continue
            marks.append((name, status.st_mtime_ns, status.st_size, status.st_ino))
    return tuple(marks)
