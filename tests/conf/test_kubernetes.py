"""Files of conf/kubernetes against the schemas of Kubernetes and of the operators.

Schemas come with packages of the extra ``deployment``; what is not installed is skipped.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conf.conf_checks import CONF, ROOT, check_arguments, tools_path

_KUBERNETES = CONF / "kubernetes"


def _validate_manifests(folder: Path, documents: list[dict[str, Any]]) -> None:
    program = shutil.which("kubernetes-validate", path=tools_path())
    if program is None:
        pytest.skip("kubernetes-validate is not installed")
    file = folder / "manifests.yaml"
    file.write_text(yaml.safe_dump_all(documents))
    process = subprocess.run([program, "--strict", str(file)], capture_output=True, text=True, timeout=60)
    assert process.returncode == 0, process.stdout + process.stderr


_MANIFESTS = ("rbac.yaml", "history-server.yaml", "driver-template.yaml", "executor-template.yaml")


@pytest.mark.parametrize("name", _MANIFESTS)
def test_manifests_fit_the_schemas_of_kubernetes(name: str, tmp_path: Path) -> None:
    documents = list(yaml.safe_load_all((_KUBERNETES / name).read_text()))
    _validate_manifests(tmp_path, documents)
    documents[-1]["spec" if "spec" in documents[-1] else "roleRef"]["unknownName"] = 1
    with pytest.raises(AssertionError):
        _validate_manifests(tmp_path, documents)


def _find_lost(given: Any, kept: Any, where: str = "") -> Iterator[str]:
    """Name what a model has not kept."""
    if isinstance(given, dict):
        for name, each in given.items():
            if not isinstance(kept, dict) or name not in kept:
                yield f"{where}.{name}"
            else:
                yield from _find_lost(each, kept[name], f"{where}.{name}")
    elif isinstance(given, list):
        for each, other in zip(given, kept, strict=True):
            yield from _find_lost(each, other, where)


def test_application_of_kubeflow_fits_the_models_of_its_operator() -> None:
    models = pytest.importorskip("kubeflow_spark_api.models", reason="kubeflow-spark-api is not installed")
    application = yaml.safe_load((_KUBERNETES / "sparkapplication-kubeflow.yaml").read_text())
    assert not list(
        _find_lost(application, models.SparkV1beta2SparkApplication.from_dict(application).to_dict())
    )
    application["spec"]["executor"]["volumeMounts"][0]["path"] = "/"
    kept = models.SparkV1beta2SparkApplication.from_dict(application).to_dict()
    assert list(_find_lost(application, kept)) == [".spec.executor.volumeMounts.path"]


# Fields of ApplicationSpec and of what belongs to it, in release 0.7 of the operator.
_APACHE_FIELDS: dict[str, set[str]] = {
    "spec": {
        *("mainClass", "runtimeVersions", "jars", "pyFiles", "sparkRFiles", "files", "deploymentMode"),
        *("proxyUser", "driverArgs", "applicationTolerations", "driverSpec", "executorSpec", "sparkConf"),
        *("driverServiceIngressList", "configMapSpecs", "suspend"),
    },
    "applicationTolerations": {
        *("restartConfig", "applicationTimeoutConfig", "instanceConfig", "resourceRetainPolicy"),
        *("resourceRetainDurationMillis", "ttlAfterStopMillis"),
    },
    "restartConfig": {"restartPolicy", "maxRestartAttempts", "restartBackoffMillis"},
    "runtimeVersions": {"sparkVersion", "scalaVersion", "jdkVersion"},
}


def test_application_of_apache_has_the_fields_of_its_operator(tmp_path: Path) -> None:
    application = yaml.safe_load((_KUBERNETES / "sparkapplication-apache.yaml").read_text())
    spec = application["spec"]
    tolerations = spec["applicationTolerations"]
    assert application["apiVersion"] == "spark.apache.org/v1"
    assert spec.keys() <= _APACHE_FIELDS["spec"]
    assert tolerations.keys() <= _APACHE_FIELDS["applicationTolerations"]
    assert tolerations["restartConfig"].keys() <= _APACHE_FIELDS["restartConfig"]
    assert spec["runtimeVersions"].keys() <= _APACHE_FIELDS["runtimeVersions"]
    assert all(isinstance(value, str) for value in spec["sparkConf"].values())
    pods = [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": role},
            **spec[f"{role}Spec"]["podTemplateSpec"],
        }
        for role in ("driver", "executor")
    ]
    _validate_manifests(tmp_path, pods)


# Keys of the values of the chart, as far as the file may use them.
_CHART = {
    "spark": {"jobNamespaces", "serviceAccount", "rbac"},
    "webhook": {"enable", "replicas", "failurePolicy", "resources"},
    "controller": {"replicas", "workers", "batchScheduler", "resources", "uiIngress"},
    "prometheus": {"metrics", "podMonitor"},
}


def test_values_of_the_chart_are_known_to_it() -> None:
    values = yaml.safe_load((_KUBERNETES / "operator-values.yaml").read_text())
    assert values.keys() <= _CHART.keys()
    for name, each in values.items():
        assert each.keys() <= _CHART[name]


@pytest.mark.parametrize("operator", ["kubeflow", "apache"])
def test_applications_of_operators_run_the_command_with_known_options(operator: str) -> None:
    application = yaml.safe_load((_KUBERNETES / f"sparkapplication-{operator}.yaml").read_text())
    spec = application["spec"]
    check_arguments(spec["arguments" if operator == "kubeflow" else "driverArgs"])
    program = spec["mainApplicationFile" if operator == "kubeflow" else "pyFiles"]
    assert (ROOT / program.removeprefix("local:///opt/environment/share/spark-butler/")).is_file()


def test_names_of_secrets_and_claims_are_the_same_in_all_files_of_kubernetes() -> None:
    text = "\n".join(path.read_text() for path in _KUBERNETES.iterdir())
    readme = (_KUBERNETES / "README.md").read_text()
    made = set(re.findall(r"create secret generic (\S+)", readme))
    used = set(
        re.findall(r"(?:secretName: |pullSecrets:? +|imagePullSecrets: \[)(?:\{name: )?([a-z0-9-]+)", text)
    )
    used |= set(re.findall(r"(?:secretKeyRef: \{name: |secretKeyRef\.\w+:? +)([a-z0-9-]+)", text))
    assert used == made == {"spark-butler-s3", "spark-butler-registry", "spark-butler-registry-login"}
    assert set(re.findall(r"claimName:? +([a-z-]+)", text)) == {"spark-events"}
