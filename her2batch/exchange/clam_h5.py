"""Coordinates and embeddings in the HDF5 layout of CLAM and TRIDENT, out and in.

Coordinates: `coords` (N, 2) int32, x and y of each tile's top left in level-0 px, with CLAM's attributes. Embeddings:
`features` (N, D) float32 and `coords` beside them, with TRIDENT's attributes. `patch_size` means level-0 px in the
first (CLAM reads patches of that size at patch_level 0) and px at the target magnification in the second.
Layout: github.com/mahmoodlab/CLAM (create_patches_fp.py, extract_features_fp.py), github.com/mahmoodlab/TRIDENT.

A file from outside is data that somebody else made: sizes are checked before anything is read, and only plain datasets
of plain numbers inside this very file are.
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

MPP_TIMES_OBJECTIVE: Final = 10.0
"""A 20× scan has 0.5 µm/px."""

MAX_EMBEDDING_LENGTH: Final = 16_384
"""Values of one embedding, at most."""

MAX_COMPRESSION_RATIO: Final = 64
"""A dataset may be so many times as large as what the file holds of it: floats never pack as well, bombs do."""

ALLOWED_FILTERS: Final = frozenset({1, 2, 3, 4, 32000})
"""deflate, shuffle, fletcher32, szip, LZF: what HDF5 and h5py bring themselves. Others would load a plugin."""

REMEDY: Final = "write it again with CLAM or TRIDENT from the coordinates of: her2batch export COHORT --to clam-h5"

SlideRow = Mapping[str, Any]
"""A row of the slides table."""


@dataclass(frozen=True)
class FeatureFile:
    """What a file holds. coords: (N, 2) int64.  features: (N, D).  tile_px: level-0 px, None where it does not say."""

    coords: NDArray[np.int64]
    features: NDArray[np.floating[Any]]
    tile_px: int | None
    encoder: str | None


def write_coords(path: Path, row: SlideRow, tiles: pa.Table) -> None:
    """The tiles as CLAM's patches/SLIDE.h5."""
    level = (row["width"], row["height"])
    facts = {
        "patch_size": _tile_size(tiles), "patch_level": 0, "downsample": (1.0, 1.0), "downsampled_level_dim": level,
        "level_dim": level, "name": row["slide_id"], "save_path": "patches",
    }  # fmt: skip
    with h5py.File(path, "w", libver=("v108", "v108")) as file:
        _write_dataset(file, "coords", _corners(tiles), facts)


def write_features(
    path: Path, row: SlideRow, tiles: pa.Table, embeddings: pa.Table, encoder: str, tile: int, mpp: float
) -> None:
    """The embeddings of one encoder as a file of features. tile, mpp: of the plan, px and µm/px."""
    column = embeddings["embedding"].combine_chunks()
    values = column.flatten().to_numpy().reshape(len(column), column.type.list_size)
    target = round(MPP_TIMES_OBJECTIVE / mpp)
    facts = {
        "patch_size": tile, "patch_size_level0": _tile_size(tiles), "overlap": 0, "target_magnification": target,
        "level0_magnification": round(row["objective"] or MPP_TIMES_OBJECTIVE / row["mpp"]),
        "level0_width": row["width"], "level0_height": row["height"], "name": row["slide_id"], "savetodir": "features",
        "level0_mpp": row["mpp"], "target_mpp": mpp,
    }  # fmt: skip
    with h5py.File(path, "w", libver=("v108", "v108")) as file:
        about = {"name": row["slide_id"], "savetodir": "features", "encoder": encoder}
        _write_dataset(file, "features", values.astype(np.float32), about)
        _write_dataset(file, "coords", _corners(tiles), facts)


def read_features(path: Path, most: int) -> FeatureFile:
    """The embeddings of a file. most: rows it can have, which is the tiles the slide has room for.

    Raises InputError naming the file for anything that is not features and coords of finite, fitting numbers.
    """
    try:
        with h5py.File(path, "r") as file:
            features, coords = (_open_dataset(path, file, name) for name in ("features", "coords"))
            _check_shapes(path, features, coords, most)
            size, encoder = _attribute(coords, "patch_size_level0"), _attribute(features, "encoder")
            places = coords[()].astype(np.int64, casting="unsafe")
            return FeatureFile(places, features[()], _as_int(size), encoder if isinstance(encoder, str) else None)
    except InputError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, MemoryError) as error:
        words = one_line(error)[:160]
        raise InputError(f"can't be read as HDF5 ({words})", path, REMEDY) from error


def match_features(path: Path, bag: FeatureFile, tiles: pa.Table) -> tuple[NDArray[np.float16], int]:
    """One embedding a tile, in the order of the tiles, (n, D) float16; and how many rows lie on no tile.

    Raises InputError where a tile has no row or two, tiles have another size, or a value doesn't fit float16.
    """
    size = _tile_size(tiles)
    if bag.tile_px is not None and len(tiles) and bag.tile_px != size:
        what = f"its tiles are {bag.tile_px} level-0 px wide, the slide's {size}"
        raise InputError(what, path, REMEDY)
    own, theirs = _corner_keys(_corners(tiles)), _corner_keys(bag.coords)
    order = np.argsort(theirs, kind="stable")
    seen = theirs[order]
    if len(twice := seen[1:][(np.diff(seen) == 0) & (seen[1:] >= 0)]):
        raise InputError(f"holds tile x {twice[0] >> 32}, y {twice[0] & 0xFFFFFFFF} twice", path, REMEDY)
    at = np.searchsorted(seen, own)
    there = at < len(seen)
    there[there] = seen[at[there]] == own[there]
    if not there.all():
        x, y = _corners(tiles)[~there][0]
        what = f"has no row for {int((~there).sum())} of the slide's {len(tiles)} tiles, the first at x {x}, y {y}"
        raise InputError(f"{what}; they are {size} level-0 px wide", path, REMEDY)
    with np.errstate(over="ignore"):
        values = bag.features[order[at]].astype(np.float16)
    if bad := int((~np.isfinite(values)).any(axis=1).sum()):
        what = f"{bad} of {len(values)} embeddings hold values that are no numbers, or too large for float16"
        raise InputError(what, path, "compute them again")
    return values, len(theirs) - len(own)


def _open_dataset(path: Path, file: h5py.File, name: str) -> h5py.Dataset:
    """A plain dataset of numbers, stored in this file. Raises InputError."""
    link = file.get(name, getlink=True)
    if link is None:
        raise InputError(f"has no dataset {name!r}", path, "give files of features as CLAM and TRIDENT write them")
    found = file[name] if isinstance(link, h5py.HardLink) else None
    if not isinstance(found, h5py.Dataset) or found.external or found.is_virtual:
        raise InputError(f"its {name!r} is no dataset of its own: links out of a file are not followed", path, REMEDY)
    wanted = "f" if name == "features" else "iu"
    if found.dtype.kind not in wanted or found.dtype.subdtype is not None:
        kinds = "floating-point numbers" if name == "features" else "whole numbers"
        raise InputError(f"its {name!r} holds {found.dtype}, not {kinds}", path, REMEDY)
    settings = found.id.get_create_plist()
    used = {settings.get_filter(k)[0] for k in range(settings.get_nfilters())}
    if used - ALLOWED_FILTERS:
        raise InputError(
            f"its {name!r} is packed with HDF5 filter {min(used - ALLOWED_FILTERS)}", path, "write it with gzip"
        )
    return found


def _check_shapes(path: Path, features: h5py.Dataset, coords: h5py.Dataset, most: int) -> None:
    """Shapes that belong together, and no more than a slide can have. Nothing is read for that."""
    if coords.ndim != 2 or coords.shape[1] != 2:
        raise InputError(f"its 'coords' have shape {coords.shape}, not (N, 2)", path, REMEDY)
    if features.ndim != 2 or features.shape[0] != coords.shape[0]:
        what = f"its 'features' have shape {features.shape}, not ({coords.shape[0]}, D)"
        raise InputError(what, path, "give embeddings of tiles, not of whole slides")
    if coords.shape[0] > most or not 1 <= features.shape[1] <= MAX_EMBEDDING_LENGTH:
        what = f"claims {features.shape[0]} embeddings of {features.shape[1]} values"
        raise InputError(f"{what}; the slide has room for {most} of at most {MAX_EMBEDDING_LENGTH}", path, REMEDY)
    for one in (features, coords):
        if one.nbytes > MAX_COMPRESSION_RATIO * max(one.id.get_storage_size(), 1) and one.size:
            raise InputError(f"claims {one.nbytes} bytes of {one.name[1:]!r} and holds fewer", path, REMEDY)


def _attribute(of: h5py.Dataset, name: str) -> Any:
    """A small attribute as it is; None where there is none or it is something else."""
    if name not in of.attrs or of.attrs.get_id(name).get_storage_size() > 1024:
        return None
    value = of.attrs[name]
    return value.item() if isinstance(value, np.generic | np.ndarray) and value.size == 1 else value


def _as_int(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and abs(value) < 2**31 else None


def _write_dataset(file: h5py.File, name: str, values: NDArray[Any], facts: Mapping[str, Any]) -> None:
    """A dataset with its attributes; no times, so that equal tables give equal bytes."""
    found = file.create_dataset(name, data=values, track_times=False)
    for key, value in facts.items():
        found.attrs[key] = value


def _corners(tiles: pa.Table) -> NDArray[np.int32]:
    return np.stack([tiles["x"].to_numpy(), tiles["y"].to_numpy()], axis=1).astype(np.int32)


def _corner_keys(corners: NDArray[Any]) -> NDArray[np.int64]:
    """x and y as one number, by which tiles are found; −1 for a place no slide has."""
    xy = corners.astype(np.int64)
    inside = ((xy >= 0) & (xy < 2**31)).all(axis=1)
    keys: NDArray[np.int64] = np.where(inside, (xy[:, 0] << 32) | (xy[:, 1] & 0xFFFFFFFF), -1)
    return keys


def _tile_size(tiles: pa.Table) -> int:
    """Edge of the tiles, level-0 px: the same for all of a slide; 0 where it has none."""
    return int(tiles["size"][0].as_py()) if len(tiles) else 0
