#!/usr/bin/env python3
"""Benchmark of batch ingest: time to register the datasets of mock quanta, reported as workers would."""

from __future__ import annotations

__all__: list[str] = []

import argparse
import contextlib
import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE), str(_HERE.parent)]

from lsst.daf.butler import Butler  # noqa: E402
from mock_graphs import MODULES, SIZES, prepare_graph  # noqa: E402

from spark_butler.demo.repository import make_repository  # noqa: E402
from spark_butler.model.work import all_outputs  # noqa: E402
from spark_butler.repository.output_ingest import Ingester  # noqa: E402
from tests.support.postgres import PostgresServer, find_postgres  # noqa: E402
from tests.support.stock import read_graph  # noqa: E402


def main() -> None:
    """Ingest the datasets, and print the times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, choices=SIZES, default=4000, help="number of quanta")
    parser.add_argument("--repeats", type=int, default=3, help="repositories to fill")
    parser.add_argument("--registry", choices=["sqlite", "postgres"], default="sqlite", help="its database")
    arguments = parser.parse_args()
    sys.path[:0] = map(str, MODULES)
    for number in range(arguments.repeats):
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="spark-butler-ingest-"))
            make, server = make_repository, None
            if arguments.registry == "postgres":
                make, server = stack.enter_context(_postgres(Path(folder)))
            _fill(Path(folder), arguments.size, number, make, server)


@contextlib.contextmanager
def _postgres(folder: Path) -> Iterator[tuple[Callable[[Path, str], Path], PostgresServer]]:
    """Start a PostgreSQL server; return a function that makes a repository in it, and the server."""
    programs = find_postgres()
    if programs is None:
        raise SystemExit("PostgreSQL is not installed.")
    if importlib.util.find_spec("psycopg") is None:
        raise SystemExit("--registry postgres needs the package psycopg: pip install 'psycopg[binary]'.")
    folder.chmod(0o755)
    with PostgresServer.serve(folder / "postgres", programs) as server:
        server.write_credentials(folder / "db-auth.yaml", "ingest")
        os.environ["LSST_DB_AUTH"] = str(folder / "db-auth.yaml")
        yield lambda root, datastore: server.make_repo(root, "ingest", datastore), server


def _fill(
    folder: Path,
    size: int,
    number: int,
    make: Callable[[Path, str], Path],
    server: PostgresServer | None,
) -> None:
    repo, file = prepare_graph(folder / "graph", f"{folder}/store/", size, make=make)
    graph = read_graph(file)
    with Butler.from_config(repo, writeable=True) as butler:
        graph.pipeline_graph.register_dataset_types(butler)
        butler.collections.register(graph.header.output_run)
        types = {node.name: node.dataset_type for node in graph.pipeline_graph.dataset_types.values()}
        told = []
        for quantum in graph.build_execution_quanta().values():
            refs = list(all_outputs(quantum))
            records = butler._datastore.export_predicted_records(refs)
            told.append((refs, {ref.id for ref in refs}, records))
        ingester = Ingester(butler, types)
        of_server = server.cpu_seconds() if server is not None else 0.0
        wall, cpu = time.perf_counter(), time.process_time()
        for each in told:
            ingester.add(*each)
        ingester.flush()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        of_server = server.cpu_seconds() - of_server if server is not None else 0.0
    n = ingester.n_ingested
    sys.stdout.write(
        f"{number + 1}: {n} datasets, for each {1000 * wall / n:.3f} ms of wall time, "
        f"{1000 * cpu / n:.3f} ms of the driver's processor, {1000 * of_server / n:.3f} ms of the server's; "
        f"load {os.getloadavg()[0]:.1f}\n"
    )


if __name__ == "__main__":
    main()
