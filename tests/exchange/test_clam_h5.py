"""The HDF5 layout of CLAM and TRIDENT, and imports of valid, damaged and malicious files."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pytest

from her2batch.errors import InputError
from her2batch.exchange.clam_h5 import match_features, read_features, write_coords, write_features
from her2batch.store.cohort import Cohort
from tests.exchange.stored_examples import make_stored_cohort

MAX_ROWS = 10_000


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    return make_stored_cohort(tmp_path / "cohort", "S1", dim=8)


def read_tables(cohort: Cohort) -> tuple[dict, pa.Table, pa.Table]:
    return cohort.rows()["S1"], cohort.read("tiles", "S1"), cohort.read("embeddings/stain", "S1")


def embedding_array(table: pa.Table) -> np.ndarray:
    return np.stack(table["embedding"].to_numpy())


def write_clam_features(path: Path, tiles: pa.Table, dim: int = 8, **more: object) -> tuple[np.ndarray, np.ndarray]:
    """Write a file like extract_features_fp.py of CLAM: chunks of one row, resizable datasets, no attributes."""
    coords = np.stack([tiles["x"].to_numpy(), tiles["y"].to_numpy()], axis=1).astype(np.int32)
    features = np.random.default_rng(0).normal(size=(len(coords), dim)).astype(np.float32)
    with h5py.File(path, "w") as file:
        for name, values in (("features", features), ("coords", coords)):
            chunks, grows = (1, *values.shape[1:]), (None, *values.shape[1:])
            file.create_dataset(name, data=values, chunks=chunks, maxshape=grows)
        for name, value in more.items():
            file["coords"].attrs[name] = value
    return coords, features


def test_coordinates_have_the_layout_of_clam(cohort: Cohort, tmp_path: Path) -> None:
    row, tiles, _ = read_tables(cohort)
    write_coords(tmp_path / "S1.h5", row, tiles)
    with h5py.File(tmp_path / "S1.h5") as file:
        assert list(file) == ["coords"]
        coords, facts = file["coords"], dict(file["coords"].attrs)
        assert coords.dtype == np.int32
        assert coords.shape == (len(tiles), 2)
        assert coords[:, 0].tolist() == tiles["x"].to_pylist()
        assert coords[:, 1].tolist() == tiles["y"].to_pylist()
    assert {name: np.asarray(value).tolist() for name, value in facts.items()} == {
        "patch_size": 448, "patch_level": 0, "downsample": [1.0, 1.0], "downsampled_level_dim": [9000, 7000],
        "level_dim": [9000, 7000], "name": "S1", "save_path": "patches",
    }  # fmt: skip


def test_features_have_the_layout_of_trident(cohort: Cohort, tmp_path: Path) -> None:
    row, tiles, embeddings = read_tables(cohort)
    write_features(tmp_path / "S1.h5", row, tiles, embeddings, "stain", 224, 0.5)
    with h5py.File(tmp_path / "S1.h5") as file:
        assert sorted(file) == ["coords", "features"]
        assert file["features"].dtype == np.float32
        assert np.array_equal(file["features"][:], embedding_array(embeddings).astype(np.float32))
        assert len(file["coords"]) == len(tiles)
        facts = dict(file["coords"].attrs)
        assert dict(file["features"].attrs) == {"name": "S1", "savetodir": "features", "encoder": "stain"}
    wanted = {
        "patch_size": 224, "patch_size_level0": 448, "overlap": 0, "target_magnification": 20,
        "level0_magnification": 40, "level0_width": 9000, "level0_height": 7000, "name": "S1", "savetodir": "features",
    }  # fmt: skip
    assert {name: facts[name] for name in wanted} == wanted


def test_exported_embeddings_are_read_back_identical(cohort: Cohort, tmp_path: Path) -> None:
    row, tiles, embeddings = read_tables(cohort)
    write_features(tmp_path / "S1.h5", row, tiles, embeddings, "stain", 224, 0.5)
    bag = read_features(tmp_path / "S1.h5", MAX_ROWS)
    assert bag.encoder == "stain"
    values, passed = match_features(tmp_path / "S1.h5", bag, tiles)
    assert passed == 0
    assert values.dtype == np.float16
    assert np.array_equal(values, embedding_array(embeddings))


def test_equal_tables_give_equal_bytes(cohort: Cohort, tmp_path: Path) -> None:
    row, tiles, embeddings = read_tables(cohort)
    for name in ("one.h5", "two.h5"):
        write_features(tmp_path / name, row, tiles, embeddings, "stain", 224, 0.5)
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()


def test_rows_in_any_order_are_matched_to_tiles(cohort: Cohort, tmp_path: Path) -> None:
    _, tiles, _ = read_tables(cohort)
    order = np.random.default_rng(1).permutation(len(tiles))
    shuffled = tiles.take(pa.array(order))
    _, features = write_clam_features(tmp_path / "S1.h5", shuffled, patch_size_level0=448)
    values, _ = match_features(tmp_path / "S1.h5", read_features(tmp_path / "S1.h5", MAX_ROWS), tiles)
    assert np.array_equal(values[order], features.astype(np.float16))


def test_rows_without_tile_are_counted_and_left_out(cohort: Cohort, tmp_path: Path) -> None:
    _, tiles, _ = read_tables(cohort)
    few = tiles.slice(0, len(tiles) - 3)
    write_clam_features(tmp_path / "S1.h5", tiles)
    values, passed = match_features(tmp_path / "S1.h5", read_features(tmp_path / "S1.h5", MAX_ROWS), few)
    assert (len(values), passed) == (len(few), 3)


def test_tile_without_a_row_is_refused_with_its_position(cohort: Cohort, tmp_path: Path) -> None:
    _, tiles, _ = read_tables(cohort)
    write_clam_features(tmp_path / "S1.h5", tiles.slice(2))
    x, y = tiles["x"][0].as_py(), tiles["y"][0].as_py()
    wanted = rf"S1\.h5: there is no row for 2 of .* at x {x}, y {y}; they are 448 level-0 px wide; .*export COHORT"
    with pytest.raises(InputError, match=wanted):
        match_features(tmp_path / "S1.h5", read_features(tmp_path / "S1.h5", MAX_ROWS), tiles)


def test_tiles_of_another_size_are_refused(cohort: Cohort, tmp_path: Path) -> None:
    _, tiles, _ = read_tables(cohort)
    write_clam_features(tmp_path / "S1.h5", tiles, patch_size_level0=512)
    with pytest.raises(InputError, match="512 level-0 px wide, those of the slide 448"):
        match_features(tmp_path / "S1.h5", read_features(tmp_path / "S1.h5", MAX_ROWS), tiles)


def test_tile_with_two_rows_is_refused(cohort: Cohort, tmp_path: Path) -> None:
    _, tiles, _ = read_tables(cohort)
    write_clam_features(tmp_path / "S1.h5", pa.concat_tables([tiles, tiles.slice(5, 1)]))
    with pytest.raises(InputError, match="has two rows"):
        match_features(tmp_path / "S1.h5", read_features(tmp_path / "S1.h5", MAX_ROWS), tiles)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_values_too_large_for_float16_are_refused(value: float, cohort: Cohort, tmp_path: Path) -> None:
    _, tiles, _ = read_tables(cohort)
    write_clam_features(tmp_path / "S1.h5", tiles)
    with h5py.File(tmp_path / "S1.h5", "a") as file:
        file["features"][3, 2] = value
    with pytest.raises(InputError, match=r"1 of .* not finite or too large"):
        match_features(tmp_path / "S1.h5", read_features(tmp_path / "S1.h5", MAX_ROWS), tiles)


# -- malicious files -------------------------------------------------------------------------------------------


def _external_link(file: h5py.File, folder: Path) -> None:
    with h5py.File(folder / "secret.h5", "w") as other:
        other["features"] = np.zeros((3, 8), np.float32)
    file["features"] = h5py.ExternalLink(str(folder / "secret.h5"), "/features")


def _external_storage(file: h5py.File, folder: Path) -> None:
    (folder / "passwd").write_bytes(bytes(96))
    file.create_dataset("features", (3, 8), np.float32, external=[(str(folder / "passwd"), 0, 96)])


def _virtual(file: h5py.File, folder: Path) -> None:
    layout = h5py.VirtualLayout((3, 8), np.float32)
    layout[:] = h5py.VirtualSource(str(folder / "secret.h5"), "features", (3, 8))
    file.create_virtual_dataset("features", layout)


def _objects(file: h5py.File, folder: Path) -> None:
    file.create_dataset("features", data=np.array([[b"cos\nsystem"] * 8] * 3, object), dtype=h5py.string_dtype())


MALICIOUS: dict[str, tuple[Callable[[h5py.File, Path], object], str]] = {
    "external link": (_external_link, "links to other data"),
    "soft link": (lambda f, _: f.__setitem__("features", h5py.SoftLink("/coords")), "links to other data"),
    "external storage": (_external_storage, "links to other data"),
    "virtual": (_virtual, "links to other data"),
    "group": (lambda f, _: f.create_group("features"), "not a dataset in the file itself"),
    "objects": (_objects, "not floating-point numbers"),
    "whole numbers": (lambda f, _: f.create_dataset("features", (3, 8), "i4", np.zeros((3, 8))), "not floating-point"),
    "compound": (lambda f, _: f.create_dataset("features", (3, 8), [("a", "f4")]), "not floating-point"),
    "three axes": (lambda f, _: f.create_dataset("features", (3, 8, 2), "f4", np.ones((3, 8, 2))), "shape"),
    "one axis": (lambda f, _: f.create_dataset("features", (3,), "f4", np.ones(3)), "not of whole slides"),
    "other length": (lambda f, _: f.create_dataset("features", (4, 8), "f4", np.ones((4, 8))), "shape"),
    "no values": (lambda f, _: f.create_dataset("features", (3, 0), "f4"), "claims 3 embeddings of 0"),
    "too wide": (lambda f, _: f.create_dataset("features", (3, 10**6), "f4", chunks=(1, 1000)), "claims 3 embeddings"),
    "nothing stored": (lambda f, _: f.create_dataset("features", (3, 16_000), "f4", chunks=(1, 16_000)), "far fewer"),
    "missing": (lambda f, _: None, "has no dataset 'features'"),
}  # fmt: skip


@pytest.mark.parametrize("name", MALICIOUS)
def test_malicious_file_is_refused_with_its_name(name: str, tmp_path: Path) -> None:
    make, words = MALICIOUS[name]
    with h5py.File(tmp_path / "S1.h5", "w") as file:
        file["coords"] = np.zeros((3, 2), np.int32)
        make(file, tmp_path)
    with pytest.raises(InputError, match=words) as caught:
        read_features(tmp_path / "S1.h5", MAX_ROWS)
    assert str(caught.value).startswith(str(tmp_path / "S1.h5"))


@pytest.mark.parametrize("rows", [MAX_ROWS + 1, 2**40])
def test_dataset_with_too_many_rows_is_not_read(rows: int, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "S1.h5", "w") as file:
        for name, width, kind in (("coords", 2, "i4"), ("features", 1024, "f4")):
            file.create_dataset(name, (rows, width), kind, chunks=(1, width), compression="gzip")
    with pytest.raises(InputError, match=f"claims {rows} embeddings of 1024 values; the slide has room for {MAX_ROWS}"):
        read_features(tmp_path / "S1.h5", MAX_ROWS)


def test_decompression_bomb_is_not_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "S1.h5", "w") as file:
        file["coords"] = np.zeros((MAX_ROWS, 2), np.int32)
        zeros = np.zeros((MAX_ROWS, 1024), np.float32)
        file.create_dataset("features", data=zeros, chunks=(MAX_ROWS, 1024), compression="gzip")
    assert (tmp_path / "S1.h5").stat().st_size < 500_000
    with pytest.raises(InputError, match="stores far fewer"):
        read_features(tmp_path / "S1.h5", MAX_ROWS)


def test_filter_that_needs_a_plugin_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "S1.h5", "w") as file:
        file["coords"] = np.zeros((3, 2), np.int32)
        settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        settings.set_chunk((3, 8))
        settings.set_filter(32_015, h5py.h5z.FLAG_OPTIONAL, (3,))
        space = h5py.h5s.create_simple((3, 8))
        h5py.h5d.create(file.id, b"features", h5py.h5t.IEEE_F32LE, space, settings)
    with pytest.raises(InputError, match="filter 32015"):
        read_features(tmp_path / "S1.h5", MAX_ROWS)


@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_damaged_file_is_refused_with_its_name(damage: str, cohort: Cohort, tmp_path: Path) -> None:
    write_clam_features(tmp_path / "S1.h5", read_tables(cohort)[1])
    data = (tmp_path / "S1.h5").read_bytes()
    harm = {"cut": data[: len(data) // 2], "empty": b"", "text": b"x"}
    (tmp_path / "S1.h5").write_bytes(harm[damage])
    with pytest.raises(InputError, match=r"S1\.h5: the file cannot be read as HDF5"):
        read_features(tmp_path / "S1.h5", MAX_ROWS)


def test_random_damage_is_refused_or_harmless(cohort: Cohort, tmp_path: Path) -> None:
    """HDF5 has no checksum of numbers, so damage among them is not detected. Damage in the metadata is refused."""
    _, tiles, _ = read_tables(cohort)
    write_clam_features(tmp_path / "S1.h5", tiles.slice(0, 20))
    data = (tmp_path / "S1.h5").read_bytes()
    rng = np.random.default_rng(0)
    refused: list[str] = []
    for _ in range(150):
        at = int(rng.integers(len(data) - 16))
        (tmp_path / "S1.h5").write_bytes(data[:at] + rng.bytes(16) + data[at + 16 :])
        try:
            match_features(tmp_path / "S1.h5", read_features(tmp_path / "S1.h5", MAX_ROWS), tiles.slice(0, 20))
        except InputError as error:
            refused.append(str(error))
    assert refused
    assert all(message.startswith(str(tmp_path / "S1.h5")) for message in refused)


def test_unexpected_attributes_are_ignored(cohort: Cohort, tmp_path: Path) -> None:
    _, tiles, _ = read_tables(cohort)
    write_clam_features(tmp_path / "S1.h5", tiles, patch_size_level0="448; rm -rf /")
    with h5py.File(tmp_path / "S1.h5", "a") as file:
        file["features"].attrs["encoder"] = np.arange(5)
    bag = read_features(tmp_path / "S1.h5", MAX_ROWS)
    assert (bag.tile_px, bag.encoder) == (None, None)


NO_LOCKS = """
#include <errno.h>
#include <sys/file.h>
int flock(int file, int operation) { (void)file; (void)operation; errno = ENOLCK; return -1; }
"""

WRITE_AND_READ = """
import sys
from pathlib import Path
import pyarrow as pa
from her2batch.exchange.clam_h5 import write_coords, write_features, read_features
row = {"slide_id": "S", "width": 900, "height": 900, "objective": 20, "mpp": 0.5}
tiles = pa.table({"x": pa.array([0], pa.int32()), "y": pa.array([0], pa.int32()), "size": pa.array([224], pa.int32())})
vectors = pa.FixedSizeListArray.from_arrays(pa.array([1.0, 2.0], pa.float16()), 2)
write_coords(Path(sys.argv[1]) / "coords.h5", row, tiles)
write_features(Path(sys.argv[1]) / "S.h5", row, tiles, pa.table({"embedding": vectors}), "stain", 224, 0.5)
print(read_features(Path(sys.argv[1]) / "S.h5", 9).features.tolist())
"""


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_files_are_written_on_a_file_system_without_locks(tmp_path: Path) -> None:
    (tmp_path / "locks.c").write_text(NO_LOCKS)
    library = tmp_path / "locks.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, tmp_path / "locks.c"], check=True)
    env = {**os.environ, "LD_PRELOAD": str(library)}
    command = [sys.executable, "-c", WRITE_AND_READ, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    assert run.stdout == "[[1.0, 2.0]]\n", run.stderr
