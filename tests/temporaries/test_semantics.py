"""Real datasets as temporaries: parts, parameters, changes in place, absence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from lsst.pipe.base import QuantumSuccessCaveats

from spark_butler.driver.serial import SerialBackend

if TYPE_CHECKING:
    from spark_butler.driver.backend import Backend
    from tests.support.scenarios import Outputs, ScenarioRepo

_KINDS = {
    "array": ("make_array", "NumpyArray"),
    "dict": ("make_dict", "StructuredDataDict"),
    "table": ("make_table", "ArrowAstropy"),
    "visit": ("make_visit", "VisitImage"),
    "masked": ("make_masked", "MaskedImageV2"),
}


# Only there; no task reads it.
_START = {"dataset_type_name": "start", "mock_storage_class": True}


def _make(scenario: ScenarioRepo, kind: str, name: str = "") -> tuple[str, str]:
    """Add a task that makes a dataset of a kind; return what connects to it."""
    function, storage_class = _KINDS[kind]
    connection = (name or kind, storage_class)
    scenario.real(f"make_{name or kind}", function, {"i": _START}, {"o": connection}, deferred=["i"])
    return connection


def _part(whole: tuple[str, str], name: str, storage_class: str) -> tuple[str, str]:
    return f"{whole[0]}.{name}", storage_class


def _add_readers(scenario: ScenarioRepo) -> None:
    """Read datasets of all kinds in all ways."""
    for kind in _KINDS:
        scenario.real(f"describe_{kind}", "describe", {"i": _make(scenario, kind)}, {"o": f"{kind}_end"})
    visit, masked, table = (_make(scenario, kind, f"late_{kind}") for kind in ("visit", "masked", "table"))
    scenario.real("parts_visit", "describe_parts", {"i": visit}, {"o": "parts_visit_end"}, deferred=["i"])
    scenario.real("parts_masked", "describe_parts", {"i": masked}, {"o": "parts_masked_end"}, deferred=["i"])
    scenario.real("columns", "describe_columns", {"i": table}, {"o": "columns_end"}, deferred=["i"])
    visit = _make(scenario, "visit", "parted_visit")
    parts = {
        "p": _part(visit, "psf", "PointSpreadFunction"),
        "s": _part(visit, "sky_projection", "SkyProjection"),
        "t": _part(visit, "summary_stats", "ObservationSummaryStats"),
        "m": _part(visit, "masked_image", "MaskedImageV2"),
    }
    scenario.real("describe_parts", "describe", parts, {"o": "named_parts_end"})
    scenario.real("describe_all", "describe", {"w": visit, "p": parts["p"]}, {"o": "whole_and_part_end"})
    table = _make(scenario, "table", "converted_table")
    converted = (table[0], "ArrowNumpy")
    scenario.real("describe_converted", "describe", {"i": converted}, {"o": "converted_end"})


def _add_spoilers(scenario: ScenarioRepo) -> None:
    """Change in place what others read too."""
    for kind, spoil in (("array", "spoil"), ("dict", "spoil_dict"), ("visit", "spoil_visit")):
        made = _make(scenario, kind, f"spoiled_{kind}")
        for n in range(2):
            scenario.real(f"{spoil}{n}", spoil, {"i": made}, {"o": f"{spoil}{n}_end"})
        scenario.real(
            f"{spoil}_late", "describe", {"i": made, "after": f"{spoil}1_end"}, {"o": f"{spoil}_end"}
        )
    twin = _make(scenario, "array", "twin")
    scenario.real("describe_twins", "describe", {"i": twin, "j": twin}, {"o": "twins_end"})


def _add_sharers(scenario: ScenarioRepo) -> None:
    """Put objects that share memory."""
    for function in ("put_and_change", "put_same", "put_view"):
        names = [(f"{function}_{x}", "NumpyArray") for x in "op"]
        scenario.real(function, function, {"i": _START}, {"o": names[0], "p": names[1]}, deferred=["i"])
        scenario.real(f"{function}_spoil", "spoil", {"i": names[0]}, {"o": f"{function}_spoil_end"})
        scenario.real(
            f"{function}_read",
            "describe",
            {"i": names[1], "x": f"{function}_spoil_end"},
            {"o": f"{function}_end"},
        )


def _add_absentees(scenario: ScenarioRepo) -> None:
    """Leave out outputs."""
    outputs = {name: (f"half_{name}", "NumpyArray") for name in "op"}
    scenario.real("put_half", "put_half", {"i": _START}, outputs, deferred=["i"])
    scenario.real("read_first", "describe", {"i": outputs["o"]}, {"o": "first_end"})
    scenario.real("read_second", "describe", {"i": outputs["p"]}, {"o": "second_end"})
    optional = {"dataset_type_name": "half_p", "storage_class": "NumpyArray", "minimum": 0}
    scenario.real("read_optional", "describe", {"i": optional, "j": outputs["o"]}, {"o": "optional_end"})
    scenario.real(
        "put_nothing", "put_nothing_for_odd", {"i": _START}, {"o": ("even", "NumpyArray")}, deferred=["i"]
    )
    scenario.real("read_even", "describe", {"i": ("even", "NumpyArray")}, {"o": "even_end"})
    scenario.real(
        "read_all",
        "describe",
        {
            "i": {
                "dataset_type_name": "even",
                "storage_class": "NumpyArray",
                "multiple": True,
                "dimensions": ["detector"],
            }
        },
        {"o": "all_end"},
        dimensions=["instrument"],
    )


def _add_init_outputs(scenario: ScenarioRepo) -> None:
    """Hand something from task to task before there are data."""
    made = ("with_schema", "NumpyArray")
    scenario.real(
        "schema_maker",
        "make_array",
        {"i": _START},
        {"o": made},
        deferred=["i"],
        init_outputs={"schema_out": "schema"},
    )
    scenario.real(
        "schema_user", "describe", {"i": made}, {"o": "schema_end"}, init_inputs={"schema_in": "schema"}
    )


_PIPELINES = {
    "readers": _add_readers,
    "spoilers": _add_spoilers,
    "sharers": _add_sharers,
    "absentees": _add_absentees,
    "init-outputs": _add_init_outputs,
}


def _compare(scenario: ScenarioRepo, pipeline: str, backend: Backend, *grains: Any) -> Outputs:
    """Run a pipeline by pipe_base, and with all but its end temporary by the engine."""
    scenario.n_detectors = 2 if pipeline == "absentees" else 1
    _PIPELINES[pipeline](scenario)
    reference = scenario.run_reference(raise_on_partial_outputs=False)
    made = {
        edge.parent_dataset_type_name
        for task in scenario.repo.pipeline_graph.tasks.values()
        for edge in task.outputs.values()
    }
    temporary = sorted(name for name in made if not name.endswith("_end"))
    expected = {key: value for key, value in reference.items() if key[0] not in temporary}
    assert any(name.endswith("_end") for name, _ in expected)
    for grain in grains:
        found = scenario.run_temporary(backend, temporary, grain, raise_on_partial_outputs=False)
        assert found == expected
    return reference


@pytest.mark.parametrize("pipeline", _PIPELINES)
def test_serial_run_with_temporaries_equals_pipe_base(scenario: ScenarioRepo, pipeline: str) -> None:
    _compare(scenario, pipeline, SerialBackend(), "fused", "quantum")


@pytest.mark.parametrize(
    "pipeline",
    [pytest.param(name, marks=[] if name == "absentees" else pytest.mark.slow) for name in _PIPELINES],
)
def test_spark_run_with_temporaries_equals_pipe_base(
    scenario: ScenarioRepo, pipeline: str, spark_backend: Backend
) -> None:
    _compare(scenario, pipeline, spark_backend, "quantum")


def test_references_of_cases_differ(scenario: ScenarioRepo) -> None:
    reference: dict[Any, Any] = dict(_compare(scenario, "absentees", SerialBackend()))
    caveats = {
        key: QuantumSuccessCaveats(value[0]) for key, value in reference.items() if isinstance(value, tuple)
    }
    assert caveats["put_half_metadata", ("Cam1", 1)] & QuantumSuccessCaveats.PARTIAL_OUTPUTS_ERROR
    assert caveats["read_second_metadata", ("Cam1", 1)] & QuantumSuccessCaveats.ADJUST_QUANTUM_RAISED
    assert not caveats["read_optional_metadata", ("Cam1", 1)]
    assert ("even_end", ("Cam1", 1)) not in reference
    assert ("even_end", ("Cam1", 2)) in reference


def test_group_keeps_only_unread_temporaries_and_copies_only_for_several_readers(
    scenario: ScenarioRepo, monkeypatch: pytest.MonkeyPatch
) -> None:
    from spark_butler.codecs import copy_object
    from spark_butler.temporaries import butler as temporaries

    live: list[int] = []
    copies: list[str] = []
    end_quantum = temporaries.GroupButler.end_quantum

    def end(butler: Any, quantum: Any) -> None:
        end_quantum(butler, quantum)
        live.append(len(butler.live))

    def copy(obj: Any, storage_class: Any, **kwargs: Any) -> Any:
        copies.append(storage_class.name)
        return copy_object(obj, storage_class, **kwargs)

    monkeypatch.setattr(temporaries.GroupButler, "end_quantum", end)
    monkeypatch.setattr(temporaries, "copy_object", copy)
    scenario.n_detectors = 1
    first = _make(scenario, "array")
    scenario.real("second", "describe", {"i": first}, {"o": "second"})
    scenario.real("third", "describe", {"i": "second"}, {"o": "third"})
    scenario.real("fourth", "describe", {"i": "third", "j": first}, {"o": "fourth_end"})
    _graph, result = scenario.run(SerialBackend(), temporary=("array", "second", "third"), group_by="fused")
    assert not result.failed
    # After the first task the array; then also what the second and third have made; then nothing.
    assert live == [1, 2, 2, 0]
    # The array has two readers.
    assert copies == ["NumpyArray"]
