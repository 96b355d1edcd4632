"""The report as a page that opens without a network."""

from __future__ import annotations

__all__ = ["make_page"]

import datetime
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from .charts import busy_chart, histogram, lanes_chart, split_bar, task_colors
from .format import format_bytes, format_data_id, format_seconds
from .style import CSS, SCRIPT

_MAX_FAILURES = 500
_MAX_RETRIES = 100
_STATES = {
    "succeeded": ("good", "Succeeded"),
    "failed": ("bad", "Ended with failures"),
    "stopped": ("warn", "Stopped before its end"),
    "broken": ("bad", "The engine failed"),
}
_SLOT_PARTS = (
    ("import", "s6", "Import: modules, and what all groups share"),
    ("read", "s1", "Read: Butler.get of tasks"),
    ("compute", "s2", "Compute: the rest of each quantum"),
    ("write", "s3", "Write: Butler.put of tasks"),
    ("shuffle", "s7", "Shuffle: temporaries packed, sent and received"),
    ("not_split", "s4", "Attempts that were not split: failed, retried, or without metadata"),
    ("idle", "s5", "Idle: the rest, as no work, Spark itself, new processes"),
)


def make_page(content: Mapping[str, Any]) -> str:
    """Write a report as HTML.

    Parameters
    ----------
    content
        What `spark_butler.report.make_content` has made, or what was read
        from ``report.json``.

    Returns
    -------
    text
        One file, which refers to nothing outside itself.
    """
    colors = task_colors(content["tasks"])
    body = [
        _head(content),
        _tiles(content),
        _tasks(content, colors),
        _failures(content),
        _time(content, colors),
        _distributions(content, colors),
        _traffic(content),
        _slowest(content),
        _retries(content),
        _configuration(content),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(content['run'])}: {escape(_STATES[content['state']][1].lower())}</title>\n"
        f"<style>{CSS}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + f"\n</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _head(content: Mapping[str, Any]) -> str:
    color, words = _STATES[content["state"]]
    started = datetime.datetime.fromisoformat(content["started"])
    reason = f'<p class="{color}">{escape(content["reason"])}</p>' if content["reason"] else ""
    return (
        f'<header><span class="state {color}">{words}</span><h1>{escape(content["run"])}</h1>'
        f'<p class="soft">{escape(content["repository"])} · began {started:%Y-%m-%d %H:%M:%S} UTC · took '
        f"{format_seconds(content['seconds'])} on {_count(content['slots'], 'slot')}</p>{reason}</header>"
    )


def _tiles(content: Mapping[str, Any]) -> str:
    totals = content["totals"]
    slots = content["time"]["slots"]
    busy = slots["available"] - slots["between_quanta"]
    tiles = [
        (f"{totals['done']:,}", f"of {_count(totals['quanta'], 'quantum', 'quanta')} done", ""),
        (f"{totals['failed']:,}", "failed", "bad" if totals["failed"] else ""),
        (f"{totals['blocked']:,}", "blocked by a failure", "warn" if totals["blocked"] else ""),
        (format_seconds(content["time"]["driver"]["run"]), "running quanta", ""),
        (
            f"{100 * busy / slots['available']:.0f} %" if slots["available"] else "–",
            "of slot time in quanta",
            "",
        ),
        (format_bytes(totals["peak_memory"]), "largest process", ""),
    ]
    return (
        '<div class="tiles">'
        + "".join(
            f'<div class="tile"><b class="{color}">{value}</b><span>{words}</span></div>'
            for value, words, color in tiles
        )
        + "</div>"
    )


def _tasks(content: Mapping[str, Any], colors: Mapping[str, str]) -> str:
    columns = ("quanta", "done", "no_work", "failed", "blocked", "not_run", "retried")
    rows = []
    for task in content["tasks"]:
        seconds, memory = task["seconds"], task["memory"]
        key = f'<span class="key {colors[task["label"]]}"></span>{escape(task["label"])}'
        rows.append(
            [
                key,
                *(_cell(task[name], name) for name in columns),
                format_seconds(seconds["median"]) if seconds else "–",
                format_seconds(seconds["max"]) if seconds else "–",
                format_seconds(seconds["sum"]) if seconds else "–",
                format_bytes(memory["max"]) if memory else "–",
            ]
        )
    totals = content["totals"]
    spent = sum(task["seconds"]["sum"] for task in content["tasks"] if task["seconds"])
    last = ["all", *(_cell(totals[name], name) for name in columns), "", "", format_seconds(spent)]
    last.append(format_bytes(totals["peak_memory"]))
    head = ["task", "quanta", "done", "no work", "failed", "blocked", "not run", "retried"]
    head += ["median", "longest", "in all", "memory"]
    more = ""
    if totals["ingested"] is not None:
        more = f'<p class="note">{_count(totals["ingested"], "dataset")} put into the registry.</p>'
    return f"<section><h2>Tasks</h2>{_table(head, rows, last)}{more}</section>"


def _cell(value: int, name: str) -> str:
    color = "zero" if not value else {"failed": "bad", "blocked": "warn", "not_run": "warn"}.get(name, "")
    return f'<span class="{color}">{value:,}</span>' if color else f"{value:,}"


def _failures(content: Mapping[str, Any]) -> str:
    failures = content["failures"]
    if not failures:
        return ""
    n_failed = content["totals"]["failed"]
    parts = [f"<h2>{_count(n_failed, 'failure')}</h2>"]
    alike = content["failures_alike"]
    if n_failed > 1 and len(alike) < n_failed:
        rows = [[escape(each["task"]), f"{each['count']:,}", escape(each["reason"])] for each in alike[:20]]
        parts.append(_table(["task", "quanta", "reason, without numbers"], rows, text=(2,)))
    if content["resume"]:
        parts.append(
            '<p class="soft">To run again all that failed, and what it blocked:</p>'
            f'<pre class="command">{escape(content["resume"])}</pre><button data-copy hidden>Copy</button>'
            "<h3>Each failure</h3>"
        )
    if len(failures) > 8:
        parts.append('<input id="find" type="search" placeholder="Find a task or data ID" hidden>')
    parts += [
        _failure(failure, content["resume"], is_open=len(failures) == 1)
        for failure in failures[:_MAX_FAILURES]
    ]
    if n_failed > _MAX_FAILURES:
        parts.append(f'<p class="note">The first {_MAX_FAILURES} of {n_failed:,}; report.json has more.</p>')
    return f"<section>{''.join(parts)}</section>"


def _failure(failure: Mapping[str, Any], resume: str, *, is_open: bool) -> str:
    name = f"<b>{escape(failure['task'])}</b> {escape(format_data_id(failure['data_id']))}"
    facts = [failure["kind"], f"after {format_seconds(failure['seconds'])}"]
    if failure["attempts"] > 1:
        facts.append(f"attempt {failure['attempts']}")
    if failure["peak_memory"]:
        facts.append(f"peak memory {format_bytes(failure['peak_memory'])}")
    if failure["worker"]:
        facts.append(f"on {failure['worker']}")
    parts = [
        f'<details class="failure"{" open" if is_open else ""}><summary>{name}<br>'
        f'<span class="bad">{escape(failure["reason"])}</span></summary>',
        f'<p class="soft">{escape(", ".join(fact for fact in facts if fact))}</p>',
    ]
    if failure.get("traceback"):
        parts.append(f"<pre>{escape(failure['traceback'])}</pre>")
    if failure.get("log_tail"):
        parts.append(f'<p class="soft">The last that it logged:</p><pre>{escape(failure["log_tail"])}</pre>')
    if failure["rerun"] not in ("", resume):
        parts.append(
            '<p class="soft">To run it again:</p>'
            f'<pre class="command">{escape(failure["rerun"])}</pre><button data-copy hidden>Copy</button>'
        )
    return "".join([*parts, "</details>"])


def _time(content: Mapping[str, Any], colors: Mapping[str, str]) -> str:
    timeline = content["timeline"]
    axis = (
        f'<div class="axis-labels"><span>0</span><span>{format_seconds(timeline["seconds"] / 2)}</span>'
        f"<span>{format_seconds(timeline['seconds'])}</span></div>"
    )
    named = [label for label, color in colors.items() if color != "c0"]
    keys = [(colors[label], label) for label in named]
    if len(named) < len(colors):
        keys.append(("c0", f"{len(colors) - len(named)} other tasks"))
    keys += (
        [("failed", "failed"), ("retried", "tried again")]
        if content["failures"] or content["retries"]
        else []
    )
    lanes = lanes_chart(timeline, colors)
    if not lanes:
        n_lanes = len(timeline["lanes"])
        lanes = f'<p class="note">Single slots are not drawn: there are {n_lanes}.</p>' if n_lanes else ""
    else:
        lanes += axis
    driver = [[escape(name), format_seconds(value)] for name, value in content["time"]["driver"].items()]
    return (
        "<section><h2>Time</h2><h3>Slots busy, by task</h3>"
        f"{_legend(keys)}{busy_chart(timeline, colors, content['slots'])}{axis}"
        f'<p class="note">The dashed line is the number of slots, {content["slots"]}.</p>'
        f"<h3>What each slot did</h3>{lanes}"
        f"<h3>Where the time went</h3>{_split(content)}"
        f"<h3>What the driver did</h3>{_table(['phase', 'time'], driver)}</section>"
    )


def _split(content: Mapping[str, Any]) -> str:
    """Show the time of the session and of the slots by what it went into."""
    slots = content["time"]["slots"]
    # Reports of earlier releases have neither imports nor shuffles.
    sizes = {"idle": slots["between_quanta"], **slots}
    parts = [
        (words, color, sizes[name])
        for name, color, words in _SLOT_PARTS
        if sizes[name] is not None and (sizes[name] or name != "not_split")
    ]
    whole = sum(size for _, _, size in parts)
    rows = [
        [
            f'<span class="key {color}"></span>{escape(words)}',
            format_seconds(size),
            f"{100 * size / (whole or 1.0):.1f} %",
        ]
        for words, color, size in parts
    ]
    before = content["time"].get("before", {})
    if (session := before.get("session")) is not None:
        share = f"{100 * before['session_share']:.1f} % *"
        rows.insert(0, ["Session: the driver waited for Spark", format_seconds(session), share])
    last = ["The slots in all", format_seconds(whole), ""]
    notes = _notes_on_split(content, whole)
    return (
        f"{split_bar(parts)}{_table(['what', 'time', 'share'], rows, last, text=(0,))}"
        f'<p class="note">{escape(" ".join(notes))}</p>'
    )


def _notes_on_split(content: Mapping[str, Any], whole: float) -> list[str]:
    """Say what the shares are of, and what is not in them."""
    time, slots = content["time"], content["time"]["slots"]
    notes = [f"Shares are of the time of {_count(content['slots'], 'slot')} while quanta ran."]
    before = time.get("before", {})
    if before.get("session") is not None:
        notes.append("* Before there were slots; of the whole time of the run.")
    if before.get("import"):
        notes.append(
            f"Another {format_seconds(before['import'])} of imports were over before: "
            "as a rule, while the driver waited for Spark or read the graph."
        )
    if whole > 1.001 * slots["available"] + 0.1:
        notes.append(
            f"This is {format_seconds(whole - slots['available'])} more than slots × time: "
            "slots came later, or clocks differ."
        )
    if unmeasured := ", ".join(name for name, value in slots.items() if value is None):
        notes.append(f"Not measured by themselves: {unmeasured}; part of what is idle.")
    notes.append(f"Processor time of all quanta: {format_seconds(content['totals']['cpu_seconds'])}.")
    return notes


def _legend(keys: Iterable[tuple[str, str]]) -> str:
    return (
        '<div class="legend">'
        + "".join(f'<span><span class="key {color}"></span>{escape(words)}</span>' for color, words in keys)
        + "</div>"
    )


def _distributions(content: Mapping[str, Any], colors: Mapping[str, str]) -> str:
    parts = []
    for task in content["tasks"]:
        if not task["seconds"]:
            continue
        figures = [_distribution("Time", task["seconds"], colors[task["label"]], format_seconds)]
        if task["memory"]:
            figures.append(
                _distribution(
                    "Peak memory of the process", task["memory"], colors[task["label"]], format_bytes
                )
            )
        parts.append(f'<h3>{escape(task["label"])}</h3><div class="dists">{"".join(figures)}</div>')
    return f"<section><h2>Times and memory of quanta</h2>{''.join(parts)}</section>" if parts else ""


def _distribution(name: str, values: Mapping[str, Any], color: str, write: Any) -> str:
    return (
        f"<figure><figcaption>{name}: median {write(values['median'])}, 90 % below {write(values['p90'])}"
        f"</figcaption>{histogram(values, color)}"
        f'<div class="axis-labels"><span>{write(values["min"])}</span>'
        f"<span>{write(values['max'])}</span></div></figure>"
    )


def _traffic(content: Mapping[str, Any]) -> str:
    if not content["totals"]["requests"]:
        return (
            '<section><h2>Object store</h2><p class="note">No requests of quanta to an S3 store were counted.'
            "</p></section>"
        )
    methods = sorted({method for task in content["tasks"] for method in task["requests"]})
    rows = [
        [
            escape(task["label"]),
            *(_cell(task["requests"].get(method, 0), "") for method in methods),
            format_bytes(task["bytes_read"]),
            format_bytes(task["bytes_written"]),
        ]
        for task in content["tasks"]
    ]
    sums = [sum(task["requests"].get(method, 0) for task in content["tasks"]) for method in methods]
    totals = content["totals"]
    last = ["all", *(f"{n:,}" for n in sums)]
    last += [format_bytes(totals["bytes_read"]), format_bytes(totals["bytes_written"])]
    return (
        "<section><h2>Object store</h2>"
        f"{_table(['task', *methods, 'read', 'written'], rows, last)}"
        '<p class="note">Requests of quanta, by method, repeated ones included; those of the driver are not '
        "counted.</p></section>"
    )


def _slowest(content: Mapping[str, Any]) -> str:
    rows = [
        [
            escape(each["task"]),
            escape(format_data_id(each["data_id"])),
            format_seconds(each["seconds"]),
            format_seconds(each["cpu_seconds"]),
            format_bytes(each["peak_memory"]),
        ]
        for each in content["slowest"]
    ]
    if not rows:
        return ""
    head = ["task", "data ID", "time", "processor time", "memory"]
    return f"<section><h2>Slowest quanta</h2>{_table(head, rows, text=(1,))}</section>"


def _retries(content: Mapping[str, Any]) -> str:
    workers, retries = content["workers"], content["retries"]
    facts = [
        f"{_count(workers['processes'], 'process', 'processes')} on {_count(len(workers['hosts']), 'host')}"
    ]
    for name, words in (
        ("quanta_given_again", "quanta given out again because their worker was lost"),
        ("quanta_found_complete", "quanta found complete after their worker was lost"),
        ("quanta_repeated", "quanta run again to make a lost temporary"),
    ):
        if workers[name]:
            facts.append(f"{workers[name]:,} {words}")
    facts.append(f"{_count(len(workers['lost']), 'process', 'processes')} lost")
    parts = [f"<p>{escape('; '.join(facts))}.</p>"]
    if workers["lost"]:
        parts.append(f'<p class="soft">Lost: {escape(", ".join(workers["lost"][:50]))}</p>')
    rows = [
        [
            escape(each["task"]),
            escape(format_data_id(each["data_id"])),
            "yes" if each["succeeded"] else '<span class="bad">no</span>',
            "<br>".join(escape(f"{try_['kind']}: {try_['reason']}") for try_ in each["attempts"]),
        ]
        for each in retries[:_MAX_RETRIES]
    ]
    if rows:
        parts.append(_table(["task", "data ID", "succeeded", "attempts before"], rows, text=(1, 3)))
    if (n_retried := content["totals"]["retried"]) > _MAX_RETRIES:
        parts.append(f'<p class="note">The first {_MAX_RETRIES} of {n_retried:,}; report.json has more.</p>')
    return f"<section><h2>Retries and lost workers</h2>{''.join(parts)}</section>"


def _configuration(content: Mapping[str, Any]) -> str:
    versions = content["versions"]
    shown = [name for name in versions if name in ("python", "pyspark", "numpy", "astropy") or "lsst" in name]
    parts = []
    if content["command"]:
        parts.append(f'<pre class="command">{escape(shlex.join(content["command"]))}</pre>')
    facts = {**content["platform"], **{name: versions[name] for name in shown}}
    parts.append(
        _table(["what", "version or place"], [[escape(a), escape(str(b))] for a, b in facts.items()])
    )
    parts += [
        _fold("Options", "\n".join(f"{k}: {json.dumps(v)}" for k, v in content["options"].items())),
        _fold("Plan", content["plan"]),
        _fold(f"All {len(versions)} packages", "\n".join(f"{k} {v}" for k, v in versions.items())),
    ]
    return f"<section><h2>Configuration and versions</h2>{''.join(parts)}</section>"


def _fold(name: str, text: str) -> str:
    return f"<details><summary>{escape(name)}</summary><pre>{escape(text)}</pre></details>" if text else ""


def _table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    last: Sequence[str] | None = None,
    *,
    text: Sequence[int] = (),
) -> str:
    """Write a table of cells that are HTML already; columns in ``text`` hold words."""
    classes = [' class="text"' if n in text else "" for n in range(len(head))]

    def write(row: Sequence[str], tag: str, start: str = "<tr>") -> str:
        cells = (f"<{tag}{kind}>{cell}</{tag}>" for cell, kind in zip(row, classes, strict=True))
        return f"{start}{''.join(cells)}</tr>"

    lines = [write([escape(word) for word in head], "th"), *(write(row, "td") for row in rows)]
    if last is not None:
        lines.append(write(last, "td", '<tr class="sum">'))
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def _count(n: int, one: str, many: str | None = None) -> str:
    return f"{n:,} {one if n == 1 else many or one + 's'}"
