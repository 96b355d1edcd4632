"""The notebook API, on a simulated night in a real S3 store."""

from __future__ import annotations

import contextlib
import doctest
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lsst.daf.butler import Butler
from lsst.pipe.base import Pipeline
from lsst.resources import ResourcePath
from pyspark.sql import SparkSession
from pyspark.sql.datasource import EqualTo, GreaterThan

import spark_butler
from spark_butler import SparkButler, make_session
from spark_butler.errors import (
    EmptyGraphError,
    EngineError,
    FunctionError,
    OptionsError,
    RepositoryError,
    SessionError,
    UserError,
)
from spark_butler.notebook.data_ids import DataIds
from spark_butler.notebook.results import Results
from spark_butler.notebook.run import Run, RunStatus
from spark_butler.planning.plan import Plan
from spark_butler.report.failures import Failures
from spark_butler.spark.datasource import ButlerDataSource, register
from spark_butler.spark.preflight import check_workers
from spark_butler.worker.function_butler import WorkerButler
from tests.support.night_harness import CONF, PIPELINE, Night
from tests.support.sealed_registry import sealed_registry

SCIENCE = "exposure.observation_type = 'science'"
VISIT = 202601010101

_CELL = """
import time
import lsst.pex.config as pc
import lsst.pipe.base as pb
import lsst.pipe.base.connectionTypes as cT

class CellConnections(pb.PipelineTaskConnections, dimensions=("instrument", "exposure", "detector")):
    raw = cT.Input(
        doc="i", name="raw", storageClass="ImageV2", dimensions=("instrument", "exposure", "detector")
    )
    out = cT.Output(
        doc="o",
        name="cell_out",
        storageClass="StructuredDataDict",
        dimensions=("instrument", "exposure", "detector"),
    )

class CellConfig(pb.PipelineTaskConfig, pipelineConnections=CellConnections):
    factor = pc.Field[float](doc="f", default=1.0)

class CellTask(pb.PipelineTask):
    ConfigClass = CellConfig
    _DefaultName = "cell"

    def run(self, raw):
        {first}
        return pb.Struct(out={{"level": float(raw.array.max()) * self.config.factor}})
"""


def run_cell(first: str) -> Any:
    """Define a task in ``__main__``, as a cell does, with a statement that it begins with."""
    main = vars(sys.modules["__main__"])
    exec(_CELL.format(first=first), main)
    return main["CellTask"]


@pytest.fixture(autouse=True)
def main_as_before() -> Iterator[None]:
    """Take out of ``__main__`` what cells have defined."""
    main = vars(sys.modules["__main__"])
    before = dict(main)
    yield
    for name in main.keys() - before.keys():
        del main[name]


@pytest.fixture(scope="module")
def butler(simulated: Night, spark: SparkSession) -> SparkButler:
    """The butler of a notebook."""
    return SparkButler(simulated.repo, collections="SimCam/defaults", spark=spark)


@pytest.fixture(scope="module")
def raws(butler: SparkButler) -> DataIds:
    """The science frames: two visits of two detectors."""
    return butler.data_ids("raw", where=SCIENCE, also="bias,ref_cat")


def _n_jobs(spark: SparkSession) -> int:
    return len(spark.sparkContext.statusTracker().getActiveJobsIds())


@contextlib.contextmanager
def _interrupted(spark: SparkSession) -> Iterator[None]:
    """Press Ctrl-C as soon as a Spark task runs, as the stop button of a notebook does."""
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals come to the main thread")

    def press() -> None:
        tracker = spark.sparkContext.statusTracker()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            stages = [tracker.getStageInfo(stage) for stage in tracker.getActiveStageIds()]
            if any(stage is not None and stage.numActiveTasks for stage in stages):
                break
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        yield
    thread.join()


@pytest.mark.parametrize(
    "documented",
    [
        *(SparkButler, DataIds, Results, WorkerButler, Run, make_session, ButlerDataSource),
        # What these show is used by other tests, too.
        *(pytest.param(each, marks=pytest.mark.slow) for each in (spark_butler, Failures, Plan, register)),
    ],
    ids=lambda each: each.__name__,
)
def test_examples_in_docstrings_run(
    documented: Any, butler: SparkButler, raws: DataIds, simulated: Night, spark: SparkSession
) -> None:
    names = {
        "SparkButler": SparkButler,
        "make_session": make_session,
        "register": register,
        "butler": butler,
        "raws": raws,
        "np": np,
        "spark": spark,
        "repo": str(simulated.repo),
        "pipeline": f"{PIPELINE}#isr",
    }
    finder = doctest.DocTestFinder(exclude_empty=True)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    tests = [test for test in finder.find(documented, documented.__name__) if test.examples]
    assert tests
    for test in tests:
        test.globs = dict(names)
        assert runner.run(test).failed == 0


def test_worker_reads_the_same_dataset_as_the_driver(butler: SparkButler, raws: DataIds) -> None:
    def read(b: Any, data_id: Any) -> Any:
        bias = float(b.get("bias", data_id).image.array.sum())
        by_own = float(
            b.get("bias", {"instrument": "SimCam", "detector": data_id["detector"]}).image.array.sum()
        )
        shards = [len(b.get(ref)) for ref in b.refs("ref_cat", data_id)]
        box = b.get("raw", data_id, component="bbox")
        return dict(data_id.required), bias, by_own, shards, str(box), str(b.get("raw.bbox", data_id))

    results = raws.map(read).collect()
    assert [result[0] for result in results] == [dict(data_id.required) for data_id in raws]
    plain = butler.butler
    for data_id, bias, by_own, shards, box, again in results:
        assert (
            bias == by_own == float(plain.get("bias", data_id, collections="SimCam/calib").image.array.sum())
        )
        assert box == again == str(plain.get("raw.bbox", data_id))
        assert shards
        assert all(shards)


def test_error_of_function_names_its_line_and_data_id(raws: DataIds) -> None:
    def asks_for_more(b: Any, data_id: Any) -> Any:
        return b.get("dark", data_id)

    with pytest.raises(FunctionError, match="NotSentError: No dataset of type 'dark' was sent") as caught:
        raws.map(asks_for_more).collect()
    text = str(caught.value)
    assert "only 'bias', 'raw', 'ref_cat'" in text
    assert "(data ID {instrument: 'SimCam', detector: 0" in text
    assert "in asks_for_more" in text
    assert "pyspark" not in text


def test_selected_data_ids_keep_their_butler(raws: DataIds) -> None:
    assert raws.collect() == list(raws)
    assert raws.count() == len(raws) == 4
    assert raws.count(raws[1]) == 1
    assert raws[:2].collect() == [raws[0], raws[1]]
    assert raws.map(lambda b, d: d["detector"]).sum() == raws.rdd.map(lambda d: d["detector"]).sum() == 2

    ones = raws.filter(lambda d: d["detector"] == 1)
    assert isinstance(ones, DataIds)
    assert [d["detector"] for d in ones] == [1, 1]
    assert ones.rdd.getNumPartitions() == 2
    read = ones[::-1].map(
        lambda b, d: (d["exposure"], b.get("raw", d).array.ndim, b.get("bias", d).image.array.ndim)
    )
    assert read.collect() == [(d["exposure"], 2, 2) for d in reversed(ones)]
    assert {row["detector"] for row in ones.to_dataframe().collect()} == {1}
    joined = ones.map(lambda b, d: (d["exposure"], "a")).join(ones.map(lambda b, d: (d["exposure"], "b")))
    assert sorted(joined.collect()) == [(d["exposure"], ("a", "b")) for d in ones]

    none = raws.filter(lambda d: False)
    assert not none
    assert none.map(lambda b, d: 1).collect() == none.rdd.collect() == none.collect() == []
    with pytest.raises(AttributeError, match="no attribute 'fliter'"):
        raws.fliter(lambda d: True)
    with pytest.raises(AttributeError, match="Results have no 'toDataFrame'"):
        raws.map(lambda b, d: 1).toDataFrame()


def test_actions_leave_no_temporary_files(butler: SparkButler, spark: SparkSession) -> None:
    folder = Path(spark.sparkContext._temp_dir)
    before = set(folder.iterdir())
    for _ in range(2):
        assert butler.data_ids("raw", where=SCIENCE).map(lambda b, data_id: 1).sum() == 4
    assert set(folder.iterdir()) == before


def test_functions_that_cannot_be_called_or_sent_are_refused_at_once(
    butler: SparkButler, raws: DataIds, spark: SparkSession, capfd: pytest.CaptureFixture[str]
) -> None:
    lock = threading.Lock()
    before = spark.sparkContext.statusTracker().getJobIdsForGroup()
    for words, call in {
        r"map: <lambda> takes \(d\); expected a function f\(b, data_id\)\.": lambda: raws.map(lambda d: 1),
        r"flatMap: <lambda> takes \(\); expected": lambda: raws.flatMap(lambda: [1]),
        r"foreach: None can't be called; expected": lambda: raws.foreach(None),
        r"filter: <lambda> takes \(b, d\); expected a function f\(data_id\)": lambda: raws.filter(
            lambda b, d: True
        ),
        "can't use the SparkButler; they get a butler b": lambda: raws.map(lambda b, d: butler.repo),
        "uses DataIds, which can't be sent": lambda: raws.map(lambda b, d: len(raws)),
        "<lambda> can't be sent to workers: .*'_thread.lock'": lambda: raws.map(lambda b, d: lock),
    }.items():
        with pytest.raises(OptionsError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)
    with pytest.raises(OptionsError, match="can't use the SparkButler"):
        raws.map(lambda b, d: 1).map(lambda one: butler).collect()
    assert spark.sparkContext.statusTracker().getJobIdsForGroup() == before
    assert "Traceback" not in capfd.readouterr().err


def test_errors_of_workers_show_no_frames_of_spark(raws: DataIds) -> None:
    with pytest.raises(FunctionError) as caught:
        raws.map(lambda b, d: threading.Lock()).collect()
    text = str(caught.value)
    assert text.startswith("The result of a function can't be sent back from the worker: TypeError: ")
    assert "'_thread.lock'" in text
    assert "pyspark" not in text
    with pytest.raises(FunctionError) as caught:
        raws.filter(lambda d: d["detector"] == 1).map(lambda b, d: 1).map(lambda one: one / 0).collect()
    text = str(caught.value)
    assert text.startswith("ZeroDivisionError: ")
    assert "in <lambda>" in text
    assert "pyspark" not in text


def test_jobs_are_named_by_number_and_required_dimensions(raws: DataIds, spark: SparkSession) -> None:
    context: Any = spark.sparkContext
    group = "named jobs"
    context.setJobGroup(group, "not this")
    try:
        raws.map(lambda b, d: 1).collect()
        raws.filter(lambda d: d["detector"] == 1).map(lambda b, d: 1).foreach(lambda one: None)
        check_workers(context)
        context.parallelize([1], 1).collect()
        jobs = sorted(context.statusTracker().getJobIdsForGroup(group))
    finally:
        context.setLocalProperty("spark.jobGroup.id", None)
        context.setLocalProperty("spark.job.description", None)
    context._jsc.sc().listenerBus().waitUntilEmpty()
    store = context._jsc.sc().statusStore()
    titles = [store.job(job).description().get() for job in jobs]

    def required(data_id: Any) -> str:
        return ", ".join(f"{name}: {value!r}" for name, value in data_id.required.items())

    assert titles == [
        f"4 raw {{{required(raws[0])}}}: map, collect",
        f"2 raw {{{required(raws[2])}}}: map, foreach",
        "2 checks of workers",
        "not this",
    ]


def test_missing_module_is_an_error_with_its_remedy(
    butler: SparkButler, raws: DataIds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, simulated: Night
) -> None:
    (tmp_path / "beside_notebook.py").write_text(
        f"from lsst.pipe.base import *\n{_CELL.format(first='pass').replace('CellTask', 'BesideTask')}"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    beside: Any = importlib.import_module("beside_notebook")
    with pytest.raises(SessionError, match="no module 'beside_notebook'. Install it .*addPyFile"):
        butler.run(beside.BesideTask, output="u/beside", where=SCIENCE)
    with Butler.from_config(simulated.repo) as plain:
        assert "u/beside" not in plain.collections.query("u/*")
    with pytest.raises(
        FunctionError, match="ModuleNotFoundError: No module named 'beside_notebook'"
    ) as caught:
        raws.map(lambda b, d: beside.BesideTask).collect()
    assert "addPyFile" in str(caught.value)
    assert "org.apache" not in str(caught.value)


def test_queries_that_select_nothing_or_make_no_sense_are_refused(butler: SparkButler) -> None:
    level = {"level": "StructuredDataDict"}
    with pytest.raises(EmptyGraphError, match="There are no datasets of type 'raw'"):
        butler.data_ids("raw", where="exposure.day_obs = 19990101")
    with pytest.raises(RepositoryError, match="no dataset type 'row'; did you mean 'raw'"):
        butler.data_ids("row")
    with pytest.raises(OptionsError, match="Unrecognized field 'color'"):
        butler.data_ids("raw", where="exposure.color = 3")
    with pytest.raises(RepositoryError, match="no collection 'nowhere'"):
        butler.data_ids("raw", collections="nowhere")
    with pytest.raises(
        OptionsError, match=r"'raw.bbox' is a component; give 'raw'.* b.get\('raw.bbox', data_id"
    ):
        butler.data_ids("raw.bbox")
    with pytest.raises(OptionsError, match="'raw.image' is a component"):
        butler.data_ids("raw.image")
    with pytest.raises(OptionsError, match="'bias.bbox' is a component"):
        butler.data_ids("raw", also="bias.bbox")
    with pytest.raises(OptionsError, match="output_run .* belong together"):
        butler.data_ids("raw", outputs=level)
    with pytest.raises(OptionsError, match="no storage class 'Dictionary'"):
        butler.data_ids("raw", outputs={"level": "Dictionary"}, output_run="u/level")
    with pytest.raises(OptionsError, match="that several of the 4 data IDs would put the same dataset"):
        butler.data_ids("raw", where=SCIENCE, outputs=["bias"], output_run="u/level")
    with pytest.raises(OptionsError, match="is a CALIBRATION collection"):
        butler.data_ids("raw", where=SCIENCE, outputs=level, output_run="SimCam/calib")


def test_collections_may_be_patterns_that_lead_to_one_dataset_each(butler: SparkButler) -> None:
    def put(run: str, where: str) -> None:
        ids = butler.data_ids("raw", where=where, outputs={"glob": "StructuredDataDict"}, output_run=run)
        ids.foreach(lambda b, d: b.put({"run": run}, "glob", d))

    put("u/glob/a", f"{SCIENCE} AND detector = 0")
    put("u/glob/b", f"{SCIENCE} AND detector = 1")
    found = butler.data_ids("glob", collections="u/glob/*")
    assert found.map(lambda b, d: b.get("glob", d)["run"]).collect() == ["u/glob/a"] * 2 + ["u/glob/b"] * 2
    assert butler.data_ids("raw", where=SCIENCE, also="bias", collections="SimCam/*").count() == 4
    with pytest.raises(RepositoryError, match="no collection like 'u/glop/\\*'"):
        butler.data_ids("glob", collections="u/glop/*")
    put("u/glob/c", f"{SCIENCE} AND detector = 1")
    with pytest.raises(
        OptionsError, match="leads to two 'glob' of .*, in 'u/glob/[bc]' and in 'u/glob/[bc]'"
    ):
        butler.data_ids("glob", collections="u/glob/*")
    assert butler.data_ids("glob", collections="u/glob/c,u/glob/b").count() == 2


def test_outputs_are_refused_where_the_registry_is_read_only(butler: SparkButler, simulated: Night) -> None:
    query = {"where": SCIENCE, "outputs": {"sealed": "StructuredDataDict"}, "output_run": "u/sealed"}

    def collections() -> set[str]:
        with Butler.from_config(simulated.repo) as plain:
            return set(plain.collections.query("*"))

    before = collections()
    ids = butler.data_ids("raw", **query)
    assert collections() == before
    with sealed_registry():
        words = "registry of the Butler repository .* can't be written to: .*readonly database"
        with pytest.raises(RepositoryError, match=words) as caught:
            butler.data_ids("raw", **query).map(lambda b, d: b.put({"level": 1}, "sealed", d))
        assert "\n" not in str(caught.value)
        assert not simulated.server.list_keys(simulated.bucket, "repo/u/sealed/")
    assert collections() == before
    # It may be sealed later.
    levels = ids.map(lambda b, d: b.put({"level": 1}, "sealed", d).run)
    assert collections() == {*before, "u/sealed"}
    with sealed_registry():
        words = "4 datasets that functions have put are in the datastore, but .* run 'u/sealed': .*readonly"
        with pytest.raises(EngineError, match=words) as broken:
            levels.count()
        assert "\n" not in str(broken.value)
    assert ids.ingest() == 4
    assert butler.data_ids("sealed", collections="u/sealed").count() == 4


def test_dataset_put_twice_is_stored_once(butler: SparkButler, simulated: Night) -> None:
    query = {"where": SCIENCE, "outputs": {"level": "StructuredDataDict"}, "output_run": "u/levels"}
    ids = butler.data_ids("raw", **query)
    levels = ids.map(lambda b, d: b.put({"time": time.time_ns()}, "level", d).id)
    first, second = levels.collect(), levels.collect()
    assert first == second
    with Butler.from_config(simulated.repo) as plain:
        refs = plain.query_datasets("level", collections="u/levels")
        assert {ref.id for ref in refs} == set(first)
        stored = {plain.get(ref)["time"] for ref in refs}
        assert len(stored) == len(simulated.server.list_keys(simulated.bucket, "repo/u/levels/")) == 4
    with pytest.raises(OptionsError, match="'u/levels' has 4 datasets of type 'level'"):
        butler.data_ids("raw", **query)
    again = butler.data_ids("raw", **query, clobber_outputs=True)
    again.foreach(lambda b, d: b.put({"time": 0}, "level", d))
    with Butler.from_config(simulated.repo) as plain:
        assert {plain.get(ref)["time"] for ref in plain.query_datasets("level", collections="u/levels")} == {
            0
        }


@pytest.mark.slow
def test_interrupted_cell_cancels_only_its_jobs(raws: DataIds, spark: SparkSession) -> None:
    before = signal.getsignal(signal.SIGINT)
    with _interrupted(spark):
        raws.map(lambda b, d: time.sleep(60)).collect()
    assert _n_jobs(spark) == 0
    assert signal.getsignal(signal.SIGINT) is before
    assert raws.map(lambda b, d: 1).count() == 4


def test_failed_task_of_a_cell_is_redefined_and_rerun(butler: SparkButler) -> None:
    task = run_cell("raise ValueError('not <yet>') if raw.array.max() > 0 else None")
    run = butler.run(task, output="u/cell", where=SCIENCE, config={"cell:factor": 0.0})
    assert run.wait().status is RunStatus.FAILED
    assert len(run.failures) == 4
    row = run.failures.table()[0]
    assert row["label"] == "cell"
    assert row["error"] == "ValueError: not <yet>"
    assert "in run" in row["line"]
    assert row["log"].startswith("s3://simulated/repo/u/cell/")
    assert "Execution of task 'cell'" in run.failures[0].log
    assert run.report().status.name == "FAILURE"
    page = ResourcePath(run.report_uri or "").read().decode()
    assert "4 failures" in page
    assert "not &lt;yet&gt;" in page
    # The task is in this notebook only.
    assert "spark-butler run" not in page
    run_cell("assert raw.array.max() > 0")
    again = run.retry(memory="1GB", timeout=60)
    assert again.output_run == run.output_run
    assert again.wait().status is RunStatus.SUCCEEDED, again
    assert again.plan.task_labels.keys() == again.outcomes.keys()
    assert {outcome.memory_limit for outcome in again.outcomes.values()} == {10**9}
    out = butler.butler.get("cell_out", instrument="SimCam", exposure=VISIT, detector=1, collections="u/cell")
    assert out == {"level": 0.0}
    with pytest.raises(EmptyGraphError, match="have been done"):
        again.retry()


def test_a_run_is_cancelled_by_hand_and_by_a_stopped_cell(butler: SparkButler, spark: SparkSession) -> None:
    pipeline = Pipeline("slow")
    pipeline.addTask(run_cell("time.sleep(60)"), "slow")
    run = butler.run(pipeline, output="u/slow", where=SCIENCE)
    assert run.status is RunStatus.RUNNING
    with pytest.raises(UserError, match="still running"):
        run.retry()
    with _interrupted(spark):
        run.wait()
    assert run.status is RunStatus.CANCELLED
    assert _n_jobs(spark) == 0
    assert "cancelled after " in repr(run)
    assert run.report_uri is not None
    assert ["slow", "4", "0", "0", "0", "0"] in [line.split() for line in repr(run).splitlines()]
    second = run.retry()
    assert second.cancel().status is RunStatus.CANCELLED
    assert _n_jobs(spark) == 0


def test_invalid_run_is_refused_in_the_cell(butler: SparkButler, simulated: Night) -> None:
    def collections() -> set[str]:
        with Butler.from_config(simulated.repo) as plain:
            return set(plain.collections.query("*"))

    before = collections()
    for words, options in {
        "'temporay' is not a known option; did you mean 'temporary'": {"temporay": "auto"},
        "memory is 'lots'": {"memory": "lots"},
        "resources: 'requestmemory' is not a known request; did you mean 'requestMemory'": {
            "resources": {"requestmemory": 5}
        },
        "form has no meaning in a notebook: use Run.report()": {"form": "json"},
        "resources: pipetask.isr.timeout is -1": {"resources": {"pipetask": {"isr": {"timeout": -1}}}},
        "use the logging of the notebook": {"log_level": "DEBUG"},
        "fail_fast is 'yes'; expected True or False": {"fail_fast": "yes"},
        "requests for isx": {"resources": {"pipetask": {"isx": {"timeout": 3}}}},
        "'nothing\\*' matches no output": {"temporary": "nothing*"},
    }.items():
        with pytest.raises(UserError, match=words):
            butler.run(f"{PIPELINE}#isr", output="u/refused", where=f"visit = {VISIT}", **options)
    with pytest.raises(
        OptionsError, match="Neither output nor output_run was given; outputs need a collection"
    ):
        butler.run(PIPELINE)
    expected = "expected the address of a pipeline file, a Pipeline or the class of a PipelineTask"
    for pipeline in (42, dict, [PIPELINE]):
        with pytest.raises(OptionsError, match=re.escape(f"pipeline is {pipeline!r}; {expected}.")):
            butler.run(pipeline, output="u/refused")
    with pytest.raises(OptionsError, match=f"No pipeline was given; {expected}, or task= or qgraph="):
        butler.run(output="u/refused")
    with pytest.raises(OptionsError, match="processes.*'many'") as caught:
        butler.run(PIPELINE, output="u/refused", processes="many")
    assert "--" not in str(caught.value)
    with pytest.raises(OptionsError, match=r"collections is SimCam/\*; expected names"):
        SparkButler(simulated.repo, collections="SimCam/*")
    with pytest.raises(OptionsError, match="repo is Butler.*; expected the address or alias of a Butler"):
        SparkButler(butler.butler, collections="SimCam/defaults")
    assert collections() == before


@pytest.fixture(scope="module")
def tables(butler: SparkButler, simulated: Night) -> dict[str, str]:
    """Options of the butler source for the tables of a visit."""
    run = butler.run(PIPELINE, output="u/tables", temporary="auto", where=f"visit = {VISIT}").wait()
    assert run.status is RunStatus.SUCCEEDED, run
    return {"repo": str(simulated.repo), "datasetType": "source", "collections": "u/tables"}


_PLAIN_PROGRAM = """
import json, sys
from pyspark.sql import SparkSession
session = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
reader = session.read.format("butler")
for name, value in json.loads(sys.argv[1]).items():
    reader = reader.option(name, value)

def count():
    found = reader.load().filter("detector = 1 and instFlux > 0").select("visit", "instFlux").collect()
    return len(found), sum(row.instFlux for row in found)

by_spark = count()
from spark_butler.spark.datasource import register
register(session)
print("counted " + json.dumps([by_spark, reader.load().columns]))
"""


@pytest.mark.slow
def test_a_plain_session_reads_the_tables_too(tables: dict[str, str], butler: SparkButler) -> None:
    process = subprocess.run(
        [sys.executable, "-c", _PLAIN_PROGRAM, json.dumps(tables)],
        # An editable install puts it there as well.
        env={**os.environ, "PYTHONPATH": str(CONF.parent)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-4000:]
    (line,) = [line for line in process.stdout.splitlines() if line.startswith("counted ")]
    by_spark, registered = json.loads(line.removeprefix("counted "))
    table = butler.butler.get("source", instrument="SimCam", visit=VISIT, detector=1, collections="u/tables")
    flux = np.asarray(table["instFlux"])
    assert by_spark == [np.count_nonzero(flux > 0), pytest.approx(flux[flux > 0].sum())]
    assert {"instrument", "visit", *table.colnames} <= set(registered)


@pytest.mark.slow
def test_a_dataframe_has_the_tables_of_the_butler_and_opens_what_it_needs(
    butler: SparkButler, tables: dict[str, str], simulated: Night, spark: SparkSession
) -> None:
    options = tables
    sources = spark.read.format("butler").options(**options).load()

    def gets() -> int:
        return simulated.server.count_requests(simulated.bucket)["GET"]

    start = gets()
    assert sources.filter("visit in (1, 2)").count() == 0
    assert gets() == start
    one = sources.filter(f"visit = {VISIT} and detector = 1 and instFlux > 0").toPandas()
    n_of_one = gets() - start
    assert n_of_one
    # A larger file takes more requests.
    sources.filter(f"visit = {VISIT} and detector = 0 and instFlux > 0").toPandas()
    n_of_both = gets() - start
    both = sources.filter(f"visit = {VISIT} and band = 'r'").toPandas()
    assert gets() - start == 2 * n_of_both
    expected = [
        butler.butler.get("source", instrument="SimCam", visit=VISIT, detector=n, collections="u/tables")
        for n in (0, 1)
    ]
    assert len(both) == sum(map(len, expected)) > 20
    for n, table in enumerate(expected):
        part = both[both["detector"] == n]
        assert set(part.columns) >= set(table.colnames)
        for name in table.colnames:
            np.testing.assert_array_equal(part[name].to_numpy(), np.asarray(table[name]), err_msg=name)
    assert len(one) == np.count_nonzero(expected[1]["instFlux"] > 0)

    reader: Any = ButlerDataSource(options).reader(sources.schema)
    bright = GreaterThan(("instFlux",), 0.0)
    assert list(reader.pushFilters([EqualTo(("detector",), 1), bright])) == [bright]
    parts = reader.partitions()

    def count_rows(_: int) -> int:
        return sum(batch.num_rows for part in parts for batch in reader.read(part))

    # The filter on the data ID cuts files; Spark tests rows itself.
    assert spark.sparkContext.parallelize([0], 1).map(count_rows).collect() == [len(expected[1])]
    patterns = spark.read.format("butler").options(**{**options, "collections": "u/table*"}).load()
    assert patterns.count() == len(both)
