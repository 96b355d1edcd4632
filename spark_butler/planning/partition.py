"""Partition of a quantum graph into groups that workers run, and units that Spark runs as one job.

Runs in the driver.  All algorithms are linear in the number of quanta and edges.
"""

from __future__ import annotations

__all__ = ["cut_graph"]

from collections import Counter, defaultdict
from collections.abc import Sequence

from ..errors import PlanError
from ..text import format_count
from .ordering import find_stages, find_units, is_balanced, sort_topologically
from .plan import Crossing, GraphSketch, Group, GroupBy, Plan, Unit

_GROUPS_PER_SLOT = 4
# Quanta become slower in larger groups, because each log lists all earlier quanta of its process.
_MANY_QUANTA = 100
# Greatest excess of the busiest slot's time over the mean.
_UNEVEN = 1.02


def cut_graph(sketch: GraphSketch, *, group_by: GroupBy = "fused", slots: int = 1) -> Plan:
    """Cut a quantum graph into groups and units, each after its dependencies.

    With the grain ``fused``, a quantum joins the group of its upstream quanta if two conditions hold: all of
    them are in one group, and none of them is upstream of another quantum of the same task.  Otherwise the
    quantum begins a new group.

    Coarser grains join fused groups whose data IDs agree in the given dimensions.  They don't join two groups
    if a path from one to the other leads through a group with another data ID, because the joined group would
    then depend on itself.

    Parameters
    ----------
    group_by
        The grain: ``fused``; ``quantum`` to make every quantum a group of its own; the names of dimensions;
        or ``auto`` for the coarsest of these that gives each slot several groups.
    slots
        Number of groups that can run at the same time; only ``auto`` uses it.

    Raises
    ------
    PlanError
        Raised if the graph has a cycle, or no quantum has the dimensions to group by.
    """
    partitioner = _Partitioner(sketch)
    if group_by == "quantum":
        home, grain = list(range(len(partitioner.ids))), "every quantum is a group of its own"
    elif group_by == "fused":
        home, grain = partitioner.fuse(), "quanta that feed each other one to one share a group (fused)"
    elif group_by == "auto":
        home, grain = partitioner.choose(slots)
    else:
        kinds = {frozenset(data_id) for data_id in sketch.data_ids.values()}.union(sketch.dimensions)
        if not any(names >= set(group_by) for names in kinds):
            known = sorted(frozenset[str]().union(*kinds))
            raise PlanError(
                f"Can't group by {', '.join(group_by)}: no quanta have all of these dimensions; the graph's "
                f"dimensions are {', '.join(known)}."
            )
        home, _ = partitioner.join(partitioner.fuse(), group_by)
        grain = f"grouped by {', '.join(group_by)}, as asked"
    return partitioner.make_plan(home, grain)


class _Partitioner:
    """A quantum graph in which quanta are numbers, in topological order.

    A partition of it is a list, called *home*, with an item for each quantum: the number of the first quantum
    of its group.
    """

    def __init__(self, sketch: GraphSketch):
        self.sketch = sketch
        number = {quantum_id: n for n, quantum_id in enumerate(sketch.task_labels)}
        given = [(number[before], number[after]) for before, after in dict.fromkeys(sketch.edges)]
        order = sort_topologically(len(number), given)
        position = [0] * len(order)
        for n, old in enumerate(order):
            position[old] = n
        names = list(sketch.task_labels)
        self.ids = [names[old] for old in order]
        self.labels = [sketch.task_labels[quantum_id] for quantum_id in self.ids]
        self.number = {quantum_id: n for n, quantum_id in enumerate(self.ids)}
        self.needs: list[list[int]] = [[] for _ in order]
        self.feeds: list[list[int]] = [[] for _ in order]
        for before, after in given:
            self.needs[position[after]].append(position[before])
            self.feeds[position[before]].append(position[after])

    def fuse(self) -> list[int]:
        """Return the home of the grain ``fused``: join quanta along one-to-one edges."""
        fan_out: Counter[tuple[int, str]] = Counter()
        for before, afters in enumerate(self.feeds):
            for after in afters:
                fan_out[before, self.labels[after]] += 1
        home = list(range(len(self.ids)))
        for quantum, needs in enumerate(self.needs):
            homes = {home[need] for need in needs}
            if len(homes) == 1 and all(fan_out[need, self.labels[quantum]] == 1 for need in needs):
                home[quantum] = homes.pop()
        return home

    def join(self, fused: Sequence[int], dimensions: Sequence[str]) -> tuple[list[int], int]:
        """Join groups whose data IDs agree in some dimensions; return also the number of groups with a key.

        The key of a group is its values of the dimensions.  The depth of a group is the greatest number of
        changes of the key on any path to it.  Groups with the same key and depth are joined.  An edge between
        joined groups always leads to a greater depth, so there is no cycle.
        """
        key = self._keys(fused, dimensions)
        depth: dict[int, int] = {}
        first: dict[tuple[tuple[int | str, ...], int], int] = {}
        home = list(fused)
        for quantum, needs in enumerate(self.needs):
            group = fused[quantum]
            for need in needs:
                if fused[need] != group:
                    changed = key.get(fused[need]) != key.get(group) or group not in key
                    depth[group] = max(depth.get(group, 0), depth.get(fused[need], 0) + changed)
        for group in dict.fromkeys(fused):
            if group in key:
                home[group] = first.setdefault((key[group], depth.get(group, 0)), group)
        return [home[group] for group in fused], len(first)

    def _keys(self, fused: Sequence[int], dimensions: Sequence[str]) -> dict[int, tuple[int | str, ...]]:
        """Return the key of each group that has exactly one value of every dimension."""
        found: defaultdict[int, dict[str, int | str]] = defaultdict(dict)
        mixed: set[int] = set()
        wanted = frozenset(dimensions)
        for quantum, group in enumerate(fused):
            data_id = self.sketch.data_ids.get(self.ids[quantum], {})
            for name in wanted & data_id.keys():
                if found[group].setdefault(name, data_id[name]) != data_id[name]:
                    mixed.add(group)
        return {
            group: tuple(values[name] for name in dimensions)
            for group, values in found.items()
            if len(values) == len(wanted) and group not in mixed
        }

    def choose(self, slots: int) -> tuple[list[int], str]:
        """Return the coarsest partition that gives each slot several groups and about equal work."""
        fused = self.fuse()
        wanted = _GROUPS_PER_SLOT * slots
        one_each = dict(zip(self.labels, self.ids, strict=True)).values()
        names = {tuple(self.sketch.data_ids.get(quantum_id, ())) for quantum_id in one_each} - {()}
        candidates = sorted(names, key=lambda each: (len(each), each))
        for dimensions in candidates:
            home, n_groups = self.join(fused, dimensions)
            if n_groups < wanted or len(set(home)) == len(set(fused)):
                continue
            parts = ""
            if max(Counter(home).values()) > _MANY_QUANTA and not self._saves_handovers(fused, home):
                home = self._split(fused, home)
                parts = f", in parts of at most {_MANY_QUANTA} quanta"
                if len(set(home)) == len(set(fused)):
                    continue
            fewest, is_even = self._measure_stages(fused, home, slots)
            if fewest >= wanted and is_even:
                return home, (
                    f"grouped by {', '.join(dimensions)}{parts}, the coarsest grain that gives each of "
                    f"{format_count(slots, 'slot')} at least {_GROUPS_PER_SLOT} groups ({fewest} in all), "
                    "and all slots about equal work (auto)"
                )
        return fused, (
            "quanta that feed each other one to one share a group; larger groups would give fewer than "
            f"{_GROUPS_PER_SLOT} groups to each of {format_count(slots, 'slot')}, "
            "or unequal work (auto)"
        )

    def _split(self, fused: Sequence[int], home: Sequence[int]) -> list[int]:
        """Split joined groups with many quanta into parts; keep fused quanta together.

        Parts follow the order of the fused groups, so that dependencies between parts lead in one direction.
        """
        sizes = Counter(home)
        parted = list(home)
        begun: dict[int, tuple[int, int]] = {}
        for quanta in self._order_groups(fused)[0]:
            whole = home[quanta[0]]
            if sizes[whole] <= _MANY_QUANTA:
                continue
            part, size = begun.get(whole, (quanta[0], 0))
            if size and size + len(quanta) > _MANY_QUANTA:
                part, size = quanta[0], 0
            begun[whole] = part, size + len(quanta)
            for quantum in quanta:
                parted[quantum] = part
        return parted

    def _saves_handovers(self, fused: Sequence[int], home: Sequence[int]) -> bool:
        """Return whether joining groups saves transfers of temporaries."""
        return any(
            fused[self.number[handover.producer]] != fused[consumer]
            and home[self.number[handover.producer]] == home[consumer]
            for handover in self.sketch.handovers
            for consumer in (self.number[quantum] for quantum in handover.consumers)
        )

    def _measure_stages(self, fused: Sequence[int], home: Sequence[int], slots: int) -> tuple[int, bool]:
        """Return the smallest number of joined groups in a stage that has some, and whether these are even.

        A stage is even if all slots are busy about equally long.
        """
        members, needs = self._order_groups(home)
        stages: defaultdict[int, list[tuple[float, bool]]] = defaultdict(list)
        for stage, quanta in zip(find_stages(needs), members, strict=True):
            cost = sum(self.sketch.costs.get(self.ids[quantum], 1.0) for quantum in quanta)
            stages[stage].append((cost, len({fused[quantum] for quantum in quanta}) > 1))
        joined = [groups for groups in stages.values() if any(is_joined for _, is_joined in groups)]
        return (
            min(sum(is_joined for _, is_joined in groups) for groups in joined),
            all(is_balanced([cost for cost, _ in groups], slots, _UNEVEN) for groups in joined),
        )

    def make_plan(self, home: Sequence[int], grain: str) -> Plan:
        """Build the plan: its groups and units."""
        quanta, group_needs = self._order_groups(home)
        index = {home[members[0]]: n for n, members in enumerate(quanta)}
        crossings = self._find_crossings([index[first] for first in home])
        unit_of = find_units(group_needs, crossings)
        groups = self._make_groups(quanta, group_needs, unit_of)
        return Plan(
            groups=groups,
            units=_make_units(groups, unit_of),
            crossings=tuple(crossings),
            task_labels=self.sketch.task_labels,
            temporary_types=dict(self.sketch.temporary_types),
            sizes=dict(self.sketch.sizes),
            grain=grain,
        )

    def _order_groups(self, home: Sequence[int]) -> tuple[list[list[int]], list[list[int]]]:
        """Return the groups' quanta and the positions of their dependencies; each group follows these."""
        members: defaultdict[int, list[int]] = defaultdict(list)
        for quantum, first in enumerate(home):
            members[first].append(quantum)
        upstream: dict[int, set[int]] = {first: set() for first in members}
        for quantum, needs in enumerate(self.needs):
            upstream[home[quantum]].update(home[need] for need in needs if home[need] != home[quantum])
        firsts = list(members)
        place = {first: n for n, first in enumerate(firsts)}
        edges = [(place[before], place[after]) for after in firsts for before in upstream[after]]
        order = sort_topologically(len(firsts), edges)
        index = {firsts[old]: n for n, old in enumerate(order)}
        return (
            [members[firsts[old]] for old in order],
            [sorted(index[before] for before in upstream[firsts[old]]) for old in order],
        )

    def _find_crossings(self, group_of: Sequence[int]) -> list[Crossing]:
        """Return the temporaries that leave their group."""
        crossings = []
        for handover in self.sketch.handovers:
            producer = group_of[self.number[handover.producer]]
            consumers = {group_of[self.number[quantum]] for quantum in handover.consumers} - {producer}
            if consumers:
                crossings.append(
                    Crossing(handover.dataset_id, handover.dataset_type, producer, tuple(sorted(consumers)))
                )
        return crossings

    def _make_groups(
        self, quanta: Sequence[Sequence[int]], needs: Sequence[Sequence[int]], unit_of: Sequence[int]
    ) -> tuple[Group, ...]:
        """Build the groups, with stage, level and remaining path."""
        costs = self.sketch.costs
        path = [0.0] * len(self.ids)
        for quantum in range(len(self.ids) - 1, -1, -1):
            further = max((path[after] for after in self.feeds[quantum]), default=0.0)
            path[quantum] = costs.get(self.ids[quantum], 1.0) + further
        stage = find_stages(needs)
        level = [0] * len(quanta)
        groups: list[Group] = []
        for n, members in enumerate(quanta):
            for need in needs[n]:
                if unit_of[need] == unit_of[n]:
                    level[n] = max(level[n], level[need] + 1)
            groups.append(
                Group(
                    index=n,
                    quanta=tuple(self.ids[quantum] for quantum in members),
                    upstream=frozenset(needs[n]),
                    stage=stage[n],
                    remaining=max(path[quantum] for quantum in members),
                    unit=unit_of[n],
                    level=level[n],
                )
            )
        return tuple(groups)


def _make_units(groups: Sequence[Group], unit_of: Sequence[int]) -> tuple[Unit, ...]:
    """Build the units, with their groups by level."""
    members: list[list[Group]] = [[] for _ in range(1 + max(unit_of, default=-1))]
    for group in groups:
        members[group.unit].append(group)
    units = []
    for n, inside in enumerate(members):
        levels: list[list[int]] = [[] for _ in range(1 + max(group.level for group in inside))]
        for group in inside:
            levels[group.level].append(group.index)
        own = {group.index for group in inside}
        units.append(
            Unit(
                index=n,
                levels=tuple(map(tuple, levels)),
                upstream=frozenset(need for group in inside for need in group.upstream) - own,
                remaining=max(group.remaining for group in inside),
            )
        )
    return tuple(units)
