"""A driver that is killed at any moment can be followed by the same command."""

from __future__ import annotations

import random
from collections import Counter

from resume_harness import Site


def test_killed_now_and_then(site: Site) -> None:
    assert site.submit("--output-run", "whole") == 0, site.log
    expected = site.outputs("whole")
    n_quanta = len(site.executions())
    site.record.unlink()
    dice = random.Random(20260101)
    status = site.submit("--output-run", "run", kill_after=(dice.randint(3, 8), dice.random() * 0.3))
    assert status == -9, site.log
    for _ in range(2):
        kill = dice.randint(3, 8), dice.random() * 0.3
        status = site.submit("--output-run", "run", "--extend-run", "--skip-existing", kill_after=kill)
        assert status == -9, site.log
    assert site.submit("--output-run", "run", "--extend-run", "--skip-existing") == 0, site.log
    assert site.outputs("run") == expected
    site.assert_sound("run")
    counts = Counter(site.executions())
    assert len(counts) == n_quanta
    assert max(counts.values()) <= 2
    assert sum(counts.values()) <= n_quanta + 3
