"""Simulated runs: the dispatcher in virtual time, against schedules made by hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pytest
from simulation import Costs, Schedule, list_schedule, simulate, simulate_with_barriers, with_remaining
from workloads import Workload, draw_times, make_night, make_workload

_FREE = Costs(**dict.fromkeys(Costs.model_fields, 0.0))


def _workload(labels: Sequence[str], edges: Iterable[tuple[int, int]], seconds: Sequence[float]) -> Workload:
    return make_workload("by hand", labels, edges, seconds)


def _run(workload: Workload, slots: int, costs: Costs = _FREE, *, known: bool = True) -> Schedule:
    plan = workload.cut()
    if known:
        plan = with_remaining(plan, workload.remaining(workload.seconds))
    return simulate(workload, plan, slots, costs)


def test_longest_path_first_equals_schedule_made_by_hand() -> None:
    # Quanta 3 and 0 have the longest way to go. When 0 ends, 1 starts and 2 is queued, since one group
    # more than slots is given out; 4 is ready when 1 ends.
    workload = _workload("aaabc", [(0, 4), (1, 4)], [1, 1, 1, 6, 3])
    schedule = _run(workload, 2)
    start = {group.quanta: schedule.start[group.index] for group in workload.cut().groups}
    assert {quanta[0]: when for quanta, when in start.items()} == {0: 0, 1: 1, 2: 2, 3: 0, 4: 3}
    assert schedule.wall == schedule.bound == 6


def test_barrier_makes_all_wait_for_the_slowest() -> None:
    # Chains of 1 + 5 and 5 + 1: with a barrier 5 + 5, fused 6.
    workload = _workload("abab", [(0, 1), (2, 3)], [1, 5, 5, 1])
    levels = simulate_with_barriers(workload, workload.cut("quantum"), 2, _FREE)
    assert levels.wall == pytest.approx(10.0)
    assert _run(workload, 2).wall == pytest.approx(6.0)


def test_order_decides_where_slots_are_few() -> None:
    workload = _workload("aaaaa", [], [2, 2, 2, 2, 4])
    plan = workload.cut()
    in_order = simulate_with_barriers(workload, plan, 2, _FREE)
    longest_first = simulate_with_barriers(
        workload, plan, 2, _FREE, key=lambda group: -workload.seconds[list(group.quanta)].sum()
    )
    assert in_order.wall == pytest.approx(8.0)
    assert longest_first.wall == pytest.approx(6.0)
    assert list_schedule(workload, plan, 2) == pytest.approx(6.0)


def test_costs_add_up_on_one_slot() -> None:
    workload = _workload("ab", [(0, 1)], [10, 20])
    names = ("session", "driver", "job", "job_delay", "launch", "spark_task", "group", "quantum")
    costs = _FREE.model_copy(update={name: 2.0**n for n, name in enumerate(names)} | {"request": 0.5})
    schedule = _run(workload, 1, costs)
    # One group of two quanta, and so one of all else; one input from outside, three outputs of each quantum.
    expected = 30 + 1 + 2 * 2 + 4 + 8 + 16 + 32 + 64 + 2 * 128 + 0.5 * 7
    assert schedule.wall == pytest.approx(expected)
    assert sum(value for _, value in schedule.terms) == pytest.approx(expected)


def test_busy_store_delays_all_slots() -> None:
    workload = _workload("aaaa", [], [0, 0, 0, 0])
    schedule = _run(workload, 4, _FREE.model_copy(update={"store_rate": 2.0}))
    # Four quanta of four requests, two a second.
    assert schedule.wall == pytest.approx(8.0)
    assert schedule.binding == "object store"


def test_unit_with_a_shuffle_waits_for_its_level() -> None:
    night = make_night(
        visits=4, detectors=3, patches=2, tracts=1, hours=1, critical_hours=0.2, temporary=True
    )
    plan = night.cut()
    schedule = simulate(night, plan, 2, _FREE.model_copy(update={"shuffle": 1.0}))
    several = [unit for unit in plan.units if len(unit.levels) > 1]
    assert len(several) == 4
    for unit in several:
        first, second = (list(level) for level in unit.levels)
        assert schedule.start[second].min() >= schedule.end[first].max()
    # Three tables of 29 MB for each of four visits.
    assert schedule.terms.shuffle == pytest.approx(12 * 0.029)


def test_dispatch_by_known_times_leaves_no_slot_idle() -> None:
    night = make_night()
    assert len(night) == 9237
    assert night.work == pytest.approx(217 * 3600)
    assert night.critical_path == pytest.approx(1.4 * 3600, rel=1e-6)
    assert _run(night, 200, Costs(session=0)).efficiency >= 0.95


def test_more_slots_are_never_slower_and_ideal_is_never_beaten() -> None:
    night, same = (make_night(visits=8, detectors=20, patches=30, tracts=3, hours=24) for _ in range(2))
    assert np.array_equal(night.seconds, same.seconds)
    before = np.inf
    for slots in (1, 10, 100, 1_000, 10_000):
        schedule = _run(night, slots, Costs(), known=False)
        # Where slots are plenty, milliseconds decide which of two is launched first.
        assert schedule.bound <= schedule.wall <= 1.001 * before
        total = sum(value for _, value in schedule.terms)
        assert total == pytest.approx(schedule.wall * slots, rel=1e-6)
        before = schedule.wall


def test_missing_times_are_named() -> None:
    rng = np.random.default_rng(1)
    assert set(draw_times("aab", {"a": [1.0, 2.0], "b": 3.0}, rng)) <= {1.0, 2.0, 3.0}
    with pytest.raises(ValueError, match="these tasks: b, c"):
        draw_times("abc", {"a": 1.0, "b": []}, rng)
