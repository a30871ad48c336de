"""The stand-ins for real test data have the same files, containers, sizes and resolutions as what they stand for."""

import csv
from pathlib import Path

import cv2
import pytest

from her2batch.errors import SlideError
from her2batch.slides.readers import open_slide
from tests.shared_folders import folder_of_all_workers, make_once
from tests.stand_ins import make_stand_ins

TEXTS = ("README.md", "LICENSE")
"""Files of the real data that no test reads."""


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_once(folder_of_all_workers(tmp_path_factory) / "stand-ins", make_stand_ins)


def file_names(folder: Path) -> set[str]:
    """Relative paths of the slides and other data files under a folder."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.parent != folder]
    return {path.relative_to(folder).as_posix() for path in files if path.name not in TEXTS}


def slide_facts(path: Path) -> tuple[object, ...]:
    """What a reader reports about a slide, or the code of its error."""
    try:
        with open_slide(path) as slide:
            slide.validate()
            slide.overview(8.0) if slide.info.mpp else None
            info = slide.info
    except SlideError as error:
        return (error.code,)
    levels = [(one.width, one.height, one.chunk_width, one.chunk_height) for one in info.levels]
    mpp = None if info.mpp is None else round(info.mpp, 3)
    return info.format, info.reader, levels, mpp, info.mpp_source, info.objective, info.notes


@pytest.mark.long
def test_stand_ins_are_the_files_of_the_real_data(real_data: Path, stand_ins: Path) -> None:
    assert file_names(stand_ins) == file_names(real_data)


@pytest.mark.long
def test_stand_in_slides_have_the_properties_of_the_real_slides(real_data: Path, stand_ins: Path) -> None:
    for name in sorted(file_names(real_data)):
        if name.startswith(("slides/", "bad_slides/")):
            assert slide_facts(stand_ins / name) == slide_facts(real_data / name), name


@pytest.mark.long
def test_stand_in_cores_have_the_size_and_scores_of_the_real_cores(real_data: Path, stand_ins: Path) -> None:
    tables = [
        sorted(csv.reader((folder / "her2_cores" / "train.csv").open(encoding="utf-8")))
        for folder in (real_data, stand_ins)
    ]
    assert tables[0] == tables[1]
    for path in sorted((stand_ins / "her2_cores").glob("*.jpg")):
        images = [cv2.imread(str(folder / "her2_cores" / path.name)) for folder in (real_data, stand_ins)]
        assert images[0].shape == images[1].shape, path.name
