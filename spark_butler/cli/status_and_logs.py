"""The commands ``status``, ``report``, ``logs`` and ``cancel``, for runs of other processes.

Run in the process of the command; they read the files of a driver in the store.
"""

from __future__ import annotations

__all__ = ["cancel", "logs", "report", "status"]

import contextlib
import datetime
import fnmatch
import sys
import time
from collections.abc import Mapping
from typing import Any

import click
from lsst.daf.butler import Butler, MissingCollectionError, MissingDatasetTypeError
from lsst.resources import ResourcePath

from ..atomic_write import write_at_once
from ..errors import OptionsError, RepositoryError, UserError
from ..report import (
    AttemptFolder,
    find_attempts,
    format_progress,
    format_report,
    is_silent,
    make_page,
    read_json,
)
from ..report.progress import ProgressSnapshot
from ..report.usage import Price, format_runs, format_usage, price_usage, read_price
from ..repository.checks import check_repository, store_roots
from ..repository.unknown_names import unknown_run
from ..text import align_rows, format_count, format_seconds, translate_errors
from ..worker.log_requests import LogRequest, read_answers
from .command import LeafCommand, print_json, print_result
from .exit_status import SILENT

_MAX_RUNS = 20
_FOLLOW_SECONDS = 10.0


@click.command(cls=LeafCommand)
@click.argument("repo")
@click.argument("run", required=False)
@click.option("-f", "--follow", is_flag=True, help="Print the status of RUN every 10 s until RUN has ended.")
def status(repo: str, run: str | None, follow: bool, form: str) -> None:
    """Print the state of running and ended runs.

    RUN is an output RUN, or the CHAINED collection of -o; without it, the latest runs of the repository are
    listed, newest first.  The driver of a run writes its status every 10 s.  Exit status: 3 if the driver of
    RUN has not done so for a minute.

    \b
    Examples:
      spark-butler status s3-repo
      spark-butler status s3-repo u/me/first --follow
      spark-butler status s3-repo u/me/first --format json
    """
    if follow and run is None:
        raise UserError("--follow needs a RUN: `spark-butler status REPO RUN --follow`.")
    attempts = _find(repo, run)
    if run is None:
        _list_runs(attempts[-_MAX_RUNS:][::-1], form)
        return
    while True:
        now = _read_status(attempts[-1])
        if form == "json":
            print_json(now)
        else:
            _print_status(now)
        if not (follow and now["state"] == "running"):
            break
        time.sleep(_FOLLOW_SECONDS)
    if now["state"] == "silent":
        sys.exit(SILENT)


@click.command(cls=LeafCommand)
@click.argument("repo")
@click.argument("run")
def cancel(repo: str, run: str, form: str) -> None:
    """Ask a run to stop.

    Its driver checks every 10 s, and then stops as on SIGTERM: finished outputs are kept, and the last line
    names the options to resume.

    \b
    Example:
      spark-butler cancel s3-repo u/me/first
    """
    attempt = _find(repo, run)[-1]
    state = _read_status(attempt)["state"]
    if state not in ("running", "silent", "unknown"):
        raise UserError(f"The run {attempt.run!r} has ended already ({state}); there is nothing to cancel.")
    with translate_errors(RepositoryError, f"Can't write to {attempt.uri}"):
        attempt.cancel_file.write(b"")
    if state == "silent":
        click.echo(
            f"The driver of {attempt.run} has not updated its status for a while; it is probably dead.",
            err=True,
        )
    asked = {"run": attempt.run, "state": state, "asked": True}
    print_result(form, asked, f"Asked the run {attempt.run} to stop.")


@click.command(cls=LeafCommand)
@click.argument("repo")
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option("--html", "page", metavar="FILE", help="File to write the report to, as a page; can be a URI.")
@click.option(
    "--price",
    metavar="CORE_HOUR,GB_HOUR",
    help="Money for a core-hour and for a GB-hour; prints a table of the usage of each task.",
)
def report(repo: str, runs: tuple[str, ...], page: str | None, price: str | None, form: str) -> None:
    """Print the report of a run that has ended.

    REPO is a repository and RUN an output RUN, or the CHAINED collection of -o; without RUN, it is the
    repository's latest report.  Instead of both, REPO may be a file report.json.  Several RUNs, or patterns
    such as 'u/me/*', give a table with a row for each task of each run.

    \b
    Examples:
      spark-butler report s3-repo u/me/first
      spark-butler report s3-repo u/me/first --html first.html
      spark-butler report s3-repo u/me/first --format json | jq '.failures[].rerun'
      spark-butler report s3-repo 'u/me/*' --price 0.04,0.005
      spark-butler report reports/report.json
    """
    money = None if price is None else read_price(price)
    run = runs[0] if runs else None
    if len(runs) > 1 or set("*?[").intersection(run or ""):
        _report_many(repo, runs, money, form)
        return
    if repo.endswith(".json") and run is None:
        content = _read_report(ResourcePath(repo))
        if content is None:
            raise UserError(f"There is no file {repo!r}.")
    else:
        for attempt in reversed(_find(repo, run)):
            if (content := _read_report(attempt.report_file)) is not None:
                break
        else:
            raise UserError("There is no report yet; see `spark-butler status`.")
    with translate_errors(UserError, "Can't show the report, which is not complete"):
        text = "" if form == "json" or page is not None else format_report(content)
        html = "" if page is None else make_page(content)
    if page is not None:
        with translate_errors(UserError, f"Can't write {page}"):
            write_at_once(ResourcePath(page), html.encode())
        click.echo(f"The report is in {page}.", err=True)
    if form == "json":
        print_json(_add_prices(content, money))
    elif text:
        click.echo(text)
        if money is not None:
            click.echo(format_usage(content["tasks"], money))


@click.command(cls=LeafCommand)
@click.argument("repo")
@click.argument("run")
@click.argument("quantum", metavar="QUANTUM")
@click.option(
    "-f", "--follow", is_flag=True, help="Print the log of a quantum that runs, until it has ended."
)
def logs(repo: str, run: str, quantum: str, follow: bool, form: str) -> None:
    """Print the log of a quantum.

    QUANTUM is a task label with values of dimensions, or the ID of a quantum that runs.  The log of a quantum
    that has ended comes from the repository.  With --follow, the process of a running quantum writes its
    log every 10 s.

    \b
    Examples:
      spark-butler logs s3-repo u/me/first isr:visit=42,detector=2
      spark-butler logs s3-repo u/me/first isr:visit=42,detector=2 --follow
    """
    request = LogRequest.parse(quantum)
    attempt = _find(repo, run)[-1]
    lines = _read_logs(repo, attempt.run, request)
    if not lines and follow:
        if form == "json":
            raise OptionsError("--follow prints for people; it can't be combined with --format json.")
        _follow(attempt, request)
        return
    if not lines:
        raise UserError(
            f"No quantum {quantum!r} of run {attempt.run!r} has a log yet; --follow prints that of a "
            "quantum that runs."
        )
    print_result(form, {"run": attempt.run, "quantum": quantum, "lines": lines}, "\n".join(lines))


def _read_logs(repo: str, run: str, request: LogRequest) -> list[str]:
    """Return the lines of the logs of quanta that have ended."""
    if not request.label:
        return []
    with Butler.from_config(repo, writeable=False) as butler:
        try:
            refs = butler.query_datasets(
                f"{request.label}_log", run, find_first=False, limit=None, explain=False
            )
        except (MissingDatasetTypeError, MissingCollectionError):
            return []
        chosen = [ref for ref in refs if request.matches(ref.id, request.label, dict(ref.dataId.required))]
        return [
            f"{record.asctime} {record.levelname} {record.name}: {record.message}"
            for ref in sorted(chosen)
            for record in butler.get(ref)
        ]


def _follow(attempt: AttemptFolder, request: LogRequest) -> None:
    """Request the logs of running quanta, and print them until the quanta have ended."""
    with translate_errors(RepositoryError, f"Can't write to {attempt.uri}"):
        place = request.send(attempt.log_requests)
    printed: dict[str, int] = {}
    try:
        while True:
            is_over = _read_status(attempt)["state"] != "running"
            answers = read_answers(place)
            for answer in answers:
                begin = printed.get(answer["id"], 0)
                if begin == 0:
                    click.echo(f"Log of {answer['quantum']}", err=True)
                click.echo(answer["text"][max(0, begin - answer["start"]) :], nl=False)
                printed[answer["id"]] = answer["start"] + len(answer["text"])
            if is_over or (answers and all(answer["ended"] for answer in answers)):
                break
            time.sleep(_FOLLOW_SECONDS / 2)
    finally:
        with contextlib.suppress(Exception):
            place.remove()
    if not printed:
        raise UserError(f"The run {attempt.run!r} has ended, and no such quantum has answered.")


def _report_many(repo: str, runs: tuple[str, ...], money: Price | None, form: str) -> None:
    """Print the latest reports of several runs."""
    latest = {
        attempt.run: attempt
        for attempt in _find(repo, None)
        if any(fnmatch.fnmatchcase(attempt.run, each) or attempt.run.startswith(f"{each}/") for each in runs)
    }
    contents = [c for each in latest.values() if (c := _read_report(each.report_file)) is not None]
    if not contents:
        raise UserError(f"No run with a report matches {' '.join(runs)}; see `spark-butler status {repo}`.")
    if form == "json":
        print_json([_add_prices(content, money) for content in contents])
    else:
        click.echo(format_runs(contents, money))


def _add_prices(content: dict[str, Any], money: Price | None) -> dict[str, Any]:
    """Return the content of a report with the price of each task and of all, if there are prices."""
    if money is None:
        return content
    tasks = [task | {"price": price_usage(task, money)} for task in content["tasks"]]
    totals = content["totals"] | {"price": price_usage(content["totals"], money)}
    return content | {"tasks": tasks, "totals": totals}


def _find(repo: str, run: str | None) -> list[AttemptFolder]:
    """Return the attempts at a run, at least one, oldest first."""
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
    """Return the last status of an attempt, with its age."""
    with translate_errors(RepositoryError, f"Can't read {attempt.status_file}"):
        # A driver that has just started knows its tasks only later.
        status = {"run": attempt.run, "state": "unknown", "tasks": []} | (
            read_json(attempt.status_file) or {}
        )
        status["folder"] = str(attempt.uri)
        if "updated" in status:
            now = datetime.datetime.now(datetime.UTC)
            age = (now - datetime.datetime.fromisoformat(status["updated"])).total_seconds()
            status["seconds_since_update"] = max(0, round(age))
            if is_silent(status, now):
                status["state"] = "silent"
    return status


def _read_report(uri: ResourcePath) -> dict[str, Any] | None:
    """Return the content of a report; `None` where there is no file."""
    with translate_errors(UserError, f"Can't read the report {uri}"):
        content = read_json(uri)
        if content is None and uri.exists():
            content = {}
    if content is not None and not {"format", "totals", "failures"} <= content.keys():
        raise UserError(f"The file {uri} is not the report.json of a run.")
    return content


def _list_runs(attempts: list[AttemptFolder], form: str) -> None:
    """Print a line for each attempt."""
    found = [_read_status(attempt) for attempt in attempts]
    if form == "json":
        print_json(found)
        return
    rows: list[tuple[str, ...]] = [("run", "started (UTC)", "state", "done", "failed", "total")]
    for each in found:
        sums = [sum(task[name] for task in each["tasks"]) for name in ("done", "failed", "total")]
        started = each.get("started", "")[:19].replace("T", " ")
        rows.append((each["run"], started, each["state"], *(f"{n:,}" for n in sums)))
    for line in align_rows(rows):
        click.echo(line)


def _print_status(status: Mapping[str, Any]) -> None:
    """Print the progress of a run, and its last failures."""
    age = format_seconds(status.get("seconds_since_update", 0))
    state = {
        "running": f"running (status written {age} ago)",
        "silent": f"silent for {age}, its driver is probably dead,",
    }.get(status["state"], status["state"])
    click.echo(format_progress(status["run"], state, ProgressSnapshot.from_description(status)))
    for line in status.get("failures", ()):
        click.echo(f"FAILED {line}")
    if (more := status.get("n_failures", 0) - len(status.get("failures", ()))) > 0:
        click.echo(f"... and {format_count(more, 'failure')} before")
