"""The commands that look at runs: ``status``, ``cancel`` and ``report``."""

from __future__ import annotations

__all__ = ["cancel", "report", "status"]

import datetime
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click
from lsst.daf.butler import Butler
from lsst.resources import ResourcePath

from ..errors import RepositoryError, UserError
from ..report import (
    AttemptFolder,
    find_attempts,
    format_data_id,
    format_seconds,
    is_silent,
    make_page,
    read_json,
)
from ..repository.checks import check_repository, store_roots
from ..run_folders import unknown_run
from ..text import align_rows, brief
from .command import LeafCommand, say_json

_MAX_RUNS = 20
_MAX_FAILURES = 20


@click.command(cls=LeafCommand)
@click.argument("repo")
@click.argument("run", required=False)
def status(repo: str, run: str | None, form: str) -> None:
    """Say how runs stand, while they go on and afterwards.

    RUN is an output RUN, or the CHAINED collection of -o; without it, the latest runs of the repository are
    listed.  The driver of a run writes its status every 10 s.  Exit status: 3 when the driver of RUN has not
    been heard of for a minute.

    \b
    Examples:
      spark-butler status s3-repo
      spark-butler status s3-repo u/me/first
      spark-butler status s3-repo u/me/first --format json
    """
    attempts = _find(repo, run)
    if run is None:
        found = [(attempt, _read_status(attempt)) for attempt in attempts[-_MAX_RUNS:]]
        if form == "json":
            say_json([_with_age(each, attempt) for attempt, each in found])
            return
        rows: list[tuple[str, ...]] = [("run", "began", "state", "done", "failed", "of")]
        rows += [_list_run(attempt, each) for attempt, each in found]
        _say_table(rows)
        return
    now = _with_age(_read_status(attempts[-1]), attempts[-1])
    if form == "json":
        say_json(now)
    else:
        _say_status(now)
    if now["state"] == "silent":
        sys.exit(3)


@click.command(cls=LeafCommand)
@click.argument("repo")
@click.argument("run")
def cancel(repo: str, run: str, form: str) -> None:
    """Ask a run to end.

    Its driver looks every 10 s whether it is asked to, and then ends as on SIGTERM: what was finished stays,
    and it says how to resume.

    \b
    Example:
      spark-butler cancel s3-repo u/me/first
    """
    attempt = _find(repo, run)[-1]
    state = _with_age(_read_status(attempt), attempt)["state"]
    if state not in ("running", "silent", "unknown"):
        raise UserError(f"The run {attempt.run!r} is over ({state}).")
    try:
        attempt.cancel_file.write(b"")
    except Exception as exc:  # many libraries may speak here
        raise RepositoryError(f"Can't write to {attempt.uri}: {brief(exc)}") from exc
    if state == "silent":
        click.echo(
            f"The driver of {attempt.run} has not been heard of for a while; it may be gone.", err=True
        )
    if form == "json":
        say_json({"run": attempt.run, "state": state, "asked": True})
    else:
        click.echo(f"The run {attempt.run} is asked to end.")


@click.command(cls=LeafCommand)
@click.argument("repo")
@click.argument("run", required=False)
@click.option("--html", "page", metavar="FILE", help="Where to write the report as a page; can be a URI.")
def report(repo: str, run: str | None, page: str | None, form: str) -> None:
    """Print the report of a run that has ended.

    REPO is a repository and RUN an output RUN, or the CHAINED collection of -o; without RUN, it is the
    repository's latest report.  Instead of both, REPO may be a file report.json.

    \b
    Examples:
      spark-butler report s3-repo u/me/first
      spark-butler report s3-repo u/me/first --html first.html
      spark-butler report s3-repo u/me/first --format json | jq '.failures[].rerun'
      spark-butler report reports/report.json
    """
    if repo.endswith(".json") and run is None:
        content = _read_report(ResourcePath(repo))
        if content is None:
            raise UserError(f"There is no file {repo!r}.")
    else:
        for attempt in reversed(_find(repo, run)):
            if (content := _read_report(attempt.report_file)) is not None:
                break
        else:
            raise UserError("No report was left yet; see `spark-butler status`.")
    if page is not None:
        ResourcePath(page).write(make_page(content).encode())
        click.echo(f"The report is in {page}.", err=True)
    if form == "json":
        say_json(content)
    elif page is None:
        _say_report(content)


def _find(repo: str, run: str | None) -> list[AttemptFolder]:
    """Find attempts, at least one, oldest first."""
    check_repository(repo)
    with Butler.from_config(repo, writeable=False) as butler:
        roots = store_roots(butler)
    try:
        attempts = find_attempts(roots, run)
    except RepositoryError:
        attempts = []
    if attempts:
        return attempts
    if run is None:
        raise UserError(f"The repository {repo!r} has no status or report of any run.")
    known = (attempt.run for attempt in find_attempts(roots))
    raise unknown_run(repo, run, known, "a run with a status or report, or its CHAINED collection")


def _read_status(attempt: AttemptFolder) -> dict[str, Any]:
    """Read how an attempt stood when last heard of."""
    return read_json(attempt.status_file) or {"run": attempt.run, "state": "unknown", "tasks": []}


def _read_report(uri: ResourcePath) -> dict[str, Any] | None:
    """Read a report, and see that it is one."""
    try:
        content = read_json(uri)
    except Exception as exc:  # many libraries may speak here
        raise UserError(f"Can't read the report {uri}: {brief(exc)}") from exc
    if content is None and uri.exists():
        content = {}
    if content is not None and not {"format", "totals", "failures"} <= content.keys():
        raise UserError(f"The file {uri} is no report of a run.")
    return content


def _with_age(status: Mapping[str, Any], attempt: AttemptFolder) -> dict[str, Any]:
    """Add when a run was last heard of, and whether that is too long ago."""
    result = {**status, "folder": str(attempt.uri)}
    if "updated" in status:
        now = datetime.datetime.now(datetime.UTC)
        age = (now - datetime.datetime.fromisoformat(status["updated"])).total_seconds()
        result["seconds_since_update"] = max(0, round(age))
        if is_silent(status, now):
            result["state"] = "silent"
    return result


def _list_run(attempt: AttemptFolder, status: Mapping[str, Any]) -> tuple[str, ...]:
    now = _with_age(status, attempt)
    sums = [sum(task[name] for task in now["tasks"]) for name in ("done", "failed", "total")]
    return (attempt.run, now.get("started", "")[:19], now["state"], *map(str, sums))


def _say_status(status: Mapping[str, Any]) -> None:
    """Print how a run stands."""
    ago = format_seconds(status.get("seconds_since_update", 0))
    heard = {
        "running": f"running, last heard of {ago} ago",
        "silent": f"not heard of for {ago}: its driver is probably gone",
        "unknown": "nothing is known of it",
    }.get(status["state"], f"{status['state']}, {ago} ago")
    click.echo(f"Run {status['run']}: {heard}")
    names = ("total", "pending", "running", "done", "failed", "blocked")
    rows = [("task", *names)]
    rows += [(task["label"], *(str(task[name]) for name in names)) for task in status["tasks"]]
    _say_table(rows)
    if status["state"] == "running":
        left = status["seconds_left"]
        click.echo(
            f"{status['busy']} of {status['slots']} slots busy, {status['quanta_per_second']:.3g} quanta/s"
            + (f", about {format_seconds(left)} left" if left else "")
        )
    for line in status.get("failures", ()):
        click.echo(f"FAILED {line}")
    if (more := status.get("n_failures", 0) - len(status.get("failures", ()))) > 0:
        click.echo(f"... and {more} more before")


def _say_report(content: Mapping[str, Any]) -> None:
    """Print a report in short."""
    click.echo(
        f"Run {content['run']}: {content['state']} after {format_seconds(content['seconds'])} "
        f"on {content['slots']} slots"
    )
    if content["reason"]:
        click.echo(content["reason"])
    names = ("quanta", "done", "no_work", "failed", "blocked", "not_run", "retried")
    rows = [("task", *(name.replace("_", " ") for name in names), "median", "longest")]
    for task in content["tasks"]:
        seconds = task["seconds"]
        times = [format_seconds(seconds[name]) if seconds else "-" for name in ("median", "max")]
        rows.append((task["label"], *(str(task[name]) for name in names), *times))
    _say_table(rows)
    slots = content["time"]["slots"]
    parts = [
        f"{name.replace('_', ' ')} {100 * value / slots['available']:.0f} %"
        for name, value in slots.items()
        if name != "available" and value is not None and slots["available"]
    ]
    click.echo(f"Time of the slots: {', '.join(parts)}")
    for failure in content["failures"][:_MAX_FAILURES]:
        click.echo(f"FAILED {failure['task']} {format_data_id(failure['data_id'])}: {failure['reason']}")
        if failure["rerun"] not in ("", content["resume"]):
            click.echo(f"  again: {failure['rerun']}")
    if content["failures"] and content["resume"]:
        click.echo(f"To run again all that failed: {content['resume']}")
    if (more := content["totals"]["failed"] - _MAX_FAILURES) > 0:
        click.echo(f"... and {more} more; see --html or --format json")


def _say_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows in columns."""
    for line in align_rows(rows):
        click.echo(line)
