"""The BPS plugin: translation of workflows of ctrl_bps's own tests, and submissions."""

from __future__ import annotations

import inspect
import io
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from lsst.daf.butler.cli.cliLog import CliLog

pytest.importorskip("lsst.ctrl.bps", reason="lsst-ctrl-bps is not installed")

from lsst.ctrl.bps import (
    BaseWmsService,
    BpsConfig,
    GenericWorkflow,
    GenericWorkflowFile,
    WmsStates,
    compile_code_summary,
    compile_job_summary,
)
from lsst.ctrl.bps.cli.bps import cli
from lsst.ctrl.bps.ping import ping as bps_ping
from lsst.ctrl.bps.status import status as bps_status
from lsst.ctrl.bps.tests.gw_test_utils import make_3_label_workflow, make_3_label_workflow_groups_sort

from spark_butler.bps import SparkService
from spark_butler.bps.translate import RUN_STEP, translate
from spark_butler.demo.s3server import wait_until
from spark_butler.detached.job import DetachedJob, Step
from spark_butler.errors import OptionsError
from tests.support.job_harness import JobRepo

_SERVICE = "spark_butler.bps.SparkService"
_FAILING = ("-c", "second:fail_condition=detector IN (2)")


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep the list of submissions apart, and set up logging anew for each command."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("BPS_WMS_SERVICE_CLASS", raising=False)
    monkeypatch.setattr("spark_butler.bps.service.find_java_home", lambda: Path("/java"))
    yield
    CliLog.resetLog()


def _workflow(make: Any = make_3_label_workflow, **attributes: Any) -> GenericWorkflow:
    """A workflow of ctrl_bps's tests whose payload jobs run quanta."""
    workflow = make("test", True)
    workflow.add_file(GenericWorkflowFile("runQgraphFile", "/data/graph.qg", wms_transfer=False))
    groups = [node for node in map(workflow.get_job, workflow) if isinstance(node, GenericWorkflow)]
    for job in (each.get_job(name) for each in (workflow, *groups) for name in each):
        if not isinstance(job, GenericWorkflow) and job.label.startswith("label"):
            # Those in groups have none in ctrl_bps's tests.
            job.quanta_counts = Counter({job.label: 1})
            job.arguments = "run-qbb {butlerConfig} <FILE:runQgraphFile> --qgraph-node-id {qgraphNodeId}"
            job.cmdvals = {"butlerConfig": "/data/repo", "qgraphNodeId": "1", "runPreCmdOpts": "--long-log"}
            for attribute, value in attributes.items():
                setattr(job, attribute, value)
    return workflow


def _config(**values: Any) -> BpsConfig:
    return BpsConfig({"operator": "me", "outputRun": "u/me/test", "computeSite": "here", **values})


def test_workflow_becomes_one_run_between_its_other_jobs(tmp_path: Path) -> None:
    steps, details = translate(_config(), _workflow(), tmp_path)
    assert [step.name for step in steps] == ["pipetaskInit", RUN_STEP, "finalJob"]
    init, run, final = steps
    assert init.command == ("/bin/bash", "-c", "/usr/bin/uptime ")
    assert "--long-log run-qbb /data/repo /data/graph.qg" in " ".join(run.command)
    assert final.always
    assert details["quanta"] == {"label1": 6, "label2": 6, "label3": 6}


def test_requests_of_jobs_become_resources_of_tasks(tmp_path: Path) -> None:
    workflow = _workflow(
        request_memory=3000,
        memory_multiplier=1.5,
        request_memory_max=9000,
        number_of_retries=4,
        request_walltime="600",
        request_cpus=2,
        retry_unless_exit=[1, 2],
    )
    run = translate(_config(), workflow, tmp_path)[0][1]
    tasks = yaml.safe_load((tmp_path / "resources.yaml").read_text())["pipetask"]
    assert tasks["label2"] == {
        "requestMemory": 3000,
        "memoryMultiplier": 1.5,
        "memoryLimit": 9000,
        "numberOfRetries": 4,
        "timeout": 600.0,
    }
    text = " ".join(run.command)
    assert "--cores-per-quantum 2" in text
    assert "--conf spark.task.cpus=2" in text


def test_compute_site_gives_master_and_settings(tmp_path: Path) -> None:
    site = {
        "sparkMaster": "yarn",
        "sparkDeployMode": "cluster",
        "sparkConf": {"spark.executor.memory": "8g", "spark": {"executor": {"cores": 4}}},
    }
    run = translate(_config(site={"here": site}), _workflow(priority="7"), tmp_path)[0][1]
    text = " ".join(run.command)
    for part in (
        "--master yarn",
        "--deploy-mode cluster",
        "--conf spark.executor.memory=8g",
        "--conf spark.executor.cores=4",
        "--conf spark.yarn.priority=7",
    ):
        assert part in text


def test_common_dimensions_of_clusters_become_the_grouping(tmp_path: Path) -> None:
    algorithm = "lsst.ctrl.bps.quantum_clustering_funcs.dimension_clustering"
    clusters = {"one": {"pipetasks": "label1,label2", "dimensions": "visit, detector"}}
    run = translate(_config(clusterAlgorithm=algorithm, cluster=clusters), _workflow(), tmp_path)[0][1]
    assert run.command[run.command.index("--group-by") + 1] == "visit,detector"


def test_what_has_no_meaning_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    clusters = {"one": {"dimensions": "visit"}, "two": {"dimensions": "detector"}}
    algorithm = "lsst.ctrl.bps.quantum_clustering_funcs.dimension_clustering"
    workflow = _workflow(
        make_3_label_workflow_groups_sort,
        request_disk=100,
        queue="long",
        priority="7",
        number_of_retries=2,
        retry_unless_exit=[2],
    )
    translate(_config(clusterAlgorithm=algorithm, cluster=clusters), workflow, tmp_path)
    for words in (
        "request_disk has no meaning on Spark",
        "queue has no meaning on Spark",
        "priority has a meaning only with sparkMaster yarn",
        "retryUnlessExit lacks 1",
        "The clusters have no common dimensions (detector; visit)",
        "orders jobs, which has no meaning on Spark",
    ):
        assert words in caplog.text


def test_other_commands_than_run_qbb_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionsError, match="runQuantumCommand can only be `pipetask run-qbb`"):
        translate(_config(), make_3_label_workflow("test", False), tmp_path)


def test_service_has_the_methods_of_its_base_class() -> None:
    for name, method in inspect.getmembers(BaseWmsService, inspect.isfunction):
        if name == "__init__":
            continue
        assert name in vars(SparkService), name
        wanted = inspect.signature(method).parameters.values()
        own = inspect.signature(vars(SparkService)[name]).parameters.values()
        assert [(each.name, each.default) for each in own] == [(each.name, each.default) for each in wanted]


def test_unknown_submissions_are_answered_in_words(tmp_path: Path) -> None:
    service = SparkService({})
    assert service.get_status(str(tmp_path))[0] is WmsStates.UNKNOWN
    assert "holds no submitted job" in service.restart(str(tmp_path))[2]
    deleted, message = service.cancel(str(tmp_path))
    assert not deleted
    assert "holds no submitted job" in message
    assert service.report(str(tmp_path))[0] == []
    assert service.report() == ([], "")
    assert service.list_submitted_jobs() == []


def _bps(*arguments: str | Path) -> Result:
    CliLog.resetLog()
    return CliRunner().invoke(cli, ["--log-level", "WARNING", *map(str, arguments)])


def test_report_of_bps_counts_quanta_by_task(
    job_repo: JobRepo, run_job: Callable[..., Result], tmp_path: Path
) -> None:
    run = "bps/reported"
    run_job(*job_repo.arguments, "--output-run", run, "--backend", "serial", "--no-versions", *_FAILING)
    _, details = translate(_config(), _workflow(), tmp_path)
    details |= {"repository": str(job_repo.root), "output_run": run, "quanta": {"first": 4, "second": 4}}
    steps = [Step("pipetaskInit", ("true",)), Step("run", ("false",)), Step("finalJob", ("true",))]
    job = DetachedJob.create(tmp_path / "submit", steps, details)
    job.start()
    job.wait(60)
    text = _bps("report", "--wms-service-class", _SERVICE, "--id", job.folder).output
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.strip()}
    names = rows["UNKNOWN"]
    counts = {row: dict(zip(["UNKNOWN", *names], rows[row], strict=True)) for row in ("first", "second")}
    assert counts["first"]["SUCCEEDED"] == "4"
    assert (counts["second"]["SUCCEEDED"], counts["second"]["FAILED"]) == ("3", "1")
    assert counts["second"]["EXPECTED"] == "4"
    status = _bps("status", "--wms-service-class", _SERVICE, "--id", job.folder)
    assert status.exit_code == WmsStates.FAILED.value
    # Not above: it prints to the stream that standard output is when it is imported first.
    from lsst.ctrl.bps.report import display_report, retrieve_report

    # The functions that the tests of ctrl_bps call for its own services, and its reports.
    assert bps_status(_SERVICE, run_id=str(job.folder), hist=3) == (WmsStates.FAILED, "")
    assert bps_ping(_SERVICE, None) == (0, "")
    processors = [compile_job_summary, compile_code_summary]
    runs, messages = retrieve_report(
        _SERVICE, run_id=str(job.folder), return_exit_codes=True, postprocessors=processors
    )
    stream = io.StringIO()
    display_report(runs, messages, is_detailed=True, return_exit_codes=True, file=stream)
    assert messages == []
    assert retrieve_report(_SERVICE) == ([], [])
    gone = DetachedJob.create(tmp_path / "gone", steps, details | {"repository": str(tmp_path / "nowhere")})
    gone.start()
    gone.wait(60)
    index = tmp_path / "state" / "spark-butler" / "submitted.txt"
    index.parent.mkdir(parents=True)
    index.write_text(f"{gone.folder}\n{job.folder}\n")
    runs, messages = retrieve_report(_SERVICE, hist=1)
    assert [run.path for run in runs] == [str(job.folder)]
    assert len(messages) == 1
    assert f"Can't read the status of {gone.folder}" in messages[0]
    assert not [line for line in stream.getvalue().splitlines() if line.startswith("WARNING")]


def _write_submission(job_repo: JobRepo, folder: Path, name: str, **more: Any) -> Path:
    """Write a submit YAML as an operator would."""
    content = {
        "wmsServiceClass": _SERVICE,
        "pipelineYaml": str(job_repo.pipeline),
        "payload": {
            "payloadName": name,
            "butlerConfig": str(job_repo.root),
            "inCollection": "defaults",
            "dataQuery": "instrument = 'Cam1'",
            "output": f"bps/{name}",
        },
        "operator": "tester",
        "submitPath": str(folder / "submit"),
        "computeSite": "local",
        "requestMemory": 4096,
        "extraRunQuantumOptions": "--backend serial",
        "extraAggregateOptions": "--mock-storage-classes",
        "finalJob": {"requestCpus": 1},
        **more,
    }
    file = folder / "submit.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


_EVERYWHERE = [
    "serial",
    pytest.param("local", marks=pytest.mark.jvm),
    pytest.param("cluster", marks=pytest.mark.jvm),
]


def _place(where: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    """The part of a submit YAML that says where quanta run."""
    if where == "serial":
        return {"extraRunQuantumOptions": "--backend serial"}
    if where == "local":
        return {"extraRunQuantumOptions": "-j 2"}
    site = {
        "sparkMaster": request.getfixturevalue("cluster").address,
        "sparkConf": {"spark.ui.enabled": "false"},
    }
    return {"extraRunQuantumOptions": "", "site": {"local": site}}


def _replace_second(job_repo: JobRepo, folder: Path, task: str, *lines: str) -> dict[str, Any]:
    """The part of a submit YAML with another task instead of `second`."""
    head, _, rest = job_repo.pipeline.read_text().partition("  second:\n")
    pipeline = folder / "other.yaml"
    name = f"class: tests.support.engine_tasks.{task}"
    pipeline.write_text(f"{head}  second:\n{re.sub('class: .*', name, rest, count=1)}")
    config = folder / "second.py"
    config.write_text("".join(f"{line}\n" for line in lines))
    return {"pipelineYaml": str(pipeline), "extraQgraphOptions": f"-C second:{config}"}


def _logs(job: DetachedJob) -> dict[str, str]:
    return {step: job.log_file(step).read_text() for step in job.read_state().steps}


@pytest.mark.slow
@pytest.mark.parametrize("where", _EVERYWHERE)
def test_submission_is_run_reported_and_registered(
    where: str, job_repo: JobRepo, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    file = _write_submission(job_repo, tmp_path, f"good-{where}", **_place(where, request))
    result = _bps("submit", file)
    assert result.exit_code == 0, result.output
    folder = tmp_path / "submit"
    assert f"Run Id: {folder}" in result.output
    job = DetachedJob(folder)
    state = job.wait(300)
    assert state.state == "succeeded", _logs(job)
    service = SparkService({})
    (report,), message = service.report(str(folder))
    assert (report.state, report.total_number_jobs, message) == (WmsStates.SUCCEEDED, 15, "")
    assert report.job_state_counts is not None
    assert report.job_state_counts[WmsStates.SUCCEEDED] == 15
    assert service.get_status(str(folder)) == (WmsStates.SUCCEEDED, "")
    assert [each.wms_id for each in service.report(user="tester", hist=1)[0]] == [str(folder)]
    datasets = job_repo.datasets(f"bps/good-{where}")
    assert sum(row[0] == "mock_scatter" for row in datasets) == 4


@pytest.mark.slow
@pytest.mark.parametrize("where", _EVERYWHERE)
def test_failed_submission_is_restarted_where_it_failed(
    where: str, job_repo: JobRepo, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    other = _replace_second(
        job_repo,
        tmp_path,
        "FailOnceTask",
        *(f"config.folder = {str(notes)!r}", "config.number = -1", "config.fail_condition = 'detector = 2'"),
    )
    file = _write_submission(job_repo, tmp_path, f"bad-{where}", **_place(where, request), **other)
    result = _bps("submit", file)
    assert result.exit_code == 0, result.output
    folder = tmp_path / "submit"
    job = DetachedJob(folder)
    assert job.wait(300).state == "failed", _logs(job)
    (report,), _ = SparkService({}).report(str(folder), return_exit_codes=True)
    assert report.job_summary is not None
    assert report.job_summary["second"][WmsStates.FAILED] == 1
    assert report.job_summary["scatter"][WmsStates.PRUNED] == 4
    assert report.exit_code_summary is not None
    assert report.exit_code_summary["second"] == report.exit_code_summary["run"] == [1]
    assert not report.exit_code_summary["first"]
    result = _bps("restart", "--wms-service-class", _SERVICE, "--id", folder)
    assert f"Run Id: {folder}" in result.output
    assert job.wait(300).state == "succeeded", _logs(job)
    # Only what had not succeeded ran: one quantum of `second` and what needs it.
    assert "all of 6 quanta succeeded" in job.log_file(RUN_STEP).read_text()
    (report,), _ = SparkService({}).report(str(folder))
    assert report.job_state_counts is not None
    assert report.job_state_counts[WmsStates.SUCCEEDED] == 15
    assert sum(row[0] == "mock_scatter" for row in job_repo.datasets(f"bps/bad-{where}")) == 4


@pytest.mark.slow
@pytest.mark.parametrize("where", _EVERYWHERE)
def test_running_submission_is_cancelled(
    where: str, job_repo: JobRepo, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    # The serial backend ends after its quantum.
    seconds = 20 if where == "serial" else 600
    lines = f"config.folder = {str(tmp_path)!r}", f"config.number = {seconds}"
    other = _replace_second(job_repo, tmp_path, "OverlapTask", *lines)
    file = _write_submission(job_repo, tmp_path, f"long-{where}", **_place(where, request), **other)
    result = _bps("submit", file)
    assert result.exit_code == 0, result.output
    folder = tmp_path / "submit"
    job, service = DetachedJob(folder), SparkService({})

    def count(state: WmsStates) -> int:
        (report,), _ = service.report(str(folder))
        assert report.job_state_counts is not None
        return int(report.job_state_counts[state])

    assert wait_until(lambda: count(WmsStates.RUNNING), 300), _logs(job)
    assert service.get_status(str(folder))[0] is WmsStates.RUNNING
    result = _bps("cancel", "--wms-service-class", _SERVICE, "--id", folder)
    assert "1 jobs deleted" in result.output or "Successfully canceled" in result.output, result.output
    assert job.wait(200).state == "stopped", _logs(job)
    assert service.get_status(str(folder))[0] is WmsStates.DELETED
    assert not count(WmsStates.RUNNING)
    assert count(WmsStates.SUCCEEDED) < 15


def test_ping_finds_a_dead_master() -> None:
    service = SparkService({})
    assert service.ping(None) == (0, "")
    status, message = service.ping("spark://127.0.0.1:9")
    assert status == 1
    assert "does not answer" in message
