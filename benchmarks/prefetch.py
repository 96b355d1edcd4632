#!/usr/bin/env python3
"""Benchmark of prefetch, with one slot and a proxy that delays each GET to the S3 server.

Each row runs the same graph with prefetch and without it in turn.  The quanta run
in this process without Spark, so the runs differ in nothing but prefetch.
"""

from __future__ import annotations

__all__: list[str] = []

import argparse
import contextlib
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

_HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE), str(_HERE.parent)]
os.environ["DAF_BUTLER_CACHE_EXPIRATION_MODE"] = "disabled"
os.environ.setdefault("OMP_NUM_THREADS", "1")

from ccd_graphs import make_graph, prepare_simulated  # noqa: E402
from lsst.daf.butler import Butler  # noqa: E402
from mock_graphs import RUN  # noqa: E402

from spark_butler._lsst_resources import forget_s3_clients  # noqa: E402
from spark_butler.datastore.prefetch import Prefetcher  # noqa: E402
from spark_butler.demo.repository import make_repository  # noqa: E402
from spark_butler.demo.s3server import EmbeddedS3  # noqa: E402
from spark_butler.driver.engine import execute_graph  # noqa: E402
from spark_butler.driver.serial import SerialBackend  # noqa: E402
from spark_butler.model.options import RunOptions  # noqa: E402
from spark_butler.worker import group  # noqa: E402
from tests.support.fault_proxy import FaultPlan, FaultProxy  # noqa: E402
from tests.support.mock_night import CAMERA, fill_mock_night, task_text  # noqa: E402
from tests.support.stock import read_graph  # noqa: E402

_BUCKET = "bench"


class _Case(NamedTuple):
    """Graph, and the settings of its runs."""

    title: str
    prepare: Callable[[Path, str], tuple[Path, Path]]
    options: Mapping[str, Any]


def _prepare_mock(seconds: float, inputs: int) -> Callable[[Path, str], tuple[Path, Path]]:
    """Return a function that builds a graph of 60 mock quanta, each with its own small inputs."""
    names = [f"input{n}" for n in range(inputs)]
    ccd = 'dimensions=["visit", "detector"]'

    def prepare(folder: Path, store: str) -> tuple[Path, Path]:
        folder.mkdir(parents=True)
        pipeline = folder / "pipeline.yaml"
        pipeline.write_text(
            "description: Mock quanta.\ntasks:"
            + task_text(
                "reduce",
                "lsst.pipe.base.tests.mocks.DynamicTestPipelineTask",
                ("visit", "detector"),
                f"config.sleep = {seconds}",
                *(f'config.inputs["{name}"] = C(dataset_type_name="{name}", {ccd})' for name in names),
                f'config.outputs["out"] = C(dataset_type_name="out", {ccd})',
            )
        )
        repo = make_repository(folder / "repo", store)
        fill_mock_night(repo, pipeline, visits=6, detectors=10, inputs=names)
        return repo, make_graph(folder, repo, pipeline, "inputs", f"instrument='{CAMERA}'")

    return prepare


def _prepare_isr(folder: Path, store: str) -> tuple[Path, Path]:
    """Build a graph of instrument signature removal alone."""
    return prepare_simulated(folder, store, "#isr")


_VISIT = {"group_by": ("visit",)}
_CASES = {
    "ccd": _Case("process_ccd", prepare_simulated, {"temporary": ("auto",), **_VISIT}),
    "isr": _Case("isr of process_ccd alone", _prepare_isr, {"group_by": ("exposure",)}),
    "short": _Case("mock quanta of 0.3 s, 1 input each", _prepare_mock(0.3, 1), _VISIT),
    "inputs": _Case("mock quanta of 1 s, 4 inputs each", _prepare_mock(1.0, 4), _VISIT),
}


def _run(server: EmbeddedS3, proxy: FaultProxy, case: _Case, place: tuple[Path, Path], *, on: bool) -> float:
    """Run a graph in a fresh copy of its repository; return the wall time in seconds."""
    prepared, file = place
    repo = prepared.with_name("running")
    shutil.rmtree(repo, ignore_errors=True)
    shutil.copytree(prepared, repo)
    server.remove_keys(_BUCKET, server.list_keys(_BUCKET, f"{prepared.parent.name}/{RUN}/"))

    def switched_off(*args: Any, **kwargs: Any) -> Prefetcher:
        return Prefetcher(*args, **{**kwargs, "most_bytes": 0})

    graph = read_graph(file)
    with contextlib.ExitStack() as stack:
        if not on:
            stack.enter_context(mock.patch.object(group, "Prefetcher", switched_off))
        butler = stack.enter_context(Butler.from_config(repo, writeable=True))
        graph.pipeline_graph.register_dataset_types(butler)
        butler.collections.register(graph.header.output_run)
        graph.write_init_outputs(butler, skip_existing=True)
        stack.enter_context(mock.patch.dict(os.environ, S3_ENDPOINT_URL=proxy.endpoint_url))
        forget_s3_clients()
        stack.callback(forget_s3_clients)
        started = time.perf_counter()
        result = execute_graph(graph, butler, SerialBackend(), RunOptions(**case.options))
        seconds = time.perf_counter() - started
        assert not result.failed
    return seconds


def _row(title: str, walls: Mapping[bool, Sequence[float]], load: float) -> str:
    on, off = (statistics.median(walls[each]) for each in (True, False))
    runs = ", ".join(f"{each:.1f}" for each in (*walls[True], *walls[False]))
    return f"| {title} | {off:.1f} | {on:.1f} | {100 * (1 - on / off):.0f} % | {load:.1f} | {runs} |"


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=_CASES, default=list(_CASES), help="what to run")
    parser.add_argument("--delay", type=float, default=0.1, help="seconds that each GET is delayed")
    parser.add_argument("--repeats", type=int, default=3, help="number of runs; their median is shown")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spark-butler-bench-")))
        server = stack.enter_context(EmbeddedS3())
        stack.enter_context(server.activated())
        server.make_bucket(_BUCKET)
        plan = FaultPlan(delays={"GET": arguments.delay})
        proxy = stack.enter_context(FaultProxy(server.endpoint_url, plan, folder / "requests"))
        sys.stdout.write(
            "| graph | off, s | on, s | gain | load | runs: on, off |\n|---|---|---|---|---|---|\n"
        )
        for name in arguments.cases:
            case = _CASES[name]
            place = case.prepare(folder / name, f"s3://{_BUCKET}/{name}/")
            walls: dict[bool, list[float]] = {True: [], False: []}
            loads = []
            for _ in range(arguments.repeats):
                for on in (True, False):
                    walls[on].append(_run(server, proxy, case, place, on=on))
                    loads.append(os.getloadavg()[0])
            sys.stdout.write(_row(case.title, walls, statistics.mean(loads)) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
