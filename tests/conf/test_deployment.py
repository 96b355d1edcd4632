"""Files of conf/ for cloud services against the services' models, and the command's own options.

Models come with packages of the extra ``deployment``; what is not installed is skipped.
"""

from __future__ import annotations

import ast
import fnmatch
import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import yaml
from botocore.validate import ParamValidator

from tests.conf.conf_checks import CONF, ROOT, check_arguments, tools_path

_EMR = CONF / "emr"
_DATAPROC = CONF / "dataproc"
_KUBERNETES = CONF / "kubernetes"


def _read_json(file: Path) -> Any:
    return json.loads(file.read_text())


def _check_request(service: str, operation: str, request: dict[str, Any]) -> None:
    """Check a request against the model of an AWS service; unknown names are errors, too."""
    shape = botocore.session.get_session().get_service_model(service).operation_model(operation).input_shape
    report = ParamValidator().validate(request, shape)
    assert not report.has_errors(), report.generate_report()
    assert not list(_find_unknown(request, shape, operation))


def _find_unknown(value: Any, shape: Any, where: str) -> Iterator[str]:
    match shape.type_name:
        case "structure":
            for name, each in value.items():
                if name not in shape.members:
                    yield f"{where}.{name}"
                else:
                    yield from _find_unknown(each, shape.members[name], f"{where}.{name}")
        case "list":
            for each in value:
                yield from _find_unknown(each, shape.member, where)
        case "string":
            if shape.enum and value not in shape.enum:
                yield f"{where}={value}"


def test_checks_of_requests_find_faults() -> None:
    with pytest.raises(AssertionError, match="executionRoleArn"):
        _check_request("emr-serverless", "StartJobRun", {"applicationId": "a", "clientToken": "t"})
    wrong = {"name": "n", "releaseLabel": "r", "type": "SPARK", "clientToken": "t", "maxCapacity": {}}
    with pytest.raises(AssertionError):
        _check_request("emr-serverless", "CreateApplication", wrong)


def test_emr_serverless_application_and_job_are_requests_of_the_service() -> None:
    application = _read_json(_EMR / "serverless-application.json")
    _check_request("emr-serverless", "CreateApplication", {"clientToken": "t", **application})
    job = _read_json(_EMR / "serverless-job.json")
    request = {"applicationId": "a", "clientToken": "t", **job}
    request["executionRoleArn"] = request["executionRoleArn"].replace("ACCOUNT", "123456789012")
    _check_request("emr-serverless", "StartJobRun", request)
    check_arguments(job["jobDriver"]["sparkSubmit"]["entryPointArguments"])


def test_emr_serverless_capacity_holds_driver_and_executors() -> None:
    """A worker of 4 vCPU has 8 to 30 GB; the application's limits are multiples of it."""
    job = _read_json(_EMR / "serverless-job.json")
    settings = job["configurationOverrides"]["applicationConfiguration"][0]["properties"]
    memory = [
        int(settings[f"spark.{role}.memory"][:-1]) + int(settings[f"spark.{role}.memoryOverhead"][:-1])
        for role in ("driver", "executor")
    ]
    assert all(8 <= each <= 30 for each in memory)
    workers = int(settings["spark.dynamicAllocation.maxExecutors"]) + 1
    capacity = _read_json(_EMR / "serverless-application.json")["maximumCapacity"]
    given = {name: int(text.split()[0]) for name, text in capacity.items()}
    assert given == {"cpu": 4 * workers, "memory": 16 * workers, "disk": 100 * workers}


def test_emr_cluster_and_steps_are_requests_of_the_service() -> None:
    request = {
        "Name": "n",
        "Instances": {"InstanceFleets": _read_json(_EMR / "instance-fleets.json")},
        "Configurations": _read_json(_EMR / "configurations.json"),
        "ManagedScalingPolicy": _read_json(_EMR / "managed-scaling.json"),
        "AutoTerminationPolicy": {"IdleTimeout": 7200},
    }
    _check_request("emr", "RunJobFlow", request)
    # The AWS CLI's form of a step is flat.
    steps = _read_json(_EMR / "steps.json")
    jars = [{"Jar": step.pop("Jar"), "Args": step.pop("Args")} for step in steps]
    assert [step.pop("Type") for step in steps] == ["CUSTOM_JAR"]
    steps = [{**step, "HadoopJarStep": jar} for step, jar in zip(steps, jars, strict=True)]
    _check_request("emr", "AddJobFlowSteps", {"JobFlowId": "j", "Steps": steps})
    arguments = jars[0]["Args"]
    program = next(n for n, word in enumerate(arguments) if word.endswith("process_ccd.py"))
    assert (ROOT / arguments[program].removeprefix("/opt/spark-butler/share/spark-butler/")).is_file()
    check_arguments(arguments[program + 1 :])


def test_security_configuration_of_emr_has_the_documented_elements() -> None:
    """The service takes it as a text, so that its model doesn't have them."""
    encryption = _read_json(_EMR / "security-configuration.json")["EncryptionConfiguration"]
    at_rest = encryption["AtRestEncryptionConfiguration"]
    assert encryption["EnableAtRestEncryption"] is True
    assert at_rest["S3EncryptionConfiguration"].keys() == {"EncryptionMode", "AwsKmsKey"}
    disks = at_rest["LocalDiskEncryptionConfiguration"]
    assert disks.keys() == {"EncryptionKeyProviderType", "AwsKmsKey", "EnableEbsEncryption"}
    assert encryption["EnableInTransitEncryption"] is False


def test_emr_on_eks_job_is_a_request_of_the_service() -> None:
    job = _read_json(_EMR / "eks-job.json")
    request = {"clientToken": "t", **job}
    request["executionRoleArn"] = request["executionRoleArn"].replace("ACCOUNT", "123456789012")
    _check_request("emr-containers", "StartJobRun", request)
    check_arguments(job["jobDriver"]["sparkSubmitJobDriver"]["entryPointArguments"])


def _gigabytes(text: str) -> int:
    assert text.endswith("g")
    return int(text[:-1])


def _emr_settings() -> tuple[dict[str, str], int]:
    by_name = {each["Classification"]: each for each in _read_json(_EMR / "configurations.json")}
    yarn = int(by_name["yarn-site"]["Properties"]["yarn.nodemanager.resource.memory-mb"])
    return by_name["spark-defaults"]["Properties"], yarn


def _dataproc_settings() -> tuple[dict[str, str], int]:
    properties = yaml.safe_load((_DATAPROC / "cluster.yaml").read_text())["config"]["softwareConfig"][
        "properties"
    ]
    spark = {name[6:]: value for name, value in properties.items() if name.startswith("spark:")}
    return spark, int(properties["yarn:yarn.nodemanager.resource.memory-mb"])


@pytest.mark.parametrize("read", [_emr_settings, _dataproc_settings])
def test_executors_fill_a_machine_of_yarn(read: Any) -> None:
    """Machines have 8 cores, and beside executors there is room for an application master of 1 GiB."""
    spark, yarn = read()
    cores = int(spark["spark.executor.cores"])
    memory = 1024 * (
        _gigabytes(spark["spark.executor.memory"]) + _gigabytes(spark["spark.executor.memoryOverhead"])
    )
    assert 8 % cores == 0
    assert memory * (8 // cores) + 1024 <= yarn


def test_machines_of_emr_have_the_memory_that_yarn_is_given() -> None:
    fleets = {each["InstanceFleetType"]: each for each in _read_json(_EMR / "instance-fleets.json")}
    for name in ("CORE", "TASK"):
        types = [each["InstanceType"] for each in fleets[name]["InstanceTypeConfigs"]]
        # 8 cores with 32 GiB.
        assert all(re.fullmatch(r"m[5-9][a-z]*\.2xlarge", each) for each in types), types
    assert "TargetSpotCapacity" not in fleets["CORE"]


@pytest.mark.parametrize("name", ["policy.json", "trust.json", "ecr-policy.json"])
def test_iam_policies_have_the_elements_of_the_language(name: str) -> None:
    policy = _read_json(_EMR / name)
    assert policy["Version"] == "2012-10-17"
    for statement in policy["Statement"]:
        assert statement.keys() <= {"Sid", "Effect", "Principal", "Action", "Resource", "Condition"}
        assert statement["Effect"] == "Allow"
        actions = statement["Action"]
        for action in [actions] if isinstance(actions, str) else actions:
            assert re.fullmatch(r"[a-z0-9-]+:[A-Za-z*]+", action)


def _parse_dataproc(message: str, content: dict[str, Any]) -> Any:
    dataproc = pytest.importorskip("google.cloud.dataproc_v1", reason="no google-cloud-dataproc")
    from google.protobuf import json_format  # type: ignore[import-untyped, unused-ignore]

    # Unknown names are errors.
    return json_format.ParseDict(content, getattr(dataproc, message).pb()())


def test_dataproc_cluster_and_policy_are_messages_of_the_service() -> None:
    cluster = yaml.safe_load((_DATAPROC / "cluster.yaml").read_text())
    parsed = _parse_dataproc("Cluster", cluster)
    assert parsed.config.secondary_worker_config.preemptibility == 3
    policy = yaml.safe_load((_DATAPROC / "autoscaling-policy.yaml").read_text())
    _parse_dataproc("AutoscalingPolicy", policy)
    with pytest.raises(Exception, match="no field named"):
        _parse_dataproc("AutoscalingPolicy", {**policy, "maxInstances": 3})


def test_dataproc_batch_is_a_message_of_the_service() -> None:
    batch = _read_json(_DATAPROC / "batch.json")
    check_arguments(batch["pysparkBatch"]["args"])
    _parse_dataproc("Batch", batch)


def _all_settings() -> dict[str, dict[str, str]]:
    """Spark's settings of all files, by file."""
    found = {}
    for file in sorted(CONF.rglob("spark-defaults.conf")):
        lines = [line for line in file.read_text().splitlines() if line.strip() and not line.startswith("#")]
        assert all(line.startswith("spark.") for line in lines)
        found[str(file)] = {name: value.strip() for name, value in (line.split(None, 1) for line in lines)}
    for operator in ("kubeflow", "apache"):
        name = f"sparkapplication-{operator}.yaml"
        found[name] = yaml.safe_load((_KUBERNETES / name).read_text())["spec"]["sparkConf"]
    return {**found, "emr": _emr_settings()[0], "dataproc": _dataproc_settings()[0]}


def test_event_log_metrics_and_protection_are_on_everywhere() -> None:
    settings = _all_settings()
    assert len(settings) == 6
    for name, each in settings.items():
        assert each["spark.eventLog.enabled"] == "true", name
        assert re.match(r"(file|s3|gs)://", each["spark.eventLog.dir"]), name
        assert each["spark.ui.prometheus.enabled"] == "true", name
        assert each["spark.io.encryption.enabled"] == "true", name
        assert re.search(each["spark.redaction.regex"], "AWS_SECRET_ACCESS_KEY"), name
        assert each["spark.speculation"] == "false", name


def test_dag_of_airflow_runs_the_command_with_known_options() -> None:
    file = CONF / "airflow" / "process_ccd.py"
    tree = ast.parse(file.read_text())
    call = next(
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "SparkSubmitOperator"
    )
    (words,) = [each.value for each in call.keywords if each.arg == "application_args"]
    names = {"REPO": "s3://BUCKET/repo", "RUN": "u/airflow/1"}
    code = compile(ast.Expression(words), "application_args", "eval")
    check_arguments(eval(code, names))


def test_airflow_builds_the_dag() -> None:
    python = ROOT / ".venv-airflow" / "bin" / "python"
    if not python.exists():
        pytest.skip("there is no .venv-airflow with apache-airflow-providers-apache-spark")
    program = (
        "import runpy; dag = runpy.run_path('conf/airflow/process_ccd.py')['dag']; dag.validate();"
        "print(dag.dag_id, *dag.task_ids)"
    )
    process = subprocess.run([python, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
    assert process.stdout.split()[-2:] == ["process_ccd", "process_night"]


def test_images_are_built_from_files_that_are_sent_to_the_builder() -> None:
    """Everything that the Dockerfile copies from the checkout is there and not ignored."""
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    copied = [
        word
        for line in (_KUBERNETES / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for word in line.split()[1:-1]
    ]
    assert copied
    for name in copied:
        assert (ROOT / name).exists()
        assert any(fnmatch.fnmatchcase(name, each) for each in allowed), name


def test_conda_recipe_names_what_the_package_needs() -> None:
    """The stack of Rubin stands for its single packages."""
    recipe = yaml.safe_load((CONF / "conda" / "recipe.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {re.split(r"[\[<>=! ]", each)[0].lower(): each for each in project["dependencies"]}
    given = {each.split()[0]: each for each in recipe["requirements"]["run"]}
    missing = {name for name in needed if not name.startswith("lsst-")} - given.keys()
    assert missing == set()
    assert given.keys() - needed.keys() == {"python", "openjdk", "stackvana-lsst_distrib"}


@pytest.mark.parametrize("file", sorted(CONF.rglob("Dockerfile")), ids=lambda path: path.parent.name)
def test_dockerfiles_pass_their_linter(file: Path) -> None:
    program = shutil.which("hadolint", path=tools_path())
    if program is None:
        pytest.skip("hadolint is not installed")
    command = [program, "--failure-threshold", "warning", str(file)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert process.returncode == 0, process.stdout


_SCRIPTS = sorted([*CONF.rglob("*.sh"), CONF / "rubin" / "rubin-python"])


@pytest.mark.parametrize("file", _SCRIPTS, ids=lambda path: path.name)
def test_scripts_pass_their_linter(file: Path) -> None:
    process = subprocess.run(["bash", "-n", str(file)], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    if (program := shutil.which("shellcheck", path=tools_path())) is not None:
        process = subprocess.run([program, str(file)], capture_output=True, text=True)
        assert process.returncode == 0, process.stdout
