#!/usr/bin/env python3
"""Benchmark of this engine and others: the same graphs on one machine and one S3 server, in turn.

CPU time is that of all processes that an engine starts, without the S3 server;
requests are those that the server has counted.  Work that is done once per
repository is not measured: dataset types, and init-outputs if the engine doesn't
write them itself.  The environment variable BENCH_PEERS names an environment with
lsst-ctrl-bps-parsl and adds BPS with Parsl to the engines; BENCH_FRAMES names a
folder of real frames and adds their graph.  Without arguments, the benchmark
measures everything that the documentation shows, in an hour and a half.
"""

from __future__ import annotations

__all__: list[str] = []

import argparse
import contextlib
import datetime
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

_HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE), str(_HERE.parent)]

import psutil  # noqa: E402
from ccd_graphs import prepare_observed, prepare_simulated  # noqa: E402
from lsst.daf.butler import Butler  # noqa: E402
from lsst.resources import ResourcePath  # noqa: E402
from metering import Usage, run_metered  # noqa: E402
from mock_graphs import MODULES, RUN, SIZES, prepare_graph  # noqa: E402
from performance_results import write_results  # noqa: E402

from spark_butler.demo.s3server import EmbeddedS3  # noqa: E402
from tests.support.stock import read_graph, run_pipetask  # noqa: E402

_BUCKET = "bench"


class Workload(NamedTuple):
    """Graph to be executed."""

    kind: str
    """``mock``, ``simulated`` (process_ccd) or ``observed`` (the same for real frames)."""
    size: int = 0
    """One of `SIZES`, for mock quanta."""
    seconds: float = 0.0
    """Time of each mock quantum in seconds."""
    mixed: bool = False
    """Whether the times of mock quanta differ."""

    @property
    def name(self) -> str:
        """Name of the graph in tables."""
        if self.kind != "mock":
            return f"process_ccd, {self.kind}"
        spread = "mixed, " if self.mixed else ""
        return f"{self.size} mock, {spread}{self.seconds:g} s"

    @property
    def folder(self) -> str:
        """Name of its folder."""
        return f"{self.kind}-{self.size}-{self.seconds:g}{'-mixed' * self.mixed}"

    @property
    def temporary(self) -> Sequence[str]:
        """Options that keep intermediate images in memory, for engines that can."""
        return () if self.kind == "mock" else ("--temporary", "auto")


class Job(NamedTuple):
    """Graph in a repository, ready for an engine."""

    workload: Workload
    repo: Path
    graph: Path
    warm: tuple[Path, Path]
    """Repository and graph of a warm-up run."""
    folder: Path


def _stolen_share(before: Any) -> float:
    """Return the share of this virtual machine's processor time that its host gave to other machines."""
    now = psutil.cpu_times()._asdict()
    spent = {name: now[name] - value for name, value in before._asdict().items()}
    return spent.get("steal", 0.0) / max(sum(spent.values()), 1e-9)


class Engine(NamedTuple):
    """Engine that executes a graph."""

    name: str
    command: Callable[[Job], Sequence[str | Path]]
    init: bool = False
    """Whether init-outputs have to be written before the engine starts."""
    is_peer: bool = False
    """Whether the benchmark may stop it before its end."""


def _beside(name: str) -> Path:
    return Path(sys.executable).with_name(name)


def _run(job: Job) -> Sequence[str | Path]:
    return ["run", "-b", job.repo, "-g", job.graph, "--register-dataset-types", *job.workload.temporary]


def _run_qbb(n: int) -> Callable[[Job], Sequence[str | Path]]:
    return lambda job: [_beside("pipetask"), "run-qbb", job.repo, job.graph, "-j", str(n)]


def _parsl(environment: Path) -> Callable[[Job], Sequence[str | Path]]:
    def command(job: Job) -> Sequence[str | Path]:
        config = {
            "wmsServiceClass": "lsst.ctrl.bps.parsl.ParslService",
            "computeSite": "local",
            "site": {"local": {"class": "lsst.ctrl.bps.parsl.sites.Local", "cores": 2}},
            "payload": {"payloadName": "bench", "butlerConfig": str(job.repo), "outputRun": RUN},
            "operator": "bench",
            "project": "bench",
            "campaign": "bench",
            "submitPath": str(job.folder / "submit"),
            "finalJob": {"whenRun": "NEVER"},
            "defaultPreCmdOpts": "--log-level=INFO",
        }
        file = job.folder / "bps.yaml"
        file.write_text(json.dumps(config))
        # The jobs of BPS call pipetask by name.
        path = os.pathsep.join([str(environment / "bin"), os.environ["PATH"]])
        return ["env", f"PATH={path}", "bps", "submit", "--qgraph", job.graph, file]

    return command


def _engines(peers: Path | None) -> dict[str, Engine]:
    engines = [
        Engine("spark-butler", lambda job: [_beside("spark-butler"), *_run(job)]),
        Engine("spark-butler, cluster", lambda job: [sys.executable, _HERE / "on_cluster.py", *_run(job)]),
        Engine(
            "spark-butler, warm",
            lambda job: [
                *(sys.executable, _HERE / "warm.py", *job.warm, job.repo, job.graph),
                *job.workload.temporary,
            ],
        ),
        Engine("floor", lambda job: [sys.executable, _HERE / "floor.py", job.repo, job.graph], init=True),
        Engine("run-qbb -j 1", _run_qbb(1), init=True, is_peer=True),
        Engine("run-qbb -j 2", _run_qbb(2), init=True, is_peer=True),
    ]
    if peers is not None:
        engines.append(Engine("BPS + Parsl", _parsl(peers), is_peer=True))
    return {engine.name: engine for engine in engines}


_OURS = ("spark-butler", "spark-butler, warm", "floor")


def _everything(
    engines: Mapping[str, Engine], frames: Path | None
) -> list[tuple[Workload, Sequence[str], int]]:
    """Return what the documentation shows: graphs, engines and numbers of runs."""
    every_ccd = [*_OURS, "run-qbb -j 2"]
    plan: list[tuple[Workload, Sequence[str], int]] = [
        (Workload("mock", 400), _OURS, 2),
        (Workload("mock", 4000), _OURS[1:], 1),
        (Workload("simulated"), every_ccd, 1),
        (Workload("mock", 40), list(engines), 1),
        (Workload("mock", 160, 1.0), _OURS[1:], 2),
        (Workload("mock", 400, 0.03, mixed=True), _OURS[1:], 2),
        (Workload("mock", 400), ["run-qbb -j 2", "spark-butler, cluster"], 1),
        *([(Workload("observed"), every_ccd, 1)] if frames is not None else ()),
        (Workload("mock", 400, 0.1), _OURS[1:], 1),
        *([(Workload("mock", 400), ["BPS + Parsl"], 1)] if "BPS + Parsl" in engines else ()),
        (Workload("mock", 40_000), _OURS[1:2], 1),
    ]
    return plan


class Bench:
    """Benchmark that runs engines in turn.

    Parameters
    ----------
    folder
        Folder of repositories and graphs.
    server
        The S3 server.
    frames
        Folder of real frames.
    longest
        Seconds after which another engine is stopped.
    on_disk
        Whether datastores are folders on the local disk instead of places on the server.
    """

    def __init__(
        self, folder: Path, server: EmbeddedS3, frames: Path | None, longest: float | None, *, on_disk: bool
    ):
        self._folder = folder
        self._longest = longest
        # Folder of all datastores.
        self._root = ResourcePath(str(folder) if on_disk else f"s3://{_BUCKET}/", forceDirectory=True)
        self._server = server
        self._frames = frames
        self._graphs: dict[str, tuple[Path, Path]] = {}
        self._environment = {
            **os.environ,
            **server.environment(),
            "PYTHONPATH": os.pathsep.join(map(str, MODULES)),
            "OMP_NUM_THREADS": "1",
            "LSST_RESOURCES_NUM_WORKERS": "1",
        }

    def run(self, engine: Engine, workload: Workload) -> dict[str, Any]:
        """Run one graph with one engine."""
        repo, graph = self._graph("graph", workload)
        warm = self._graph("warm", Workload("mock", min(SIZES)))
        work = Path(tempfile.mkdtemp(dir=self._folder))
        prepared = {where: where.with_name("prepared") for where in (repo, warm[0])}
        for where, copy in prepared.items():
            if not copy.exists():
                shutil.copytree(where, copy)
        try:
            if engine.init:
                run_pipetask("pre-exec-init-qbb", repo, graph, paths=MODULES, environment=self._environment)
            before = Counter(self._server.count_requests(_BUCKET))
            load, times = os.getloadavg()[0], psutil.cpu_times()
            usage = run_metered(
                list(map(str, engine.command(Job(workload, repo, graph, warm, work)))),
                environment=self._environment,
                folder=work,
                longest=self._longest if engine.is_peer else None,
            )
            stolen = _stolen_share(times)
            requests = Counter(self._server.count_requests(_BUCKET))
            requests.subtract(before)
            state = {"load": load, "stolen": stolen}
            return self._row(engine, workload, usage, +requests, state, (repo, graph))
        finally:
            for where, copy in prepared.items():
                shutil.rmtree(where)
                shutil.copytree(copy, where)
                self._remove_run(where.parent.name)
            shutil.rmtree(work, ignore_errors=True)

    def _row(
        self,
        engine: Engine,
        workload: Workload,
        usage: Usage,
        requests: Mapping[str, int],
        state: Mapping[str, float],
        place: tuple[Path, Path],
    ) -> dict[str, Any]:
        repo, file = place
        quanta = len(read_graph(file))
        row = {
            **{"engine": engine.name, "graph": workload.name, "quanta": quanta, **state},
            **{"wall": usage.wall, "cpu": usage.cpu, "peak": usage.peak, "status": usage.status},
            "stopped": usage.stopped,
            # With mixed times, only the quanta themselves know their times.
            "seconds": 0.0 if workload.mixed else workload.seconds,
            "requests": {kind: count / quanta for kind, count in requests.items()},
        }
        for line in usage.output.splitlines():
            if line.startswith("RESULT "):
                row["result"] = json.loads(line.removeprefix("RESULT "))
        metadata = [uri for uri in self._list_outputs(repo.parent.name) if "_metadata/" in uri.path]
        row["metadata"] = len(metadata)
        if usage.status or len(metadata) != quanta:
            row["output"] = usage.output[-3000:]
        elif workload.kind != "mock" and not engine.init:
            # The other engines don't register outputs, so their metadata can't be queried.
            row["compute"] = self._sum_up_tasks(repo, file)
        return row

    def _sum_up_tasks(self, repo: Path, file: Path) -> float:
        """Return the total time of the tasks' own code, with their reading and writing of datasets."""
        graph = read_graph(file)
        keys = ("startUtc", "endUtc")
        total = 0.0
        with self._server.activated(), Butler.from_config(repo, collections=RUN) as butler:
            refs = [
                ref
                for task in graph.pipeline_graph.tasks.values()
                for ref in butler.query_datasets(task.metadata_output.dataset_type_name, explain=False)
            ]
            for ref in refs:
                quantum = butler.get(ref)["quantum"]
                start, end = (datetime.datetime.fromisoformat(quantum[key]) for key in keys)
                total += (end - start).total_seconds()
        return total

    def _graph(self, name: str, workload: Workload) -> tuple[Path, Path]:
        folder = f"{name}-{workload.folder}"
        if folder not in self._graphs:
            place = self._folder / folder
            store = str(self._store(folder))
            with self._server.activated():
                match workload.kind:
                    case "simulated":
                        self._graphs[folder] = prepare_simulated(place, store)
                    case "observed":
                        assert self._frames is not None
                        self._graphs[folder] = prepare_observed(place, store, self._frames)
                    case _:
                        self._graphs[folder] = prepare_graph(
                            place, store, workload.size, seconds=workload.seconds, mixed=workload.mixed
                        )
        return self._graphs[folder]

    def _store(self, folder: str) -> ResourcePath:
        return self._root.join(f"{folder}-store/", forceDirectory=True)

    def _list_outputs(self, folder: str) -> list[ResourcePath]:
        run = self._store(folder).join(f"{RUN}/", forceDirectory=True)
        with self._server.activated():
            return [uri for uri in ResourcePath.findFileResources([run], grouped=False) if uri != run]

    def _remove_run(self, folder: str) -> None:
        with self._server.activated():
            ResourcePath.mremove(self._list_outputs(folder), do_raise=False)


def _parse_arguments(engines: Mapping[str, Engine]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--engines", nargs="+", choices=engines, default=list(engines), help="what to compare"
    )
    parser.add_argument("--sizes", type=int, nargs="+", choices=SIZES, help="numbers of mock quanta")
    parser.add_argument("--seconds", type=float, nargs="+", default=[0.0], help="times of a mock quantum")
    parser.add_argument("--mixed", action="store_true", help="draw the times of mock quanta")
    parser.add_argument(
        "--process-ccd", nargs="+", choices=["simulated", "observed"], default=[], help="frames to process"
    )
    parser.add_argument("--repeats", type=int, default=3, help="number of runs; their median is shown")
    parser.add_argument("--stop-peers", type=float, metavar="SECONDS", help="stop peers that take longer")
    parser.add_argument("--on-disk", action="store_true", help="keep datastores on the local disk, not on S3")
    parser.add_argument("--keep", action="store_true", help="continue with the figures in the folder")
    parser.add_argument("--output", type=Path, default=Path("docs"), help="folder for table and plot")
    return parser.parse_args()


def main() -> None:
    """Run the benchmark."""
    peers, frames = (os.environ.get(name) for name in ("BENCH_PEERS", "BENCH_FRAMES"))
    engines = _engines(Path(peers) if peers else None)
    arguments = _parse_arguments(engines)
    workloads = [
        *(Workload(kind) for kind in arguments.process_ccd),
        *(
            Workload("mock", size, seconds, arguments.mixed)
            for size in arguments.sizes or ()
            for seconds in arguments.seconds
        ),
    ]
    plan = [(workload, arguments.engines, arguments.repeats) for workload in workloads]
    if not plan:
        plan = _everything(engines, Path(frames) if frames else None)
    rows: list[dict[str, Any]] = []
    if arguments.keep:
        rows += json.loads((arguments.output / "performance-benchmark.json").read_text())
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spark-butler-bench-")))
        server = stack.enter_context(EmbeddedS3())
        server.make_bucket(_BUCKET)
        where = Path(frames) if frames else None
        bench = Bench(folder, server, where, arguments.stop_peers, on_disk=arguments.on_disk)
        for workload, names, repeats in plan:
            for _ in range(repeats):
                for name in names:
                    row = bench.run(engines[name], workload)
                    rows.append(row)
                    shown = {key: value for key, value in row.items() if key != "output"}
                    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {json.dumps(shown)}\n")
                    sys.stdout.flush()
                    write_results(rows, arguments.output)


if __name__ == "__main__":
    main()
