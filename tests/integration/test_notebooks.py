"""The notebooks of the documentation, in a real IPython kernel without a front end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager, start_new_kernel
from nbclient import NotebookClient

_FOLDER = Path(__file__).resolve().parents[2] / "docs" / "notebooks"
_NOTEBOOKS = sorted(_FOLDER.glob("*.ipynb"))
_TIMEOUT = 300


class _Watcher(NotebookClient):
    """Executes a notebook, and keeps what a front end would have been told to show anew."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.updates: list[str] = []

    def process_message(self, msg: dict[str, Any], *args: Any) -> Any:
        if msg["msg_type"] in ("display_data", "update_display_data"):
            self.updates.append(msg["content"]["data"].get("text/html", ""))
        return super().process_message(msg, *args)


@pytest.mark.parametrize("path", _NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_committed_with_its_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert {output.output_type for output in outputs} == {"stream", "display_data", "execute_result"}
    assert any("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.slow
@pytest.mark.parametrize("path", _NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_from_top_to_bottom(path: Path) -> None:
    client = _execute(path)
    assert any("succeeded" in update for update in client.updates)
    if path.stem == "process_ccd":
        tables = [update for update in client.updates if "u/me/first" in update]
        # Shown while it runs, and brought up to date until both runs have ended.
        assert "running" in tables[0]
        assert any("<b>u/me/first/" in table and ": failed" in table for table in tables)
        assert ": succeeded" in tables[-1]
        assert len(set(tables)) > 3


def _execute(path: Path) -> _Watcher:
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(path.parent)}}
    client = _Watcher(notebook, timeout=_TIMEOUT, kernel_name="python3", resources=resources)
    client.execute()
    return client


@pytest.fixture
def kernel() -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    """A kernel that has executed the first cells of ``process_ccd.ipynb``: a night, a session, a butler."""
    manager, client = start_new_kernel(kernel_name="python3", cwd=str(_FOLDER))
    try:
        cells = nbformat.read(_FOLDER / "process_ccd.ipynb", as_version=4).cells
        for cell in [cell for cell in cells if cell.cell_type == "code"][:2]:
            _run(client, cell.source)
        yield manager, client
        _run(client, "spark.stop(); server.stop(); folder.cleanup()")
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def _run(client: BlockingKernelClient, code: str) -> None:
    reply = client.execute_interactive(code, timeout=_TIMEOUT, output_hook=lambda message: None)["content"]
    assert reply["status"] == "ok", "\n".join(reply.get("traceback", ()))


def _interrupt(kernel: tuple[KernelManager, BlockingKernelClient], code: str, mark: Path) -> None:
    """Stop a cell, as the button does, as soon as it has made a file."""
    manager, client = kernel
    # After an error, a kernel would also abort what is asked next.
    asked = client.execute(code, stop_on_error=False)
    deadline = time.monotonic() + _TIMEOUT
    while not mark.exists():
        assert time.monotonic() < deadline, "the cell has not come so far"
        time.sleep(0.1)
    manager.interrupt_kernel()
    while (reply := client.get_shell_msg(timeout=60))["parent_header"].get("msg_id") != asked:
        pass
    assert reply["content"]["status"] == "error"
    assert reply["content"]["ename"] == "KeyboardInterrupt"


@pytest.mark.slow
def test_a_stopped_cell_leaves_no_job(
    kernel: tuple[KernelManager, BlockingKernelClient], tmp_path: Path
) -> None:
    _, client = kernel
    begun, waited = tmp_path / "begun", tmp_path / "waited"
    _run(client, "import time\nraws = butler.data_ids('raw', limit=2)")
    work = f"raws.map(lambda b, d: (Path({str(begun)!r}).touch(), time.sleep(600))).collect()"
    _interrupt(kernel, work, begun)
    no_jobs = "assert not spark.sparkContext.statusTracker().getActiveJobsIds()"
    _run(client, no_jobs)
    _run(client, "assert raws.map(lambda b, d: 1).count() == 2")
    query = "instrument = 'SimCam' AND visit IN (202601010101, 202601010102)"
    _run(client, f"run = butler.run(pipeline, output='u/me/stopped', where={query!r})")
    _interrupt(kernel, f"Path({str(waited)!r}).touch()\nrun.wait()", waited)
    _run(client, f"assert run.status == 'cancelled', run.status\n{no_jobs}")
