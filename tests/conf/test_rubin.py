"""Files of conf/rubin as far as they can be tried without the stack."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from lsst.ctrl.bps import BpsConfig

from spark_butler.bps import SparkService

_RUBIN = Path(__file__).resolve().parents[2] / "conf" / "rubin"

_ACTIVATE = """
export PYTHONPATH="{packages}${{PYTHONPATH:+:$PYTHONPATH}}" DRP_PIPE_DIR={packages}/drp_pipe
echo "what activation prints is not Python's output"
"""
_UNPACK = (
    "import pathlib, sys\nwith pathlib.Path(sys.prefix, 'unpacked').open('a') as f: f.write('once\\n')\n"
)
_PROGRAM = "import os, stack_package; print(os.environ['DRP_PIPE_DIR'], os.environ['PYTHONPATH'])"


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """An environment as conda-pack lays it out, with a package that only activation makes visible."""
    place = tmp_path / "environment"
    (place / "bin").mkdir(parents=True)
    packages = place / "opt" / "lsst"
    packages.mkdir(parents=True)
    (packages / "stack_package.py").touch()
    (place / "bin" / "python").symlink_to(sys.executable)
    (place / "bin" / "activate").write_text(_ACTIVATE.format(packages=packages))
    (place / "bin" / "conda-unpack").write_text(_UNPACK.replace("sys.prefix", repr(str(place))))
    (place / "bin" / "conda-unpack").chmod(0o755)
    shutil.copy(_RUBIN / "rubin-python", place / "bin")
    return place


def test_python_of_workers_has_what_activation_sets(packed: Path) -> None:
    command = ["./environment/bin/rubin-python", "-c", _PROGRAM]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": "/spark/python"}
    for _ in range(2):
        process = subprocess.run(command, cwd=packed.parent, env=environment, capture_output=True, text=True)
        assert process.returncode == 0, process.stderr
        folder, path = process.stdout.split()
        assert folder == f"{packed}/opt/lsst/drp_pipe"
        # The stack's modules before Spark's.
        assert path.split(":")[0] == f"{packed}/opt/lsst"
        assert path.split(":")[-1] == "/spark/python"
    assert (packed / "unpacked").read_text() == "once\n"


def test_python_of_workers_is_replaced_by_the_interpreter(packed: Path) -> None:
    """Spark kills what it has started, so that no shell may stand between."""
    command = ["./environment/bin/rubin-python", "-c", "import os; print(os.getpid())"]
    process = subprocess.Popen(command, cwd=packed.parent, stdout=subprocess.PIPE, text=True)
    output, _ = process.communicate(timeout=60)
    assert int(output) == process.pid


def test_submission_is_one_of_this_service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    requests = tmp_path / "bps" / "resources" / "LSSTCam" / "DRP.yaml"
    requests.parent.mkdir(parents=True)
    requests.write_text("pipetask:\n  isr:\n    requestMemory: 4000\n")
    monkeypatch.setenv("DRP_PIPE_DIR", str(tmp_path))
    config = BpsConfig(str(_RUBIN / "submit.yaml"))
    assert config["wmsServiceClass"] == f"spark_butler.bps.{SparkService.__name__}"
    assert config[".pipetask.isr.requestMemory"] == 4000
    site = config[".site.cluster"]
    assert site["sparkMaster"].startswith("spark://")
    assert site["sparkConf"]["spark.pyspark.python"].endswith("/bin/rubin-python")


def test_environment_has_what_the_conda_recipe_needs() -> None:
    recipe = yaml.safe_load((_RUBIN.parent / "conda" / "recipe.yaml").read_text())
    environment = yaml.safe_load((_RUBIN / "environment.yml").read_text())
    names = {each.split()[0] for each in environment["dependencies"]}
    needed = {each.split()[0] for each in recipe["requirements"]["run"]}
    # These are the stack's own.
    of_stack = {
        *("astropy", "click", "networkx", "numpy", "piff", "pydantic", "python", "pyyaml", "scipy"),
        "sqlalchemy",
    }
    assert needed - names <= of_stack
