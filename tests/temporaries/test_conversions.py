"""A task can't tell that its inputs never were in the repository: every mock case gives the same contents."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from spark_butler.driver.serial import SerialBackend
from tests.support.scenarios import Outputs, ScenarioRepo

if TYPE_CHECKING:
    from spark_butler.driver.backend import Backend

pytestmark = pytest.mark.pipeline

# Each can be made from the other.
_ONE, _OTHER = "ArrowAstropy", "ArrowTable"
_CASES: dict[str, Callable[[ScenarioRepo, str], None]] = {}


def _case(function: Callable[[ScenarioRepo, str], None]) -> Callable[[ScenarioRepo, str], None]:
    """Register a pipeline; its dataset types begin with a prefix and its final ones end with ``_end``."""
    _CASES[function.__name__.strip("_")] = function
    return function


def _chain(
    scenario: ScenarioRepo, x: str, a_in: str = _ONE, a_out: str = _ONE, b_in: str = _ONE, b_out: str = _ONE
) -> None:
    scenario.mock(f"{x}_a", {"i": (f"{x}_input", a_in)}, {"o": (f"{x}_mid", a_out)}, str_value=None)
    scenario.mock(f"{x}_b", {"i": (f"{x}_mid", b_in)}, {"o": (f"{x}_end", b_out)}, int_value=7)


@_case
def _no_conversion(scenario: ScenarioRepo, x: str) -> None:
    _chain(scenario, x)


@_case
def _registration_differs_from_both(scenario: ScenarioRepo, x: str) -> None:
    scenario.register(f"{x}_mid", _OTHER)
    _chain(scenario, x)


@_case
def _producer_differs_from_registration(scenario: ScenarioRepo, x: str) -> None:
    scenario.register(f"{x}_mid", _OTHER)
    _chain(scenario, x, b_in=_OTHER)


@_case
def _consumer_differs_from_registration(scenario: ScenarioRepo, x: str) -> None:
    _chain(scenario, x, a_out=_OTHER)


@_case
def _end_differs_from_registration(scenario: ScenarioRepo, x: str) -> None:
    scenario.register(f"{x}_end", _OTHER)
    _chain(scenario, x)


@_case
def _overall_input_differs(scenario: ScenarioRepo, x: str) -> None:
    scenario.register(f"{x}_input", _ONE)
    _chain(scenario, x, a_in=_OTHER)


@_case
def _consumers_differ_from_each_other(scenario: ScenarioRepo, x: str) -> None:
    scenario.mock(f"{x}_a", {"i": f"{x}_input"}, {"o": (f"{x}_mid", _OTHER)})
    scenario.mock(f"{x}_b", {"i": (f"{x}_mid", _ONE)}, {"o": f"{x}_b_end"})
    scenario.mock(f"{x}_c", {"i": (f"{x}_mid", _OTHER)}, {"o": f"{x}_c_end"})
    scenario.mock(f"{x}_d", {"i": (f"{x}_b_end", _OTHER), "j": (f"{x}_mid", _ONE)}, {"o": f"{x}_d_end"})


@_case
def _late(scenario: ScenarioRepo, x: str) -> None:
    scenario.register(f"{x}_mid", _OTHER)
    scenario.mock(f"{x}_a", {"i": f"{x}_input"}, {"o": f"{x}_mid"})
    scenario.mock(f"{x}_b", {"i": f"{x}_mid"}, {"o": f"{x}_end"}, deferred=["i"])


@_case
def _component(scenario: ScenarioRepo, x: str) -> None:
    scenario.mock(f"{x}_a", {"i": f"{x}_input"}, {"o": (f"{x}_mid", "ArrowAstropy")})
    scenario.mock(f"{x}_b", {"i": (f"{x}_mid.columns", "ArrowColumnList")}, {"o": f"{x}_end"})


@_case
def _component_of_converted(scenario: ScenarioRepo, x: str) -> None:
    scenario.register(f"{x}_mid", "ArrowTable")
    scenario.mock(f"{x}_a", {"i": f"{x}_input"}, {"o": (f"{x}_mid", "ArrowAstropy")})
    scenario.mock(f"{x}_b", {"i": (f"{x}_mid.schema", "ArrowSchema")}, {"o": f"{x}_end"})


@_case
def _component_that_is_converted(scenario: ScenarioRepo, x: str) -> None:
    scenario.mock(f"{x}_a", {"i": f"{x}_input"}, {"o": (f"{x}_mid", "ArrowTable")})
    scenario.mock(f"{x}_b", {"i": (f"{x}_mid.schema", "ArrowAstropySchema")}, {"o": f"{x}_end"})


@_case
def _whole_and_component_together(scenario: ScenarioRepo, x: str) -> None:
    scenario.mock(f"{x}_a", {"i": f"{x}_input"}, {"o": (f"{x}_mid", "VisitImage")})
    scenario.mock(
        f"{x}_b",
        {
            "i": (f"{x}_mid", "VisitImage"),
            "j": (f"{x}_mid.psf", "PointSpreadFunction"),
            "k": (f"{x}_mid.image", "ImageV2"),
        },
        {"o": f"{x}_end"},
    )


@_case
def _late_component(scenario: ScenarioRepo, x: str) -> None:
    scenario.mock(f"{x}_a", {"i": f"{x}_input"}, {"o": (f"{x}_mid", "ArrowAstropy")})
    scenario.mock(
        f"{x}_b",
        {"i": (f"{x}_mid", "ArrowAstropy")},
        {"o": f"{x}_end"},
        deferred=["i"],
        component="schema",
    )


@_case
def _parameters(scenario: ScenarioRepo, x: str) -> None:
    scenario.mock(f"{x}_a", {"i": f"{x}_input"}, {"o": (f"{x}_mid", "ArrowAstropy")})
    scenario.mock(
        f"{x}_b",
        {"i": (f"{x}_mid", "ArrowTable")},
        {"o": f"{x}_end"},
        deferred=["i"],
        columns=["ra", "dec"],
    )


def _gathered(name: str, **more: Any) -> dict[str, Any]:
    return {"dataset_type_name": name, "dimensions": ["detector"], "multiple": True, **more}


@_case
def _gather_and_scatter(scenario: ScenarioRepo, x: str) -> None:
    scenario.register(f"{x}_mid", _OTHER)
    scenario.mock(f"{x}_a", {"i": f"{x}_input"}, {"o": f"{x}_mid"})
    scenario.mock(
        f"{x}_b", {"i": _gathered(f"{x}_mid")}, {"o": (f"{x}_sum", _OTHER)}, dimensions=["instrument"]
    )
    sum_input = {"dataset_type_name": f"{x}_sum", "dimensions": ["instrument"]}
    scenario.mock(f"{x}_c", {"i": sum_input, "j": f"{x}_mid"}, {"o": f"{x}_end"})


@_case
def _late_gather(scenario: ScenarioRepo, x: str) -> None:
    scenario.mock(f"{x}_a", {"i": f"{x}_input"}, {"o": (f"{x}_mid", "ArrowAstropy")})
    scenario.mock(
        f"{x}_b",
        {"i": _gathered(f"{x}_mid", storage_class="ArrowAstropy")},
        {"o": f"{x}_end"},
        dimensions=["instrument"],
        deferred=["i"],
        columns=["ra"],
    )


@_case
def _several_outputs(scenario: ScenarioRepo, x: str) -> None:
    several = _gathered(f"{x}_mid")
    instrument_input = {"dataset_type_name": f"{x}_input", "dimensions": ["instrument"]}
    scenario.mock(f"{x}_a", {"i": instrument_input}, {"o": several}, dimensions=["instrument"])
    scenario.mock(f"{x}_b", {"i": f"{x}_mid"}, {"o": f"{x}_end"})


@_case
def _one_dataset_by_two_connections(scenario: ScenarioRepo, x: str) -> None:
    scenario.mock(f"{x}_a", {"i": f"{x}_input"}, {"o": f"{x}_mid"})
    scenario.mock(f"{x}_b", {"i": f"{x}_mid", "j": f"{x}_mid"}, {"o": f"{x}_end"})


@_case
def _no_work_upstream(scenario: ScenarioRepo, x: str) -> None:
    scenario.mock(
        f"{x}_a",
        {"i": f"{x}_input"},
        {"o": f"{x}_mid"},
        fail_condition="detector = 1",
        fail_exception="lsst.pipe.base.NoWorkFound",
    )
    scenario.mock(f"{x}_b", {"i": f"{x}_mid"}, {"o": f"{x}_next"})
    scenario.mock(f"{x}_c", {"i": f"{x}_next"}, {"o": f"{x}_c_end"})
    scenario.mock(f"{x}_d", {"i": _gathered(f"{x}_mid")}, {"o": f"{x}_d_end"}, dimensions=["instrument"])


@_case
def _no_work_at_all(scenario: ScenarioRepo, x: str) -> None:
    scenario.mock(
        f"{x}_a",
        {"i": f"{x}_input"},
        {"o": f"{x}_mid"},
        fail_condition="detector > 0",
        fail_exception="lsst.pipe.base.NoWorkFound",
    )
    scenario.mock(f"{x}_b", {"i": _gathered(f"{x}_mid")}, {"o": f"{x}_next"}, dimensions=["instrument"])
    next_input = {"dataset_type_name": f"{x}_next", "dimensions": ["instrument"], "minimum": 0}
    scenario.mock(f"{x}_c", {"i": next_input, "j": f"{x}_input"}, {"o": f"{x}_end"})


@_case
def _optional_input_never_made(scenario: ScenarioRepo, x: str) -> None:
    scenario.mock(f"{x}_a", {"i": f"{x}_input"}, {"o": f"{x}_mid"})
    scenario.mock(
        f"{x}_b",
        {"i": f"{x}_input"},
        {"o": f"{x}_extra"},
        fail_condition="detector = 2",
        fail_exception="lsst.pipe.base.NoWorkFound",
    )
    scenario.mock(
        f"{x}_c",
        {"i": f"{x}_mid", "j": {"dataset_type_name": f"{x}_extra", "minimum": 0}},
        {"o": f"{x}_end"},
    )


@pytest.fixture(scope="module")
def everything() -> Iterator[tuple[ScenarioRepo, Outputs]]:
    """All cases in one pipeline, run by pipe_base."""
    with ScenarioRepo.make() as scenario:
        for name, function in _CASES.items():
            function(scenario, name)
        yield scenario, scenario.run_reference()


@pytest.fixture(
    scope="module",
    params=[
        ("serial", "fused"),
        ("serial", "quantum"),
        pytest.param(("spark", ("detector",)), marks=pytest.mark.slow),
        pytest.param(("spark", "quantum"), marks=pytest.mark.slow),
    ],
    ids=["serial-fused", "serial-quantum", "spark-by-detector", "spark-quantum"],
)
def outputs(request: pytest.FixtureRequest, everything: tuple[ScenarioRepo, Outputs]) -> Outputs:
    """Outputs of a run in which all that another task reads is temporary."""
    scenario, _ = everything
    name, group_by = request.param
    if name == "serial":
        return scenario.run_temporary(SerialBackend(), _temporary(scenario), group_by)
    from spark_butler.spark.backend import SparkBackend

    with contextlib.closing(SparkBackend(request.getfixturevalue("spark"))) as backend:
        return scenario.run_temporary(backend, _temporary(scenario), group_by)


def _temporary(scenario: ScenarioRepo) -> list[str]:
    graph = scenario.repo.pipeline_graph
    return [name for name in graph.dataset_types if name.endswith(("_mid", "_sum", "_next", "_extra"))]


@pytest.mark.parametrize("case", _CASES)
def test_run_with_temporaries_equals_pipe_base(
    everything: tuple[ScenarioRepo, Outputs], outputs: Outputs, case: str
) -> None:
    scenario, reference = everything
    temporary = set(_temporary(scenario))
    expected = {
        key: value for key, value in reference.items() if _is_of(key[0], case) and key[0] not in temporary
    }
    assert any(name.endswith("_end") for name, _ in expected)
    assert {key: value for key, value in outputs.items() if _is_of(key[0], case)} == expected


def _is_of(name: str, case: str) -> bool:
    return max((other for other in _CASES if name.startswith(f"{other}_")), key=len) == case


@pytest.mark.slow
def test_every_temporary_crosses_on_spark(scenario: ScenarioRepo, spark_backend: Backend) -> None:
    for case in ("registration_differs_from_both", "gather_and_scatter"):
        _CASES[case](scenario, case)
    reference = scenario.run_reference()
    temporary = _temporary(scenario)
    found = scenario.run_temporary(spark_backend, temporary, "quantum")
    assert found == {key: value for key, value in reference.items() if key[0] not in temporary}


def test_cases_contain_their_conversions(everything: tuple[ScenarioRepo, Outputs]) -> None:
    _, expected = everything

    def find(name: str) -> Any:
        return expected[name, ("Cam1", 1)]

    late = find("parameters_end")["quantum"]["inputs"]["i"][0]
    assert late["parameters"] == {"columns": "['ra', 'dec']"}
    assert find("end_differs_from_registration_end")["converted_from"] is not None
    assert find("component_end")["quantum"]["inputs"]["i"][0]["parent"] is not None
    assert find("consumer_differs_from_registration_end")["quantum"]["inputs"]["i"][0]["converted_from"]
    for case in ("no_work_upstream_b", "optional_input_never_made_b"):
        assert len({value for (name, _), value in expected.items() if name == f"{case}_metadata"}) == 2
