"""The notebooks of the documentation run from beginning to end, on small tables."""

from pathlib import Path

import pytest

from her2batch.store.cohort import Cohort, write_row
from tests.training import stores

NOTEBOOK = Path(__file__).parent.parent / "docs" / "notebooks" / "own_model.ipynb"


def committed(cohort: Cohort) -> None:
    """Name the embeddings in the row of each slide, as an ingest does."""
    for slide_id, row in cohort.rows().items():
        path = cohort.table("embeddings/stain", slide_id)
        file = {"path": path.relative_to(cohort.root).as_posix(), "bytes": path.stat().st_size, "sha256": None}
        write_row(cohort, {**row, "files": [file]})


def test_the_own_model_needs_about_twenty_lines() -> None:
    nbformat = pytest.importorskip("nbformat")
    cells = [cell for cell in nbformat.read(NOTEBOOK, 4).cells if cell.cell_type == "code"]
    lines = [line for cell in cells for line in cell.source.splitlines() if line.strip()]
    assert len(lines) <= 22
    assert all(not cell.outputs for cell in cells)


@pytest.mark.slow
def test_the_own_model_goes_from_the_tables_to_scores(tmp_path: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    bags, labels = stores.planted(18, strength=8)
    committed(stores.cohort(tmp_path / "cohort", bags))
    committed(stores.cohort(tmp_path / "new", stores.planted(6, seed=5, strength=8)[0]))
    ihc = ("0", "1+", "3+")
    rows = [f"{slide_id},P{k},{ihc[label]},her2" for k, (slide_id, label) in enumerate(zip(bags, labels, strict=True))]
    (tmp_path / "labels.csv").write_text("\n".join(["slide_id,patient_id,her2,stain", *rows]))
    notebook = nbformat.read(NOTEBOOK, 4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    results = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert "'method': 'abmil'" in results[-2].data["text/plain"]
    assert results[-1].data["text/plain"].count("\n") == 6
    assert (tmp_path / "run" / "bundle" / "bundle.toml").is_file()
