"""Tests of the synthetic cohort: its files, their agreement with the ground truth, and reproducibility."""

import csv
import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import openslide
import pytest
from hypothesis import given
from hypothesis import strategies as st

from her2batch.errors import InputError
from her2batch.slides.readers import open_slide
from her2batch.store.labels import read_labels
from her2batch.synthetic.cell_layout import TUMOUR
from her2batch.synthetic.cohort import (
    CohortOptions,
    draw_annotations,
    draw_mix,
    draw_nuclei,
    make_cohort,
    make_slide,
    paint_truth,
    plan_cohort,
)
from her2batch.synthetic.outlines import rng_for
from her2batch.synthetic.painting import paint_slide
from her2batch.synthetic.specimen import (
    TYPICAL_MIXES,
    UNSCORABLE,
    CellMix,
    SlideTruth,
    allred_score,
    h_score,
    ihc_score,
    make_tissue,
)
from her2batch.synthetic.true_cells import NUCLEATED
from her2batch.tasks import IHC_SCORES


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return make_cohort(tmp_path_factory.mktemp("cohort"), 6, seed=3, size=(900, 800), workers=1)


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_cohort_has_slides_labels_annotations_and_truth(cohort):
    with (cohort / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["slide_id", "patient_id", "her2", "ish", "er", "pr", "site", "stain"]
    ids = {row["slide_id"] for row in rows}
    assert {path.stem for path in (cohort / "slides").iterdir()} == ids
    assert {path.stem for path in (cohort / "truth").glob("*.npz")} == ids
    her2 = {row["slide_id"] for row in rows if row["stain"] == "her2"}
    assert {path.stem for path in (cohort / "annotations").iterdir()} == her2


def test_labels_agree_with_the_cells(cohort):
    for row in read_labels(cohort / "labels.csv").to_pylist():
        facts = json.loads((cohort / "truth" / f"{row['slide_id']}.json").read_text())
        mix = CellMix(**facts["mix"])
        assert sum(mix) == pytest.approx(1)
        if row["stain"] == "her2":
            assert row["her2"] == facts["her2"] == ihc_score(mix)
            assert row["er"] is row["pr"] is None
            assert row["ish"] is None or row["her2"] == "2+"
        else:
            assert row[row["stain"]] == ("+" if mix.none <= 0.99 else "-")
            assert row["her2"] is None


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_on_any_number_of_workers(cohort, tmp_path):
    again = make_cohort(tmp_path / "again", 6, seed=3, size=(900, 800), workers=2)
    assert digests(again) == digests(cohort)


def test_another_seed_gives_another_slide(tmp_path):
    one, other = (make_slide(tmp_path / f"{seed}.svs", SlideTruth("a"), seed) for seed in (1, 2))
    assert not np.array_equal(one.masks["tissue"], other.masks["tissue"])


def test_openslide_reads_a_slide_as_aperio_at_40x(tmp_path):
    path = tmp_path / "a.svs"
    make_slide(path, SlideTruth("a", TYPICAL_MIXES["3+"], patient_name="Muster, Erika"))
    with openslide.OpenSlide(path) as slide:
        assert openslide.OpenSlide.detect_format(path) == "aperio"
        assert slide.level_dimensions == ((1500, 1200), (750, 600))
        assert float(slide.properties["openslide.mpp-x"]) == 0.25
        assert slide.properties["openslide.objective-power"] == "40"
        assert slide.properties["aperio.Title"] == "Muster, Erika"
        assert set(slide.associated_images) == {"label", "macro", "thumbnail"}
        macro = np.asarray(slide.associated_images["macro"].convert("RGB"))
        assert np.allclose(macro[5, 5], 232, atol=3)
        region = np.asarray(slide.read_region((0, 0), 0, (1500, 1200)).convert("RGB"))
    with open_slide(path) as slide:
        assert slide.info.format == "aperio"
        assert slide.info.mpp == 0.25
        slide.validate()
        assert np.abs(slide.overview(0.25).astype(int) - region).mean() < 0.5


def test_the_written_slide_equals_the_painted_one(tmp_path):
    truth = SlideTruth("a", TYPICAL_MIXES["2+"], site="south")
    make_slide(tmp_path / "a.svs", truth)
    specimen = make_tissue(truth)
    rgb = paint_slide(specimen.cells, specimen.fields, specimen.noise, specimen.appearance, (truth.width, truth.height))
    with open_slide(tmp_path / "a.svs") as slide:
        assert np.abs(slide.overview(0.25).astype(int) - rgb).mean() < 3.5  # JPEG at quality 75


@given(st.sampled_from(IHC_SCORES), st.integers(0, 2**32))
def test_drawn_mixes_have_the_score_they_were_drawn_for(ihc, seed):
    mix = draw_mix(ihc, np.random.default_rng(seed))
    assert ihc_score(mix) == ihc
    assert min(mix) >= -1e-12
    assert sum(mix) == pytest.approx(1)


@given(st.booleans(), st.integers(0, 2**32))
def test_drawn_nuclei_are_positive_from_one_percent(positive, seed):
    mix = draw_nuclei(positive, np.random.default_rng(seed))
    assert SlideTruth("a", mix, "er").receptor("er") == ("+" if positive else "-")
    assert SlideTruth("a", mix, "er").her2 is None


@pytest.mark.parametrize("seed", range(5))
def test_twelve_slides_have_all_four_scores_and_both_sites(seed):
    truths = plan_cohort(12, seed, (6000, 5000))
    assert {one.her2 for one in truths} >= set(IHC_SCORES)
    assert len({one.site for one in truths}) == 2
    assert len({one.slide_id for one in truths}) == 12
    patients = [one.patient_id for one in truths]
    assert max(patients.count(one) for one in patients) <= 3
    for one in truths:
        assert one.ish is None or one.her2 == "2+"


def test_about_a_fifth_of_two_plus_is_amplified():
    truths = [one for one in plan_cohort(2000, 0, (600, 600)) if one.her2 == "2+"]
    known = [one.ish for one in truths if one.ish]
    assert 0.12 < known.count("+") / len(known) < 0.30
    assert len(known) < len(truths)


def test_annotations_have_qupaths_format_and_lie_on_tumour_of_their_class(cohort):
    names = set()
    for path in (cohort / "annotations").iterdir():
        truth = np.load(cohort / "truth" / f"{path.stem}.npz")
        collection = json.loads(path.read_text())
        assert collection["type"] == "FeatureCollection"
        for one in collection["features"]:
            name = one["properties"]["classification"]["name"]
            rings = [np.array(ring) for ring in one["geometry"]["coordinates"]]
            assert all((ring[0] == ring[-1]).all() for ring in rings)
            drawn = np.zeros(truth["regions"].shape, np.uint8)
            cv2.fillPoly(drawn, [np.round(ring / truth["downsample"] - 0.5).astype(np.int32) for ring in rings], 1)
            found = truth["regions"][drawn.astype(bool)]
            assert (found == 1 + IHC_SCORES.index(name)).mean() > 0.7
            names.add(name)
    assert len(names) >= 2


def test_part_of_the_tumour_is_annotated():
    specimen = make_tissue(SlideTruth("a", TYPICAL_MIXES["2+"], width=5000, height=4000))
    features = draw_annotations(specimen, rng_for(0, "a"))
    area = sum(cv2.contourArea(np.float32(feature["geometry"]["coordinates"][0])) for feature in features)
    covered = area / specimen.fields.px**2
    assert 0.1 < covered / (specimen.regions > 0).sum() < 0.9


def test_progress_is_reported_slide_by_slide(tmp_path):
    reports = []
    make_cohort(tmp_path, 2, size=(512, 512), workers=1, progress=lambda done, total: reports.append((done, total)))
    assert reports == [(1, 2), (2, 2)]


def test_impossible_cohorts_are_refused(tmp_path):
    with pytest.raises(InputError):
        make_cohort(tmp_path, 0)
    with pytest.raises(InputError):
        make_cohort(tmp_path, 1, size=(100, 6000))
    assert not any(Path(tmp_path).iterdir())


def test_slides_are_divided_between_the_given_laboratories():
    truths = plan_cohort(12, 1, (600, 600), CohortOptions(("7", "lab-8", "north")))
    assert {one.site for one in truths} == {"lab-7", "lab-8", "north"}
    usual = plan_cohort(12, 1, (600, 600))
    assert [one.mix for one in truths] == [one.mix for one in usual]  # the same patients
    with pytest.raises(InputError, match="east"):
        plan_cohort(1, 1, (600, 600), CohortOptions(("east",)))


@pytest.mark.parametrize("stain", ["er", "pr", "ki67"])
def test_nuclear_slides_state_share_h_score_and_allred_score_of_their_cells(tmp_path, stain):
    folder = make_cohort(tmp_path, 2, size=(700, 600), workers=1, options=CohortOptions(stain=stain))
    rows = read_labels(folder / "labels.csv").to_pylist()
    assert {row["stain"] for row in rows} == {stain}
    for row in rows:
        facts = json.loads((folder / "truth" / f"{row['slide_id']}.json").read_text())
        mix = CellMix(**facts["mix"])
        assert facts["positive_share"] == pytest.approx(1 - mix.none)
        assert facts["h_score"] == h_score(mix)
        assert facts["allred"] == allred_score(mix)
        assert facts["her2"] is row["her2"] is None


@pytest.mark.parametrize(
    ("mix", "allred", "h"),
    [
        (CellMix(1.0, 0.0, 0.0, 0.0), 0, 0),
        (CellMix(0.995, 0.005, 0.0, 0.0), 2, 0.5),
        (CellMix(0.95, 0.05, 0.0, 0.0), 3, 5),
        (CellMix(0.80, 0.0, 0.20, 0.0), 5, 40),
        (CellMix(0.50, 0.0, 0.25, 0.25), 7, 125),
        (CellMix(0.0, 0.0, 0.0, 1.0), 8, 300),
    ],
)
def test_scores_of_nuclear_markers(mix, allred, h):
    assert allred_score(mix) == allred
    assert h_score(mix) == pytest.approx(h)


@pytest.mark.parametrize("kind", UNSCORABLE)
def test_slides_that_cannot_be_scored_have_no_label(kind):
    truth = SlideTruth("a", TYPICAL_MIXES["3+"], kind=kind, width=600, height=520)
    painted = paint_truth(truth)
    assert truth.her2 is None
    assert not painted.specimen.regions.any()
    assert painted.rgb.shape == (520, 600, 3)
    if kind in ("glass", "noise"):
        assert painted.cells.num_rows == 0
    if kind == "grey":
        assert (painted.rgb == painted.rgb[..., :1]).all()


def test_sparse_slides_have_about_one_percent_of_tumour():
    kind = make_tissue(SlideTruth("a", TYPICAL_MIXES["2+"], kind="sparse", width=3000, height=2500)).lattice.kind
    assert 0.003 < np.sum(kind == TUMOUR) / np.isin(kind, NUCLEATED).sum() < 0.03


def test_weak_complete_slides_keep_their_score_and_have_complete_pale_membranes():
    mix = CellMix(0.1, 0.0, 0.9, 0.0)
    usual, weak = (
        paint_truth(SlideTruth("a", mix, kind=kind, width=900, height=800)) for kind in ("usual", "weak-complete")
    )
    assert SlideTruth("a", mix, kind="weak-complete").her2 == "2+"
    tumour = [one.cells.filter(one.cells["category"].to_numpy(zero_copy_only=False) == 2) for one in (usual, weak)]
    assert np.median(tumour[1]["completeness"].to_numpy()) > 0.9
    assert np.median(tumour[1]["membrane_dab"].to_numpy()) < 0.6 * np.median(tumour[0]["membrane_dab"].to_numpy())
