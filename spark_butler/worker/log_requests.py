"""Requests for the logs of running quanta, and the answers, as files in the object store.

The command ``logs`` writes requests; children of workers answer them.  To find
requests, a running quantum lists a folder every 10 s; shorter quanta list nothing.
"""

from __future__ import annotations

__all__ = ["LogRequest", "answering_requests", "read_answers"]

import contextlib
import dataclasses
import io
import json
import logging
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self

from lsst.resources import ResourcePath

from ..atomic_write import write_at_once
from ..errors import OptionsError
from ..masking import hide_secrets
from ..text import best_effort

_SECONDS_BETWEEN = 10.0
_MOST_CHARACTERS = 2**20
_FORMAT = "{asctime} {levelname} {name}: {message}"


@dataclasses.dataclass(frozen=True)
class LogRequest:
    """Request for the log of a quantum."""

    quantum_id: str = ""
    """ID of the quantum; empty if label and values select it."""

    label: str = ""

    data_id: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Values of dimensions as text; others may have any value."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``LABEL``, ``LABEL:DIM=VALUE,...`` or a quantum's ID; raise an `OptionsError` for others."""
        with contextlib.suppress(ValueError):
            return cls(quantum_id=str(uuid.UUID(text)))
        label, _, rest = text.partition(":")
        terms = [term.partition("=") for term in rest.split(",") if term]
        if not label or not all(name.strip() and value.strip() for name, _, value in terms):
            raise OptionsError(
                f"QUANTUM is {text!r}; expected LABEL:DIMENSION=VALUE,..., such as isr:visit=42,detector=2, "
                "or the ID of a quantum."
            )
        return cls(label=label, data_id={name.strip(): value.strip() for name, _, value in terms})

    def matches(self, quantum_id: uuid.UUID, label: str, data_id: Mapping[str, object]) -> bool:
        """Return whether the request selects a quantum."""
        if self.quantum_id:
            return self.quantum_id == str(quantum_id)
        wanted = self.data_id.items()
        return label == self.label and all(str(data_id.get(name)) == value for name, value in wanted)

    def send(self, folder: ResourcePath) -> ResourcePath:
        """Write the request into the folder that the processes of a run watch, and return its address."""
        uri = folder.join(f"{uuid.uuid4()}.json")
        write_at_once(uri, json.dumps(dataclasses.asdict(self)).encode())
        return uri


def read_answers(request: ResourcePath) -> list[dict[str, Any]]:
    """Return the answers to a request: ``quantum``, ``text``, ``start`` and ``ended`` of each quantum."""
    answers = request.dirname().join(f"{_name(request)}/", forceDirectory=True)
    found = ResourcePath.findFileResources([answers], file_filter=r"\.json$", grouped=False)
    return [json.loads(uri.read()) for uri in found]


def _name(request: ResourcePath) -> str:
    return request.basename().removesuffix(".json")


class _Tail(logging.Handler):
    """The last part of a log, as text."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter(_FORMAT, style="{"))
        self._text = io.StringIO()
        self._start = 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._text.write(f"{self.format(record)}\n")
        except Exception:  # noqa: BLE001  (as every handler does)
            self.handleError(record)

    def read(self) -> tuple[int, str]:
        """Return the number of characters that were dropped, and the rest."""
        with self.lock or contextlib.nullcontext():
            text = self._text.getvalue()
            if (surplus := len(text) - _MOST_CHARACTERS) > 0:
                self._start += surplus
                text = text[surplus:]
                self._text = io.StringIO()
                self._text.write(text)
        return self._start, text


@contextlib.contextmanager
def answering_requests(
    folder: str,
    quantum_id: uuid.UUID,
    label: str,
    data_id: Mapping[str, object],
    *,
    seconds: float = _SECONDS_BETWEEN,
) -> Iterator[None]:
    """Answer requests for the log of a quantum while the context lasts.

    ``folder`` is the address of the folder with requests, empty if there are none; it is listed
    every ``seconds``.
    """
    if not folder:
        yield
        return
    tail, ended = _Tail(), threading.Event()
    name = f"{label}:{','.join(f'{k}={v}' for k, v in data_id.items())}"
    answer = {"quantum": name, "id": str(quantum_id)}
    places: dict[str, ResourcePath] = {}

    def look() -> None:
        known: set[str] = set()
        while not ended.wait(seconds):
            with best_effort("Requests for logs can't be answered", level=logging.DEBUG):
                for uri in _list_requests(ResourcePath(folder, forceDirectory=True)):
                    if uri.basename() in known:
                        continue
                    known.add(uri.basename())
                    if LogRequest(**json.loads(uri.read())).matches(quantum_id, label, data_id):
                        places[uri.basename()] = uri.dirname().join(f"{_name(uri)}/{quantum_id}.json")
                _write(places.values(), answer, tail, ended=False)

    thread = threading.Thread(target=look, name="spark-butler-log", daemon=True)
    root = logging.getLogger()
    root.addHandler(tail)
    thread.start()
    try:
        yield
    finally:
        root.removeHandler(tail)
        ended.set()
        if places:
            thread.join(seconds)
            with best_effort("The end of the log can't be shown", level=logging.DEBUG):
                _write(places.values(), answer, tail, ended=True)


def _list_requests(folder: ResourcePath) -> list[ResourcePath]:
    """Return the requests in a folder, without answers to them."""
    for _, _, names in folder.walk(r"\.json$"):
        return [folder.join(name) for name in names]
    return []


def _write(places: Iterable[ResourcePath], answer: Mapping[str, Any], tail: _Tail, *, ended: bool) -> None:
    start, text = tail.read()
    content = json.dumps(
        {**answer, "start": start, "text": hide_secrets(text), "ended": ended, "updated": time.time()}
    )
    for uri in places:
        write_at_once(uri, content.encode())
