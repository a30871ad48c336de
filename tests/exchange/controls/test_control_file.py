"""The file of --controls: what it may state, and what a laboratory reads when it is wrong."""

import json
from pathlib import Path

import pytest

from her2batch.control_settings import ControlAnnotations, Controls
from her2batch.errors import InputError
from her2batch.exchange.controls.control_file import (
    choose_controls,
    control_folder,
    read_control_file,
    read_control_regions,
)
from her2batch.settings import Plan
from her2batch.store.cohort import Cohort

EXAMPLE = """
[[place]]
side = "left"
mm = 12
expected = ["0", "2+", "3+"]

[[place]]
side = "right"
box = [0, 5.5, 1, 4]
expected = "3+"

[annotations]
folder = "drawn"
expected = "3+"

[[slide]]
name = "CTRL-*"
expected = "3+"
"""


def written(folder: Path, text: str) -> Path:
    (folder / "drawn").mkdir(exist_ok=True)
    path = folder / "controls.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_states_places_annotations_and_slides(tmp_path: Path) -> None:
    found = read_control_file(written(tmp_path, EXAMPLE))
    left, right = found.controls.places
    assert (left.side, left.mm, left.expected) == ("left", 12, ("0", "2+", "3+"))
    assert (right.box, right.expected) == ((0, 5.5, 1, 4), ("3+",))
    assert found.controls.annotations == ControlAnnotations(expected=("3+",))
    assert found.controls.slides[0].name == "CTRL-*"
    assert found.folder == tmp_path / "drawn"
    assert str(found.controls) == "2 × place, 1 × name of control slides, annotations"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[[place]\n", "line 1"),
        ("[[places]]\nmm = 3\n", "places: there is no such table"),
        ("[place]\nmm = 3\n", "place: is not a table"),
        ("", "names no controls"),
        ('[[place]]\nside = "label"\nmm = 3\n', "place 1, side"),
        ("[[place]]\nmm = 3\n[[place]]\nmm = -1\n", "place 2, mm"),
        ("[[place]]\nmm = 3\nwidth = 4\n", "place 1, width"),
        ("[[place]]\nside = 'left'\n", "place 1: give either mm or box"),
        ("[[place]]\nmm = 3\nbox = [0, 1, 0, 1]\n", "place 1: give either mm or box"),
        ("[[place]]\nbox = [4, 1, 0, 1]\n", "place 1, box"),
        ("[[place]]\nbox = [0, nan, 0, 1]\n", "place 1, box"),
        ("[[place]]\nbox = [0, 1]\n", "place 1, box"),
        ('[[place]]\nmm = 3\nexpected = "4+"\n', "place 1, expected: '4+' is no class"),
        ('[[slide]]\nname = "C"\nexpected = ["0", "3+"]\n', "slide 1, expected"),
        ('[[slide]]\nexpected = "3+"\n', "slide 1, name"),
        ("[annotations]\n", "annotations.folder is missing"),
        ('[annotations]\nfolder = "nowhere"\n', "there is no folder"),
    ],
)
def test_a_wrong_file_is_an_error_that_names_the_place_and_the_remedy(tmp_path: Path, text: str, named: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(InputError) as error:
        read_control_file(path)
    assert named in error.value.message
    assert error.value.path == path
    assert error.value.remedy


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_control_file(tmp_path / "none.toml")


def test_auto_needs_no_file_and_no_option_keeps_the_plan(tmp_path: Path) -> None:
    cohort = Cohort(tmp_path / "cohort")
    assert choose_controls(Plan(), cohort, "auto").controls == Controls(auto=True)
    assert choose_controls(Plan(), cohort, None).controls is None
    assert control_folder("auto") is None
    assert control_folder(str(written(tmp_path, EXAMPLE))) == tmp_path / "drawn"


def test_a_cohort_with_annotated_controls_needs_their_folder_again(tmp_path: Path) -> None:
    cohort = Cohort(tmp_path / "cohort")
    cohort.create(Plan(controls=Controls(annotations=ControlAnnotations())))
    assert cohort.plan().controls == Controls(annotations=ControlAnnotations())
    with pytest.raises(InputError, match="annotations"):
        choose_controls(Plan(), cohort, None)
    assert choose_controls(Plan(), cohort, None, needed=False) == Plan()


def feature(name: str, left: float = 0.0) -> dict[str, object]:
    ring = [[left, 0.0], [left + 100, 0.0], [left + 100, 80.0], [left, 80.0], [left, 0.0]]
    properties = {"objectType": "annotation", "classification": {"name": name}}
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": properties}


@pytest.mark.parametrize(
    ("name", "role", "expected"),
    [
        ("Control", "control", "2+"),
        ("control", "control", "2+"),
        ("Control: 3+", "control", "3+"),
        ("Control: 0", "control", "0"),
        ("Exclude", "excluded", None),
        ("Tumor", None, None),
    ],
)
def test_the_class_of_a_region_states_its_role_and_what_is_expected(
    tmp_path: Path, name: str, role: str | None, expected: str | None
) -> None:
    path = tmp_path / "S1.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature(name)]}), encoding="utf-8")
    found = read_control_regions(path, ControlAnnotations(expected=("2+",)), (500, 400))
    assert [(region.role, region.expected) for region in found] == ([] if role is None else [(role, expected)])


def test_a_region_of_another_image_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "S1.geojson"
    path.write_text(json.dumps(feature("Control", left=9000.0)), encoding="utf-8")
    with pytest.raises(InputError, match=r"feature 1 \(Control\)"):
        read_control_regions(path, ControlAnnotations(), (500, 400))
