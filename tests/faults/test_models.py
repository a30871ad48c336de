"""Models and tables from elsewhere: no code in them is run, and what does not fit is refused before work starts."""

import json
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import skops.io
import torch
from safetensors.torch import load_file, save_file

from her2batch.errors import InputError, WeightsError
from her2batch.files.atomic import file_sha256
from her2batch.files.parquet import MAX_ROWS, read_parquet, write_parquet
from her2batch.models.bundle import Bundle, BundleInfo, ModelEntry, save_bundle
from her2batch.runtime.ingest import IngestRequest, ingest
from her2batch.runtime.score import score
from her2batch.settings import Plan, Resources
from her2batch.store.audit import verify_cohort
from her2batch.store.cohort import Cohort, write_row
from her2batch.tasks import CLASSES
from tests.conftest import Synthetic
from tests.models.bundles import untrained

PLAIN = Resources(workers=0)


class Payload:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.place,)


def write_payload(path: Path, payload: Payload) -> None:
    """Write the payload as each kind of file may contain it."""
    if path.suffix == ".pt":
        torch.save({"weight": payload}, path)
    elif path.suffix == ".skops":
        skops.io.dump({"head": payload}, path)
    elif path.suffix == ".bin":  # a torch archive whose pickle was exchanged
        torch.save({"weight": torch.ones(2)}, path.with_suffix(".tmp"))
        with zipfile.ZipFile(path.with_suffix(".tmp")) as old, zipfile.ZipFile(path, "w") as new:
            for name in old.namelist():
                new.writestr(name, pickle.dumps(payload) if name.endswith("data.pkl") else old.read(name))
    else:
        path.write_bytes(pickle.dumps(payload))


@pytest.fixture
def payload(tmp_path: Path) -> Payload:
    return Payload(tmp_path / "it-ran")


def test_payload_runs_when_it_is_unpickled(payload: Payload) -> None:
    pickle.loads(pickle.dumps(payload))
    assert payload.place.exists()


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".pkl", ".safetensors"])
def test_weights_with_a_payload_are_refused_before_the_first_slide(
    tmp_path: Path, make_slide: Callable, payload: Payload, suffix: str
) -> None:
    make_slide(size=(600, 500))
    write_payload(tmp_path / f"test_vit{suffix}", payload)
    order = IngestRequest(tmp_path / "scans", tmp_path / "c", weights=tmp_path / f"test_vit{suffix}")
    with pytest.raises(WeightsError, match=rf"test_vit\{suffix}"):
        ingest(order, Plan(encoders=("timm:test_vit",)), PLAIN)
    assert not payload.place.exists()
    assert Cohort(tmp_path / "c").rows() == {}


def bundle_with_file(folder: Path, entry: ModelEntry, file: Path, **more: object) -> Bundle:
    """Return a bundle of one model whose checksum is right, whatever the file contains."""
    about = {"encoder": "stain", "mpp": 0.5, "tile": 224, **more}
    info = BundleInfo(her2batch="0.1.0", tasks=(entry.task,), licence="none", models=(entry,), **about)
    return save_bundle(folder, info, {entry.file: file})


def assert_refused(order: IngestRequest, cohort: Path, words: str) -> None:
    """Assert that ingest and score are refused, and that no slide gets a row."""
    with pytest.raises(InputError, match=words):
        ingest(order, Plan(), PLAIN)
    assert Cohort(order.out).rows() == {}
    with pytest.raises(InputError, match=words):
        score(cohort, order.bundle, PLAIN)


@pytest.mark.parametrize("name", ["head.pt", "head.pth", "more/head.pkl", "head.joblib"])
def test_bundle_with_a_pickle_is_refused(
    tmp_path: Path, make_slide: Callable, payload: Payload, synthetic: Synthetic, name: str
) -> None:
    make_slide(size=(600, 500))
    bundle = untrained(tmp_path / "bundle")
    (bundle.path / name).parent.mkdir(exist_ok=True)
    write_payload(bundle.path / name, payload)
    assert_refused(
        IngestRequest(tmp_path / "scans", tmp_path / "c", bundle=bundle.path), synthetic.cohort, "can run code"
    )
    assert not payload.place.exists()


def test_skops_head_with_a_payload_is_refused(
    tmp_path: Path, make_slide: Callable, payload: Payload, synthetic: Synthetic
) -> None:
    from her2batch.models.nets import build_network

    make_slide(size=(600, 500))
    four = CLASSES["her2-4way"]
    net = ModelEntry(kind="patch", task="her2-4way", method="resnet50", input="patches-low", classes=four,
                     file="net.safetensors", size="tiny")  # fmt: skip
    head = ModelEntry(kind="counts", task="her2-4way", method="svm", input="patches-low", classes=four,
                      file="head.skops")  # fmt: skip
    save_file(build_network("resnet50", 4, 224, "tiny").state_dict(), tmp_path / "net.safetensors")
    write_payload(tmp_path / "head.skops", payload)
    info = BundleInfo(her2batch="0.1.0", tasks=("her2-4way",), licence="none", models=(net, head))
    files = {one.file: tmp_path / one.file for one in (net, head)}
    bundle = save_bundle(tmp_path / "bundle", info, files)
    assert_refused(
        IngestRequest(tmp_path / "scans", tmp_path / "c", bundle=bundle.path),
        synthetic.cohort,
        "not allowed in a bundle",
    )
    assert not payload.place.exists()


def damage_head(path: Path, how: str) -> None:
    """Damage the weights of a MIL head."""
    state = load_file(path)
    first = next(iter(state))
    if how == "another shape":
        state[first] = torch.ones(3, 5)
    elif how == "one tensor more":
        state["more"] = torch.ones(1)
    elif how == "a NaN":
        state[first] = state[first].clone()
        state[first].view(-1)[0] = float("nan")
    save_file(state, path)
    header = {"w": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 2**62]}}
    if how == "a header of 2^62 bytes":
        path.write_bytes(struct.pack("<Q", 2**62) + path.read_bytes()[8:])
    elif how == "a tensor of 2^60 numbers":
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text)
    elif how == "nested header":
        text = b"[" * 1_000_000
        path.write_bytes(struct.pack("<Q", len(text)) + text)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("another shape", "does not fit"), ("one tensor more", "does not fit"), ("a NaN", "not finite"),
        ("a header of 2^62 bytes", "cannot be read"), ("a tensor of 2^60 numbers", "cannot be read"),
        ("nested header", "cannot be read"),
    ],
)  # fmt: skip
def test_damaged_head_is_refused_before_the_first_slide(
    tmp_path: Path, make_slide: Callable, synthetic: Synthetic, how: str, words: str
) -> None:
    make_slide(size=(600, 500))
    good = untrained(tmp_path / "good")
    entry = good.info.models[0]
    damage_head(good.path / entry.file, how)
    bundle = bundle_with_file(tmp_path / "bundle", entry, good.path / entry.file)
    assert_refused(IngestRequest(tmp_path / "scans", tmp_path / "c", bundle=bundle.path), synthetic.cohort, words)


def test_head_of_another_encoder_or_resolution_is_refused(
    tmp_path: Path, make_slide: Callable, synthetic: Synthetic
) -> None:
    make_slide(size=(600, 500))
    good = untrained(tmp_path / "good")
    entry, file = good.info.models[0], good.path / good.info.models[0].file
    other = bundle_with_file(tmp_path / "encoder", entry.model_copy(update={"input": "uni"}), file, encoder="uni")
    assert_refused(
        IngestRequest(tmp_path / "scans", tmp_path / "c", bundle=other.path),
        synthetic.cohort,
        "reads embeddings of uni",
    )
    coarse = bundle_with_file(tmp_path / "mpp", entry, file, mpp=1.0)
    assert_refused(
        IngestRequest(tmp_path / "scans", tmp_path / "d", bundle=coarse.path), synthetic.cohort, r"at 1\.0 µm/px"
    )


# -- tables ----------------------------------------------------------------------------------------------------


def exchange_table(cohort: Cohort, name: str, slide_id: str, write: Callable[[Path], None]) -> None:
    """Replace a table and its checksum in the slide's row, so that only its content shows the exchange."""
    path = cohort.table(name, slide_id)
    write(path)
    row = cohort.rows()[slide_id]
    place = path.relative_to(cohort.root).as_posix()
    new = {"path": place, "bytes": path.stat().st_size, "sha256": file_sha256(path)}
    write_row(cohort, {**row, "files": [new if file["path"] == place else file for file in row["files"]]})


@pytest.fixture
def cohort(tmp_path: Path, make_slide: Callable) -> Cohort:
    make_slide(size=(600, 500))
    ingest(IngestRequest(tmp_path / "scans", tmp_path / "c"), Plan(tile=64), PLAIN)
    return Cohort(tmp_path / "c")


@pytest.mark.parametrize("kind", ["ray.data.arrow_tensor", "ray.data.arrow_tensor_v2", "ray.data.arrow_pickled_object"])
def test_table_with_pickled_ray_types_runs_no_code_and_is_reported(cohort: Cohort, payload: Payload, kind: str) -> None:
    import ray.data  # noqa: F401  (registers its types with Arrow, and reads what they are from the file)

    about = {b"ARROW:extension:name": kind.encode(), b"ARROW:extension:metadata": pickle.dumps(payload)}
    field = pa.field("slide_id", pa.binary(), metadata=about)
    table = pa.table([pa.array([pickle.dumps(payload)], pa.binary())], schema=pa.schema([field]))
    exchange_table(cohort, "tiles", "a", lambda path: pq.write_table(table, path))
    assert [one.slide_id for one in verify_cohort(cohort)] == ["a"]
    assert not payload.place.exists()
    assert ingest(IngestRequest(cohort.root.parent / "scans", cohort.root), Plan(tile=64), PLAIN).done == 1
    assert list(verify_cohort(cohort)) == []


def test_table_that_claims_a_billion_rows_is_not_unpacked(cohort: Cohort) -> None:
    def write(path: Path) -> None:
        one = pa.table({"slide_id": pa.nulls(100_000_000)})
        with pq.ParquetWriter(path, one.schema) as file:
            for _ in range(10):
                file.write_table(one, row_group_size=len(one))

    exchange_table(cohort, "tiles", "a", write)
    path = cohort.table("tiles", "a")
    assert pq.read_metadata(path).num_rows == 10**9 > MAX_ROWS
    before = pa.total_allocated_bytes()
    with pytest.raises(pa.ArrowInvalid, match="claims 1000000000 rows"):
        read_parquet(path)
    assert pa.total_allocated_bytes() - before < 10_000_000
    assert [one.slide_id for one in verify_cohort(cohort)] == ["a"]


def test_slide_with_a_foreign_row_table_is_ingested_again(cohort: Cohort) -> None:
    write_parquet(pa.table({"anything": [1, 2, 3]}), cohort.table("slides", "a"))
    assert [one.slide_id for one in verify_cohort(cohort)][:1] == ["a"]
    assert ingest(IngestRequest(cohort.root.parent / "scans", cohort.root), Plan(tile=64), PLAIN).done == 1
    assert list(verify_cohort(cohort)) == []


# -- memory ----------------------------------------------------------------------------------------------------

HUNGRY = """
import resource, sys
import numpy as np, torch
from her2batch.models.device import Normalization, run_network, set_deterministic

class Hungry(torch.nn.Module):
    def forward(self, x):
        seen.append(len(x))
        return x.repeat(1, times, 1, 1).mean((1, 2, 3))[:, None]

set_deterministic("cpu")
pixels = np.random.default_rng(0).integers(0, 255, (16, 256, 256, 3), np.uint8)
look = Normalization((0.0,) * 3, (1.0,) * 3)
seen, times = [], 1
whole = run_network(Hungry(), pixels, look, "cpu", lambda out: out)
held = int(next(line for line in open("/proc/self/status") if line.startswith("VmData")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (held + 600_000_000, held + 600_000_000))
seen, times = [], 200  # 157 MB a tile: eight are too many, two are not
halved = run_network(Hungry(), pixels, look, "cpu", lambda out: out)
assert np.allclose(whole, halved, atol=1e-5)
print(seen[0], max(seen[-2:]))
times = 2000
try:
    run_network(Hungry(), pixels, look, "cpu", lambda out: out)
except MemoryError as error:
    print(error)
"""


@pytest.mark.slow
def test_batch_is_halved_when_memory_runs_out() -> None:
    """The process is limited to 600 MB more than it holds."""
    said = subprocess.run([sys.executable, "-c", HUNGRY], capture_output=True, text=True, timeout=200)
    assert said.returncode == 0, said.stderr
    sizes, words = said.stdout.splitlines()
    assert sizes == "8 2"
    assert "cannot hold one tile" in words
