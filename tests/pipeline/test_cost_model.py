"""The cost model: which resource is the slowest, and more hardware never takes longer."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from her2batch.pipeline.cost_model import (
    Cluster,
    Costs,
    SlideLoad,
    bottleneck,
    fit_to_run_times,
    slide_seconds,
    typical_slide,
)

loads = st.builds(
    SlideLoad, tiles=st.integers(0, 100_000), px=st.floats(0, 1e11), read_bytes=st.floats(1, 1e10),
    written_bytes=st.floats(1, 1e10), flat_px=st.floats(0, 1e10), codec=st.sampled_from(["jpeg", "jpeg2000", "other"]),
)  # fmt: skip


@given(loads, st.integers(1, 512), st.integers(0, 64))
def test_double_hardware_halves_the_time(load: SlideLoad, cores: int, gpus: int) -> None:
    one = slide_seconds(load, ("uni",), Cluster(cores, gpus))
    two = slide_seconds(load, ("uni",), Cluster(2 * cores, 2 * gpus, 2e9, 780e6))
    assert two == {name: pytest.approx(value / 2) for name, value in one.items()}


@given(loads, st.sampled_from(["stain", "uni", "virchow2", "timm:resnet50"]))
def test_network_takes_cores_without_a_gpu_and_the_gpu_with_one(load: SlideLoad, encoder: str) -> None:
    without, with_one = (slide_seconds(load, (encoder,), Cluster(8, gpus)) for gpus in (0, 1))
    plain = slide_seconds(load, ("stain",), Cluster(8))
    assert without["GPUs"] == 0
    assert with_one["cores"] == plain["cores"] <= without["cores"]
    assert (with_one["GPUs"] > 0) == (encoder != "stain" and load.tiles > 0)


def test_bottleneck_moves_with_the_number_of_gpus() -> None:
    """The example of docs/sizing.md: 100 mm² at 0.25 µm/px, UNI."""
    shapes = {
        "cores": Cluster(2, 1, 1.25e9, 1e9), "GPUs": Cluster(32, 1, 1.25e9, 1e9),
        "link": Cluster(512, 64, 1.25e9, 20e9), "disk": Cluster(512, 64, 125e9, 1e9),
    }  # fmt: skip
    assert {name: bottleneck(slide_seconds(typical_slide(), ("uni",), shape)) for name, shape in shapes.items()} == {
        name: name for name in shapes
    }


def test_two_cores_with_uni_take_a_month_for_a_thousand_slides() -> None:
    days = 1000 * slide_seconds(typical_slide(), ("uni",), Cluster(2))["cores"] / 86_400
    assert 25 < days < 45


def test_own_run_times_scale_the_time_of_the_cores_only() -> None:
    ours = fit_to_run_times(Costs(), predicted=10.0, measured=25.0)
    plain, drawn = (slide_seconds(typical_slide(), ("stain",), Cluster(4), costs) for costs in (Costs(), ours))
    assert drawn == replace_value(plain, "cores", pytest.approx(2.5 * plain["cores"]))
    assert fit_to_run_times(Costs(), 0.0, 3.0) == Costs()
    assert replace(ours, core_factor=1.0) == Costs()


def replace_value(parts: dict, name: str, value: object) -> dict:
    return {**parts, name: value}
