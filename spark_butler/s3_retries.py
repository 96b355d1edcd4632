"""Deadlines, retries and settings of lsst.resources' S3 clients.  Runs in the driver and in workers."""

from __future__ import annotations

__all__ = ["CHECKSUM_VARIABLES", "close_client", "initialize_client_plugin", "prepare_client"]

import base64
import hashlib
import logging
import os
import socket
import time
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ._lsst_resources import connection_parameters, forget_s3_clients

if TYPE_CHECKING:
    from botocore.awsrequest import AWSPreparedRequest
    from lsst.resources.s3 import S3ResourcePath

logger = logging.getLogger(__name__)

CHECKSUM_VARIABLES = ("AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION")
"""Variables that stop botocore from sending checksums over https in a form that several stores refuse."""

_CONNECT_SECONDS = 10.0
_READ_SECONDS = 60.0
_RETRY_SECONDS = 100.0
"""Time after the first attempt during which another one may begin."""

_POOL = 16
_BEGAN = "spark_butler_began"


def prepare_client(uri: S3ResourcePath) -> Any:
    """Return the client of an object's store, with deadlines and with settings for older stores.

    lsst.resources uses the same client for all objects of the store.
    """
    for name in CHECKSUM_VARIABLES:
        os.environ.setdefault(name, "when_required")
    config = uri.client.meta.config
    found = config.request_checksum_calculation, config.response_checksum_validation
    if found != tuple(os.environ[name].lower() for name in CHECKSUM_VARIABLES):
        # Another caller has built the client with other settings.
        forget_s3_clients()
    # Read twice: if another thread builds a client at the same time, lsst.resources may keep that one.
    _, client = uri.client, uri.client
    initialize_client_plugin(client, connection_parameters(uri).profile)
    return client


def initialize_client_plugin(client: Any, profile: str | None = None) -> None:
    """Prepare a client of S3; botocore calls it if ``BOTOCORE_EXPERIMENTAL__PLUGINS`` names this module.

    Parameters
    ----------
    profile
        Profile with the settings, if it is not the default one.
    """
    if client.meta.service_model.service_name != "s3" or client in _SENDERS:
        return
    sender = _SENDERS[client] = _Sender(client, profile)
    events = client.meta.events
    events.register("before-call.s3.DeleteObjects", _add_content_md5)
    events.register("before-call.s3", _record_begin)
    events.register("before-send.s3", sender.send)
    events.register_first("needs-retry.s3", _limit_retries)


def close_client(client: Any) -> None:
    """Close the connections of a client; further requests open new ones."""
    if (sender := _SENDERS.get(client)) is not None:
        sender.close()
    client.close()


class _Sender:
    """Sends the requests of a client with deadlines and a pool for which lsst.resources has no settings."""

    def __init__(self, client: Any, profile: str | None):
        from botocore.utils import get_environ_proxies

        self._profile = profile
        proxies = client.meta.config.proxies
        self._arguments = {
            "proxies": get_environ_proxies(client.meta.endpoint_url) if proxies is None else proxies,
            "proxies_config": client.meta.config.proxies_config,
            "client_cert": client.meta.config.client_cert,
            "timeout": (_CONNECT_SECONDS, _READ_SECONDS),
            # The same as in botocore; without it, a small request may wait 40 ms for the previous one.
            "socket_options": [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
            "max_pool_connections": max(_POOL, client.meta.config.max_pool_connections),
        }
        self._session: tuple[int, Any] | None = None

    def send(self, request: AWSPreparedRequest, **_: Any) -> Any:
        session = self._session
        if session is None or session[0] != os.getpid():
            import botocore.session
            from botocore.httpsession import URLLib3Session

            # A child must not use the connections of the process that forked it.
            verify = botocore.session.Session(profile=self._profile).get_config_variable("ca_bundle")
            verify = verify or os.environ.get("REQUESTS_CA_BUNDLE") or True
            session = self._session = os.getpid(), URLLib3Session(verify=verify, **self._arguments)
        return session[1].send(request)

    def close(self) -> None:
        if self._session is not None:
            self._session[1].close()


_SENDERS: weakref.WeakKeyDictionary[Any, _Sender] = weakref.WeakKeyDictionary()


def _add_content_md5(params: dict[str, Any], **_: Any) -> None:
    """Add the checksum that OpenStack Swift before 2.35 and MinIO's front ends require for removals."""
    body = params["body"].encode() if isinstance(params["body"], str) else params["body"]
    if isinstance(body, bytes | bytearray):
        digest = hashlib.md5(body, usedforsecurity=False).digest()
        params["headers"].setdefault("Content-MD5", base64.b64encode(digest).decode())


def _record_begin(context: dict[str, Any], **_: Any) -> None:
    context[_BEGAN] = time.monotonic()


def _limit_retries(
    caught_exception: Exception | None, request_dict: Mapping[str, Any], attempts: int, **_: Any
) -> None:
    """Log a warning if a store does not answer, and end the attempts in time."""
    from botocore.exceptions import ConnectTimeoutError, ReadTimeoutError

    if caught_exception is None:
        return
    seconds = time.monotonic() - request_dict["context"].get(_BEGAN, time.monotonic())
    if seconds > _RETRY_SECONDS:
        raise caught_exception
    if isinstance(caught_exception, ConnectTimeoutError | ReadTimeoutError):
        url = request_dict["url"].partition("?")[0]
        logger.warning(
            "The object store has not answered %s %s for %.0f s (attempt %d).",
            request_dict["method"],
            url,
            seconds,
            attempts,
        )
