"""Properties that every plan must have, whatever the quantum graph."""

from __future__ import annotations

import dataclasses
import json
import time
import uuid
from collections import Counter
from collections.abc import Callable

import networkx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_butler.errors import PlanError, UserError
from spark_butler.planning.partition import cut_graph
from spark_butler.planning.plan import GraphSketch, GroupBy, Handover, Plan

_DIMENSIONS = ("instrument", "visit", "detector")
_GRAINS: list[GroupBy] = ["fused", "quantum", "auto", ("visit",), ("detector",), ("instrument", "visit")]


def _quantum(number: int) -> uuid.UUID:
    return uuid.UUID(int=number)


@st.composite
def _sketches(draw: st.DrawFn) -> GraphSketch:
    """Draw a graph of quanta of some tasks, with edges in the order of the tasks or across it."""
    n = draw(st.integers(0, 24))
    labels = draw(st.lists(st.sampled_from("abcd"), min_size=n, max_size=n))
    pairs = st.tuples(st.integers(0, max(n - 1, 0)), st.integers(0, max(n - 1, 0)))
    edges = [(i, j) for i, j in draw(st.lists(pairs, max_size=3 * n)) if i < j]
    temporary = draw(st.lists(st.sampled_from(edges), max_size=n)) if edges else []
    consumers: dict[int, set[int]] = {}
    for i, j in temporary:
        consumers.setdefault(i, set()).add(j)
    names = draw(st.permutations(range(n)))
    data_ids: dict[uuid.UUID, dict[str, int | str]] = {
        _quantum(names[i]): {"instrument": "I", "visit": i % 3, "detector": i % 2}
        if draw(st.booleans())
        else {"instrument": "I"}
        for i in range(n)
    }
    handovers = [
        Handover(
            uuid.UUID(int=1000 + i), "t", _quantum(names[i]), tuple(_quantum(names[j]) for j in sorted(js))
        )
        for i, js in consumers.items()
    ]
    return GraphSketch(
        {_quantum(names[i]): label for i, label in enumerate(labels)},
        [(_quantum(names[i]), _quantum(names[j])) for i, j in edges],
        handovers,
        {"t": "a test"},
        data_ids,
    )


def _cut(sketch: GraphSketch, grain: GroupBy, slots: int = 2) -> Plan:
    """Cut a graph; by the default grain where the dimensions asked for group nothing."""
    try:
        return cut_graph(sketch, group_by=grain, slots=slots)
    except PlanError as error:
        if not isinstance(grain, tuple) or "Can't group by" not in str(error):
            raise
        return cut_graph(sketch, slots=slots)


_any_plan = given(sketch=_sketches(), grain=st.sampled_from(_GRAINS), slots=st.integers(1, 4))


@_any_plan
@settings(max_examples=100, deadline=None)
def test_plan_keeps_the_order_of_the_graph(sketch: GraphSketch, grain: GroupBy, slots: int) -> None:
    plan = _cut(sketch, grain, slots)
    sequence = [quantum for group in plan.groups for quantum in group.quanta]
    assert sorted(sequence) == sorted(sketch.task_labels)
    assert len(plan) == len(sequence)
    position = {quantum: n for n, quantum in enumerate(sequence)}
    assert all(position[before] < position[after] for before, after in sketch.edges)


@given(sketch=_sketches(), most=st.integers(1, 5))
@settings(max_examples=100, deadline=None)
def test_split_groups_keep_order_and_fused_chains(sketch: GraphSketch, most: int) -> None:
    fused = cut_graph(sketch, group_by="fused")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spark_butler.planning.partition._MANY_QUANTA", most)
        patch.setattr("spark_butler.planning.partition._GROUPS_PER_SLOT", 1)
        patch.setattr("spark_butler.planning.partition._UNEVEN", 100.0)
        plan = cut_graph(dataclasses.replace(sketch, handovers=()), group_by="auto", slots=1)
    home = {quantum: group.index for group in plan.groups for quantum in group.quanta}
    assert sorted(home) == sorted(sketch.task_labels)
    assert all(home[before] <= home[after] for before, after in sketch.edges)
    assert all(len({home[quantum] for quantum in group.quanta}) == 1 for group in fused.groups)
    if ", in parts of" in plan.grain:
        largest = max(len(group.quanta) for group in fused.groups)
        assert max(len(group.quanta) for group in plan.groups) <= max(most, largest)


@_any_plan
@settings(max_examples=100, deadline=None)
def test_group_graph_has_no_cycle(sketch: GraphSketch, grain: GroupBy, slots: int) -> None:
    plan = _cut(sketch, grain, slots)
    assert [group.index for group in plan.groups] == list(range(len(plan.groups)))
    home = {quantum: group.index for group in plan.groups for quantum in group.quanta}
    edges = {(home[a], home[b]) for a, b in sketch.edges if home[a] != home[b]}
    assert edges == {(need, group.index) for group in plan.groups for need in group.upstream}
    graph = networkx.DiGraph(edges)
    assert networkx.is_directed_acyclic_graph(graph)
    for group in plan.groups:
        assert group.stage == max((plan.groups[n].stage + 1 for n in group.upstream), default=0)
    assert [sorted(g.index for g in stage) for stage in plan.stages] == [
        [group.index for group in plan.groups if group.stage == number] for number in range(len(plan.stages))
    ]


@_any_plan
@settings(max_examples=100, deadline=None)
def test_units_cover_all_groups_and_can_run_one_after_another(
    sketch: GraphSketch, grain: GroupBy, slots: int
) -> None:
    plan = _cut(sketch, grain, slots)
    assert [unit.index for unit in plan.units] == list(range(len(plan.units)))
    members = [index for unit in plan.units for level in unit.levels for index in level]
    assert sorted(members) == list(range(len(plan.groups)))
    for unit in plan.units:
        for number, level in enumerate(unit.levels):
            assert level
            for index in level:
                assert (plan.groups[index].unit, plan.groups[index].level) == (unit.index, number)
                inside = [n for n in plan.groups[index].upstream if plan.groups[n].unit == unit.index]
                assert all(plan.groups[n].level < number for n in inside)
    edges = {
        (plan.groups[need].unit, group.unit)
        for group in plan.groups
        for need in group.upstream
        if plan.groups[need].unit != group.unit
    }
    assert networkx.is_directed_acyclic_graph(networkx.DiGraph(edges))


@_any_plan
@settings(max_examples=100, deadline=None)
def test_every_temporary_is_delivered_to_each_reader_once(
    sketch: GraphSketch, grain: GroupBy, slots: int
) -> None:
    plan = _cut(sketch, grain, slots)
    home = {quantum: group.index for group in plan.groups for quantum in group.quanta}
    expected = {
        handover.dataset_id: sorted({home[q] for q in handover.consumers} - {home[handover.producer]})
        for handover in sketch.handovers
    }
    crossings = {crossing.dataset_id: sorted(crossing.consumers) for crossing in plan.crossings}
    assert len(crossings) == len(plan.crossings)
    assert crossings == {dataset_id: groups for dataset_id, groups in expected.items() if groups}
    for crossing in plan.crossings:
        units = {plan.groups[n].unit for n in (crossing.producer, *crossing.consumers)}
        assert len(units) == 1


@_any_plan
@settings(max_examples=100, deadline=None)
def test_remaining_path_is_the_longest_path_to_a_sink(
    sketch: GraphSketch, grain: GroupBy, slots: int
) -> None:
    plan = _cut(sketch, grain, slots)
    graph = networkx.DiGraph(list(sketch.edges))
    graph.add_nodes_from(sketch.task_labels)
    path: dict[uuid.UUID, int] = {}
    for quantum in reversed(list(networkx.topological_sort(graph))):
        path[quantum] = 1 + max((path[after] for after in graph.successors(quantum)), default=0)
    for group in plan.groups:
        assert group.remaining == max(path[quantum] for quantum in group.quanta)


@given(sketch=_sketches())
@settings(max_examples=100, deadline=None)
def test_fused_groups_have_no_fan_out_inside(sketch: GraphSketch) -> None:
    plan = cut_graph(sketch, group_by="fused")
    home = {quantum: group.index for group in plan.groups for quantum in group.quanta}
    seen: dict[tuple[uuid.UUID, str], uuid.UUID] = {}
    for before, after in sketch.edges:
        if home[before] == home[after]:
            assert seen.setdefault((before, sketch.task_labels[after]), after) == after


@given(sketch=_sketches())
@settings(max_examples=50, deadline=None)
def test_plan_does_not_depend_on_the_order_of_edges(sketch: GraphSketch) -> None:
    turned = GraphSketch(
        sketch.task_labels,
        list(reversed(list(sketch.edges))),
        sketch.handovers,
        sketch.temporary_types,
        sketch.data_ids,
    )
    assert {frozenset(group.quanta) for group in cut_graph(turned).groups} == {
        frozenset(group.quanta) for group in cut_graph(sketch).groups
    }


@pytest.mark.parametrize("grain", _GRAINS, ids=str)
def test_cycle_is_refused(grain: GroupBy) -> None:
    quanta = [_quantum(n) for n in range(4)]
    edges = [(quanta[0], quanta[1]), (quanta[1], quanta[2]), (quanta[2], quanta[1]), (quanta[2], quanta[3])]
    with pytest.raises(PlanError, match="dependency cycle: 3 of 4") as caught:
        cut_graph(GraphSketch(dict.fromkeys(quanta, "a"), edges), group_by=grain)
    assert isinstance(caught.value, UserError)


def test_unknown_dimension_is_refused() -> None:
    sketch = GraphSketch({_quantum(1): "a"}, [], data_ids={_quantum(1): {"visit": 1}})
    with pytest.raises(PlanError, match="tract.*dimensions are visit"):
        cut_graph(sketch, group_by=("tract",))


def test_empty_graph_has_an_empty_plan() -> None:
    plan = cut_graph(GraphSketch({}, []))
    assert (plan.groups, plan.units, plan.stages) == ((), (), ())
    assert "0 quanta" in plan.explain()


def test_plan_is_serialized_as_json() -> None:
    sketch = dataclasses.replace(_chains(3), temporary_types={"t": "a test"}, sizes={"t": 1e6})
    sketch = dataclasses.replace(
        sketch, handovers=[Handover(_quantum(77_777), "t", _quantum(3), (_quantum(10**9),))]
    )
    plan = cut_graph(sketch)
    described = plan.describe()
    assert json.loads(json.dumps(described)) == described
    assert (described["quanta"], described["groups"], described["shuffles"]) == (10, 4, 1)
    assert described["stages"] == [
        {"groups": 3, "kinds": [{"tasks": "a -> b -> c", "groups": 3}]},
        {"groups": 1, "kinds": [{"tasks": "d", "groups": 1}]},
    ]
    assert (described["grain"], described["temporaries"]) == (plan.grain, {"t": "a test"})
    assert described["crossings"] == [
        {
            **{"dataset_type": "t", "from_stage": 0, "to_stage": 1},
            **{"datasets": 1, "to_groups": 1, "deliveries": 1, "bytes": 1_000_000},
        }
    ]


def _chains(n_chains: int) -> GraphSketch:
    """Chains of three quanta, the last of all chains gathered by one."""
    labels: dict[uuid.UUID, str] = {}
    edges = []
    last = _quantum(10**9)
    for n in range(n_chains):
        a, b, c = (_quantum(3 * n + k + 1) for k in range(3))
        labels.update({a: "a", b: "b", c: "c"})
        edges += [(a, b), (b, c), (c, last)]
    labels[last] = "d"
    return GraphSketch(labels, edges)


@pytest.mark.parametrize("grain", ["fused", "auto"])
def test_planning_time_is_linear_in_the_number_of_quanta(grain: GroupBy) -> None:
    def measure(work: Callable[[], Plan]) -> tuple[float, Plan]:
        start = time.process_time()
        plan = work()
        return time.process_time() - start, plan

    small, large = _chains(1_111), _chains(11_111)
    few, _ = measure(lambda: cut_graph(small, group_by=grain, slots=8))
    many, plan = measure(lambda: cut_graph(large, group_by=grain, slots=8))
    assert len(plan) == 33_334
    assert sum(len(group.quanta) == 3 for group in plan.groups) == 11_111
    # Ten times the quanta: a quadratic step would take a hundred times as long.
    assert many < 50 * max(few, 0.03)


@pytest.mark.parametrize(
    ("n_detectors", "slots", "n_groups"), [(16, 2, 16), (9, 2, 36), (7, 2, 28), (40, 2, 40)]
)
def test_groups_are_a_multiple_of_slots(n_detectors: int, slots: int, n_groups: int) -> None:
    labels, data_ids, edges = {}, {}, []
    for visit in range(4):
        for detector in range(n_detectors):
            first, second = (_quantum(2 * (visit * n_detectors + detector) + n) for n in range(2))
            labels.update({first: "isr", second: "calibrate"})
            for each in (first, second):
                data_ids[each] = {"visit": visit, "detector": detector}
            edges.append((first, second))
    # A task whose data IDs have one dimension only, as a coadd of each detector.
    for detector in range(n_detectors):
        last = _quantum(10_000 + detector)
        labels[last] = "coadd"
        data_ids[last] = {"detector": detector}
        edges += [(_quantum(2 * (v * n_detectors + detector) + 1), last) for v in range(4)]
    plan = cut_graph(GraphSketch(labels, edges, data_ids=data_ids), group_by="auto", slots=slots)
    widest = [group for group in plan.groups if len(group.quanta) > 1]
    assert len(widest) == n_groups


def _night(n_visits: int, n_detectors: int) -> GraphSketch:
    """Two tasks of each detector, one that gathers a visit, and one that gathers a detector of all visits."""
    labels, data_ids, edges = {}, {}, []

    def add(label: str, number: int, **data_id: int) -> uuid.UUID:
        quantum = _quantum(number)
        labels[quantum], data_ids[quantum] = label, data_id
        return quantum

    coadds = [add("coadd", 10**6 + n, detector=n) for n in range(n_detectors)]
    for visit in range(n_visits):
        gather = add("gather", 2 * 10**6 + visit, visit=visit)
        for detector in range(n_detectors):
            number = 2 * (visit * n_detectors + detector)
            isr, calibrate = (
                add(label, number + n, visit=visit, detector=detector)
                for n, label in enumerate(("isr", "calibrate"))
            )
            edges += [(isr, calibrate), (calibrate, gather), (calibrate, coadds[detector])]
        edges += [(gather, coadd) for coadd in coadds]
    return GraphSketch(labels, edges, data_ids=data_ids)


@pytest.mark.parametrize(
    ("n_visits", "n_detectors", "joined"),
    [
        # Nine detectors don't come out even on two slots, whatever their coadds add to them later.
        pytest.param(8, 9, [19] * 8, id="by visit"),
        pytest.param(12, 16, [24] * 16, id="by detector"),
        # Neither seven nor nine.
        pytest.param(7, 9, [], id="fused"),
    ],
)
def test_groups_of_a_stage_are_balanced(n_visits: int, n_detectors: int, joined: list[int]) -> None:
    plan = cut_graph(_night(n_visits, n_detectors), group_by="auto", slots=2)
    assert [len(group.quanta) for group in plan.groups if len(group.quanta) > 2] == joined


def test_groups_are_balanced_by_known_times() -> None:
    sketch = _night(12, 16)
    slow = {q: 40.0 for q, data_id in sketch.data_ids.items() if data_id.get("detector") == 3}
    plan = cut_graph(dataclasses.replace(sketch, costs=slow), group_by="auto", slots=2)
    assert plan.grain.startswith("grouped by visit,")


def test_groups_grow_only_to_keep_temporaries_in_memory() -> None:
    sketch = _night(12, 60)
    plan = cut_graph(sketch, group_by="auto", slots=1)
    # By detector, of 24 quanta; by instrument or visit they would be larger, or fewer.
    assert max(len(group.quanta) for group in plan.groups) <= 100
    large = _night(60, 12)
    assert max(len(group.quanta) for group in cut_graph(large, group_by="auto", slots=1).groups) <= 100
    both = _night(60, 60)
    plan = cut_graph(both, group_by="auto", slots=2)
    assert ", in parts of at most 100 quanta, " in plan.grain
    # Sixty detectors, each with two quanta for each of sixty visits.
    assert Counter(len(group.quanta) for group in plan.groups)[100] == 60
    assert all(need < group.index for group in plan.groups for need in group.upstream)
    assert sorted(q for group in plan.groups for q in group.quanta) == sorted(both.task_labels)
    ids = {(label, *sorted(large.data_ids[q].items())): q for q, label in large.task_labels.items()}
    calibrated = [
        Handover(uuid.uuid4(), "calibrated", q, (ids["coadd", key[1]],))
        for key, q in ids.items()
        if key[0] == "calibrate"
    ]
    plan = cut_graph(dataclasses.replace(large, handovers=calibrated), group_by="auto", slots=1)
    assert plan.grain.startswith("grouped by")
