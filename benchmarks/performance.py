#!/usr/bin/env python3
"""The same graphs by this engine and by others, on one machine and one S3 server, in turn.

CPU time is that of all processes that an engine starts, the S3 server's
apart; requests are those that the server has counted.  What an engine has to
do only once for a repository (dataset types, init-outputs of those that don't
write them themselves) is not measured.  BPS with Parsl is among the engines
where BENCH_PEERS names an environment with lsst-ctrl-bps-parsl.
"""

from __future__ import annotations

__all__: list[str] = []

import argparse
import contextlib
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

_HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE), str(_HERE.parent / "tests")]

import psutil  # noqa: E402
from metering import Usage, run_metered  # noqa: E402
from mock_graphs import MODULES, RUN, SIZES, count_quanta, prepare_graph  # noqa: E402
from stock import run_pipetask  # noqa: E402

from spark_butler.demo.s3server import EmbeddedS3  # noqa: E402

_BUCKET = "bench"


class Job(NamedTuple):
    """A graph to be executed."""

    repo: Path
    graph: Path
    warm: tuple[Path, Path]
    """Repository and graph with which an engine may get warm."""
    folder: Path


class Engine(NamedTuple):
    """A way to execute a graph."""

    name: str
    command: Callable[[Job], Sequence[str | Path]]
    init: bool = False
    """Whether init-outputs have to be written before."""


def _beside(name: str) -> Path:
    return Path(sys.executable).with_name(name)


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
        # Its jobs call pipetask by name.
        path = os.pathsep.join([str(environment / "bin"), os.environ["PATH"]])
        return ["env", f"PATH={path}", "bps", "submit", "--qgraph", job.graph, file]

    return command


def _engines(peers: Path | None) -> dict[str, Engine]:
    engines = [
        Engine(
            "spark-butler",
            lambda job: [
                *(_beside("spark-butler"), "run", "-b", job.repo, "-g", job.graph),
                "--register-dataset-types",
            ],
        ),
        Engine(
            "spark-butler, warm",
            lambda job: [sys.executable, _HERE / "warm.py", *job.warm, job.repo, job.graph],
        ),
        Engine("floor", lambda job: [sys.executable, _HERE / "floor.py", job.repo, job.graph], init=True),
        Engine("run-qbb -j 1", _run_qbb(1), init=True),
        Engine("run-qbb -j 2", _run_qbb(2), init=True),
    ]
    if peers is not None:
        engines.append(Engine("BPS + Parsl", _parsl(peers)))
    return {engine.name: engine for engine in engines}


class Bench:
    """Runs engines in turn.

    Parameters
    ----------
    folder
        Where repositories and graphs are kept.
    server
        The S3 server.
    """

    def __init__(self, folder: Path, server: EmbeddedS3):
        self._folder = folder
        self._server = server
        self._graphs: dict[tuple[str, int, float], tuple[Path, Path]] = {}
        self._environment = {
            **os.environ,
            **server.environment(),
            "PYTHONPATH": os.pathsep.join(map(str, MODULES)),
            "OMP_NUM_THREADS": "1",
            "LSST_RESOURCES_NUM_WORKERS": "1",
        }

    def run(self, engine: Engine, size: int, seconds: float) -> dict[str, Any]:
        """Run one graph with one engine."""
        repo, graph = self._graph("graph", size, seconds)
        warm = self._graph("warm", min(SIZES), 0.0)
        work = Path(tempfile.mkdtemp(dir=self._folder))
        prepared = {where: where.with_name("prepared") for where in (repo, warm[0])}
        for where, copy in prepared.items():
            if not copy.exists():
                shutil.copytree(where, copy)
        try:
            if engine.init:
                run_pipetask("pre-exec-init-qbb", repo, graph, paths=MODULES, environment=self._environment)
            before = Counter(self._server.count_requests(_BUCKET))
            load = os.getloadavg()[0]
            usage = run_metered(
                list(map(str, engine.command(Job(repo, graph, warm, work)))),
                environment=self._environment,
                folder=work,
            )
            requests = Counter(self._server.count_requests(_BUCKET))
            requests.subtract(before)
            return self._row(engine, size, seconds, usage, +requests, load, repo)
        finally:
            for where, copy in prepared.items():
                shutil.rmtree(where)
                shutil.copytree(copy, where)
                self._remove_outputs(where.parent.name)
            shutil.rmtree(work, ignore_errors=True)

    def _row(
        self,
        engine: Engine,
        size: int,
        seconds: float,
        usage: Usage,
        requests: Mapping[str, int],
        load: float,
        repo: Path,
    ) -> dict[str, Any]:
        quanta = count_quanta(size)
        row = {
            **{"engine": engine.name, "size": size, "quanta": quanta, "seconds": seconds, "load": load},
            **{"wall": usage.wall, "cpu": usage.cpu, "peak": usage.peak, "status": usage.status},
            "requests": {kind: count / quanta for kind, count in requests.items()},
        }
        for line in usage.output.splitlines():
            if line.startswith("RESULT "):
                row["result"] = json.loads(line.removeprefix("RESULT "))
        row["metadata"] = self._count_metadata(repo.parent.name)
        if usage.status or row["metadata"] != quanta:
            row["output"] = usage.output[-3000:]
        return row

    def _graph(self, name: str, size: int, seconds: float) -> tuple[Path, Path]:
        key = (name, size, seconds)
        if key not in self._graphs:
            folder = f"{name}-{size}-{seconds:g}"
            with self._server.activated():
                self._graphs[key] = prepare_graph(
                    self._folder / folder, f"s3://{_BUCKET}/{folder}/", size, seconds=seconds
                )
        return self._graphs[key]

    def _keys(self, folder: str) -> list[str]:
        return self._server.list_keys(_BUCKET, f"{folder}/{RUN}/")

    def _count_metadata(self, folder: str) -> int:
        """Count the quanta that have succeeded, by what is in the store."""
        return sum("_metadata/" in key for key in self._keys(folder))

    def _remove_outputs(self, folder: str) -> None:
        self._server.remove_keys(_BUCKET, self._keys(folder))


def _median(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    return statistics.median(row[key] for row in rows)


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "| quanta | task s | engine | runs | wall s | CPU s | CPU s per quantum "
        "| peak MB: driver, JVM, others | requests per quantum: read, write, other |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    kinds = dict.fromkeys((row["quanta"], row["seconds"], row["engine"]) for row in rows)
    for quanta, seconds, engine in kinds:
        same = [r for r in rows if (r["quanta"], r["seconds"], r["engine"]) == (quanta, seconds, engine)]
        whole = [r for r in same if not r["status"] and r["metadata"] == quanta]
        if not whole:
            lines.append(f"| {quanta} | {seconds:g} | {engine} | failed |  |  |  |  |  |")
            continue
        wall, cpu = _median(whole, "wall"), _median(whole, "cpu")
        peak = ", ".join(
            f"{statistics.median(r['peak'].get(role, 0) for r in whole) / 1e6:.0f}"
            for role in ("driver", "jvm", "others")
        )
        requests = whole[0]["requests"]
        other = sum(count for kind, count in requests.items() if kind not in ("GET", "PUT"))
        asked = f"{requests.get('GET', 0):.2f}, {requests.get('PUT', 0):.2f}, {other:.2f}"
        lines.append(
            f"| {quanta} | {seconds:g} | {engine} | {len(whole)} | {wall:.1f} | {cpu:.1f} "
            f"| {cpu / quanta:.3f} | {peak} | {asked} |"
        )
    return lines


def _write(rows: Sequence[Mapping[str, Any]], output: Path) -> None:
    """Write the table and the figures it is made from."""
    output.mkdir(parents=True, exist_ok=True)
    loads = [row["load"] for row in rows]
    note = (
        f"{os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB, "
        f"Python {sys.version.split()[0]}; load average before each run {min(loads):.1f} to {max(loads):.1f}."
        " Medians of the runs that ended well. The S3 server counts HEAD requests as reads."
    )
    (output / "performance-benchmark.md").write_text("\n".join([*_table(rows), "", note, ""]))
    (output / "performance-benchmark.json").write_text(json.dumps(rows, indent=1))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    peers = os.environ.get("BENCH_PEERS")
    engines = _engines(Path(peers) if peers else None)
    parser.add_argument(
        "--engines", nargs="+", choices=engines, default=list(engines), help="what to compare"
    )
    parser.add_argument(
        "--sizes", type=int, nargs="+", choices=SIZES, default=[400], help="numbers of quanta"
    )
    parser.add_argument("--seconds", type=float, nargs="+", default=[0.0], help="times of a quantum")
    parser.add_argument("--repeats", type=int, default=3, help="runs of which the median is shown")
    parser.add_argument("--output", type=Path, default=Path("docs"), help="folder for the table")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spark-butler-bench-")))
        server = stack.enter_context(EmbeddedS3())
        server.make_bucket(_BUCKET)
        bench = Bench(folder, server)
        for size in arguments.sizes:
            for seconds in arguments.seconds:
                for _ in range(arguments.repeats):
                    for name in arguments.engines:
                        row = bench.run(engines[name], size, seconds)
                        rows.append(row)
                        shown = {key: value for key, value in row.items() if key != "output"}
                        sys.stdout.write(f"{time.strftime('%H:%M:%S')} {json.dumps(shown)}\n")
                        sys.stdout.flush()
                        _write(rows, arguments.output)
    sys.stdout.write("\n".join(_table(rows)) + "\n")


if __name__ == "__main__":
    main()
