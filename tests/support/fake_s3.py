"""A server that behaves like a faulty object store, for checks that have to find the fault."""

from __future__ import annotations

__all__ = ["FakeS3"]

import contextlib
import email.utils
import http.server
import threading
import time
from collections.abc import Iterator

_LIST = b'<?xml version="1.0"?><ListBucketResult><KeyCount>0</KeyCount></ListBucketResult>'
_UPLOAD = b'<?xml version="1.0"?><InitiateMultipartUploadResult><UploadId>1</UploadId>'
_UPLOAD += b"</InitiateMultipartUploadResult>"
_DONE = b'<?xml version="1.0"?><CompleteMultipartUploadResult></CompleteMultipartUploadResult>'


class FakeS3:
    """A store that takes and forgets everything, but for its faults.

    Parameters
    ----------
    refused
        Codes of the errors by HTTP method.
    clock
        Seconds that its clock is ahead.
    is_store
        Whether it is an object store at all.
    """

    def __init__(self, refused: dict[str, str] | None = None, clock: float = 0.0, *, is_store: bool = True):
        self.refused = refused or {}
        self.clock = clock
        self.is_store = is_store

    @contextlib.contextmanager
    def serve(self) -> Iterator[str]:
        """Run the server, and give its address."""
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler()) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                yield f"http://127.0.0.1:{server.server_address[1]}"
            finally:
                server.shutdown()
                thread.join()

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        fake = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer(_LIST if "list-type" in self.path else bytes(2**20))

            def do_PUT(self) -> None:
                self._answer(b"", "BadDigest" if self.headers.get("Content-MD5") else "")

            def do_DELETE(self) -> None:
                self._answer(b"")

            def do_POST(self) -> None:
                self._answer(_UPLOAD if "uploads" in self.path else _DONE)

            def _answer(self, body: bytes, code: str = "") -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if code := fake.refused.get(self.command, code):
                    body = f'<?xml version="1.0"?><Error><Code>{code}</Code></Error>'.encode()
                if not fake.is_store:
                    body, code = b"<html>Hello</html>", "404"
                self.send_response_only(404 if code == "404" else 403 if code else 200)
                self.send_header("Date", email.utils.formatdate(time.time() + fake.clock, usegmt=True))
                if fake.is_store:
                    self.send_header("x-amz-request-id", "1")
                self.send_header("ETag", '"1"')
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        return Handler
