"""Embeddings of a cohort as one memory-mapped file."""

from pathlib import Path

import numpy as np
import pytest
import torch

from her2batch.errors import InputError
from her2batch.models.attention import padded_size, product_dtype
from her2batch.training.bag_data import gather_bags, open_bags
from tests.training.stores import cohort, planted, put


def test_bags_equal_the_tables_in_the_dtype_of_products(tmp_path: Path) -> None:
    bags, _ = planted(5)
    made = cohort(tmp_path / "c", bags)
    found = gather_bags(made, "stain", "stain", list(bags), tmp_path / "stain.arrow")
    assert found.slide_ids == tuple(bags)
    for k, values in enumerate(bags.values()):
        expected = torch.from_numpy(values.astype(np.float16)).float().to(product_dtype("cpu"))
        for one in (found.of(k), open_bags(tmp_path / "stain.arrow").of(k)):
            assert found.sizes[k] == len(values)
            assert len(one) == padded_size(len(values))
            assert torch.equal(one[: len(values)], expected)
            assert not one[len(values) :].any()


def test_bags_are_views_of_the_file(tmp_path: Path) -> None:
    bags, _ = planted(2)
    found = gather_bags(cohort(tmp_path / "c", bags), "stain", "stain", list(bags), tmp_path / "stain.arrow")
    assert found.of(0).data_ptr() == found.of(0).data_ptr()  # the file's own page, not a copy


def test_the_file_is_written_again_when_a_slide_changes(tmp_path: Path) -> None:
    bags, _ = planted(3)
    made, path = cohort(tmp_path / "c", bags), tmp_path / "stain.arrow"
    gather_bags(made, "stain", "stain", list(bags), path)
    first = path.stat().st_mtime_ns
    gather_bags(made, "stain", "stain", list(bags), path)
    assert path.stat().st_mtime_ns == first
    put(made, "s001", bags["s001"][:5])
    assert gather_bags(made, "stain", "stain", list(bags), path).sizes[1] == 5
    assert gather_bags(made, "stain", "stain", ["s002"], path).slide_ids == ("s002",)


@pytest.mark.parametrize(("values", "words"), [
    (np.full((4, 16), np.nan), "4 of 4 embeddings contain values that are not finite"),
    (np.full((4, 16), np.inf), "not finite"), (np.zeros((0, 16)), "no tiles"), (np.zeros((4, 8)), "length 8"),
])  # fmt: skip
def test_embeddings_that_cannot_be_trained_on_are_named(values: np.ndarray, words: str, tmp_path: Path) -> None:
    bags, _ = planted(3)
    made = cohort(tmp_path / "c", bags)
    put(made, "s001", values)
    with pytest.raises(InputError, match=words) as caught:
        gather_bags(made, "stain", "stain", list(bags), tmp_path / "stain.arrow")
    assert "s001" in str(caught.value)
    assert not (tmp_path / "stain.arrow").exists()


def test_missing_and_damaged_tables_are_named(tmp_path: Path) -> None:
    bags, _ = planted(3)
    made = cohort(tmp_path / "c", bags)
    path = made.table("embeddings/stain", "s001")
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(InputError, match=r"s001.*cannot be read"):
        gather_bags(made, "stain", "stain", list(bags), tmp_path / "stain.arrow")
    path.unlink()
    with pytest.raises(InputError, match="--encoder stain"):
        gather_bags(made, "stain", "stain", list(bags), tmp_path / "stain.arrow")
    with pytest.raises(InputError, match="writes it again"):
        open_bags(tmp_path / "stain.arrow")
