"""Simulation of a run in virtual time: the engine's own scheduler on a simulated cluster."""

from __future__ import annotations

__all__ = [
    "Cluster",
    "Costs",
    "Schedule",
    "Terms",
    "list_schedule",
    "simulate",
    "simulate_with_barriers",
    "with_remaining",
]

import dataclasses
import heapq
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any
from unittest import mock

import numpy as np
import pydantic
from lsst.pipe.base import QuantumAttemptStatus
from lsst.pipe.base.quantum_reports import QuantumReport
from numpy.typing import NDArray
from workloads import Workload

from spark_butler.driver import scheduler as dispatch
from spark_butler.model.outcomes import QuantumOutcome
from spark_butler.model.work import UnitWork
from spark_butler.planning.plan import Group, Plan, Unit


def _cost(default: float, what: str, source: str) -> Any:
    return pydantic.Field(default, ge=0, description=what, json_schema_extra={"source": source})


class Costs(pydantic.BaseModel):
    """Costs of the parts of a run, in seconds unless the description names another unit."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    session: float = _cost(
        13.0,
        "start of a session and its first Python job",
        "standalone cluster, 2 executors: 10.5 s and 2.5 s",
    )
    driver: float = _cost(
        0.0025,
        "driver, per quantum: preparing, collecting, ingesting",
        "`make bench-engines`, 412 quanta in a session that is up: 1.0 to 1.1 CPU-s, planning included",
    )
    job: float = _cost(
        0.019,
        "a Spark job, one after another",
        "standalone cluster: one-task jobs from 16 threads",
    )
    job_delay: float = _cost(
        0.015,
        "a Spark job, in addition, until its first Spark task starts",
        "standalone cluster: 34 ms for a one-task job by itself, less the 19 ms",
    )
    launch: float = _cost(
        0.001, "Spark's scheduler, per Spark task, one after another", "standalone cluster: 1–2 ms, JVM only"
    )
    spark_task: float = _cost(
        0.0089, "slot, per Spark task in Python", "standalone cluster, Unix sockets and the engine's daemon"
    )
    group: float = _cost(
        0.020,
        "slot, per batch of groups: a child process with its butler",
        "`make bench-engines`, as above: 0.067 CPU-s per quantum in workers, less the other costs here",
    )
    quantum: float = _cost(
        0.035, "slot, per quantum: middleware", "`pipetask run-qbb -j 1` on local files: CPU-s per quantum"
    )
    request: float = _cost(
        0.0035,
        "slot, per request to the object store",
        "SeaweedFS on one machine, 100 kB: 259 PUT/s, 323 GET/s",
    )
    store_rate: float = _cost(
        3500.0,
        "requests per second that the object store accepts; 0 for any number",
        "not measured: the rate that Amazon documents for writes to one prefix of S3",
    )
    shuffle: float = _cost(
        8.9,
        "slot, per GB through a shuffle, half for writing and half for reading",
        "[temporaries](temporaries-benchmark.md), VisitImage 4k² (0.151 GB): 0.67 s of 2 slots",
    )


class Terms(pydantic.BaseModel):
    """Time of the slots by use, in slot-seconds; the sum is wall time times slots."""

    work: float
    """Running tasks."""
    overhead: float
    """Middleware, child processes and Spark tasks."""
    requests: float
    """Waiting for the object store."""
    shuffle: float
    """Writing and reading temporaries."""
    driver: float
    """Idle, because the driver or Spark's scheduler had not yet started ready groups."""
    path: float
    """Idle because of the critical path, which no schedule can avoid."""
    order: float
    """Idle, because no group was ready; another order might have made some ready."""
    session: float
    """Start of the session."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Result of a simulated run."""

    slots: int
    """Number of groups that could run at the same time."""

    wall: float
    """Seconds from the start of the session to the last outcome."""

    bound: float
    """Lower bound of the wall time of any schedule, in seconds."""

    start: NDArray[np.float64]
    """Time at which each group began, in seconds since the session was ready."""

    end: NDArray[np.float64]
    """Time at which each group ended."""

    terms: Terms
    """Time of the slots by use."""

    limits: dict[str, float]
    """Least time in seconds that each resource alone would have needed."""

    @property
    def efficiency(self) -> float:
        """Lower bound divided by the wall time."""
        return self.bound / self.wall

    @property
    def binding(self) -> str:
        """Limit of the run: the busiest resource, or else the order of groups."""
        name, seconds = max(self.limits.items(), key=lambda item: item[1])
        wall = self.wall if name == "session" else self.wall - self.limits["session"]
        return name if seconds > 0.9 * wall else "stragglers"


class _GroupCosts:
    """Costs of each group of a plan for its slot."""

    def __init__(self, workload: Workload, plan: Plan, costs: Costs):
        members = [np.array(group.quanta, int) for group in plan.groups]
        home = np.empty(len(workload), int)
        for group in plan.groups:
            home[members[group.index]] = group.index
        n_requests = np.array([workload.reads[n] + workload.writes[n] for n in range(len(workload))], float)
        for before, after in workload.edges:
            n_requests[after] += home[before] != home[after]
        gigabytes = np.zeros(len(plan.groups))
        for crossing in plan.crossings:
            size = plan.sizes[crossing.dataset_type] / 1e9
            gigabytes[crossing.producer] += size * len(crossing.consumers) / 2
            gigabytes[list(crossing.consumers)] += size / 2
        n = len(plan.groups)
        count = np.bincount(home, minlength=n)
        self.work = np.bincount(home, workload.seconds, n)
        self.overhead = costs.quantum * count
        self.requests = np.bincount(home, n_requests, n)
        self.shuffle = costs.shuffle * gigabytes
        self.seconds = (self.work + self.overhead + costs.request * self.requests + self.shuffle).tolist()
        self.n_requests = self.requests.tolist()


class _Job:
    """Running Spark job."""

    def __init__(self, number: int, stages: Sequence[Sequence[Sequence[int]]]):
        self.number = number
        self.future: Future[None] = Future()
        self.stages = deque(stages)
        self.stage = -1
        self.missing = 0


class Cluster:
    """Simulated cluster: slots, Spark's scheduler and an object store in virtual time.

    Parameters
    ----------
    workload
        The quanta.
    plan
        Groups and units of the quanta.
    slots
        Number of Spark tasks that run at the same time.
    costs
        Costs of the parts of a run.
    """

    def __init__(self, workload: Workload, plan: Plan, slots: int, costs: Costs):
        self._costs = costs
        self._plan = plan
        self._workload = workload
        self._seconds = (workload.seconds + costs.quantum).tolist()
        self._reports = {
            label: QuantumReport(dataId={}, taskLabel=label, exitCode=0)
            for label in set(plan.task_labels.values())
        }
        self._slots = slots
        self.groups = _GroupCosts(workload, plan, costs)
        self.start = np.full(len(plan.groups), np.nan)
        self.end = np.full(len(plan.groups), np.nan)
        self.now = 0.0
        self.words: deque[tuple[float, QuantumOutcome | Future[None]]] = deque()
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = itertools.count()
        self._queue: list[tuple[int, int, int, _Job, Sequence[int]]] = []
        self._free = slots
        self._n_jobs = self._n_tasks = 0
        self._submit_free = self._launch_free = self._store_free = 0.0
        self._busy: list[tuple[float, float]] = []
        self._spark_seconds = self._waited = 0.0

    def submit(self, when: float, stages: Sequence[Sequence[Sequence[int]]]) -> Future[None]:
        """Submit a Spark job.

        Parameters
        ----------
        when
            Virtual time of the driver.
        stages
            Spark tasks of each Spark stage, each with the groups that it runs
            one after another.

        Returns
        -------
        future
            Future that is done when all Spark tasks have ended.
        """
        job = _Job(self._n_jobs, stages)
        self._n_jobs += 1
        self._submit_free = max(self._submit_free, when) + self._costs.job
        self._at(self._submit_free + self._costs.job_delay, self._begin_stage, job)
        return job.future

    def step(self) -> None:
        """Advance to the next event."""
        self.now, _, act, arguments = heapq.heappop(self._events)
        act(*arguments)
        while self._free and self._queue:
            *_, job, groups = heapq.heappop(self._queue)
            self._start_task(job, groups)

    def say(self, word: QuantumOutcome | Future[None]) -> None:
        """Send an event to the driver."""
        self.words.append((self.now, word))

    def _at(self, when: float, act: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), act, arguments))

    def _begin_stage(self, job: _Job) -> None:
        """Queue the Spark tasks of the next stage; Spark runs tasks of older jobs first."""
        tasks = job.stages.popleft()
        job.stage += 1
        job.missing = len(tasks)
        for number, groups in enumerate(tasks):
            heapq.heappush(self._queue, (job.number, job.stage, number, job, groups))

    def _start_task(self, job: _Job, groups: Sequence[int]) -> None:
        """Start a Spark task in a slot."""
        self._free -= 1
        self._n_tasks += 1
        self._launch_free = max(self._launch_free, self.now) + self._costs.launch
        begin = time = self._launch_free + self._costs.spark_task + self._costs.group
        waited = 0.0
        for group in groups:
            self.start[group] = time
            waited += self._wait_for_store(begin, self.groups.n_requests[group])
            time += self.groups.seconds[group]
            self.end[group] = time
        # It doesn't matter which of its groups waits, because all outcomes arrive at the end.
        time += waited
        self.end[groups[-1]] = time
        self._waited += waited
        self._spark_seconds += begin - self.now
        self._busy.append((self.now, time))
        self._at(time, self._end_task, job, groups)

    def _wait_for_store(self, when: float, n_requests: float) -> float:
        """Return how long requests wait for earlier requests to the object store."""
        if not self._costs.store_rate:
            return 0.0
        self._store_free = max(self._store_free, when) + n_requests / self._costs.store_rate
        return max(0.0, self._store_free - when - n_requests * self._costs.request)

    def _end_task(self, job: _Job, groups: Sequence[int]) -> None:
        """Send outcomes to the driver, as Spark does when a Spark task ends."""
        self._free += 1
        for group in groups:
            for quantum in self._plan.groups[group].quanta:
                report = self._reports[self._plan.task_labels[quantum]]
                seconds = self._seconds[quantum]
                self.say(
                    QuantumOutcome(quantum, QuantumAttemptStatus.SUCCESSFUL, report, wall_seconds=seconds)
                )
        job.missing -= 1
        if job.missing:
            return
        if job.stages:
            self._begin_stage(job)
        else:
            job.future.set_result(None)

    def finish(self, driver_time: float) -> Schedule:
        """Return the schedule of the finished run.

        Parameters
        ----------
        driver_time
            Time at which the driver had handled the last outcome.
        """
        costs, groups = self._costs, self.groups
        total = driver_time + costs.session
        work, overhead = float(groups.work.sum()), float(groups.overhead.sum()) + self._spark_seconds
        requests = costs.request * float(groups.requests.sum()) + self._waited
        shuffle = float(groups.shuffle.sum())
        for_driver, nothing_ready = self._idle(driver_time)
        unavoidable = max(0.0, self._workload.critical_path * self._slots - work)
        path = min(nothing_ready, unavoidable)
        terms = Terms(
            **{"work": work, "overhead": overhead, "requests": requests, "shuffle": shuffle},
            **{"driver": for_driver, "path": path, "order": nothing_ready - path},
            session=costs.session * self._slots,
        )
        n_quanta = len(self._workload)
        n_requests = float(groups.requests.sum())
        limits = {
            "critical path": self._workload.critical_path,
            "slots": (work + overhead + requests + shuffle) / self._slots,
            "driver": n_quanta * costs.driver,
            "Spark jobs": self._n_jobs * costs.job,
            "Spark tasks": self._n_tasks * costs.launch,
            "object store": n_requests / costs.store_rate if costs.store_rate else 0.0,
            "session": costs.session,
        }
        bound = self._workload.bound(self._slots)
        return Schedule(self._slots, total, bound, self.start, self.end, terms, limits)

    def _idle(self, last: float) -> tuple[float, float]:
        """Return the idle time of slots while groups were ready, and the idle time while none was."""
        ready = np.zeros(len(self._plan.groups))
        for unit in self._plan.units:
            when = max((self.end[need] for need in unit.upstream), default=0.0)
            for level in unit.levels:
                ready[list(level)] = when
                when = self.end[list(level)].max()
        begin, end = np.array(self._busy).T
        times = np.concatenate([begin, end, ready, self.start, [0.0, last]])
        slots = np.repeat([-1, 1, 0, 0, 0], [len(begin), len(end), len(ready), len(ready), 2])
        waiting = np.repeat([0, 0, 1, -1, 0], [len(begin), len(end), len(ready), len(ready), 2])
        order = np.argsort(times, kind="stable")
        length = np.diff(times[order])
        idle = self._slots + np.cumsum(slots[order])[:-1]
        n_ready = np.cumsum(waiting[order])[:-1]
        over = times[order][:-1] >= end.max()
        for_driver = np.where(over, idle, np.clip(n_ready, 0, idle))
        return float((length * for_driver).sum()), float((length * (idle - for_driver)).sum())


class _Words:
    """Queue at which the scheduler waits; waiting advances the driver's virtual time."""

    def __init__(self, cluster: Cluster, seconds: float):
        self._cluster = cluster
        self._seconds = seconds
        self.now = 0.0

    def put(self, word: QuantumOutcome | Future[None]) -> None:
        self._cluster.say(word)

    def get(self) -> QuantumOutcome | Future[None]:
        while not self._cluster.words:
            self._cluster.step()
        when, word = self._cluster.words.popleft()
        self.now = max(self.now, when)
        if isinstance(word, QuantumOutcome):
            self.now += self._seconds
        return word

    def empty(self) -> bool:
        return not self._cluster.words


class _Pool:
    """Replacement of the backend and of the threads that wait for Spark jobs."""

    def __init__(self, cluster: Cluster, words: _Words, plan: Plan, slots: int):
        self._cluster = cluster
        self._words = words
        self._plan = plan
        self.slots = slots

    def run(self, *_: Any) -> None:
        raise AssertionError("jobs are only simulated")

    def apply(self, *_: Any) -> list[Any]:
        raise AssertionError("no files are copied")

    def is_alive(self) -> bool:
        return True

    def cancel(self) -> None:
        pass

    def submit(self, run: Any, context: Any, batch: Sequence[UnitWork], report: Any) -> Any:
        if len(batch[0].widths) > 1:
            stages = [[(group,) for group in level] for level in self._plan.units[batch[0].index].levels]
        else:
            stages = [[work.groups for work in batch]]
        return self._cluster.submit(self._words.now, stages)

    def shutdown(self, *, wait: bool, cancel_futures: bool = False) -> None:
        pass


def simulate(workload: Workload, plan: Plan, slots: int, costs: Costs) -> Schedule:
    """Simulate a workload with the engine's scheduler.

    Half of the driver's time for a quantum passes before the quantum is submitted,
    the other half when its outcome has arrived.

    Parameters
    ----------
    workload
        The quanta.
    plan
        Groups and units of the quanta.
    slots
        Number of groups that run at the same time.
    costs
        Costs of the parts of a run.

    Returns
    -------
    schedule
        Result of the run.
    """
    cluster = Cluster(workload, plan, slots, costs)
    words = _Words(cluster, costs.driver / 2)
    pool = _Pool(cluster, words, plan, slots)

    def make_work(units: Sequence[Unit], blocked: object, done: object) -> UnitWork:
        groups = [index for unit in units for level in unit.levels for index in level]
        words.now += sum(len(plan.groups[index].quanta) for index in groups) * costs.driver / 2
        # `_Pool` uses only the numbers of the groups.
        return UnitWork(units[0].index, tuple(groups), tuple(map(len, units[0].levels)))  # type: ignore[arg-type]

    dispatcher = dispatch.Scheduler(
        plan,
        workload.xgraph,
        pool,
        make_work,
        on_outcome=lambda outcome: None,  # type: ignore[arg-type]
    )
    dispatcher._events = words  # type: ignore[assignment]
    with mock.patch.object(dispatch, "ThreadPoolExecutor", return_value=pool):
        dispatcher.run(None)  # type: ignore[arg-type]
    return cluster.finish(words.now)


def list_schedule(workload: Workload, plan: Plan, slots: int) -> float:
    """Return the wall time of a plan if free slots start the most urgent ready group, without other costs.

    Parameters
    ----------
    workload
        The quanta.
    plan
        Groups and units of the quanta.
    slots
        Number of groups that run at the same time.

    Returns
    -------
    seconds
        Time to the end of the last group.
    """
    remaining = workload.remaining(workload.seconds)
    urgency = [-remaining[list(group.quanta)].max() for group in plan.groups]
    feeds: list[list[int]] = [[] for _ in plan.groups]
    for group in plan.groups:
        for need in group.upstream:
            feeds[need].append(group.index)
    missing = [len(group.upstream) for group in plan.groups]
    ready = [(urgency[n], n) for n, count in enumerate(missing) if not count]
    heapq.heapify(ready)
    running: list[tuple[float, int]] = []
    now = 0.0
    while ready or running:
        while ready and len(running) < slots:
            _, n = heapq.heappop(ready)
            heapq.heappush(running, (now + workload.seconds[list(plan.groups[n].quanta)].sum(), n))
        now, n = heapq.heappop(running)
        for after in feeds[n]:
            missing[after] -= 1
            if not missing[after]:
                heapq.heappush(ready, (urgency[after], after))
    return now


def simulate_with_barriers(
    workload: Workload,
    plan: Plan,
    slots: int,
    costs: Costs,
    *,
    key: Callable[[Group], float] | None = None,
) -> Schedule:
    """Simulate a workload as one Spark job per stage of the plan, one job after the other.

    Parameters
    ----------
    workload
        The quanta.
    plan
        Groups and units of the quanta.
    slots
        Number of groups that run at the same time.
    costs
        Costs of the parts of a run.
    key
        Sort key of the groups of a stage; `None` keeps the order of the plan.

    Returns
    -------
    schedule
        Result of the run.
    """
    cluster = Cluster(workload, plan, slots, costs)
    words = _Words(cluster, costs.driver / 2)
    for stage in plan.stages:
        groups = stage if key is None else sorted(stage, key=key)
        words.now += costs.driver / 2 * sum(len(group.quanta) for group in groups)
        job = cluster.submit(words.now, [[(group.index,) for group in groups]])
        while not (job.done() and words.empty()):
            words.get()
    return cluster.finish(words.now)


def with_remaining(plan: Plan, remaining: NDArray[np.float64]) -> Plan:
    """Return a plan whose units have other lengths of their paths to the end of the graph.

    Parameters
    ----------
    plan
        The plan.
    remaining
        Length of the path from each quantum.
    """
    longest = [remaining[list(group.quanta)].max() for group in plan.groups]
    units = [
        dataclasses.replace(
            unit, remaining=float(max(longest[index] for level in unit.levels for index in level))
        )
        for unit in plan.units
    ]
    return dataclasses.replace(plan, units=tuple(units))
