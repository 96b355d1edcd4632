"""Butler server of daf_butler on the loopback interface, as a user's RemoteButler finds it.

It runs by uvicorn in a process of its own, and wants a bearer token as behind Gafaelfawr.
"""

from __future__ import annotations

__all__ = ["ButlerServer", "server_is_missing"]

import json
import os
import secrets
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Self

from lsst.daf.butler.tests.server_available import butler_server_import_error

from spark_butler.demo.s3server import find_free_ports, wait_until
from spark_butler.signals_and_locks import dying_with_parent

_READY_SECONDS = 240

_PROGRAM = """
import os, sys
import uvicorn
from fastapi import Request
from fastapi.responses import PlainTextResponse
from lsst.daf.butler.remote_butler.server import create_app
from lsst.resources.s3 import S3ResourcePath

sign, signed = S3ResourcePath.generate_presigned_get_url, set()

def sign_late(self, *, expiration_time_seconds):
    # The first address of each file has expired when it arrives.
    seconds = expiration_time_seconds if self in signed else -60
    signed.add(self)
    return sign(self, expiration_time_seconds=seconds)

if os.environ.get("FIRST_ADDRESS_EXPIRES"):
    S3ResourcePath.generate_presigned_get_url = sign_late
app = create_app()

@app.middleware("http")
async def check_token(request: Request, call_next):
    path, token = request.url.path, request.headers.get("authorization")
    public = path == "/" or path.endswith(("/butler.yaml", "/butler.json"))
    if not public and token != f"Bearer {os.environ['WANTED_TOKEN']}":
        return PlainTextResponse("no valid token", status_code=403)
    return await call_next(request)

uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="info")
"""


def server_is_missing() -> str:
    """Return why no server can be started here; an empty string if one can."""
    return butler_server_import_error


class ButlerServer:
    """Server of one repository; a context manager.

    Parameters
    ----------
    root
        Root of the repository.
    folder
        Where its log is written.
    first_address_expires
        Whether the first address that it signs for a file can't be used any more.
    """

    def __init__(self, root: Path, folder: Path, *, first_address_expires: bool = False):
        self._root = root
        self.log = folder / "butler-server.log"
        self.token = secrets.token_hex(16)
        self._options = {"FIRST_ADDRESS_EXPIRES": "1"} if first_address_expires else {}
        (self._port,) = find_free_ports(1)

    @property
    def url(self) -> str:
        """Address of the repository."""
        return f"http://127.0.0.1:{self._port}/api/butler/repo/night"

    def __enter__(self) -> Self:
        repositories = {"night": {"config_uri": str(self._root / "butler.yaml"), "authorized_groups": ["*"]}}
        environment = {
            **os.environ,
            "DAF_BUTLER_SERVER_REPOSITORIES": json.dumps(repositories),
            "DAF_BUTLER_SERVER_GAFAELFAWR_URL": "DISABLED",
            "DAF_BUTLER_SERVER_AUTHENTICATION": "rubin_science_platform",
            "WANTED_TOKEN": self.token,
            **self._options,
        }
        with open(self.log, "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, str(self._port)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=dying_with_parent(),
            )
        if not wait_until(self._answers, _READY_SECONDS):
            self.__exit__()
            raise TimeoutError(f"The Butler server is not ready: {self.log.read_text()[-2000:]}")
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _answers(self) -> bool:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            opener.open(f"{self.url}/butler.yaml", timeout=3).close()
        except OSError:
            return False
        return True
