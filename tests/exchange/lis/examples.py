"""Cohorts with results, their identities, and a call that sends them."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from her2batch.exchange.lis.identities import Identity
from her2batch.exchange.lis.outbox import SendSummary, send_results
from her2batch.exchange.lis.transport import parse_receiver
from her2batch.settings import Plan
from her2batch.store import schemas
from her2batch.store.cohort import Cohort
from her2batch.store.reviews import Review, append_review

CLASSES = ("0", "1+", "2+", "3+")


def make_cohort(root: Path, n: int) -> Cohort:
    """Make n finished HER2 slides whose scores are 0, 1+, 2+, 3+ in turn."""
    cohort = Cohort(root)
    cohort.create(Plan())
    for k in range(n):
        slide_id, predicted = f"S{k:03d}", CLASSES[k % 4]
        draft = cohort.draft(slide_id)
        p = [0.1] * 4
        p[k % 4] = 0.7
        prediction = {
            "slide_id": slide_id, "patient_id": f"P{k}", "task": "her2-4way", "method": "membrane",
            "classes": list(CLASSES), "p": p, "predicted": predicted, "plausible": [predicted],
            "review": predicted == "2+", "reasons": [], "score": float(k % 4),
        }  # fmt: skip
        draft.write("predictions/membrane", pa.Table.from_pylist([prediction], schemas.table_schema("predictions")))
        row = dict.fromkeys(schemas.table_schema("slides").names)
        row |= {"slide_id": slide_id, "patient_id": f"P{k}", "stain": "her2", "path": f"/scans/{slide_id}.svs"}
        row |= {"sha256": f"{k:064d}", "bytes": 1, "n_tiles": 9, "flags": [], "status": "done", "plan_id": Plan().id}
        draft.commit(row, None)
    return cohort


def identities(cohort: Cohort) -> dict[str, Identity]:
    return {
        slide_id: Identity(slide_id, f"MRN-{slide_id}", f"A26-{slide_id}", f"A26-{slide_id}-1", "O1", "LAB", "O|Neil")
        for slide_id in cohort.rows()
    }


def decide(cohort: Cohort, slide_id: str, label: str, verdict: str = "change", supersedes: int | None = None) -> int:
    review = Review("Dr. Who", slide_id, "membrane", "her2-4way", "membrane", "0", verdict, label)
    return int(append_review(cohort, replace(review, supersedes=supersedes, comment="as seen"))["number"])


def send(cohort: Cohort, address: str, timeout: float = 10.0, **more: object) -> SendSummary:
    return send_results(cohort, parse_receiver(address, timeout), identities(cohort), pause=0.0, **more)
