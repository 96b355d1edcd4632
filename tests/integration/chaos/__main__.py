#!/usr/bin/env python3
"""Run graphs on a Spark cluster while things are killed around them, and compare with ``pipetask run``.

Each seed draws what is run and what befalls it.  See docs/reliability.md and
docs/chaos-benchmark.md.
"""

from __future__ import annotations

__all__: list[str] = []

import argparse
import dataclasses
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

# Before anything of it is imported.
os.environ.update(
    DAF_BUTLER_CACHE_EXPIRATION_MODE="disabled",
    LSST_RESOURCES_NUM_WORKERS="1",
    LSST_S3_USE_THREADS="False",
    OMP_NUM_THREADS="1",
)

from tests.integration.chaos.chaos_events import KINDS, write_script
from tests.integration.chaos.chaos_report import describe, read_results, write_table
from tests.integration.chaos.chaos_run import Result, perform
from tests.integration.chaos.chaos_scenarios import ROOT, SCENARIOS
from tests.integration.chaos.chaos_stage import Stage

DOCUMENT = ROOT / "docs" / "chaos-benchmark.md"


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=50, help="how many runs (default: 50)")
    parser.add_argument("--first-seed", type=int, default=1, help="seed of the first run (default: 1)")
    parser.add_argument("--scenario", choices=list(SCENARIOS), default="", help="run only this")
    parser.add_argument("--variant", default="", help="run it only in this way")
    parser.add_argument("--store", choices=["seaweedfs", "ceph"], default="seaweedfs", help="object store")
    parser.add_argument("--registry", choices=["sqlite", "postgresql"], default="sqlite", help="registry")
    parser.add_argument("--small", action="store_true", help="run graphs of 98 mock quanta, not of 508")
    parser.add_argument("--kinds", default=",".join(KINDS), help="kinds of events to choose from")
    parser.add_argument("--events", type=int, help="number of events of each run")
    parser.add_argument("--no-faults", action="store_true", help="leave single requests alone")
    parser.add_argument("--folder", type=Path, help="where to work; kept, and used again")
    parser.add_argument("--keep-going", action="store_true", help="don't end at the first run that differs")
    parser.add_argument("--table", action="store_true", help=f"write the table into {DOCUMENT.name}")
    parser.add_argument("--only-table", action="store_true", help="write the table of the runs in the folder")
    return parser.parse_args(arguments)


def _run(options: argparse.Namespace, folder: Path) -> list[Result]:
    """Perform all runs; append their results to a file, so that a suite can be run in parts."""
    kinds = [kind for kind in options.kinds.split(",") if kind]
    if options.registry == "sqlite" and "registry" in kinds:
        kinds.remove("registry")
    results = []
    with Stage.open(folder, store=options.store, registry=options.registry) as stage:
        for scenario in SCENARIOS.values():
            if (options.store, options.registry) != ("seaweedfs", "sqlite"):
                # These servers begin empty.
                shutil.rmtree(folder / scenario.name, ignore_errors=True)
            if options.scenario in ("", scenario.name):
                scenario.prepare(folder, stage.server, stage.registry, small=options.small)
        if not all(disk.is_small for disk in stage.disks):
            sys.stdout.write("No file systems can be mounted here: no disk will be full.\n")
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            script = write_script(
                seed,
                kinds=kinds,
                scenario=options.scenario,
                variant=options.variant,
                n_events=options.events,
                faults=not options.no_faults,
                server_parts=stage.server.PARTS,
            )
            result = perform(stage, script)
            results.append(result)
            with (folder / "results.jsonl").open("a") as stream:
                stream.write(json.dumps(dataclasses.asdict(result)) + "\n")
            sys.stdout.write(describe(result) + "\n")
            sys.stdout.flush()
            if not result.is_equal:
                sys.stdout.write(f"See {folder / 'failures' / f'seed{seed}'}\n")
                if not options.keep_going:
                    break
    return results


def main(arguments: Sequence[str]) -> int:
    """Do what was asked for; return the exit status."""
    options = _parse(arguments)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="chaos-"))
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    usual = (options.store, options.registry) == ("seaweedfs", "sqlite")
    servers = "" if usual else f"{options.store}, {options.registry}"
    if options.only_table:
        write_table(DOCUMENT, read_results(folder / "results.jsonl"), servers)
        return 0
    results = _run(options, folder)
    if options.table:
        write_table(DOCUMENT, read_results(folder / "results.jsonl"), servers)
    n_equal = sum(result.is_equal for result in results)
    sys.stdout.write(f"{n_equal} of {len(results)} runs ended equal to the serial run. All is in {folder}.\n")
    return 0 if n_equal == len(results) == options.seeds else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
