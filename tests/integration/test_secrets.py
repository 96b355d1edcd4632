"""Secrets that a task logs and raises are found in nothing that a run leaves."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import zstandard

from spark_butler.demo.s3server import EmbeddedS3
from tests.support.mock_night import fill_mock_night, task_text

_PIPELINE = "description: A task that leaks.\ntasks:" + task_text(
    "leak",
    "tests.support.engine_tasks.LeakTask",
    ("visit", "detector"),
    'config.inputs["in"] = C(dataset_type_name="mock_raw", dimensions=["visit", "detector"])',
    'config.outputs["out"] = C(dataset_type_name="mock_out", dimensions=["visit", "detector"])',
    'config.fail_condition = "detector=1"',
)


def _texts(path: Path) -> Iterator[bytes]:
    """All that a file says, also when it is compressed."""
    data = path.read_bytes()
    yield data
    if data[:4] == zstandard.MAGIC_NUMBER.to_bytes(4, "little"):
        yield zstandard.ZstdDecompressor().decompressobj().decompress(data)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                member = archive.read(name)
                yield member
                for start in range(0, min(len(member), 64)):
                    if member[start : start + 4] == zstandard.MAGIC_NUMBER.to_bytes(4, "little"):
                        yield zstandard.ZstdDecompressor().decompressobj().decompress(member[start:])


def _read_ui(port: int) -> dict[str, bytes]:
    """Read Spark's pages and its REST interface at this moment; nothing if there are none."""
    pages: dict[str, bytes] = {}

    def read(path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return bytes(answer.read())

    with contextlib.suppress(OSError, ValueError):
        (application,) = json.loads(read("/api/v1/applications"))
        for name in ("environment", "stages?details=true", "jobs", "allexecutors", "sql"):
            path = f"/api/v1/applications/{application['id']}/{name}"
            pages[f"api/v1 {name.partition('?')[0]}"] = read(path)
        for path in ("/environment/", "/stages/", "/jobs/", "/executors/"):
            pages[path] = read(path)
    return pages


@pytest.mark.parametrize("backend", ["serial", pytest.param("spark", marks=pytest.mark.slow)])
def test_planted_secrets_are_found_nowhere(
    backend: str, s3_server: EmbeddedS3, s3_bucket: str, s3_repo: Callable[[str], Path], tmp_path: Path
) -> None:
    pipeline = tmp_path / "pipeline.yaml"
    pipeline.write_text(_PIPELINE)
    repo = s3_repo("repo")
    fill_mock_night(repo, pipeline, visits=1, detectors=2, inputs=["mock_raw"])
    secrets = [os.environ["AWS_SECRET_ACCESS_KEY"], "pla/nted@pass"]
    folders = {name: tmp_path / name for name in ("work", "events", "local", "tmp")}
    for folder in folders.values():
        folder.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    conf = {
        "spark.eventLog.enabled": "true",
        "spark.eventLog.dir": str(folders["events"]),
        "spark.eventLog.compress": "true",
        "spark.eventLog.rolling.enabled": "false",
        "spark.local.dir": str(folders["local"]),
        "spark.ui.enabled": "true",
        "spark.ui.port": str(port),
    }
    (folders["work"] / "spark-defaults.conf").write_text("".join(f"{k} {v}\n" for k, v in conf.items()))
    command = [sys.executable, "-m", "spark_butler.cli", "run", "--backend", backend, "-b", str(repo)]
    command += ["-i", "inputs", "-p", str(pipeline), "--output-run", "u/leak", "--register-dataset-types"]
    command += ["-d", "instrument='Cam1'", "--no-log-tty", "--log-file", str(folders["work"] / "log.json")]
    command += ["--summary", str(folders["work"] / "summary.json"), "--provenance-graph"]
    command += [str(folders["work"] / "provenance.qg"), "--save-qgraph", str(folders["work"] / "graph.qg")]
    environment = {
        **os.environ,
        "PLANTED": secrets[1],
        "SPARK_CONF_DIR": str(folders["work"]),
        "TMPDIR": str(folders["tmp"]),
        "LSST_RESOURCES_S3_PROFILE_other": "https://me:pla%2Fnted%40pass@127.0.0.1:9",
    }
    environment.pop("JAVA_HOME", None)
    arguments: set[str] = set()
    pages: dict[str, bytes] = {}
    with (
        open(folders["work"] / "out.txt", "wb") as out,
        subprocess.Popen(command, env=environment, stdout=out, stderr=out) as process,
    ):
        while process.poll() is None:
            for each in (psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)):
                try:
                    arguments.update(each.cmdline())
                except psutil.Error:
                    continue
            pages |= _read_ui(port)
            try:
                process.wait(0.5)
            except subprocess.TimeoutExpired:
                continue
    output = (folders["work"] / "out.txt").read_text()
    assert process.returncode == 1, output
    assert "key *** of" in output, "the leak is not seen"
    (folders["work"] / "arguments.json").write_text(json.dumps(sorted(arguments)))
    assert backend == "serial" or {"/environment/", "api/v1 environment", "api/v1 stages"} <= pages.keys()
    for n, page in enumerate(pages.values()):
        (folders["work"] / f"page-{n}").write_bytes(page)
    client = s3_server.client()
    for n, key in enumerate(s3_server.list_keys(s3_bucket)):
        body = client.get_object(Bucket=s3_bucket, Key=key)["Body"].read()
        (folders["work"] / f"object-{n}").write_bytes(body)
    files = [path for folder in folders.values() for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 8
    forms = [
        form for secret in secrets for form in (secret, json.dumps(secret)[1:-1], secret.replace("/", "%2F"))
    ]
    for path in files:
        for text in _texts(path):
            for form in forms:
                assert form.encode() not in text, path
