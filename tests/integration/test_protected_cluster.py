"""A run on a cluster with all of Spark's own protection on, as conf/standalone has it."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from tests.support.clusters import Cluster
from tests.support.job_harness import ROOT, JobRepo, submit

_CONF = ROOT / "conf" / "standalone" / "spark-defaults.conf"
_PROTECTION = (
    "spark.authenticate",
    "spark.network.crypto",
    "spark.io.encryption",
    "spark.redaction",
    "spark.acls",
)


@pytest.mark.slow
def test_run_works_with_all_protection_on(
    job_repo: JobRepo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two settings are comments, since they need a secret.
    lines = [line.removeprefix("#") for line in _CONF.read_text().splitlines()]
    settings = [line for line in lines if line.startswith(_PROTECTION)]
    assert len(settings) == 5
    secret = secrets.token_hex(16)
    defaults = tmp_path / "conf" / "spark-defaults.conf"
    defaults.parent.mkdir()
    lines = [*settings, f"spark.authenticate.secret {secret}", f"spark.eventLog.dir {tmp_path}"]
    lines += ["spark.eventLog.enabled true", "spark.eventLog.compress false"]
    defaults.write_text("\n".join(lines))
    defaults.chmod(0o600)
    monkeypatch.setenv("SPARK_CONF_DIR", str(defaults.parent))
    (tmp_path / "cluster").mkdir()
    with Cluster.start(tmp_path / "cluster", environment={"SPARK_CONF_DIR": str(defaults.parent)}) as cluster:
        done = submit(
            *job_repo.arguments,
            *("--output-run", "u/protected", "--temporary", "auto", "--register-dataset-types"),
            where=("--master", cluster.address),
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert job_repo.datasets("u/protected")
    logs = [path for path in tmp_path.rglob("*") if path.is_file() and path != defaults]
    events = [path for path in logs if "SparkListenerEnvironmentUpdate" in path.read_text(errors="replace")]
    assert events, "there is no event log"
    assert "spark.authenticate" in events[0].read_text()
    for path in logs:
        assert secret not in path.read_text(errors="replace"), path
