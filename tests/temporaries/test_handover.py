"""A temporary that only one task reads is handed over as it is, at once."""

from __future__ import annotations

import time
from pathlib import Path

from lsst.daf.butler import (
    ButlerConfig,
    Config,
    DataCoordinate,
    DatasetRef,
    DatasetType,
    DimensionUniverse,
    Quantum,
    QuantumBackedButler,
)
from lsst.images import Box

from spark_butler.temporaries.butler import GroupButler


def test_a_large_image_is_handed_over_in_two_milliseconds(tmp_path: Path) -> None:
    from tests.support.codec_samples import make_visit_image

    universe = DimensionUniverse()
    data_id = DataCoordinate.standardize(instrument="Cam", detector=1, universe=universe)
    dataset_type = DatasetType("image", ["instrument", "detector"], "VisitImage", universe=universe)
    image = make_visit_image(Box.factory[0:4096, 0:4096])
    config = ButlerConfig(Config({"root": str(tmp_path)}))
    took = []
    for _ in range(10):
        ref = DatasetRef(dataset_type, data_id, run="run")
        maker = Quantum(taskName="make", dataId=data_id, outputs={dataset_type: [ref]})
        reader = Quantum(taskName="read", dataId=data_id, inputs={dataset_type: [ref]})
        wrapped = QuantumBackedButler.from_predicted(config, [ref.id], [ref.id], universe, {})
        with GroupButler(
            wrapped,
            dataset_types={"image": dataset_type},
            temporary_types={"image"},
            consumers={ref.id: 1},
            known={},
        ) as butler:
            start = time.perf_counter()
            butler.begin_quantum(maker)
            butler.put(image, ref)
            butler.end_quantum(maker)
            butler.begin_quantum(reader)
            got = butler.get(ref)
            took.append(time.perf_counter() - start)
            butler.end_quantum(reader)
            assert got is image
            assert not butler.live
    assert min(took) < 0.002
