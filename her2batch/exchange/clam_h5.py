"""Writing and reading of coordinates and embeddings in the HDF5 layouts of CLAM and TRIDENT; reading of STAMP's.

A coordinates file has `coords` (N, 2) int32, x and y of the top left corner of each tile in level-0 px, with the
attributes of CLAM. A features file has `features` (N, D) float32 and `coords`, with the attributes of TRIDENT.
`patch_size` is in level-0 px in the first (CLAM reads patches of that size at patch_level 0), and in px at the target
magnification in the second.
Layout: github.com/mahmoodlab/CLAM (create_patches_fp.py, extract_features_fp.py), github.com/mahmoodlab/TRIDENT.

Imported files are not trusted: sizes are checked before anything is read, and only plain numeric datasets stored in
the file itself are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from her2batch.errors import InputError, one_line
from her2batch.exchange import stamp_h5

MPP_TIMES_OBJECTIVE: Final = 10.0
"""Product of resolution (µm/px) and objective: a 20× scan has 0.5 µm/px."""

MAX_EMBEDDING_LENGTH: Final = 16_384
"""Largest number of values of an embedding."""

MAX_COMPRESSION_RATIO: Final = 64
"""Largest ratio of a dataset's size to its bytes in the file. Floats never compress as well, decompression bombs do."""

ALLOWED_FILTERS: Final = frozenset({1, 2, 3, 4, 32000})
"""Filters built into HDF5 and h5py: deflate, shuffle, fletcher32, szip, LZF. Others would load a plugin."""

REMEDY: Final = "write it again with CLAM or TRIDENT from the coordinates of: her2batch export COHORT --to clam-h5"

SlideRow = Mapping[str, Any]
"""A row of the slides table."""


@dataclass(frozen=True)
class FeatureFile:
    """The content of a features file.

    coords: (N, 2), level-0 px; µm where tile_um is given.  features: (N, D).  tile_px: level-0 px; None when the file
    does not state it.  encoder: None when the file does not state it.  tile_um: of STAMP, width of a tile in µm.
    """

    coords: NDArray[Any]
    features: NDArray[np.floating[Any]]
    tile_px: int | None
    encoder: str | None
    tile_um: float | None = None


def write_coords(path: Path, row: SlideRow, tiles: pa.Table) -> None:
    """Write the coordinates of a slide's tiles, as patches/SLIDE.h5 of CLAM."""
    level = (row["width"], row["height"])
    attributes = {
        "patch_size": _tile_size(tiles), "patch_level": 0, "downsample": (1.0, 1.0), "downsampled_level_dim": level,
        "level_dim": level, "name": row["slide_id"], "save_path": "patches",
    }  # fmt: skip
    with h5py.File(path, "w", libver=("v108", "v108"), locking=False) as file:
        _write_dataset(file, "coords", _corners(tiles), attributes)


def write_features(
    path: Path, row: SlideRow, tiles: pa.Table, embeddings: pa.Table, encoder: str, tile: int, mpp: float
) -> None:
    """Write the embeddings of one encoder as a features file. tile, mpp: of the plan, px and µm/px."""
    column = embeddings["embedding"].combine_chunks()
    values = column.flatten().to_numpy().reshape(len(column), column.type.list_size)
    target = round(MPP_TIMES_OBJECTIVE / mpp)
    attributes = {
        "patch_size": tile, "patch_size_level0": _tile_size(tiles), "overlap": 0, "target_magnification": target,
        "level0_magnification": round(row["objective"] or MPP_TIMES_OBJECTIVE / row["mpp"]),
        "level0_width": row["width"], "level0_height": row["height"], "name": row["slide_id"], "savetodir": "features",
        "level0_mpp": row["mpp"], "target_mpp": mpp,
    }  # fmt: skip
    with h5py.File(path, "w", libver=("v108", "v108"), locking=False) as file:
        description = {"name": row["slide_id"], "savetodir": "features", "encoder": encoder}
        _write_dataset(file, "features", values.astype(np.float32), description)
        _write_dataset(file, "coords", _corners(tiles), attributes)


def read_features(path: Path, max_rows: int) -> FeatureFile:
    """Read a features file. max_rows: number of tiles that the slide has room for.

    Raises InputError when the file has no plain numeric features and coords of matching, plausible shapes.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            is_stamp = "features" not in file and stamp_h5.FEATURES in file
            names = (stamp_h5.FEATURES if is_stamp else "features", "coords")
            features, coords = (_open_dataset(path, file, name) for name in names)
            _check_shapes(path, features, coords, max_rows)
            if is_stamp:
                return _read_stamp(path, file, features, coords)
            size, encoder = _attribute(coords, "patch_size_level0"), _attribute(features, "encoder")
            corners = coords[()].astype(np.int64, casting="unsafe")
            return FeatureFile(corners, features[()], _as_int(size), encoder if isinstance(encoder, str) else None)
    except InputError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, MemoryError) as error:
        reason = one_line(error)[:160]
        raise InputError(f"the file cannot be read as HDF5 ({reason})", path, REMEDY) from error


def _read_stamp(path: Path, file: h5py.File, features: h5py.Dataset, coords: h5py.Dataset) -> FeatureFile:
    values, attributes = coords[()], {name: _attribute(file, name) for name in file.attrs}
    tile_um, scale = stamp_h5.tile_um_and_scale(path, attributes, values)
    encoder = attributes.get("extractor")
    return FeatureFile(values * scale, features[()], None, encoder if isinstance(encoder, str) else None, tile_um)


def match_stamp_features(
    path: Path, file: FeatureFile, tiles: pa.Table, mpp: float
) -> tuple[NDArray[np.float16], int, int]:
    """Return the embeddings of a STAMP file in the order of the tiles, (n, D) float16, with two numbers.

    The numbers are those of the rows that no tile uses, and of the tiles that differ from STAMP's by more than
    rounding.  mpp: of the slide.  Raises InputError like `match_features`.
    """
    assert file.tile_um is not None
    size = _tile_size(tiles)
    stamp_h5.check_tile_size(path, file.tile_um, size, mpp)
    rows, shifted = stamp_h5.nearest_rows(path, file.coords, _corners(tiles), size, mpp)
    return _to_float16(path, file.features[rows]), len(file.coords) - len(np.unique(rows)), shifted


def match_features(path: Path, file: FeatureFile, tiles: pa.Table) -> tuple[NDArray[np.float16], int]:
    """Return the embeddings in the order of the tiles, (n, D) float16, and the number of rows that match no tile.

    Raises InputError when a tile has no row or two, tiles have another size, or a value does not fit float16.
    """
    size = _tile_size(tiles)
    if file.tile_px is not None and len(tiles) and file.tile_px != size:
        what = f"its tiles are {file.tile_px} level-0 px wide, those of the slide {size}"
        raise InputError(what, path, REMEDY)
    tile_keys, row_keys = _corner_keys(_corners(tiles)), _corner_keys(file.coords)
    order = np.argsort(row_keys, kind="stable")
    sorted_keys = row_keys[order]
    if len(twice := sorted_keys[1:][(np.diff(sorted_keys) == 0) & (sorted_keys[1:] >= 0)]):
        what = f"the tile at x {twice[0] >> 32}, y {twice[0] & 0xFFFFFFFF} has two rows"
        raise InputError(what, path, REMEDY)
    position = np.searchsorted(sorted_keys, tile_keys)
    matches = position < len(sorted_keys)
    matches[matches] = sorted_keys[position[matches]] == tile_keys[matches]
    if not matches.all():
        x, y = _corners(tiles)[~matches][0]
        missing = f"there is no row for {int((~matches).sum())} of the slide's {len(tiles)} tiles"
        raise InputError(f"{missing}, the first at x {x}, y {y}; they are {size} level-0 px wide", path, REMEDY)
    return _to_float16(path, file.features[order[position]]), len(row_keys) - len(tile_keys)


def _to_float16(path: Path, features: NDArray[np.floating[Any]]) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        values = features.astype(np.float16)
    if bad := int((~np.isfinite(values)).any(axis=1).sum()):
        what = f"{bad} of {len(values)} embeddings have values that are not finite or too large for float16"
        raise InputError(what, path, "compute them again")
    return values


def _open_dataset(path: Path, file: h5py.File, name: str) -> h5py.Dataset:
    """Return a plain numeric dataset that is stored in the file itself. Raises InputError."""
    link = file.get(name, getlink=True)
    if link is None:
        raise InputError(
            f"the file has no dataset {name!r}", path, "give features files as written by CLAM, TRIDENT or STAMP"
        )
    dataset = file[name] if isinstance(link, h5py.HardLink) else None
    if not isinstance(dataset, h5py.Dataset) or dataset.external or dataset.is_virtual:
        what = f"its {name!r} is not a dataset in the file itself, and links to other data are not followed"
        raise InputError(what, path, REMEDY)
    is_stamp, is_features = stamp_h5.FEATURES in file and "features" not in file, name != "coords"
    kinds = "f" if is_features else "iuf" if is_stamp else "iu"
    if dataset.dtype.kind not in kinds or dataset.dtype.subdtype is not None:
        expected = "floating-point numbers" if is_features else "integers"
        raise InputError(f"its {name!r} contains {dataset.dtype}, not {expected}", path, REMEDY)
    properties = dataset.id.get_create_plist()
    filters = {properties.get_filter(k)[0] for k in range(properties.get_nfilters())}
    if filters - ALLOWED_FILTERS:
        what = f"its {name!r} is compressed with HDF5 filter {min(filters - ALLOWED_FILTERS)}, which is not supported"
        raise InputError(what, path, "write it with gzip compression")
    return dataset


def _check_shapes(path: Path, features: h5py.Dataset, coords: h5py.Dataset, max_rows: int) -> None:
    """Check that shapes match and are plausible for the slide, before anything is read. Raises InputError."""
    if coords.ndim != 2 or coords.shape[1] != 2:
        raise InputError(f"its 'coords' have shape {coords.shape}, not (N, 2)", path, REMEDY)
    if features.ndim != 2 or features.shape[0] != coords.shape[0]:
        what = f"its 'features' have shape {features.shape}, not ({coords.shape[0]}, D)"
        raise InputError(what, path, "give embeddings of tiles, not of whole slides")
    if coords.shape[0] > max_rows or not 1 <= features.shape[1] <= MAX_EMBEDDING_LENGTH:
        what = f"the file claims {features.shape[0]} embeddings of {features.shape[1]} values"
        limit = f"the slide has room for {max_rows} of at most {MAX_EMBEDDING_LENGTH} values"
        raise InputError(f"{what}; {limit}", path, REMEDY)
    for dataset in (features, coords):
        if dataset.nbytes > MAX_COMPRESSION_RATIO * max(dataset.id.get_storage_size(), 1) and dataset.size:
            what = f"the file claims {dataset.nbytes} bytes of {dataset.name[1:]!r}, but stores far fewer"
            raise InputError(what, path, REMEDY)


def _attribute(dataset: h5py.Dataset | h5py.File, name: str) -> Any:
    """Return the value of a small attribute; None when it is missing or larger than 1 kB."""
    if name not in dataset.attrs or dataset.attrs.get_id(name).get_storage_size() > 1024:
        return None
    value = dataset.attrs[name]
    return value.item() if isinstance(value, np.generic | np.ndarray) and value.size == 1 else value


def _as_int(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and abs(value) < 2**31 else None


def _write_dataset(file: h5py.File, name: str, values: NDArray[Any], attributes: Mapping[str, Any]) -> None:
    """Write a dataset with its attributes, without times, so that equal tables give equal bytes."""
    dataset = file.create_dataset(name, data=values, track_times=False)
    for key, value in attributes.items():
        dataset.attrs[key] = value


def _corners(tiles: pa.Table) -> NDArray[np.int32]:
    return np.stack([tiles["x"].to_numpy(), tiles["y"].to_numpy()], axis=1).astype(np.int32)


def _corner_keys(corners: NDArray[Any]) -> NDArray[np.int64]:
    """Return x and y as one integer, for matching: (n,). It is −1 for coordinates that no slide has."""
    xy = corners.astype(np.int64)
    inside = ((xy >= 0) & (xy < 2**31)).all(axis=1)
    keys: NDArray[np.int64] = np.where(inside, (xy[:, 0] << 32) | (xy[:, 1] & 0xFFFFFFFF), -1)
    return keys


def _tile_size(tiles: pa.Table) -> int:
    """Return the edge of the tiles, level-0 px, which is the same for all tiles of a slide; 0 without tiles."""
    return int(tiles["size"][0].as_py()) if len(tiles) else 0
