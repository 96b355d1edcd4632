"""Properties of the plan of every graph with temporaries."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections import Counter

import networkx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spark_butler.planning.partition import cut_graph
from spark_butler.planning.plan import GraphSketch, Handover, Plan

_DIMENSIONS = ("visit", "detector")


@st.composite
def _sketches(draw: st.DrawFn) -> GraphSketch:
    """Draw a graph: quanta of a few tasks, datasets between them of which some are temporary."""
    n = draw(st.integers(1, 24))
    ids = [uuid.UUID(int=k + 1) for k in range(n)]
    # Not in topological order, so that nothing depends on the order they come in.
    shown = draw(st.permutations(ids))
    labels = {q: f"task{draw(st.integers(0, 4))}" for q in shown}
    data_ids = {
        q: {name: draw(st.integers(0, 2)) for name in _DIMENSIONS if draw(st.integers(0, 4))} for q in ids
    }
    edges: set[tuple[uuid.UUID, uuid.UUID]] = set()
    handovers: list[Handover] = []
    for k in range(draw(st.integers(0, 2 * n))):
        producer = draw(st.integers(0, n - 1))
        later = st.integers(producer + 1, n - 1) if producer < n - 1 else st.nothing()
        consumers = sorted(draw(st.sets(later, max_size=4))) if producer < n - 1 else []
        edges.update((ids[producer], ids[c]) for c in consumers)
        if draw(st.booleans()):
            handovers.append(
                Handover(
                    uuid.UUID(int=1000 + k), f"type{k % 3}", ids[producer], tuple(ids[c] for c in consumers)
                )
            )
    return GraphSketch(labels, sorted(edges), handovers, {f"type{k}": "asked" for k in range(3)}, data_ids)


_GRAINS = st.sampled_from(["fused", "quantum", "auto", ("visit",), ("detector",), ("visit", "detector")])


def _cut(sketch: GraphSketch, grain: object, slots: int = 2) -> Plan:
    if isinstance(grain, tuple) and not any(set(grain) <= d.keys() for d in sketch.data_ids.values()):
        grain = "fused"
    return cut_graph(sketch, group_by=grain, slots=slots)  # type: ignore[arg-type]


_some = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@_some
@given(_sketches(), _GRAINS)
def test_every_temporary_is_delivered_to_each_consuming_group_exactly_once(
    sketch: GraphSketch, grain: object
) -> None:
    plan = _cut(sketch, grain)
    group_of = {q: group.index for group in plan.groups for q in group.quanta}
    delivered = Counter((c.dataset_id, group) for c in plan.crossings for group in c.consumers)
    expected = {
        (handover.dataset_id, group_of[consumer])
        for handover in sketch.handovers
        for consumer in handover.consumers
        if group_of[consumer] != group_of[handover.producer]
    }
    assert delivered == Counter(expected)
    for crossing in plan.crossings:
        producer = plan.groups[crossing.producer]
        for consumer in (plan.groups[n] for n in crossing.consumers):
            assert consumer.unit == producer.unit
            assert consumer.level > producer.level
            assert producer.index in consumer.upstream


@_some
@given(_sketches(), _GRAINS)
def test_groups_and_units_have_no_cycle_and_keep_every_edge(sketch: GraphSketch, grain: object) -> None:
    plan = _cut(sketch, grain)
    assert sorted(q for group in plan.groups for q in group.quanta) == sorted(sketch.task_labels)
    place = {q: (group.index, n) for group in plan.groups for n, q in enumerate(group.quanta)}
    needs: dict[int, set[int]] = {group.index: set() for group in plan.groups}
    for before, after in sketch.edges:
        if place[before][0] == place[after][0]:
            assert place[before][1] < place[after][1]
        else:
            needs[place[after][0]].add(place[before][0])
    assert [group.upstream for group in plan.groups] == [needs[n] for n in range(len(plan.groups))]
    assert all(need < group.index for group in plan.groups for need in group.upstream)
    unit_edges = {
        (plan.groups[need].unit, group.unit)
        for group in plan.groups
        for need in group.upstream
        if plan.groups[need].unit != group.unit
    }
    assert networkx.is_directed_acyclic_graph(networkx.DiGraph(list(unit_edges)))
    assert all(before < after for before, after in unit_edges)


@_some
@given(_sketches(), _GRAINS)
def test_units_list_their_groups_by_level(sketch: GraphSketch, grain: object) -> None:
    plan = _cut(sketch, grain)
    assert [unit.index for unit in plan.units] == list(range(len(plan.units)))
    listed = [
        (unit.index, level, n) for unit in plan.units for level, ns in enumerate(unit.levels) for n in ns
    ]
    assert sorted(listed) == sorted((group.unit, group.level, group.index) for group in plan.groups)
    for unit in plan.units:
        own = {n for level in unit.levels for n in level}
        assert all(unit.levels)
        assert unit.upstream == {need for n in own for need in plan.groups[n].upstream} - own
        assert unit.remaining == max(plan.groups[n].remaining for n in own)
        for group in (plan.groups[n] for n in own):
            inside = [plan.groups[need].level for need in group.upstream & own]
            assert group.level == max(inside, default=-1) + 1
            # Work travels from level to level, so that each group has one to come from.
            assert not group.level or group.level - 1 in inside


@_some
@given(_sketches())
def test_coarser_grouping_never_has_more_groups(sketch: GraphSketch) -> None:
    sizes = {grain: len(_cut(sketch, grain).groups) for grain in ("quantum", "fused", "auto")}
    assert sizes["quantum"] == len(sketch.task_labels)
    assert sizes["auto"] <= sizes["fused"] <= sizes["quantum"]


@_some
@given(_sketches(), _GRAINS)
def test_groups_without_temporaries_between_them_are_units_of_their_own(
    sketch: GraphSketch, grain: object
) -> None:
    plan = _cut(GraphSketch(sketch.task_labels, sketch.edges, (), {}, sketch.data_ids), grain)
    assert all(len(unit.levels) == 1 and len(unit.levels[0]) == 1 for unit in plan.units)
    assert not plan.crossings


_MILLION = """
import resource, time, uuid
resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30))
from spark_butler.planning.plan import GraphSketch, Handover
from spark_butler.planning.partition import cut_graph
# 333 visits of 1000 detectors: three steps each, and what gathers visits and detectors.
n_visits, n_detectors = 333, 1000
labels, data_ids, edges, handovers, n = {}, {}, [], [], 0
def add(label, **data_id):
    global n
    n += 1
    quantum = uuid.UUID(int=n)
    labels[quantum] = label
    data_ids[quantum] = data_id
    return quantum
def hand(name, producer, *consumers):
    handovers.append(Handover(uuid.UUID(int=10**9 + len(handovers)), name, producer, consumers))
    edges.extend((producer, consumer) for consumer in consumers)
for visit in range(n_visits):
    middle = []
    for detector in range(n_detectors):
        a, b = (add(label, visit=visit, detector=detector) for label in "ab")
        hand("one", a, b)
        middle.append(b)
    gather = add("visit", visit=visit)
    finals = [add("c", visit=visit, detector=detector) for detector in range(n_detectors)]
    for b, c in zip(middle, finals):
        hand("two", b, gather, c)
    hand("sum", gather, *finals)
print(len(labels), len(edges))
temporary = dict.fromkeys(("one", "two", "sum"), "asked")
for grain in ("auto", ("visit",), "quantum"):
    began = time.process_time()
    plan = cut_graph(GraphSketch(labels, edges, handovers, temporary, data_ids), group_by=grain, slots=200)
    plan.explain()
    print(grain, len(plan.groups), time.process_time() - began)
    assert sum(len(group.quanta) for group in plan.groups) == len(labels)
    del plan
"""


@pytest.mark.slow
def test_one_million_quanta_are_planned_in_a_minute_and_four_gigabytes() -> None:
    process = subprocess.run([sys.executable, "-c", _MILLION], capture_output=True, text=True, timeout=900)
    assert process.returncode == 0, process.stderr
    first, *lines = process.stdout.splitlines()
    assert int(first.split()[0]) > 999_000
    assert len(lines) == 3
    for line in lines:
        # CPU time, which the load of the machine changes little.
        assert float(line.rpartition(" ")[2]) < 60, process.stdout
