"""Files that are written while other processes read them."""

from __future__ import annotations

import threading
from pathlib import Path

from lsst.resources import ResourcePath

from spark_butler.atomic_write import write_at_once


def test_a_reader_finds_all_of_a_file(tmp_path: Path) -> None:
    place = ResourcePath(tmp_path).join("folder/status.json")
    contents = {b"first " * 200_000, b"second " * 200_000}
    for content in contents:
        write_at_once(place, content)
    done, seen = threading.Event(), set[bytes]()

    def read() -> None:
        while not done.is_set():
            seen.add(place.read())

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(15):
            for content in contents:
                write_at_once(place, content)
    finally:
        done.set()
        reader.join()
    assert seen <= contents
    assert [path.name for path in Path(place.ospath).parent.iterdir()] == ["status.json"]
