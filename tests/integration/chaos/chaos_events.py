"""Events of a run: drawn from a seed, before the run begins."""

from __future__ import annotations

__all__ = ["KINDS", "Event", "Script", "find_victims", "write_script"]

import contextlib
import dataclasses
import random
from collections.abc import Collection, Sequence

import psutil

from tests.integration.chaos.chaos_scenarios import SCENARIOS
from tests.support.clusters import Cluster
from tests.support.fault_proxy import FaultPlan

KINDS = {
    "worker": 6,
    "child": 3,
    "daemon": 3,
    "executor": 6,
    "server": 3,
    "disk": 3,
    "driver": 4,
    "outage": 2,
    "expired": 2,
    "overload": 1,
    "registry": 8,
    "decommission": 2,
    "added": 2,
}
"""Kinds of events, with how often each is chosen compared with the others.

``worker``, ``child`` (of a worker), ``daemon`` (the parent of an executor's
workers), ``executor`` (the JVM), ``server`` (the object store), ``driver``
and ``registry`` (its server, if it has one) are killed; ``disk`` fills a local
directory of Spark; ``decommission`` is the notice that an executor gets before
its machine goes; ``added`` is a further worker of the cluster; the others are
states of `fault_proxy.FaultProxy`.
"""

_DRIVER_PARTS = ("all", "python", "jvm")
_EARLY = 0.25
_LATE = 0.75


@dataclasses.dataclass(frozen=True)
class Event:
    """Something that befalls a run."""

    kind: str
    """One of `KINDS`."""

    progress: float
    """When: the share of the quanta that have left their metadata by then."""

    delay: float
    """Seconds to wait after that; or, where the progress is 0, after the start of the attempt."""

    seconds: float = 0.0
    """Seconds for which a state lasts."""

    lot: float = 0.0
    """Which of several victims."""

    part: str = ""
    """Which part of the driver program or of the object store dies."""

    def __str__(self) -> str:
        when = f"{self.progress:.0%}" if self.progress else f"{self.delay:.0f} s"
        what = f"{self.kind} ({self.part})" if self.part else self.kind
        return f"{what} at {when}" + (f" for {self.seconds:.0f} s" if self.seconds else "")


@dataclasses.dataclass(frozen=True)
class Script:
    """All that is drawn for a seed."""

    seed: int
    """The seed."""

    scenario: str
    """Name of the scenario."""

    variant: str
    """Name of the scenario's variant."""

    events: tuple[Event, ...]
    """Kills and states, in the order of their times."""

    faults: FaultPlan
    """Faults of requests to the object store."""

    pause: float = 0.0
    """Seconds between the death of a driver and the next attempt."""


def write_script(
    seed: int,
    *,
    kinds: Collection[str] = tuple(KINDS),
    scenario: str = "",
    variant: str = "",
    n_events: int | None = None,
    faults: bool = True,
    server_parts: Sequence[str] = (),
) -> Script:
    """Draw what befalls a run.

    Parameters
    ----------
    seed
        The seed.
    kinds
        Kinds of events to choose from.
    scenario, variant
        What to run, unless it is to be drawn.
    n_events
        How many events, unless that is to be drawn.
    faults
        Whether single requests are faulty.
    server_parts
        Parts of the object store that can be killed.
    """
    lots = random.Random(seed)
    drawn_scenario = "process_ccd" if lots.random() < 0.2 else "mock"
    scenario = scenario or drawn_scenario
    variants = SCENARIOS[scenario].variants
    drawn_variant = lots.choices(variants, [each.weight for each in variants])[0].name
    number = lots.choice((1, 2, 2, 3, 3, 4))
    weights = [KINDS[kind] for kind in kinds]
    drawn = lots.choices(list(kinds), weights, k=number if n_events is None else n_events) if kinds else []
    return Script(
        seed,
        scenario,
        variant or drawn_variant,
        tuple(_draw_event(kind, lots, server_parts) for kind in drawn),
        _draw_faults(seed, lots) if faults else FaultPlan(seed),
        lots.choice((0.0, 0.0, 3.0)),
    )


def _draw_event(kind: str, lots: random.Random, server_parts: Sequence[str]) -> Event:
    progress, delay = lots.uniform(0.01, 0.99), lots.uniform(0.0, 1.0)
    if kind in ("driver", "registry"):
        when = lots.random()
        if when < _EARLY:
            # While it starts, and writes what belongs to the run as a whole.
            progress, delay = 0.0, lots.uniform(3.0, 25.0)
        elif kind == "registry" and when > _LATE:
            # While it registers the last datasets and finishes.
            progress, delay = 1.0, lots.uniform(0.0, 3.0)
    seconds = 0.0
    match kind:
        case "server":
            seconds = lots.uniform(0.5, 4.0)
        case "disk" | "outage" | "expired" | "overload" | "registry":
            seconds = lots.uniform(1.0, 6.0)
    part = lots.choice(_DRIVER_PARTS) if kind == "driver" else ""
    if kind == "server" and len(server_parts) > 1:
        part = lots.choice(server_parts)
    return Event(kind, progress, delay, seconds, lots.random(), part)


def _draw_faults(seed: int, lots: random.Random) -> FaultPlan:
    """Draw the rates of the faults of single requests, but for ``short``."""
    total = lots.choice((0.0, 0.002, 0.005, 0.01))
    shares = {
        "500": 2,
        "500-after": 2,
        "503": 2,
        "hang": 0.5,
        "reset": 2,
        "reset-after": 2,
        "reset-middle": 1,
        "slow": 1,
        "truncated": 1,
    }
    rates = {name: total * share / sum(shares.values()) for name, share in shares.items()}
    return FaultPlan(seed, rates if total else {})


def find_victims(kind: str, cluster: Cluster, driver: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Find the processes of a kind that run now.

    Parameters
    ----------
    kind
        One of `KINDS`.
    cluster
        The cluster.
    driver
        Processes of the driver program.
    """
    if kind == "driver":
        return list(driver)
    found = sorted(cluster.executors, key=lambda process: process.pid)
    if kind == "decommission":
        return found
    for level in ("executor", "daemon", "worker", "child"):
        if level == kind:
            return found
        found = [child for process in found for child in _python_children(process)]
    return []


def _python_children(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return [child for child in process.children() if "python" in child.name()]
    return []
