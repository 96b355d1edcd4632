"""Clients of object stores: made once for a worker and its children, counted, and spared needless questions.

`lsst.resources` makes the clients and keeps them; here they are made before
a child is forked, and given listeners by botocore's event system.
"""

from __future__ import annotations

__all__ = ["forget_clients", "open_clients", "traffic_so_far"]

import logging
import os
import time
import weakref
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.utils import determine_content_length
from lsst.resources import ResourcePath
from lsst.resources.s3 import S3ResourcePath
from lsst.resources.s3utils import _get_s3_client

from .traffic import Traffic

logger = logging.getLogger(__name__)

_LONGEST_LIFE_SECONDS = 300.0

_CREDENTIAL_FILES = {
    "AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials",
    "AWS_CONFIG_FILE": "~/.aws/config",
    "AWS_WEB_IDENTITY_TOKEN_FILE": "",
}


class _Watch:
    """Listens to the clients of this process."""

    def __init__(self) -> None:
        self._requests: Counter[str] = Counter()
        self._sent = 0
        self._received = 0
        self._written: tuple[str, int] | None = None
        self._parts: dict[str, int] = {}

    @property
    def traffic(self) -> Traffic:
        """What was counted so far."""
        return Traffic(dict(self._requests), self._sent, self._received)

    def attach(self, client: Any) -> None:
        """Listen to a client."""
        events = client.meta.events
        events.register("before-send.s3", self._count)
        events.register("before-call.s3", self._begin)
        events.register("after-call.s3", self._end)

    def _count(self, request: AWSPreparedRequest, **_: Any) -> None:
        self._requests[request.method] += 1
        self._sent += int(request.headers.get("Content-Length") or 0)

    def _begin(
        self, model: Any, params: Mapping[str, Any], context: dict[str, Any], **_: Any
    ) -> tuple[AWSResponse, dict[str, Any]] | None:
        """Answer the question how large an object is that was written a moment ago.

        daf_butler asks it after each write.  Only where nothing else was done
        since is the answer known; the store has confirmed the write.
        """
        written, self._written = self._written, None
        url, _, query = params["url"].partition("?")
        context["spark_butler_url"] = url
        if model.name == "HeadObject":
            if written is not None and written[0] == url and not query:
                return AWSResponse(url, 200, {}, None), {"ContentLength": written[1], "ResponseMetadata": {}}
        elif model.name in ("PutObject", "UploadPart"):
            context["spark_butler_size"] = determine_content_length(params.get("body"))
        elif model.name == "CreateMultipartUpload":
            self._parts[url] = 0
        return None

    def _end(
        self, http_response: Any, parsed: Mapping[str, Any], model: Any, context: Mapping[str, Any], **_: Any
    ) -> None:
        """Keep in mind what the store has confirmed."""
        url, size = context["spark_butler_url"], context.get("spark_butler_size")
        if http_response.status_code >= 300:
            return
        match model.name:
            case "PutObject" if size is not None:
                self._written = url, size
            case "UploadPart" if url in self._parts:
                if size is None:
                    del self._parts[url]
                else:
                    self._parts[url] += size
            case "CompleteMultipartUpload" if url in self._parts:
                self._written = url, self._parts.pop(url)
            case "GetObject":
                self._received += int(parsed.get("ContentLength") or 0)


_watch = _Watch()
_watched: weakref.WeakSet[Any] = weakref.WeakSet()
_opened: tuple[float, object] | None = None


def traffic_so_far() -> Traffic:
    """Count what this process, and those that it was forked from, have done with watched clients."""
    return _watch.traffic


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
            client = uri.client
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
    _get_s3_client.cache_clear()


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
