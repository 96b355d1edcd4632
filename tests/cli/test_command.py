"""Tests of things that all commands have in common."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from spark_butler.cli.main import main


def test_unknown_scene_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["demo", "simulate", str(tmp_path / "night"), "--scene", "vigneted"])
    assert result.exit_code == 2
    assert "'vigneted' is not a known scene; did you mean 'vignetted'?" in result.output
    assert "vignetted" in result.output
    assert not (tmp_path / "night").exists()
