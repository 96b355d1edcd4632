"""Tests of a driver below ``spark-submit``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from spark_butler.cli.main import main


@pytest.mark.parametrize(
    ("encoding", "argument", "refused"),
    [
        ("ANSI_X3.4-1968", "name='Ald??baran'", True),
        ("ANSI_X3.4-1968", "u/Ald\ufffdbaran", True),
        # A character that is not ASCII has at least two bytes.
        ("ANSI_X3.4-1968", "u/night?", False),
        ("UTF-8", "u/night??", False),
        ("", "u/night??", False),
    ],
)
def test_arguments_that_spark_submit_has_garbled_are_refused(
    monkeypatch: pytest.MonkeyPatch, encoding: str, argument: str, refused: bool
) -> None:
    monkeypatch.setattr("spark_butler.spark.spark_submit.submit_encoding", lambda: encoding)
    result = CliRunner().invoke(main, ["run", "-b", "/no/repository", "-p", "x.yaml", "-o", argument])
    assert result.exit_code == 2
    assert ("Run `export LC_ALL=C.UTF-8` first." in result.stderr) is refused


_SUBMITTED = """
import sys
from spark_butler.spark.spark_submit import submit_encoding
print(submit_encoding(), ascii(sys.argv[1]))
"""


@pytest.mark.slow
@pytest.mark.jvm
@pytest.mark.parametrize("locale", ["C", "de_DE.not-installed"])
def test_encoding_of_spark_submit_is_known(tmp_path: Path, locale: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(_SUBMITTED)
    process = subprocess.run(
        [str(Path(sys.executable).with_name("spark-submit")), str(script), "Aldébaran"],
        env={**os.environ, "LC_ALL": locale, "PYSPARK_PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert "ANSI_X3.4-1968 'Ald??baran'" in process.stdout
