"""Conditions that must hold after each chaos run."""

from __future__ import annotations

__all__ = ["check_contents", "check_objects", "check_registry", "check_reports"]

import json
import re
import uuid
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from spark_butler.demo.s3server import EmbeddedS3
from tests.integration.chaos.chaos_scenarios import Copy, list_keys, read_contents

_MOST = 5


def check_contents(copy: Copy, expected: Mapping[uuid.UUID, tuple[str, str, str]]) -> list[str]:
    """Compare a run's datasets with those of the serial run.

    Parameters
    ----------
    copy
        The run's repository.
    expected
        What the serial run made, but for what is temporary.

    Returns
    -------
    findings
        What is wrong.
    """
    found = read_contents(copy.repo)
    findings = [f"missing: {_text(expected[each])}" for each in expected.keys() - found.keys()]
    findings += [f"not expected: {_text(found[each])}" for each in found.keys() - expected.keys()]
    for each in expected.keys() & found.keys():
        if found[each] != expected[each]:
            findings.append(f"differs: {_text(expected[each])}: {found[each][2]}")
    return _shorten(findings)


def _text(content: tuple[str, str, str]) -> str:
    name, data_id, _ = content
    return f"{name} {data_id}"


def check_objects(copy: Copy, server: EmbeddedS3) -> list[str]:
    """Check that each object belongs to a dataset, and each dataset has its object."""
    keys = set(list_keys(server, copy.prefix)) - copy.inputs
    # Reports of attempts, and what later runs learn from those of more than a minute.
    keys = {key for key in keys if not re.search("(^|/)spark-butler-(reports|learned)/", key)}
    known = set(copy.registered().values())
    findings = [f"stray object: {key}" for key in sorted(keys - known)]
    findings += [f"no object: {key}" for key in sorted(known - keys)]
    return _shorten(findings)


# What two registries with the same run have in common: its ingest dates and numbers differ.
_SAME = {
    "collection": "SELECT name, type FROM collection",
    "chain": (
        "SELECT one.name, other.name, position FROM collection_chain "
        "JOIN collection AS one ON one.collection_id = parent "
        "JOIN collection AS other ON other.collection_id = child"
    ),
    "dataset": (
        "SELECT dataset.id, dataset_type.name, dataset_type.storage_class, collection.name FROM dataset "
        "JOIN dataset_type ON dataset_type.id = dataset_type_id JOIN collection ON collection_id = run_id"
    ),
}
_ODD = {
    "dataset without a place": (
        "SELECT id FROM dataset WHERE id NOT IN (SELECT dataset_id FROM dataset_location)"
    ),
    "place without a record": (
        "SELECT dataset_id FROM dataset_location "
        "WHERE dataset_id NOT IN (SELECT dataset_id FROM file_datastore_records)"
    ),
    "record without a place": (
        "SELECT dataset_id FROM file_datastore_records "
        "WHERE dataset_id NOT IN (SELECT dataset_id FROM dataset_location)"
    ),
    "trash": "SELECT dataset_id FROM dataset_location_trash",
}


def check_registry(copy: Copy, reference: Path, temporary: Collection[str]) -> list[str]:
    """Compare the tables of a registry with those of the serial run's.

    Parameters
    ----------
    copy
        The run's repository.
    reference
        That of the serial run.
    temporary
        Names of the dataset types that are temporary.
    """
    findings = []
    for what, sql in _SAME.items():
        expected = {row for row in copy.registry.ask(reference, sql) if not set(row) & set(temporary)}
        found = set(copy.registry.ask(copy.repo, sql))
        findings += [f"{what} missing in the registry: {row}" for row in sorted(expected - found)]
        findings += [f"{what} not expected in the registry: {row}" for row in sorted(found - expected)]
    for what, sql in _ODD.items():
        findings += [f"{what}: {row}" for row in copy.registry.ask(copy.repo, sql)]
    return _shorten(findings)


def check_reports(
    summaries: Sequence[Path], quanta: Collection[uuid.UUID], done_before: Collection[uuid.UUID]
) -> list[str]:
    """Check that each quantum was reported once by the last attempt, unless it had been done before.

    Parameters
    ----------
    summaries
        Files of the summaries of all attempts, of which those of the killed
        ones don't exist.
    quanta
        All quanta of the graph.
    done_before
        Those whose metadata was stored when the last attempt began.
    """
    if not summaries[-1].exists():
        return ["the last attempt has left no summary"]
    reports = json.loads(summaries[-1].read_text())["quantaReports"]
    counts = Counter(uuid.UUID(report["quantumId"]) for report in reports)
    findings = [f"reported {count} times: quantum {each}" for each, count in counts.items() if count > 1]
    findings += [
        f"reported as {report['status']}: {report['taskLabel']} {report['dataId']}"
        for report in reports
        if report["status"] != "success"
    ]
    findings += [f"not a quantum of the graph: {each}" for each in counts.keys() - set(quanta)]
    findings += [f"not reported: quantum {each}" for each in set(quanta) - counts.keys() - set(done_before)]
    return _shorten(findings)


def _shorten(findings: list[str]) -> list[str]:
    more = len(findings) - _MOST
    return findings if more <= 0 else [*findings[:_MOST], f"and {more} more"]
