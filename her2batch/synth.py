"""A synthetic HER2 cohort with known truth: patients, slides, labels, annotations.

    OUT/slides/SLIDE.svs            Aperio's layout: JPEG pyramid, thumbnail, label and macro with an invented name
    OUT/labels.csv                  slide_id, patient_id, her2, ish, er, pr, site, stain
    OUT/annotations/SLIDE.geojson   QuPath regions of HER2 slides, classes 0, 1+, 2+, 3+; about half of the tumour
    OUT/truth/SLIDE.npz             bool masks at about 8 µm/px: tissue, tumour, pen, fold, blur, bubble; `regions`: the
                                    score round each px (0 none, 1 + place in 0 … 3+); `downsample`: level-0 px per px
    OUT/truth/SLIDE.json            the facts: stain, labels, shares of cell classes, number of tumour cells, artefacts

Figures on these slides are about the software: whether it finds what was put there, how fast, and whether it comes out
the same. They say nothing about medicine.
"""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
import tifffile
from numpy.typing import NDArray

from her2batch.errors import InputError
from her2batch.paint import paint_slide
from her2batch.specimen import ARTEFACTS, SITES, Artefact, Mix, SlideTruth, Specimen, prepare, rng_for
from her2batch.tables.labels import COLUMNS
from her2batch.tasks import IHC

TILE = 256
LAST_LEVEL = 512
"""The pyramid ends where its shorter edge would fall below this."""

SMALLEST = 512
"""Slides are at least this wide and high, level-0 px."""

NAMES = ("Muster, Erika", "Beispiel, Anna", "Exempel, Greta", "Modelo, Lucia", "Doe, Jane", "Esempio, Maria",
         "Przyklad, Ewa", "Voorbeeld, Sanne", "Exemple, Claire", "Roe, Janet")  # fmt: skip
"""Invented patients."""

RECEPTOR_SHARE = 0.3
"""Share of second and third slides... """
