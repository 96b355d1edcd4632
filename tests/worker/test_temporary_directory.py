"""The folder for temporary files of a worker."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from lsst.resources import ResourcePath
from lsst.resources.utils import get_tempdir

from spark_butler.worker.temporary_directory import TemporaryFolder


def test_temporary_files_of_killed_processes_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("LSST_RESOURCES_TMPDIR", "TMPDIR"):
        monkeypatch.setenv(name, str(tmp_path))
    get_tempdir.cache_clear()
    with TemporaryFolder() as mine:
        child = os.fork()
        if not child:
            TemporaryFolder()
            # Killed like this, it removes nothing.
            os._exit(0)
        os.waitpid(child, 0)
        assert len(list(tmp_path.iterdir())) == 2
        TemporaryFolder.remove_abandoned()
        (left,) = tmp_path.iterdir()
        mine.use()
        tempfile.mkstemp()
        assert len([path for path in left.iterdir() if path.name != ".lock"]) == 1
        with ResourcePath.temporary_uri() as uri:
            assert Path(uri.ospath).parent == left
    get_tempdir.cache_clear()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_locks")
def test_temporary_folder_without_file_locks_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSST_RESOURCES_TMPDIR", str(tmp_path))
    get_tempdir.cache_clear()
    with TemporaryFolder():
        monkeypatch.undo()
        monkeypatch.setenv("LSST_RESOURCES_TMPDIR", str(tmp_path))
        TemporaryFolder.remove_abandoned()
        assert len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == []
    get_tempdir.cache_clear()
