"""From a slide's features to a bundle's predictions: one path for `ingest --bundle` and `score`.

Features are tables: embeddings of tiles, classes of patches, classes of thumbnails. `ingest` has just made them from
the pixels that it decodes for all stages. `score` reads them from the cohort; those that the bundle's image networks
add it computes from the cohort's own pyramids and thumbnails. Both then call `predict_slide`. A slide without tiles has
tables without rows: heads that read tiles give no prediction for it, thumbnail networks do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from her2batch.models.bundle import Bundle, ModelEntry, load_network
from her2batch.models.encoders import TimmEncoder, find_encoder
from her2batch.models.membrane_rule import apply_rule, rule_predictions
from her2batch.models.nets import ImageClassifier
from her2batch.models.predictor import BundlePredictor, SlideFeatures
from her2batch.pipeline.cells.scoring import AREA_TABLE, cell_predictions, counted_cells, with_other_rule
from her2batch.pipeline.cells.scoring import TABLE as CELLS_TABLE
from her2batch.pipeline.explanation.saliency import saliency_table
from her2batch.pipeline.patch_grid import plan_patches, read_patches
from her2batch.settings import Plan
from her2batch.slides.pyramid import Pyramid
from her2batch.store import schemas
from her2batch.store.cohort import Cohort, Row, tables_of
from her2batch.store.pieces.patient_tiles import patient_tiles, read_patient_tiles
from her2batch.store.training_run import encoder_folder
from her2batch.tasks import GUIDELINE_RULES, HER2_TASKS, PATCH_INPUTS, TIMM_PREFIX, task_applies
from her2batch.vision.membrane import MEMBRANE_COLUMNS
from her2batch.vision.patches import apply_clahe, usable_patches
from her2batch.vision.thumbnail import crop_to_tissue, decode_jpeg

if TYPE_CHECKING:
    from her2batch.models.execution.batch_size import BatchSizes

ReadTable = Callable[[str], pa.Table]
"""Name of a table, such as `embeddings/uni` → the slide's."""

N_PATCH_CLASSES = 4

NETWORK_TABLES = {"patch": "patches", "thumbnail": "thumbnails"}
"""Kind of a bundle's models that read pixels → the table of what they give."""

IMAGE_KINDS = tuple(NETWORK_TABLES)


class ImageNetwork(NamedTuple):
    """A network of a bundle that reads pixels, on its device."""

    entry: ModelEntry
    classify: ImageClassifier


def has_image_networks(bundle: Bundle) -> bool:
    """Whether a bundle has networks that read pixels, for which timm and torchvision are needed."""
    return any(entry.kind in IMAGE_KINDS for entry in bundle.info.models)


def needs_image_networks(plan: Plan, bundle: Bundle | None) -> bool:
    """Whether an ingest needs timm and torchvision: for the networks of its bundle, or for an encoder."""
    if bundle is not None and has_image_networks(bundle):
        return True
    return any(name.startswith(TIMM_PREFIX) or isinstance(find_encoder(name), TimmEncoder) for name in plan.encoders)


def load_networks(
    bundle: Bundle,
    device: str,
    kind: str | None = None,
    name: str | None = None,
    batches: BatchSizes | None = None,
) -> list[ImageNetwork]:
    """The bundle's networks that read pixels, on a device. Raises InputError when one does not fit its method.

    kind: only those of `patch` or `thumbnail`.  name: only those of this input.  batches: the cohort's record of how
    many patches a network gets at once on a GPU; of thumbnails a slide has but one.
    """
    kinds = IMAGE_KINDS if kind is None else (kind,)
    wanted = [entry for entry in bundle.info.models if entry.kind in kinds and name in (None, entry.input)]
    return [ImageNetwork(entry, _load_network(bundle, entry, device, batches)) for entry in wanted]


def _load_network(bundle: Bundle, entry: ModelEntry, device: str, batches: BatchSizes | None) -> ImageClassifier:
    """Load a network, and settle how many patches it gets at once."""
    network = load_network(bundle, entry, device)
    if entry.kind != "patch" or batches is None:
        return network
    from her2batch.models.device import settle_batch

    assert network.normalization is not None
    name = f"{bundle.id}-{entry.input}"
    size = settle_batch(name, network.net, entry.edge, network.normalization, device, None, batches)
    return replace(network, batch=size)


# -- predictions -----------------------------------------------------------------------------------------------


def predict_slide(predictor: BundlePredictor, row: Mapping[str, Any], read: ReadTable) -> dict[str, pa.Table]:
    """Predictions of a bundle for one slide, and the attention of its MIL heads: tables by their names in the store.

    row: slide_id, patient_id, stain and flags, as in the slides table.  read: reads the slide's other tables.
    Raises what `read` raises.
    """
    slide_id, bundle = row["slide_id"], predictor.bundle
    own = patient_tiles(read)
    found, attention = predictor(read_features(bundle, row, read, own))
    rows = [{**values, "slide_id": slide_id, "patient_id": row["patient_id"]} for values in found]
    tables = {f"predictions/{bundle.id}": pa.Table.from_pylist(rows, schemas.table_schema("predictions"))}
    parts = []
    for key, shares in attention.items():
        named = [pa.array([word] * len(shares), pa.string()) for word in (slide_id, *key)]
        tiles = pa.array((np.arange(len(shares)) if own is None else np.flatnonzero(own)).astype(np.int32))
        parts.append(pa.table([*named, tiles, pa.array(shares)], schema=schemas.table_schema("attention")))
    if parts:
        tables[f"attention/{bundle.id}"] = pa.concat_tables(parts)
    return tables


def rule_table(row: Mapping[str, Any], membrane: Mapping[str, NDArray[np.float32]], presumed: bool) -> pa.Table:
    """Predictions of the membrane rule for one slide; without rows where no HER2 task applies or there is no tile.

    row: slide_id, patient_id, stain and flags, as in the slides table.  membrane: columns of the membrane table, (n,).
    presumed: the labels do not state the marker.
    """
    found: list[dict[str, Any]] = []
    if len(membrane["cells"]) and task_applies(HER2_TASKS[0], row["stain"]):
        found = rule_predictions(apply_rule(membrane), presumed, row["flags"])
    keys = {"slide_id": row["slide_id"], "patient_id": row["patient_id"]}
    return pa.Table.from_pylist([{**values, **keys} for values in found], schemas.table_schema("predictions"))


def read_rule_table(row: Mapping[str, Any], read: ReadTable, presumed: bool) -> pa.Table:
    """Predictions of the membrane rule alone for a slide with tables. Arguments as of `rule_table` and `predict_slide`.

    Raises what `read` raises.
    """
    membrane, own = read("membrane"), patient_tiles(read)
    membrane = membrane if own is None else membrane.filter(pa.array(own))
    return rule_table(row, {name: membrane.column(name).to_numpy() for name in MEMBRANE_COLUMNS}, presumed)


def read_features(
    bundle: Bundle, row: Mapping[str, Any], read: ReadTable, own: NDArray[np.bool_] | None = None
) -> SlideFeatures:
    """The features that a bundle's models need, from a slide's tables.  own: tiles that count, (n,); None: all."""
    inputs: dict[str, list[str]] = {}
    for entry in bundle.info.models:
        inputs.setdefault(entry.kind, []).append(entry.input)
    embeddings = {}
    for name in inputs.get("mil", []):
        bag = embedding_matrix(read(f"embeddings/{encoder_folder(name)}"))
        embeddings[name] = bag if own is None else bag[own]
    patches, thumbnails = {}, {}
    if "patch" in inputs:
        table = read(f"patches/{bundle.id}")
        for name in inputs["patch"]:
            at_resolution = pc.equal(table.column("resolution"), name.removeprefix("patches-"))
            patches[name] = patch_probabilities(table.filter(at_resolution))
    if "thumbnail" in inputs:
        for seen in read(f"thumbnails/{bundle.id}").to_pylist():
            thumbnails[seen["task"], seen["method"], seen["input"]] = np.array(seen["p"], np.float32)
    rules = _rule_probabilities(bundle, read)
    return SlideFeatures(row["stain"], tuple(row["flags"]), embeddings, patches, thumbnails, rules)


def _rule_probabilities(bundle: Bundle, read: ReadTable) -> dict[tuple[str, str], NDArray[np.float32]]:
    """The probabilities of the rules that the bundle's stacks read, by task and rule; without a table, none."""
    stacks = [entry.stack for entry in bundle.info.models if entry.stack is not None]
    found = {}
    for rule in sorted({method for stack in stacks for method, _ in stack.bases} & {*GUIDELINE_RULES}):
        try:
            rows = read(f"predictions/{rule}").to_pylist()
        except (KeyError, FileNotFoundError):  # cells that were not measured
            continue
        found.update({(seen["task"], rule): np.array(seen["p"], np.float32) for seen in rows if seen["p"]})
    return found


def embedding_matrix(table: pa.Table) -> NDArray[np.float16]:
    """(N, D) float16 of an embeddings table; (0, D) of a slide without tiles."""
    column = table.column("embedding")
    parts = [chunk.flatten().to_numpy() for chunk in column.chunks] or [np.empty(0, np.float16)]
    values = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return np.asarray(values.reshape(len(column), column.type.list_size))


def patch_probabilities(patches: pa.Table) -> NDArray[np.float32]:
    """(n, 4) of rows of the patches table."""
    return np.stack([patches.column(f"p{k}").to_numpy() for k in range(N_PATCH_CLASSES)], axis=1).astype(np.float32)


# -- tables of image networks ----------------------------------------------------------------------------------


def patch_table(slide_id: str, name: str, patches: NDArray[np.int32], p: NDArray[np.float32]) -> pa.Table:
    """Rows of the patches table of one input: (n, 3) x, y, size in level-0 px, (n, 4) probabilities."""
    columns: Mapping[str, Any] = {
        "slide_id": pa.array([slide_id] * len(p), pa.string()),
        "resolution": pa.array([name.removeprefix("patches-")] * len(p), pa.string()),
        **{axis: patches[:, k] for k, axis in enumerate(("x", "y", "size"))},
        **{f"p{k}": p[:, k] for k in range(N_PATCH_CLASSES)},
    }
    return pa.table(columns, schemas.table_schema("patches"))


def thumbnail_tables(
    slide_id: str,
    bundle_id: str,
    networks: Sequence[ImageNetwork],
    jpeg: bytes,
    tiles: NDArray[np.int32],
    width: int,
    height: int,
) -> dict[str, pa.Table]:
    """The classes that networks give a slide's thumbnail, cropped to the tissue, and where they see them.

    jpeg: the stored thumbnail.  tiles: (n, 3) x, y, size, level-0 px.  width, height: of level 0.
    """
    rows, thumbnail = [], decode_jpeg(jpeg)
    for entry, classify in networks:
        pixels, _ = crop_to_tissue(thumbnail, tiles, width, height, entry.edge)
        names = {"slide_id": slide_id, "task": entry.task, "method": entry.method, "input": entry.input}
        rows.append({**names, "p": classify(pixels[None])[0].tolist()})
    return {
        f"thumbnails/{bundle_id}": pa.Table.from_pylist(rows, schemas.table_schema("thumbnails")),
        f"saliency/{bundle_id}": saliency_table(slide_id, networks, thumbnail, tiles, width, height),
    }


# -- slides of a cohort ----------------------------------------------------------------------------------------


def score_slide(
    cohort: Cohort, plan: Plan, predictor: BundlePredictor, networks: Sequence[ImageNetwork], row: Row
) -> dict[str, pa.Table]:
    """Every table that a bundle adds to a committed slide. Raises OSError, pa.ArrowInvalid, KeyError, SlideError.

    networks: the bundle's networks that read pixels; those whose table the slide has already are not run.
    """
    bundle_id, stored = predictor.bundle.id, tables_of(row)
    missing = [network for network in networks if f"{NETWORK_TABLES[network.entry.kind]}/{bundle_id}" not in stored]
    added = _network_tables(cohort, plan, bundle_id, missing, row)

    def read(name: str) -> pa.Table:
        return added[name] if name in added else cohort.read(name, row["slide_id"])

    if "cells" in stored:
        by_cells = cell_predictions(row, counted_cells(read))
        added[CELLS_TABLE] = with_other_rule(by_cells, read(AREA_TABLE)) if AREA_TABLE in stored else by_cells
    return added | predict_slide(predictor, row, read)


def _network_tables(
    cohort: Cohort, plan: Plan, bundle_id: str, networks: Sequence[ImageNetwork], row: Row
) -> dict[str, pa.Table]:
    """Classes of the slide's thumbnail and patches, from the cohort's thumbnail and pyramid."""
    slide_id = row["slide_id"]
    added: dict[str, pa.Table] = {}
    if not networks:
        return {}
    tiles = read_patient_tiles(cohort, slide_id)
    corners = np.stack([tiles.column(name).to_numpy() for name in ("x", "y", "size")], axis=1).astype(np.int32)
    if of_thumbnails := [network for network in networks if network.entry.kind == "thumbnail"]:
        jpeg = cohort.thumbnail(slide_id).read_bytes()
        added |= thumbnail_tables(slide_id, bundle_id, of_thumbnails, jpeg, corners, row["width"], row["height"])
    fractions = tiles.column("tissue").to_numpy()
    of_patches = [network for network in networks if network.entry.kind == "patch"]
    parts = [_classify_patches(cohort, plan, slide_id, corners, fractions, network) for network in of_patches]
    if parts:
        added[f"patches/{bundle_id}"] = pa.concat_tables(parts)
    return added


def _classify_patches(
    cohort: Cohort,
    plan: Plan,
    slide_id: str,
    tiles: NDArray[np.int32],
    fractions: NDArray[np.float32],
    network: ImageNetwork,
) -> pa.Table:
    """Classes of a slide's tissue patches at one resolution, read from its pyramid; white and black ones left out."""
    name = network.entry.input
    with Pyramid(cohort.pyramid(slide_id)) as slide:
        per_edge = network.entry.per_edge or 1
        grid = plan_patches(slide.info, plan, tiles, fractions, PATCH_INPUTS[name], per_edge)
        rows, probabilities = [np.empty(0, np.int64)], [np.empty((0, N_PATCH_CLASSES), np.float32)]
        for batch in read_patches(slide, grid):
            usable = usable_patches(batch.pixels)
            rows.append(batch.rows[usable])
            probabilities.append(network.classify(apply_clahe(batch.pixels[usable])))
    patches, p = np.concatenate(rows), np.concatenate(probabilities)
    order = np.argsort(patches, kind="stable")
    return patch_table(slide_id, name, grid.tiles[patches[order]], p[order])
