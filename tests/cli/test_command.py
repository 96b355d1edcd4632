"""What all commands have in common."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner

from spark_butler.cli.main import main

# The parent stands for the JVM of spark-submit, whose locale counts.
_CHILD = """
import sys
from spark_butler.cli.command import check_encoding
from spark_butler.errors import OptionsError
try:
    check_encoding(sys.argv[1:])
except OptionsError as exc:
    print(exc)
"""
_PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {_CHILD!r}, *sys.argv[1:]])"


@pytest.mark.parametrize(
    ("locale", "argument", "refused"),
    [
        ({"LC_ALL": "C"}, "name='Ald??baran'", True),
        ({"LC_ALL": "POSIX", "LANG": "de_DE.UTF-8"}, "u/Ald??baran", True),
        ({"LC_CTYPE": "C", "LANG": "de_DE.UTF-8"}, "u/Ald\ufffdbaran", True),
        ({}, "u/Ald??baran", True),
        # A character that is not ASCII has at least two bytes.
        ({"LC_ALL": "C"}, "u/night?", False),
        ({"LC_ALL": "C.UTF-8", "LANG": "C"}, "u/night??", False),
        ({"LANG": "de_DE.UTF-8"}, "u/night??", False),
    ],
)
def test_arguments_that_spark_submit_has_garbled_are_refused(
    locale: Mapping[str, str], argument: str, refused: bool
) -> None:
    plain = {name: value for name, value in os.environ.items() if name not in ("LC_ALL", "LC_CTYPE", "LANG")}
    process = subprocess.run(
        [sys.executable, "-c", _PARENT, "-b", "repo", argument],
        env={**plain, **locale, "PYSPARK_GATEWAY_PORT": "1"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
    )
    assert process.stderr == ""
    assert ("Run `export LC_ALL=C.UTF-8` first." in process.stdout) is refused
    assert bool(process.stdout) is refused


def test_unknown_scene_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["demo", "simulate", str(tmp_path / "night"), "--scene", "vigneted"])
    assert result.exit_code == 2
    assert "'vigneted' is not a known scene; did you mean 'vignetted'?" in result.output
    assert "vignetted" in result.output
    assert not (tmp_path / "night").exists()
