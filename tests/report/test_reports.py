"""Contents of a report, and the page that shows it."""

from __future__ import annotations

import dataclasses
import datetime
import html.parser
import json
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import click
import pytest

from spark_butler.cli.run import make_run_command
from spark_butler.report import format_report, make_content, make_page
from spark_butler.report.record import Span
from spark_butler.report.rerun import rerun_command
from spark_butler.report.timeline import busy_slots, make_lanes, round_shares
from spark_butler.text import format_bytes, format_seconds
from tests.report.fake_runs import COMMAND, make_record, make_run

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_EMPTY = frozenset({"meta", "br", "input", "path", "rect"})


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    """The content of the report of a run with failures and retries, as it is after a journey as JSON."""
    record = make_record(60, n_failed=12, n_retried=3, ago=90.0)
    made = make_content(make_run(), record, state="failed", n_ingested=555)
    loaded: dict[str, Any] = json.loads(json.dumps(made))
    assert loaded == made
    return loaded


def test_counts_times_and_memory(content: dict[str, Any]) -> None:
    totals = content["totals"]
    assert (totals["quanta"], totals["done"], totals["failed"], totals["retried"]) == (180, 168, 12, 3)
    assert [task["label"] for task in content["tasks"]] == ["isr", "characterizeImage", "calibrate"]
    assert sum(task["requests"]["GET"] for task in content["tasks"]) == 3 * 180
    for task in content["tasks"]:
        seconds = task["seconds"]
        assert sum(seconds["histogram"]) == seconds["n"] == 60
        assert seconds["min"] <= seconds["median"] <= seconds["p90"] <= seconds["max"]
    assert len(content["workers"]["lost"]) == 3
    assert [each["seconds"] for each in content["slowest"]] == sorted(
        (each["seconds"] for each in content["slowest"]), reverse=True
    )


def test_time_of_the_slots_adds_up(content: dict[str, Any]) -> None:
    slots = content["time"]["slots"]
    measured = [slots[name] for name in ("read", "compute", "write", "not_split")]
    packed = 180 * 0.001 - 12 * 0.001
    spans = [row for lane in content["timeline"]["lanes"] for row in lane["attempts"]]
    assert len(spans) == 180 + 3
    assert sum(measured) + packed == pytest.approx(sum(row[1] for row in spans), abs=0.2)
    # Each executor's imports count once, and only those in the time of the run.
    assert slots["import"] == pytest.approx(2 * 1.5, abs=0.01)
    assert content["time"]["before"] == {
        "session": 9.8,
        "session_share": pytest.approx(9.8 / content["seconds"], abs=0.001),
        "import": pytest.approx(2 * 2.5, abs=0.01),
    }
    assert slots["shuffle"] == pytest.approx(180 * 0.02 + packed, abs=0.01)
    busy = content["timeline"]["busy"]
    width = content["timeline"]["seconds"] / len(busy[0])
    assert width * sum(map(sum, busy)) == pytest.approx(sum(measured) + packed, rel=0.01)


_PARTS = ("import", "read", "compute", "write", "shuffle", "not_split", "idle")


def test_idle_is_the_rest_of_slots_and_time() -> None:
    record = make_record(20, ago=3600.0)
    made = make_content(make_run(), record, state="succeeded")["time"]
    assert made["slots"]["available"] == pytest.approx(8 * 3600, rel=0.01)
    assert sum(made["slots"][name] for name in _PARTS) == pytest.approx(made["slots"]["available"], abs=0.01)
    assert made["shares"] == {
        name: pytest.approx(made["slots"][name] / made["slots"]["available"], abs=1e-3) for name in _PARTS
    }


def test_rounded_shares_add_up_to_one() -> None:
    assert round_shares({"a": 1, "b": 1, "c": 1}) == {"a": 0.334, "b": 0.333, "c": 0.333}
    assert round_shares({"a": 2, "b": 0}) == {"a": 1.0, "b": 0.0}
    assert round_shares({"a": 0.0}) == {"a": 0.0}
    assert sum(1000 * share for share in round_shares({str(n): n + 0.5 for n in range(13)}).values()) == 1000


def test_parts_of_the_wall_time_add_up() -> None:
    started = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=300)
    made = make_content(make_run(started=started), make_record(20, ago=250.0), state="succeeded")
    driver = made["time"]["driver"]
    assert list(driver) == ["quantum graph", "Spark session", "output run", "quanta", "other"]
    assert sum(driver.values()) == pytest.approx(made["seconds"], abs=0.01)
    assert driver["other"] == pytest.approx(300 - 250 - 12.3 - 9.8 - 0.7, abs=1.0)


def test_overfull_slot_time_is_reported_and_never_negative() -> None:
    # These quanta have not really taken their time.
    content = make_content(make_run(), make_record(20), state="succeeded")
    slots = content["time"]["slots"]
    assert slots["idle"] == 0.0
    whole = sum(slots[name] for name in _PARTS)
    assert whole > slots["available"]
    assert f"This is {format_seconds(whole - slots['available'])} more than slots × time" in make_page(
        content
    )


def test_report_of_an_earlier_release_has_a_page(content: dict[str, Any]) -> None:
    old = json.loads(json.dumps(content))
    old["time"]["driver"]["run"] = old["time"]["driver"].pop("quanta")
    del old["time"]["driver"]["other"]
    del old["time"]["before"], old["time"]["shares"], old["time"]["slots"]["idle"]
    old["time"]["slots"].update({"import": None, "shuffle": None})
    page = make_page(old)
    assert "Not measured separately: import, shuffle; part of what is idle." in page
    assert "done before" not in page


def test_lanes_hold_attempts_without_overlap(content: dict[str, Any]) -> None:
    lanes = content["timeline"]["lanes"]
    assert [(lane["host"], lane["slot"]) for lane in lanes] == [
        (host, slot) for host in ("node1", "node2") for slot in (1, 2, 3, 4)
    ]
    for lane in lanes:
        ends = 0.0
        for start, seconds, _, _ in lane["attempts"]:
            assert start >= ends - 0.01
            ends = start + seconds


def test_slots_busy_are_means_over_bins() -> None:
    spans = [
        Span("a", make_record(1).outcomes.popitem()[0], "h:1", start, seconds, "done")
        for start, seconds in [(0.0, 10.0), (2.5, 1.0), (9.5, 3.0)]
    ]
    assert busy_slots(spans, ["a", "b"], 0.0, 10.0, 5) == [[1.0, 1.5, 1.0, 1.0, 1.25], [0.0] * 5]
    assert [len(lane.spans) for lane in make_lanes(spans)] == [1, 2]


class _Parser(html.parser.HTMLParser):
    """Sees whether tags are closed in order, and keeps the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _EMPTY:
            self.open.append(tag)
        self.outside += [name for name, _ in attrs if name in ("src", "href", "srcset", "xlink:href")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if tag not in _EMPTY:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_page_is_complete_and_has_no_external_references(content: dict[str, Any]) -> None:
    page = make_page(content)
    parser = _Parser()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    assert parser.outside == []
    assert not re.search(r"url\(|@import|https?://|<link|<img", page)
    text = "".join(parser.text)
    for wanted in (
        "u/me/first/20260101T000000Z",
        "555 datasets registered",
        "only 3 matches within 2 arcsec & <1 mag",
        "ValueError: only # matches; <#> are needed",
        "killed by signal 9",
        "Import: modules, and what all groups share3.0 s",
        "Shuffle: temporaries packed, sent and received3.8 s",
        "Workers spent another 5.0 s on imports before",
        "spark://head:7077",
    ):
        assert wanted in text
    assert "Not measured" not in text
    for failure in content["failures"]:
        assert failure["rerun"] in text


_PAYLOAD = "</title></pre></script><script>steal()</script>'\"><b id=injected>"


def _inject(value: object, key: str = "") -> object:
    """Add a payload to every string of a report, and to the names of what has names of its own."""
    match value:
        case dict():
            is_named = key in ("data_id", "requests", "options", "platform", "versions", "driver")
            named = {f"{name}{_PAYLOAD}": _inject(each) for name, each in value.items()} if is_named else {}
            return {name: _inject(each, name) for name, each in value.items()} | named
        case list():
            return [_inject(each, key) for each in value]
        case str() if key not in ("state", "started", "ended"):
            return value + _PAYLOAD
    return value


def test_strings_of_a_crafted_report_are_escaped(content: dict[str, Any]) -> None:
    crafted = _inject(content)
    assert isinstance(crafted, dict)
    page = make_page(crafted)
    parser = _Parser()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    assert page.count("<script") == make_page(content).count("<script") == 1
    assert "injected>" not in page
    assert page.count("injected&gt;") > 300


@pytest.mark.parametrize("state", ["succeeded", "stopped", "broken"])
def test_run_that_did_nothing_has_a_page(state: str) -> None:
    content = make_content(make_run(), make_record(0), state=state, reason="Stopped by SIGTERM.")
    page = make_page(content)
    _Parser().feed(page)
    assert "Stopped by SIGTERM." in page


def test_secrets_are_not_in_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "only 3 matches within")
    content = make_content(make_run(), make_record(4, n_failed=1), state="failed")
    assert "only 3 matches within" not in json.dumps(content) + make_page(content)


@pytest.mark.parametrize(("n_hosts", "slots"), [(1, 8), (25, 8)])
def test_large_run_makes_a_small_report_quickly(n_hosts: int, slots: int) -> None:
    record = make_record(1_000, n_hosts=n_hosts, slots=slots, n_failed=900)
    start = time.process_time()
    content = make_content(make_run(n_hosts * slots), record, state="failed")
    data, page = json.dumps(content), make_page(content)
    assert time.process_time() - start < 5
    assert len(data) < 2e6
    assert len(page) < 2e6
    assert content["totals"]["failed"] == 900


def test_quanta_done_before_have_a_column() -> None:
    run = dataclasses.replace(
        make_run(), done_before={"isr": 7, "calibrate": 0}, quanta={"isr": 3, "other": 2}
    )
    content = json.loads(
        json.dumps(make_content(run, make_record(3, ("isr", "calibrate")), state="succeeded"))
    )
    assert {
        task["label"]: (task["quanta"], task["done_before"], task["done"]) for task in content["tasks"]
    } == {
        # All quanta of the last task had been done, so that the plan does not have them.
        **{"isr": (3, 7, 3), "calibrate": (3, 0, 3), "other": (0, 2, 0)}
    }
    assert content["totals"]["done_before"] == 9
    lines = format_report(content).splitlines()
    assert lines[1].split()[:4] == ["task", "quanta", "done", "before"]
    assert lines[2].split()[:4] == ["isr", "3", "7", "3"]
    assert "<th>done before</th>" in make_page(content)
    assert "done before" not in format_report(make_content(make_run(), make_record(3), state="succeeded"))


def test_summary_groups_many_failures_and_names_few(content: dict[str, Any]) -> None:
    text = format_report(content)
    assert "12 of 180 quanta failed, 0 blocked in " in text
    assert "FAILED 12 quanta of calibrate: ValueError: only # matches; <#> are needed" in text
    assert text.splitlines()[-1].startswith("Rerun all that failed: spark-butler run ")
    assert "3 quanta were retried (3 x lost)." in text
    few = make_content(make_run(), make_record(4, n_failed=1), state="failed")
    assert "1 of 12 quanta failed" in format_report(few)
    assert "FAILED calibrate instrument SimCam, detector 0, visit 40: ValueError" in format_report(few)
    assert f"  rerun: {few['failures'][0]['rerun']}" in format_report(few)
    shares = re.findall(r"([\d.]+) %", text)
    assert sum(map(float, shares)) == pytest.approx(100)


def test_rerun_command_selects_failures_and_extends_the_run() -> None:
    data_id = {"instrument": "SimCam", "visit": 42}
    assert rerun_command(COMMAND, "visit > 40", label="isr", data_id=data_id) == (
        "spark-butler run -b s3-repo -p drp.yaml -o u/me/first --extend-run --skip-existing "
        "--clobber-outputs --select-tasks isr "
        "-d \"(visit > 40) AND (instrument = 'SimCam' AND visit = 42)\""
    )
    assert rerun_command(COMMAND, "visit > 40") == (
        "spark-butler run -b s3-repo -p drp.yaml -o u/me/first --extend-run --skip-existing "
        "--clobber-outputs -d 'visit > 40'"
    )
    given = [
        "run",
        "--replace-run",
        "--prune-replaced",
        "purge",
        "--data-query=",
        "--select-tasks",
        "a|b",
        "-pp",
    ]
    assert rerun_command(given, label="isr", data_id=data_id) == (
        "run -pp --extend-run --skip-existing --clobber-outputs --select-tasks isr "
        "-d \"instrument = 'SimCam' AND visit = 42\""
    )
    assert rerun_command(["run", "-g", "a.qg"], label="isr", data_id=data_id) == (
        "run -g a.qg --extend-run --skip-existing --clobber-outputs"
    )
    assert rerun_command([], label="isr", data_id=data_id) == ""


def test_rerun_command_names_tasks_without_the_prefix_of_mocks() -> None:
    assert rerun_command(["run", "--mock"], label="_mock_isr").endswith("--select-tasks isr")
    assert rerun_command(["run"], label="_mock_isr").endswith("--select-tasks _mock_isr")


def _writing_options() -> list[str]:
    """Return the options of the run command whose help says that they write a file."""
    words = re.compile(r"for storing|dump|to write|write log|HTML report|output \(requires")
    return [
        name
        for param in make_run_command().params
        if isinstance(param, click.Option) and words.search(param.help or "")
        for name in param.opts
    ]


def test_rerun_command_of_a_graph_without_registry_is_the_command_itself() -> None:
    command = ["spark-butler", "run-qbb", "repo", "night.qg", "--summary", "s.json", "--retries", "1"]
    expected = "spark-butler run-qbb repo night.qg --retries 1"
    assert rerun_command(command, "", label="isr", data_id={"visit": 1}) == expected


def test_rerun_command_writes_no_files() -> None:
    names = _writing_options()
    assert {"-q", "--save-pipeline", "--summary", "--provenance-graph", "--qgraph-dot", "--log-file"} <= {
        *names
    }
    flags = {"--coverage", "--cov-report"}
    for name in names:
        for words in [[name]] if name in flags else [[name, "file"], [f"{name}=file"]]:
            if name in ("-q", "-s") and len(words) == 1:
                words = [f"{name}file"]
            command = rerun_command(["run", "-b", "repo", *words, "-o", "out"])
            assert command.startswith("run -b repo -o out --extend-run"), command


def test_numbers_are_short() -> None:
    seconds = [0.001, 0.42, 9.949, 9.96, 59.6, 3599.9, 7260.0]
    assert [format_seconds(value) for value in seconds] == [
        *("1 ms", "0.4 s", "9.9 s", "10 s", "1 min 00 s", "1 h 00 min", "2 h 01 min")
    ]
    assert [format_bytes(value) for value in (0, 999, 1000, 99_499, 999_600, 5e13)] == [
        *("0 B", "999 B", "1 kB", "99.5 kB", "1 MB", "50 TB")
    ]


def test_page_fits_a_phone(content: dict[str, Any], tmp_path: Path) -> None:
    browser = next((found for name in _BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no Chromium here to open the page in")
    page = make_page(content).replace("&", "&amp;").replace('"', "&quot;")
    frame = tmp_path / "frame.html"
    # Chromium's windows have a least width; frames have none.
    frame.write_text(
        f'<body><iframe id="page" style="width:390px;height:800px;border:0" srcdoc="{page}"></iframe><script>'
        "onload=function(){var d=document.getElementById('page').contentDocument;"
        "document.body.innerHTML='width '+d.documentElement.scrollWidth+', buttons '+"
        "d.querySelectorAll('button:not([hidden])').length}</script>"
    )
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    process = subprocess.run(
        [browser, *options, "--dump-dom", frame.as_uri()], capture_output=True, text=True, timeout=60
    )
    seen = re.search(r"width (\d+), buttons (\d+)", process.stdout)
    assert seen is not None, process.stderr
    assert int(seen[1]) <= 390
    # Its script has run.
    assert int(seen[2]) == 1 + len(content["failures"])
