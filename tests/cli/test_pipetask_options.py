"""Options of ``spark-butler run`` are those of the installed ``pipetask run``, but for what a page lists."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import click
import pytest
from click.testing import CliRunner
from lsst.ctrl.mpexec.cli.pipetask import cli as pipetask
from lsst.daf.butler.cli.cliLog import CliLog

from spark_butler.cli.main import main
from tests.support.job_harness import ROOT

_PAGE = (ROOT / "docs" / "pipetask-options.md").read_text()


def _table(heading: str) -> dict[str, str]:
    """Return the second column of the table below a heading, by each name in the first."""
    section = _PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    return {name: row[1] for row in rows[1:] for name in re.findall("`([^`]+)`", row[0])}


def _options(command: click.Command) -> dict[str, click.Option]:
    """Return the options of a command by their long names."""
    return {
        max(param.opts, key=len): param
        for param in command.params
        if isinstance(param, click.Option) and param.name and not param.name.startswith("option_section")
    }


def _describe(option: click.Option) -> Mapping[str, Any]:
    """Return what a user can notice of an option."""
    return {
        "names": (sorted(option.opts), sorted(option.secondary_opts)),
        "type": option.type.to_info_dict(),
        "values": (option.nargs, option.multiple, option.is_flag, option.flag_value, option.count),
        "default": option.default if isinstance(option.default, bool | int | str) else None,
        "required": option.required,
        "metavar": option.metavar,
    }


def _command(program: click.Group, name: str) -> click.Command:
    command = program.get_command(click.Context(program, resilient_parsing=True), name)
    assert command is not None
    return command


_PIPETASK = _options(_command(pipetask, "run"))
_OURS = _options(_command(main, "run"))
_DIFFERENT = _table("Options of `pipetask run` that differ")
_OWN = _table("Options that `pipetask run` does not have")
_REFUSED = {name: text for name, text in _DIFFERENT.items() if text.startswith("refused")}
_VALUES = {"--memory-per-quantum": "1GB", "--mock-failure": "a::b=1", "--show": "tasks"}


def _run(name: str, *more: str) -> str:
    """Run with an option and a repository that does not exist, and return the error."""
    option = _PIPETASK[name]
    if isinstance(option.type, click.Choice):
        value = option.type.choices[0]
    else:
        value = "1" if isinstance(option.type, click.IntRange) else _VALUES.get(name, "a:b=1")
    arguments = [name] if option.is_flag else [name, value]
    pipeline = () if name == "--qgraph" else ("-p", "x.yaml")
    CliLog.resetLog()
    repo = ("-b", "/no/such/repository", "-o", "u/x", "-i", "raw")
    result = CliRunner().invoke(main, ["run", *repo, *pipeline, *arguments, *more])
    CliLog.resetLog()
    assert result.exit_code == 2, result.output
    return str(result.stderr.splitlines()[-1])


def test_each_option_is_the_same_or_listed() -> None:
    assert len(_PIPETASK) > 50
    different = {
        name
        for name, option in _PIPETASK.items()
        if name not in _OURS or _describe(option) != _describe(_OURS[name])
    }
    assert different <= _DIFFERENT.keys()
    names = {each for option in _PIPETASK.values() for each in option.opts}
    assert _DIFFERENT.keys() <= names


@pytest.mark.parametrize("name", ["run-qbb", "pre-exec-init-qbb"])
def test_options_of_other_twins_are_the_same_or_listed(name: str) -> None:
    ours, theirs = _options(_command(main, name)), _options(_command(pipetask, name))
    listed = {*_DIFFERENT, *re.findall("`(--[^`]+)`", _table("Commands")[name])}
    assert len(theirs) > 1
    assert {
        each
        for each, option in theirs.items()
        if each not in ours or _describe(option) != _describe(ours[each])
    } <= listed


def test_further_options_are_listed() -> None:
    assert set(_OURS) - set(_PIPETASK) - set(_options(pipetask)) == set(_OWN)


def test_logging_options_are_those_of_pipetask() -> None:
    logging = _options(pipetask)
    assert len(logging) > 4
    for name, option in logging.items():
        assert _describe(_OURS[name]) == _describe(option)


def test_each_command_is_listed() -> None:
    assert set(_table("Commands")) == set(pipetask.list_commands(click.Context(pipetask)))


@pytest.mark.parametrize("name", _REFUSED)
def test_option_is_refused_as_the_page_says(name: str) -> None:
    error = _run(name)
    assert error.startswith(f"Error: {name} ")
    for needed in re.findall("`([^`]+)`", _REFUSED[name]):
        assert needed.split()[0] in error
        value = () if " " in needed or _PIPETASK[needed].is_flag else ("runs",)
        assert needed.split()[0] not in _run(name, *needed.split(), *value)


@pytest.mark.parametrize(
    "name", sorted(_PIPETASK.keys() - _REFUSED.keys() - {"--options-file", "--butler-config"})
)
def test_any_other_option_is_taken(name: str) -> None:
    assert "no Butler repository" in _run(name)
