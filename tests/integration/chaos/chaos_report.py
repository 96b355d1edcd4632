"""Report of the chaos runs: lines about each, and the table of docs/chaos-benchmark.md."""

from __future__ import annotations

__all__ = ["describe", "make_table", "read_results", "write_table"]

import json
import os
import platform
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import psutil
import pyspark

from tests.integration.chaos.chaos_run import Result

_MARK = "<!-- chaos{servers}: {end} -->"


def describe(result: Result) -> str:
    """Describe a run in a few lines.

    Parameters
    ----------
    result
        Its result.
    """
    lines = [
        f"seed {result.seed}: {result.scenario}, {result.variant}: "
        + ("equal" if result.is_equal else "NOT EQUAL")
        + f", {result.attempts} attempts, {result.wall:.0f} s, {result.cpu:.0f} CPU-s, "
        + f"{result.repeated} of {result.quanta} quanta more than once (at most {result.most} times)",
        f"  {'; '.join(result.events) or 'nothing happened'}; {_faults_text(result)}",
    ]
    lines += [f"  broke off: {text}" for text in result.broken]
    lines += [f"  WRONG: {text}" for text in result.findings]
    return "\n".join(lines)


def _faults_text(result: Result) -> str:
    n_faulty = sum(result.faults.values())
    return f"{n_faulty} of {result.requests} requests faulty" if n_faulty else "no request faulty"


def read_results(path: Path) -> list[Result]:
    """Read the results of runs, the last of each seed.

    Parameters
    ----------
    path
        The file.
    """
    results = {}
    for line in path.read_text().splitlines():
        result = Result(**json.loads(line))
        results[result.seed] = result
    return [results[seed] for seed in sorted(results)]


def make_table(results: Sequence[Result]) -> str:
    """Write the table of all runs, with a line about the machine before it.

    Parameters
    ----------
    results
        The runs.
    """
    kinds = Counter(event.split(" at ")[0].split(" (")[0] for each in results for event in each.events)
    n_faulty = sum(sum(each.faults.values()) for each in results)
    lines = [
        f"{sum(each.is_equal for each in results)} of {len(results)} runs ended equal to the serial run. "
        f"{_machine()}; median {statistics.median(each.wall for each in results):.0f} s a run.",
        "",
        f"In all: {', '.join(f'{count} × {kind}' for kind, count in kinds.most_common())}; "
        f"{n_faulty} of {sum(each.requests for each in results)} requests to the object store were faulty.",
        "",
        "| seed | graph | faults | faulty requests | submitted | wall s | CPU s | executed again | equal |",
        "|---:|---|---|---:|---:|---:|---:|---:|---|",
    ]
    for each in results:
        again = f"{each.repeated} (≤ {each.most}×)" if each.repeated else "0"
        submitted = f"{each.attempts}" + (f" ({len(each.broken)} broke off)" if each.broken else "")
        lines.append(
            f"| {each.seed} | {each.scenario}, {each.variant} | {'; '.join(each.events) or '–'} | "
            f"{sum(each.faults.values())} | {submitted} | {each.wall:.0f} | {each.cpu:.0f} | {again} | "
            f"{'yes' if each.is_equal else 'NO'} |"
        )
    return "\n".join(lines)


def _machine() -> str:
    """Describe the machine."""
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"{os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()} {platform.machine()}, "
        f"Python {platform.python_version()}, PySpark {pyspark.__version__}"
    )


def write_table(document: Path, results: Sequence[Result], servers: str = "") -> None:
    """Put the table into a document, between its marks.

    Parameters
    ----------
    document
        The document, with the marks in it.
    results
        The runs.
    servers
        Object store and registry, if they are not the usual ones.
    """
    begin, end = (
        _MARK.format(servers=f" on {servers}" * bool(servers), end=each) for each in ("begin", "end")
    )
    before, _, rest = document.read_text().partition(begin)
    _, _, after = rest.partition(end)
    document.write_text(f"{before}{begin}\n{make_table(results)}\n{end}{after}")
