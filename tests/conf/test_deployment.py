"""Files of conf/ against the schemas of the services that read them, and the command's own options."""

from __future__ import annotations

import fnmatch
import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import yaml
from botocore.validate import ParamValidator

from spark_butler._version import __version__
from spark_butler.cli.run import make_run_command

_ROOT = Path(__file__).resolve().parents[2]
_CONF = _ROOT / "conf"
_DOCKERFILE = _CONF / "kubernetes" / "Dockerfile"


def _check_request(service: str, operation: str, request: dict[str, Any]) -> None:
    """Check a request against the model of an AWS service."""
    model = botocore.session.get_session().get_service_model(service)
    report = ParamValidator().validate(request, model.operation_model(operation).input_shape)
    assert not report.has_errors(), report.generate_report()


def _check_arguments(arguments: list[str]) -> None:
    """Check that the command takes arguments; the pipeline is that of the job."""
    context = make_run_command().make_context("run", list(arguments))
    assert context.params["butler_config"]


def test_emr_serverless_job_is_a_request_of_the_service() -> None:
    job = json.loads((_CONF / "emr" / "serverless-job.json").read_text())
    _check_request("emr-serverless", "StartJobRun", {"applicationId": "a", "clientToken": "t", **job})
    _check_arguments(job["jobDriver"]["sparkSubmit"]["entryPointArguments"])


def test_emr_configurations_are_those_of_a_cluster() -> None:
    configurations = json.loads((_CONF / "emr" / "configurations.json").read_text())
    request = {"Name": "n", "Instances": {}, "Configurations": configurations}
    _check_request("emr", "RunJobFlow", request)


@pytest.mark.parametrize("name", ["policy.json", "serverless-trust.json"])
def test_iam_policies_have_the_elements_of_the_language(name: str) -> None:
    policy = json.loads((_CONF / "emr" / name).read_text())
    assert policy["Version"] == "2012-10-17"
    for statement in policy["Statement"]:
        assert statement.keys() <= {"Sid", "Effect", "Principal", "Action", "Resource", "Condition"}
        assert statement["Effect"] == "Allow"
        actions = statement["Action"]
        for action in [actions] if isinstance(actions, str) else actions:
            assert re.fullmatch(r"[a-z0-9-]+:[A-Za-z*]+", action)


def test_application_of_the_operator_runs_the_command_with_known_options() -> None:
    application = yaml.safe_load((_CONF / "kubernetes" / "sparkapplication.yaml").read_text())
    _check_arguments(application["spec"]["arguments"] + ["-p", "pipeline.yaml"])
    volumes = {volume["name"] for volume in application["spec"]["volumes"]}
    for role in ("driver", "executor"):
        mounts = application["spec"][role].get("volumeMounts", [])
        assert {mount["name"] for mount in mounts} <= volumes
    job = application["spec"]["mainApplicationFile"].removeprefix(
        "local:///opt/environment/share/spark-butler/"
    )
    assert (_ROOT / job).is_file()


def test_manifests_fit_the_schemas_of_kubernetes() -> None:
    program = shutil.which("kubernetes-validate")
    if program is None:
        pytest.skip("kubernetes-validate is not installed")
    file = str(_CONF / "kubernetes" / "rbac.yaml")
    process = subprocess.run([program, "--strict", file], capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr


@pytest.mark.parametrize("file", sorted(_CONF.rglob("spark-defaults.conf")), ids=str)
def test_settings_are_pairs_and_known_to_spark(file: Path) -> None:
    for line in file.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            name, value = line.split(None, 1)
            assert name.startswith("spark."), line
            assert value.strip(), line


def test_image_is_built_from_files_that_are_sent_to_the_builder() -> None:
    """Everything that the Dockerfile copies from the checkout is there and not ignored."""
    ignored = (_ROOT / ".dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    copied = [
        word
        for line in _DOCKERFILE.read_text().splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for word in line.split()[1:-1]
    ]
    assert copied
    for name in copied:
        assert (_ROOT / name).exists()
        assert any(fnmatch.fnmatchcase(name, each) for each in allowed), name


def test_conda_recipe_names_what_the_package_needs() -> None:
    """The stack of Rubin stands for its single packages."""
    recipe = yaml.safe_load((_CONF / "conda" / "recipe.yaml").read_text())
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
    needed = {re.split(r"[\[<>=! ]", each)[0].lower(): each for each in project["dependencies"]}
    given = {each.split()[0]: each for each in recipe["requirements"]["run"]}
    missing = {name for name in needed if not name.startswith("lsst-")} - given.keys()
    assert missing == set()
    assert given.keys() - needed.keys() == {"python", "openjdk", "stackvana-lsst_distrib"}
    assert recipe["context"]["version"] == __version__


def test_dockerfile_passes_its_linter() -> None:
    program = shutil.which("hadolint")
    if program is None:
        pytest.skip("hadolint is not installed")
    command = [program, "--failure-threshold", "warning", str(_DOCKERFILE)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert process.returncode == 0, process.stdout


@pytest.mark.parametrize("file", sorted(_CONF.rglob("*.sh")), ids=str)
def test_scripts_are_valid_shell(file: Path) -> None:
    process = subprocess.run(["bash", "-n", str(file)], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
