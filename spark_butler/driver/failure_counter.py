"""Counter of the failures of a run, which applies its stop rule and logs each cause.  Runs in the driver."""

from __future__ import annotations

__all__ = ["FailureCounter", "explain_failure"]

import logging
import re
from collections import Counter

from lsst.pipe.base import InvalidQuantumError

from ..model.options import StopRule
from ..model.outcomes import QuantumOutcome, exit_text, job_text
from ..text import format_count

logger = logging.getLogger(__name__)

_NUMBER = re.compile(r"\d+")
_MILESTONES = {10**n for n in range(1, 8)}


class FailureCounter:
    """Number of failures of a run so far."""

    def __init__(self, rule: StopRule):
        self._rule = rule
        self._alike: dict[str, tuple[str, int]] = {}
        self._causes: Counter[tuple[str, str]] = Counter()
        self.number = 0
        """Number of quanta that failed."""

    def record_success(self, label: str) -> None:
        """Reset the count of consecutive failures of a task, since one of its quanta succeeded."""
        self._alike.pop(label, None)

    def log(self, outcome: QuantumOutcome, n_blocked: int) -> None:
        """Log a failure: in full if its cause is new, otherwise at most the number of such failures.

        ``n_blocked`` quanta can't run because of it.
        """
        label = outcome.label
        cause = label, _NUMBER.sub("#", outcome.reason)
        self._causes[cause] += 1
        number = self._causes[cause]
        skipped = (
            f"; {format_count(n_blocked, 'quantum', 'quanta')} downstream will be skipped"
            if n_blocked
            else ""
        )
        if number == 1:
            text = explain_failure(outcome)
            logger.error("Task %s %s%s.", job_text(outcome.report), text, skipped)
        elif number in _MILESTONES:
            logger.error(
                "%d quanta of task %s have failed with that cause: %s", number, label, outcome.reason
            )
        else:
            logger.debug(
                "Task %s failed with the same cause: %s%s", job_text(outcome.report), outcome.reason, skipped
            )

    def record(self, outcome: QuantumOutcome) -> str:
        """Count a failure, and return the reason to stop the run; empty while it may continue."""
        self.number += 1
        rule = self._rule
        if outcome.report.exitCode == InvalidQuantumError.EXIT_CODE:
            return "the task reported that the run can only fail"
        if rule.fail_fast:
            return "fail-fast is set"
        if rule.most is not None and self.number >= rule.most:
            return f"{self.number} quanta have failed"
        label, message = outcome.label, _NUMBER.sub("#", outcome.reason)
        last, n_alike = self._alike.get(label, (message, 0))
        n_alike = n_alike + 1 if last == message else 1
        self._alike[label] = message, n_alike
        if rule.most_alike is not None and n_alike >= rule.most_alike:
            return f"{n_alike} quanta of {label} in a row have failed alike"
        return ""


def explain_failure(outcome: QuantumOutcome) -> str:
    """Log the traceback and the last log records of a failure, and return its reason."""
    exit_code = outcome.report.exitCode
    job = job_text(outcome.report)
    if outcome.traceback:
        logger.debug("Task %s raised:\n%s", job, outcome.traceback)
    if outcome.log_tail:
        logger.error("Last log messages of task %s:\n%s", job, outcome.log_tail)
    text = "timed out, task is killed" if outcome.timed_out else "failed"
    if exit_code is not None and not outcome.timed_out:
        text = f"failed, {exit_text(exit_code)}"
        if outcome.reason.startswith(exit_text(exit_code)):
            text = "failed"
    if outcome.reason:
        return f"{text}, {outcome.reason}" if text == "failed" else f"{text} ({outcome.reason})"
    return text
