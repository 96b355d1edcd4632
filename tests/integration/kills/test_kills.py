"""A driver that is killed at any moment can be followed by the same command."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner
from lsst.ctrl.mpexec.cli import pipetask
from lsst.daf.butler import Butler
from lsst.daf.butler.cli.cliLog import CliLog

from spark_butler.driver.late_writes import LateWrites
from tests.integration.kills.kill_harness import Site

_RESUME = ("--extend-run", "--skip-existing")


def _assert_whole(site: Site, run: str, *, temporary: str = "") -> None:
    """Check that a run has the outputs of one without kills."""
    site.assert_sound(run)
    assert site.outputs(run) == {key: value for key, value in site.expected.items() if key[0] != temporary}


def _children(site: Site, chain: str) -> list[str]:
    with Butler.from_config(site.root, writeable=False) as butler:
        return [name for name in butler.collections.get_info(chain).children if name.startswith(chain)]


@pytest.mark.slow
def test_driver_killed_at_each_step_resumes(site: Site) -> None:
    run = ("--output-run", "killed/run")
    dice = random.Random(4)
    # With the file of an init-output written, and not committed.
    put = "lsst.daf.butler.datastores.fileDatastore:FileDatastore.put", 2, "after"
    assert site.submit(*run, mine=put) == -9, site.log
    assert site.executions() == []
    assert site.submit(*run, *_RESUME, kill_after=(dice.randint(4, 10), dice.uniform(0, 0.1))) == -9, site.log
    # At the end of its work, which is hardly registered.
    end = f"{LateWrites.__module__}:{LateWrites.reconcile.__qualname__}", 1, "before"
    assert site.submit(*run, *_RESUME, mine=end) == -9, site.log
    assert len(set(site.executions())) == site.n_quanta
    n_before = len(site.executions())
    assert site.submit(*run, *_RESUME) == 0, site.log
    assert "all of 0 quanta succeeded" in site.log
    assert len(site.executions()) == n_before
    _assert_whole(site, "killed/run")
    counts = Counter(site.executions())
    assert len(counts) == site.n_quanta
    assert max(counts.values()) <= 2
    assert sum(counts.values()) <= site.n_quanta + 1


@pytest.mark.slow
def test_options_change_after_a_kill(site: Site) -> None:
    temporary = ("--temporary", "mock_a", "--group-by", "visit")
    assert site.submit("-o", "changed", *temporary, kill_after=(6, 0.05)) == -9, site.log
    (run,) = _children(site, "changed")
    options = "--temporary", "mock_a", "--isolation", "quantum", *_RESUME
    assert site.submit("-o", "changed", *options, kill_after=(6, 0.05)) == -9, site.log
    before = Counter(site.executions())
    assert {each for each in before if each[0] not in "a"}, before
    assert site.submit("-o", "changed", *_RESUME) == 0, site.log
    assert _children(site, "changed") == [run]
    _assert_whole(site, run)
    counts = Counter(site.executions())
    assert len(counts) == site.n_quanta
    assert max(count for each, count in counts.items() if each[0] not in "a") <= 2


@pytest.mark.slow
def test_run_of_graph_file_resumes_after_a_kill(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "graph.qg"
    CliLog.resetLog()
    given = ["qgraph", "-b", site.root, "-i", "in", "-p", site.pipeline, "-o", "file", "--save-qgraph", file]
    assert CliRunner().invoke(pipetask.cli, [str(each) for each in given]).exit_code == 0
    CliLog.resetLog()
    temporary = ("--temporary", "mock_a")
    assert site.submit("-g", file, *temporary, kill_after=(7, 0.0)) == -9, site.log
    (run,) = _children(site, "file")
    assert site.submit("-g", file, *temporary, *_RESUME) == 0, site.log
    _assert_whole(site, run, temporary="mock_a")
    counts = Counter(each for each in site.executions() if each[0] != "a")
    assert max(counts.values()) <= 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "temporary"), [("serial", ""), ("serial", "mock_a"), ("spark", "mock_a")], ids=str
)
def test_driver_is_killed_ten_times(large_site: Site, backend: str, temporary: str) -> None:
    """A kill repeats only quanta that were under way, and those that make temporaries for them."""
    site = large_site
    run = f"ten/{backend}/{temporary or 'all'}"
    options = ("--output-run", run, *(("--temporary", temporary) if temporary else ()))
    dice = random.Random(f"{backend} {temporary}")
    resume: tuple[str, ...] = ()
    for _ in range(10):
        if dice.random() < 0.3:
            kill = 0, dice.uniform(0.0, 0.8)
        else:
            # Those that were under way at the last kill are first, and must have come to an end.
            kill = dice.randint(3, 6) if backend == "serial" else dice.randint(5, 10), dice.uniform(0.0, 0.2)
        assert site.submit(*options, *resume, kill_after=kill, backend=backend) == -9, site.log
        resume = _RESUME if site.has_run(run) else ()
    assert site.submit(*options, *resume, backend=backend) == 0, site.log
    _assert_whole(site, run, temporary=temporary)
    counts = Counter(each for each in site.executions() if not temporary or each[0] != "a")
    # With temporaries, others come first in the next attempt, so a quantum may be under way at two kills.
    assert max(counts.values()) <= (3 if temporary else 2), counts
    assert sum(counts.values()) <= len(counts) + 10 * (1 if backend == "serial" else 4)
    if not temporary:
        assert len(counts) == site.n_quanta
