"""The text of docs/synthetic-slides.md, generated from the declarations of laboratories, kinds and cells."""

from __future__ import annotations

from her2batch.synthetic.laboratory import FIGURES, HELD_OUT_SEED
from her2batch.synthetic.true_cells import CELL_COLUMNS

HEAD = """# Synthetic slides

This page is generated from `her2batch/synthetic`. `her2batch synth FOLDER` writes slides with known truth, to test
software. Results on them do not describe medicine.

    her2batch synth made --slides 20 --seed 3                 two sites, HER2, ER and PR
    her2batch synth made --lab 7                              laboratory 7
    her2batch synth made --lab 1 --lab 2 --lab north          patients are divided between three laboratories
    her2batch synth made --stain ki67                         every slide is stained for Ki-67
    her2batch synth made --kind sparse                        slides with hardly any tumour
    her2batch synth made --profile paper                      as many slides of each result as the paper has

| file | content |
| --- | --- |
| `slides/SLIDE.svs` | Aperio's layout: JPEG pyramid, thumbnail, label and macro with an invented name |
| `labels.csv` | slide_id, patient_id, her2, ish, er, pr, site, stain |
| `annotations/SLIDE.geojson` | QuPath regions of HER2 slides, about half of the tumour |
| `truth/SLIDE.npz` | masks of tissue, tumour and artefacts at about 8 µm/px, and the score around each px |
| `truth/SLIDE.json` | labels, shares of the cells' categories, laboratory; of nuclear markers the scores |
| `truth/SLIDE.cells.parquet` | every cell |

## The paper's cohort

`--profile paper` writes 500 patients with one HER2 slide each: 125 of score 0, 142 of 1+, 96 of 2+ with a negative and
22 with a positive ISH, 115 of 3+. 385 of the patients have an ER slide (145 negative, 240 positive) and 387 a PR slide
(198 negative, 189 positive). These are the numbers of the paper's 1,272 slides (its section 2.1 and table 3); with
`--slides N` there are N patients, and the classes have the same shares. HER2 slides are painted at 0.25 µm/px, and ER
and PR slides at the 0.5 µm/px of the tiles. `--stain her2` writes the 500 HER2 slides alone, which are the same. All
other options have their usual meaning. The cohort takes 24 minutes of CPU time, 13 minutes on two cores, and 2.2 GB
(measured once).

## Cells

`truth/SLIDE.cells.parquet` has a row for each cell that is visible. Position and shape are measured on the painted
px. `her2batch.synthetic.true_cells.match_cells` assigns detected cells to them, one to one, where the detected centre
lies in the nucleus.

"""

LABORATORIES = f"""
## Laboratories

`--lab NUMBER` draws a laboratory: it has the same figures whenever it is drawn, and changes the appearance of slides
only, not their cells. `labels.csv` names it as the site (`lab-7`). **Numbers 1 to {HELD_OUT_SEED - 1} are for
development. Numbers from {HELD_OUT_SEED} are held out: acceptance figures are measured on them, and nothing may be
developed, tuned or fitted on them.** `chosen` marks a range without a source: it was chosen so that slides reach the
densities of real tissue (intense membranes with a DAB density of 1–3, nuclei with a haematoxylin density from 0.05).

"""

KINDS = """
## Kinds of slides

| kind | content | HER2 score |
| --- | --- | --- |
| usual | tumour, stroma, lymphocytes | by its cells |
| weak-complete | complete membranes as pale as faint ones | by its cells |
| sparse | 1 % of the nucleated cells are tumour | none |
| cytoplasmic | DAB in the cytoplasm alone | none |
| nuclear | nuclei stained as for ER, labelled as HER2 | none |
| he | haematoxylin and eosin, no DAB | none |
| glass | no tissue | none |
| noise | random colours | none |
| grey | grey copy of a slide | none |

## Sources

- ASCO/CAP 2018: Wolff et al., Human Epidermal Growth Factor Receptor 2 Testing in Breast Cancer, J Clin Oncol 36:2105.
- Choritz et al. 2011, Quality assessment of HER2 testing by monitoring of positivity rates, Virchows Arch 459:283.
- Clarke & Treanor 2017, Colour in digital pathology: a review, Histopathology 70:153.
- Gray et al. 2015, Quantification of histochemical stains using whole slide imaging, J Clin Pathol 68:192.
- Helin et al. 2018, Optimized JPEG 2000 compression for efficient storage of whole-slide images, J Pathol Inform 9:20.
- Ruifrok & Johnston 2001, Quantification of histochemical staining by color deconvolution, Anal Quant Cytol Histol
  23:291.
"""


def synthetic_slides_page() -> str:
    """Return the text of docs/synthetic-slides.md."""
    cells = ["| column | type | description |", "| --- | --- | --- |"]
    cells += [f"| {column.name} | {column.type} | {column.description} |" for column in CELL_COLUMNS]
    figures = ["| figure | least | most | unit | description | source |", "| --- | --- | --- | --- | --- | --- |"]
    figures += [
        f"| {one.name} | {one.low:g} | {one.high:g} | {one.unit} | {one.description} | {one.source} |"
        for one in FIGURES
    ]
    return HEAD + "\n".join(cells) + "\n" + LABORATORIES + "\n".join(figures) + "\n" + KINDS
