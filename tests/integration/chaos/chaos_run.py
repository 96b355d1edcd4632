"""One chaos run: a driver program, resubmitted as its user would, while things are killed around it."""

from __future__ import annotations

__all__ = ["Driver", "Result", "perform"]

import contextlib
import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from tests.integration.chaos.chaos_checks import (
    check_contents,
    check_objects,
    check_registry,
    check_reports,
)
from tests.integration.chaos.chaos_events import Event, Script, find_victims
from tests.integration.chaos.chaos_scenarios import RUN, SCENARIOS, Copy, Scenario, Variant, list_keys
from tests.integration.chaos.chaos_stage import Stage, java_options
from tests.support.fault_proxy import FaultProxy

_MOST_ATTEMPTS = 6
_RUN_SECONDS = 1200.0
_VICTIM_SECONDS = 5.0
_QUIET_SECONDS = 30.0
_SAMPLE_SECONDS = 2.0
_RESUME = ("--extend-run", "--skip-existing")
_DECOMMISSION = {
    "spark.decommission.enabled": "true",
    "spark.storage.decommission.enabled": "true",
    "spark.storage.decommission.shuffleBlocks.enabled": "true",
}


@dataclasses.dataclass
class Result:
    """Result of a run."""

    seed: int
    scenario: str
    variant: str
    events: list[str] = dataclasses.field(default_factory=list)
    """Events that took place."""

    faults: dict[str, int] = dataclasses.field(default_factory=dict)
    """Faulty requests, by fault."""

    requests: int = 0
    """Number of all requests to the object store."""

    attempts: int = 0
    """Number of submissions."""

    broken: list[str] = dataclasses.field(default_factory=list)
    """Attempts that ended by themselves without success, with their last words."""

    wall: float = 0.0
    """Seconds from the first submission to the end."""

    cpu: float = 0.0
    """Processor seconds of drivers and executors, as far as they were seen."""

    quanta: int = 0
    """Number of quanta of the graph."""

    repeated: int = 0
    """Number of quanta that were executed more than once."""

    most: int = 0
    """Number of executions of the most repeated quantum."""

    findings: list[str] = dataclasses.field(default_factory=list)
    """Broken conditions; none, in a good run."""

    @property
    def is_equal(self) -> bool:
        """Whether the run has ended as the serial one."""
        return not self.findings


@dataclasses.dataclass
class Driver:
    """The driver program of a run, in its several attempts."""

    stage: Stage
    folder: Path
    scenario: Scenario
    variant: Variant
    copy: Copy
    endpoint_url: str = ""
    n_attempts: int = 0
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        for name in ("conf", "tmp", "local"):
            (self.folder / name).mkdir(parents=True)
        settings = {
            "spark.master": self.stage.cluster.address,
            # One for each worker, and for one that is added; two are enough to begin.
            "spark.cores.max": "3",
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.driver.host": "127.0.0.1",
            "spark.driver.memory": "512m",
            "spark.executor.memory": "512m",
            "spark.driver.extraJavaOptions": java_options(self.folder / "tmp"),
            "spark.executor.extraJavaOptions": java_options(self.stage.temporary),
            "spark.executorEnv.CHAOS_RECORD": str(self.record),
            "spark.locality.wait": "0",
            "spark.scheduler.maxRegisteredResourcesWaitingTime": "20s",
            "spark.scheduler.minRegisteredResourcesRatio": "0.6",
            # As if they were on different hosts: what a lost executor had written is lost.
            "spark.shuffle.readHostLocalDisk": "false",
            **_DECOMMISSION,
            "spark.ui.enabled": "false",
            "spark.sql.warehouse.dir": str(self.folder / "tmp" / "warehouse"),
        }
        lines = [f"{name} {value}\n" for name, value in settings.items()]
        (self.folder / "conf" / "spark-defaults.conf").write_text("".join(lines))

    @property
    def record(self) -> Path:
        """File with a line for each execution of a mock quantum."""
        return self.folder / "record"

    def log(self, attempt: int) -> Path:
        """Log of an attempt."""
        return self.folder / f"driver{attempt}.log"

    def summary(self, attempt: int) -> Path:
        """The summary of an attempt, if it came so far."""
        return self.folder / f"summary{attempt}.json"

    def submit(self, *more: str) -> None:
        """Start an attempt."""
        self.n_attempts += 1
        program, *first = self.scenario.program
        arguments = [
            str(Path(sys.executable).with_name(program)),
            *first,
            *("-b", str(self.copy.repo), "-g", str(self.scenario.graph(self.stage.folder))),
            *("--output-run", RUN, "--register-dataset-types"),
            *("--summary", str(self.summary(self.n_attempts))),
            *self.variant.arguments,
            *more,
        ]
        environment = {
            **self.stage.environment(),
            **self.variant.environment,
            "S3_ENDPOINT_URL": self.endpoint_url,
            "SPARK_CONF_DIR": str(self.folder / "conf"),
            "SPARK_LOCAL_DIRS": str(self.folder / "local"),
            "TMPDIR": str(self.folder / "tmp"),
            "PYSPARK_PYTHON": sys.executable,
        }
        environment.pop("PYSPARK_GATEWAY_PORT", None)
        with self.log(self.n_attempts).open("wb") as log:
            log.write((" ".join(arguments) + "\n\n").encode())
            log.flush()
            self.process = subprocess.Popen(
                arguments, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def tree(self) -> list[psutil.Process]:
        """The processes of the driver program."""
        assert self.process is not None
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(self.process.pid)
            return [root, *root.children(recursive=True)]
        return []

    def last_words(self) -> str:
        """The end of what the last attempt has said."""
        lines = self.log(self.n_attempts).read_text(errors="replace").splitlines()
        told = [line for line in lines if line.startswith(("Error:", "FAILED", "Stopped"))]
        return "; ".join((told or [line for line in lines if line.strip()])[-2:])[:400]


class _Play:
    """A run and what befalls it.

    Parameters
    ----------
    stage
        Where it runs.
    script
        What befalls it.
    driver
        Its driver program.
    proxy
        The proxy before the object store.
    result
        The result to fill in.
    """

    def __init__(self, stage: Stage, script: Script, driver: Driver, proxy: FaultProxy, result: Result):
        self._stage = stage
        self._script = script
        self._driver = driver
        self._proxy = proxy
        self._result = result
        self._todo = list(script.events)
        self._due: dict[Event, float] = {}
        self._later: list[tuple[float, Any]] = []
        self._killed = False
        self._done: set[str] = set()
        self._log_offset = 0
        self._cpu: dict[tuple[int, float], float] = {}
        self._sampled = 0.0
        self._submitted = 0.0
        self.stored: set[str] = set()

    def run(self) -> None:
        """Submit the driver program until it succeeds."""
        began = time.monotonic()
        more: tuple[str, ...] = ()
        while True:
            self.stored = set(list_keys(self._stage.server, self._driver.copy.prefix)) if more else set()
            self._killed = False
            self._driver.submit(*more)
            self._submitted = time.monotonic()
            status = self._watch(began + _RUN_SECONDS)
            self._settle()
            if status == 0:
                break
            if status is None:
                self._result.findings.append("hung")
                break
            if not self._killed:
                self._result.broken.append(f"exit status {status}: {self._driver.last_words()}")
            if self._driver.n_attempts >= _MOST_ATTEMPTS:
                self._result.findings.append(f"no success in {_MOST_ATTEMPTS} attempts")
                break
            time.sleep(self._script.pause)
            more = _RESUME if self._driver.copy.has_run() else ()
        self._result.wall = time.monotonic() - began
        self._result.cpu = sum(self._cpu.values())
        self._result.attempts = self._driver.n_attempts

    def _watch(self, deadline: float) -> int | None:
        """Have things happen until the driver program ends; return its exit status."""
        process = self._driver.process
        assert process is not None
        while (status := process.poll()) is None:
            now = time.monotonic()
            if now > deadline:
                self._end_hung()
                return None
            self._read_log()
            for event in list(self._todo):
                self._consider(event, now)
            for due, action in [each for each in self._later if each[0] <= now]:
                self._later.remove((due, action))
                action()
            if now - self._sampled > _SAMPLE_SECONDS:
                self._sample()
                self._sampled = now
            time.sleep(0.05)
        return status

    def _settle(self) -> None:
        """Bring to its end what has begun."""
        for _, action in self._later:
            action()
        self._later.clear()
        self._stage.server.wait()

    def _read_log(self) -> None:
        """See which quanta have left their metadata."""
        with self._proxy.log.open("rb") as stream:
            stream.seek(self._log_offset)
            data = stream.read()
        whole = data.rpartition(b"\n")[0]
        self._log_offset += len(whole) + bool(whole)
        for line in whole.splitlines():
            if b"_metadata/" in line and b'"PUT"' in line:
                request = json.loads(line)
                if request["status"] == "200":
                    self._done.add(request["target"])

    def _consider(self, event: Event, now: float) -> None:
        """See whether it is time for an event."""
        if event not in self._due:
            if event.progress == 0.0:
                self._due[event] = self._submitted + event.delay
            elif len(self._done) >= event.progress * self._result.quanta:
                self._due[event] = now + event.delay
            else:
                return
        if now < self._due[event]:
            return
        if self._happen(event, now) or now > self._due[event] + _VICTIM_SECONDS:
            self._todo.remove(event)

    def _happen(self, event: Event, now: float) -> bool:
        """Do what an event says; return whether it was possible."""
        match event.kind:
            case "outage" | "expired" | "overload":
                self._proxy.suffer(event.kind, event.seconds)
            case "server":
                self._stage.server.kill(event.part)
                self._later.append((now + event.seconds, self._restart_server))
            case "registry":
                self._stage.registry.kill()
                self._later.append((now + event.seconds, self._stage.registry.restart))
            case "disk":
                chosen = self._stage.disks[:1] if event.lot < 0.4 else self._stage.disks[1:]
                chosen = self._stage.disks if event.lot > 0.8 else chosen
                if not all(disk.is_small for disk in chosen):
                    return False
                for disk in chosen:
                    disk.fill()
                    self._later.append((now + event.seconds, disk.free))
            case "added":
                self._stage.cluster.add_worker()
            case _:
                return self._kill(event)
        self._result.events.append(str(event))
        return True

    def _restart_server(self) -> None:
        self._stage.restart_server()
        self._proxy.move(self._stage.server.endpoint_url)

    def _kill(self, event: Event) -> bool:
        """Kill a process; return whether there was one."""
        victims = find_victims(event.kind, self._stage.cluster, self._driver.tree())
        if event.kind == "driver":
            java = [each for each in victims if "java" in each.name()]
            python = [each for each in victims if "java" not in each.name()]
            victims = {"all": victims, "jvm": java, "python": python}[event.part]
        elif victims:
            victims = [victims[int(event.lot * len(victims))]]
        hit = False
        for victim in victims:
            with contextlib.suppress(psutil.Error):
                victim.send_signal(signal.SIGPWR if event.kind == "decommission" else signal.SIGKILL)
                hit = True
        if hit:
            self._killed = self._killed or event.kind == "driver"
            self._result.events.append(str(event))
        return hit

    def _sample(self) -> None:
        """Look how much processor time all processes have used."""
        processes = self._driver.tree()
        for worker in self._stage.cluster.workers:
            with contextlib.suppress(psutil.Error):
                processes += psutil.Process(worker.pid).children(recursive=True)
        workers = {each.pid for each in find_victims("worker", self._stage.cluster, ())}
        for process in processes:
            with contextlib.suppress(psutil.Error):
                if process.ppid() in workers:
                    # Its parent has its time when it has ended.
                    continue
                times = process.cpu_times()
                used = times.user + times.system
                if process.pid in workers:
                    used += times.children_user + times.children_system
                self._cpu[process.pid, process.create_time()] = used

    def _end_hung(self) -> None:
        """Have a driver program that hangs say where, and end it."""
        for process in self._driver.tree():
            with contextlib.suppress(psutil.Error):
                if "java" in process.name():
                    process.send_signal(signal.SIGQUIT)
        time.sleep(2)
        for process in self._driver.tree():
            with contextlib.suppress(psutil.Error):
                process.kill()


def perform(stage: Stage, script: Script) -> Result:
    """Perform a run and look at what it has left.

    Parameters
    ----------
    stage
        Where it runs.
    script
        What befalls it.

    Returns
    -------
    result
        Its result.  What is needed to look into a run that is not equal
        is kept in the stage's folder, under ``failures``.
    """
    scenario = SCENARIOS[script.scenario]
    (variant,) = (each for each in scenario.variants if each.name == script.variant)
    result = Result(script.seed, scenario.name, variant.name)
    quanta = scenario.quanta(stage.folder)
    result.quanta = len(quanta)
    folder = stage.folder / "run"
    copy = scenario.copy(stage.folder, f"seed{script.seed}", stage.server, stage.registry)
    driver = Driver(stage, folder, scenario, variant, copy)
    with FaultProxy(stage.server.endpoint_url, script.faults, folder / "requests") as proxy:
        driver.endpoint_url = proxy.endpoint_url
        play = _Play(stage, script, driver, proxy, result)
        play.run()
        stage.remove_added_workers()
        result.findings += stage.wait_until_quiet(_QUIET_SECONDS)
        requests = proxy.requests()
    for path in stage.cluster.folder.glob("work*/app-*"):
        shutil.copytree(path, folder / "executors" / path.parent.name / path.name, dirs_exist_ok=True)
    result.requests = len(requests)
    result.faults = dict(Counter(each["fault"] for each in requests if each["fault"]))
    counts = _count_executions(driver, requests)
    result.repeated = sum(count > 1 for count in counts.values())
    result.most = max(counts.values(), default=0)
    result.findings += check_contents(copy, scenario.expected(stage.folder, variant))
    result.findings += check_registry(copy, scenario.reference(stage.folder), variant.temporary)
    result.findings += check_objects(copy, stage.server)
    registered = copy.registered()
    done_before = [
        quantum_id for quantum_id, metadata in quanta.items() if registered.get(metadata) in play.stored
    ]
    summaries = [driver.summary(n) for n in range(1, driver.n_attempts + 1)]
    result.findings += check_reports(summaries, quanta, done_before)
    # Executors of a worker that is removed die with it.
    jvm_died = any(text.startswith(("executor", "driver", "added")) for text in result.events)
    result.findings += stage.sweep(
        [folder / "tmp", folder / "local"],
        jvm_died=jvm_died,
        daemon_died=any(text.startswith("daemon") for text in result.events),
    )
    if result.findings:
        _keep(stage, script, driver, result)
    else:
        copy.remove(stage.server)
    return result


def _count_executions(driver: Driver, requests: list[dict[str, Any]]) -> Counter[str]:
    """Count how often each quantum was executed; of real tasks, those that came to an end."""
    if driver.record.exists():
        return Counter(driver.record.read_text().splitlines())
    return Counter(
        each["target"]
        for each in requests
        if "_metadata/" in each["target"] and each["method"] == "PUT" and each["status"] == "200"
    )


def _keep(stage: Stage, script: Script, driver: Driver, result: Result) -> None:
    """Keep what is needed to look into a run; the objects stay in the store."""
    place = stage.folder / "failures" / f"seed{script.seed}"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(driver.folder, place)
    shutil.move(driver.copy.repo, place / "repo")
    text = "\n".join(list_keys(stage.server, driver.copy.prefix))
    (place / "objects").write_text(text)
    (place / "script").write_text(f"{script}\n\n{result}\n")
