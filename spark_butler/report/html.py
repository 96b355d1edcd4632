"""The report as a page that needs no network.  Runs in the driver, and in ``spark-butler report``."""

from __future__ import annotations

__all__ = ["make_page", "render"]

import datetime
import functools
import json
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..text import format_bytes, format_count, format_data_id, format_seconds
from .timeline import round_shares

if TYPE_CHECKING:
    import jinja2

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
    ("idle", "s5", "Idle: the rest, such as no work, Spark itself, new processes"),
)
_N_COLORS = 7
_WIDTH = 1000.0
_HEIGHT = 120.0
_MAX_LANES = 64
_MAX_MARKS = 20_000
_MAX_TITLED = 3_000


@functools.cache
def _environment() -> jinja2.Environment:
    """Build the environment of all templates, which escapes every value."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("spark_butler.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "bytes": format_bytes,
        "count": format_count,
        "data_id": format_data_id,
        "date": lambda text: f"{datetime.datetime.fromisoformat(text):%Y-%m-%d %H:%M:%S}",
        "facts": _list_facts,
        "number": lambda value: f"{value:,}",
        "quantity": lambda value, unit: format_bytes(value) if unit == "bytes" else format_seconds(value),
        "seconds": format_seconds,
        "shell": shlex.join,
    }
    return environment


def render(template: str, **values: object) -> str:
    """Render a template of this package with values by name, which are escaped."""
    return _environment().get_template(template).render(values)


def make_page(content: Mapping[str, Any]) -> str:
    """Build the HTML of a report from the result of `make_content`, or the content of ``report.json``."""
    # Reports of earlier releases have no counts of quanta done before.
    totals = {"done_before": 0, **content["totals"]}
    tasks = [{"done_before": 0, **task} for task in content["tasks"]]
    color, words = _STATES[content["state"]]
    slots, colors, versions = content["time"]["slots"], _task_colors(tasks), content["versions"]
    requests: Counter[str] = Counter()
    for task in tasks:
        requests.update(task["requests"])
    parts = _slot_parts(content)
    driver = content["time"]["driver"]
    used = 1 - slots["between_quanta"] / slots["available"] if slots["available"] else None
    return render(
        "report.html.j2",
        c={**content, "totals": totals, "tasks": tasks},
        state={"color": color, "words": words},
        colors=colors,
        # Reports of earlier releases call this part "run".
        running=driver["quanta"] if "quanta" in driver else driver["run"],
        used="" if used is None else f"{100 * used:.0f} %",
        legend=list(_legend(content, colors)),
        busy=_busy_areas(content["timeline"], colors, content["slots"]),
        hosts=_slot_marks(content["timeline"], colors),
        parts=parts,
        notes=" ".join(_notes_on_slots(content, sum(part["seconds"] for part in parts))),
        methods=dict(sorted(requests.items())),
        workers=_describe_workers(content["workers"]),
        platform=content["platform"]
        | {
            name: version
            for name, version in versions.items()
            if name in ("python", "pyspark", "numpy", "astropy") or "lsst" in name
        },
        options="\n".join(f"{name}: {json.dumps(value)}" for name, value in content["options"].items()),
        packages="\n".join(f"{name} {version}" for name, version in versions.items()),
    )


def _list_facts(failure: Mapping[str, Any]) -> str:
    """Return the facts about a failure beside its reason."""
    facts = [failure["kind"], f"after {format_seconds(failure['seconds'])}"]
    if failure["attempts"] > 1:
        facts.append(f"attempt {failure['attempts']}")
    if failure["peak_memory"]:
        facts.append(f"peak memory {format_bytes(failure['peak_memory'])}")
    if failure["worker"]:
        facts.append(f"on {failure['worker']}")
    return ", ".join(fact for fact in facts if fact)


def _describe_workers(workers: Mapping[str, Any]) -> str:
    """Return the numbers of processes, hosts and losses."""
    facts = [
        f"{format_count(workers['processes'], 'process', 'processes')} on "
        f"{format_count(len(workers['hosts']), 'host')}"
    ]
    for name, words in (
        ("quanta_given_again", "submitted again because their worker was lost"),
        ("quanta_found_complete", "found complete after their worker was lost"),
        ("quanta_repeated", "rerun to make a lost temporary"),
    ):
        if workers[name]:
            facts.append(f"{format_count(workers[name], 'quantum', 'quanta')} {words}")
    facts.append(f"{format_count(len(workers['lost']), 'process', 'processes')} lost")
    return f"{'; '.join(facts)}."


def _task_colors(tasks: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return a style class by task label: a color for the tasks that take most time, gray for all others."""
    by_time = sorted(tasks, key=lambda task: -(task["seconds"] or {"sum": 0.0})["sum"])
    chosen = {task["label"] for task in by_time[:_N_COLORS]}
    numbers = iter(range(1, _N_COLORS + 1))
    return {task["label"]: f"c{next(numbers)}" if task["label"] in chosen else "c0" for task in tasks}


def _legend(content: Mapping[str, Any], colors: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield style classes and their meanings in the charts."""
    named = [label for label, color in colors.items() if color != "c0"]
    yield from ((colors[label], label) for label in named)
    if n_others := len(colors) - len(named):
        yield "c0", format_count(n_others, "other task")
    if content["failures"] or content["retries"]:
        yield from (("failed", "failed"), ("retried", "retried"))


def _slot_parts(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the parts of the slots' time; their shares add up to 100 %."""
    slots = content["time"]["slots"]
    # Reports of earlier releases have neither imports nor shuffles.
    sizes = {"idle": slots["between_quanta"], **slots}
    sizes = {name: sizes[name] for name, _, _ in _SLOT_PARTS if sizes[name] is not None}
    shares = round_shares(sizes)
    return [
        {"color": color, "words": words, "seconds": sizes[name], "percent": f"{100 * shares[name]:.1f} %"}
        for name, color, words in _SLOT_PARTS
        if name in sizes and (sizes[name] or name != "not_split")
    ]


def _notes_on_slots(content: Mapping[str, Any], whole: float) -> list[str]:
    """Return sentences on the meaning of the shares, and on times that they leave out."""
    time, slots = content["time"], content["time"]["slots"]
    notes = [f"Shares are of the time of {format_count(content['slots'], 'slot')} while quanta ran."]
    if seconds := time.get("before", {}).get("import"):
        notes.append(
            f"Workers spent another {format_seconds(seconds)} on imports before, "
            "as a rule while the driver waited for Spark or read the graph."
        )
    if whole > 1.001 * slots["available"] + 0.1:
        notes.append(
            f"This is {format_seconds(whole - slots['available'])} more than slots × time: "
            "slots came later, or clocks differ."
        )
    if unmeasured := ", ".join(name for name, value in slots.items() if value is None):
        notes.append(f"Not measured separately: {unmeasured}; part of what is idle.")
    notes.append(f"Processor time of all quanta: {format_seconds(content['totals']['cpu_seconds'])}.")
    return notes


def _busy_areas(timeline: Mapping[str, Any], colors: Mapping[str, str], slots: int) -> dict[str, Any]:
    """Return the areas of the chart of busy slots, one for each task, on top of each other."""
    rows: Sequence[Sequence[float]] = timeline["busy"]
    n_bins = len(rows[0]) if rows else 0
    top = max(slots, *(sum(row[n] for row in rows) for n in range(n_bins)), 1)
    xs = [_number(n * _WIDTH / n_bins) for n in range(n_bins + 1)] if n_bins else []
    base = [0.0] * n_bins
    areas = []
    # Gray ones together, so that they are one area.
    for label, row in sorted(zip(timeline["labels"], rows, strict=True), key=lambda item: colors[item[0]]):
        if not any(row):
            continue
        upper = [low + value for low, value in zip(base, row, strict=True)]
        low_ys, high_ys = ([_number(_HEIGHT * (1 - each / top)) for each in ys] for ys in (base, upper))
        ahead = "".join(f"L{xs[n]} {high_ys[n]}H{xs[n + 1]}" for n in range(n_bins))
        back = "".join(f"L{xs[n + 1]} {low_ys[n]}H{xs[n]}" for n in reversed(range(n_bins)))
        areas.append({"color": colors[label], "label": label, "path": f"M0 {low_ys[0]}{ahead}{back}Z"})
        base = upper
    return {"areas": areas, "limit": _number(_HEIGHT * (1 - slots / top))}


def _slot_marks(timeline: Mapping[str, Any], colors: Mapping[str, str]) -> dict[str, list[list[Any]]]:
    """Return the marks of each slot by host; none if there are too many slots."""
    lanes: Sequence[Mapping[str, Any]] = timeline["lanes"]
    hosts: defaultdict[str, list[list[Any]]] = defaultdict(list)
    if len(lanes) <= _MAX_LANES:
        titled = sum(len(lane["attempts"]) for lane in lanes) <= _MAX_TITLED
        # A mark is never finer than what the file has room for.
        finest = 0.0 if titled else max(0.5, _WIDTH * len(lanes) / _MAX_MARKS)
        for lane in lanes:
            marks = _merge_marks(lane, timeline, colors, finest)
            hosts[lane["host"]].append(
                [
                    {
                        "x": _number(start),
                        "width": _number(max(end - start, 0.4)),
                        "style": style,
                        "title": title if titled else "",
                    }
                    for start, end, style, title in marks
                ]
            )
    return dict(hosts)


def _merge_marks(
    lane: Mapping[str, Any], timeline: Mapping[str, Any], colors: Mapping[str, str], finest: float
) -> list[list[Any]]:
    """Return start, end, style and title of a slot's attempts; marks finer than some width are merged."""
    scale = _WIDTH / (timeline["seconds"] or 1.0)
    labels = timeline["labels"]
    marks: list[list[Any]] = []
    for start, seconds, number, status in lane["attempts"]:
        label = labels[number] if number >= 0 else "?"
        x, end = start * scale, (start + seconds) * scale
        color = colors.get(label, "c0")
        style = color if status == "done" else f"{color} {status}"
        last = marks[-1] if marks else None
        is_like_last = last is not None and last[2] == style and x - last[1] < finest
        if last is not None and (is_like_last or (status == "done" and end - last[0] < finest)):
            last[1] = max(last[1], end)
        else:
            marks.append([x, end, style, f"{label}, {seconds:.2f} s from {start:.1f} s, {status}"])
    return marks


def _number(value: float) -> str:
    """Format a coordinate with only the visible digits."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
