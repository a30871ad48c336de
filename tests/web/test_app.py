"""The REST API of a cohort: slides, their evidence and images, reviews, ingest jobs."""

import json
from pathlib import Path

import numpy as np
import simplejpeg
from jsonschema import Draft202012Validator
from starlette.testclient import TestClient

from her2batch.store import reviews
from her2batch.store.audit import verify_cohort
from her2batch.store.cohort import Cohort, write_row
from tests.web.served import TOKEN, application

API = "/api/v1"


def highest_scored_slide(client: TestClient, **wanted: object) -> str:
    page = client.get(f"{API}/slides", params={"stain": "her2", "sort": "score", "descending": True, **wanted}).json()
    return str(page["slides"][0]["slide_id"])


def new_review(client: TestClient, slide_id: str, **more: object) -> dict:
    one = client.get(f"{API}/slides/{slide_id}").json()["predictions"][0]
    seen = {name: one[name] for name in ("bundle", "task", "method", "predicted")}
    return {"slide_id": slide_id, "reviewer": "Dr. Who", "verdict": "agree", **seen, **more}


def test_slides_are_listed_page_by_page(client: TestClient, cohort: Cohort) -> None:
    facts = client.get(f"{API}/cohort").json()
    assert (facts["slides"], facts["posting"]) == (len(cohort.rows()), False)
    found, offset = [], 0
    while True:
        page = client.get(f"{API}/slides", params={"offset": offset, "limit": 10}).json()
        found += [one["slide_id"] for one in page["slides"]]
        offset += 10
        if not page["slides"]:
            break
    assert sorted(found) == sorted(cohort.rows())
    assert page["total"] == len(found)
    for wrong in ({"limit": 0}, {"sort": "path"}, {"status": "x"}, {"unknown": 1}):
        assert client.get(f"{API}/slides", params=wrong).status_code == 422


def test_slide_has_its_evidence(client: TestClient, cohort: Cohort) -> None:
    slide_id = highest_scored_slide(client)
    found = client.get(f"{API}/slides/{slide_id}").json()
    row = cohort.rows()[slide_id]
    assert {name: found["row"][name] for name in ("sha256", "n_tiles", "flags", "path")} == {
        name: row[name] for name in ("sha256", "n_tiles", "flags", "path")
    }
    one = found["predictions"][0]
    stored = cohort.read("predictions/membrane", slide_id).to_pylist()
    assert one["predicted"] == next(x["predicted"] for x in stored if x["task"] == one["task"]) == "3+"
    assert found["shares"]["intense_complete"] > 0.1
    assert found["overlays"] == ["tiles", "membrane", "cells"]
    tiles = client.get(f"{API}/slides/{slide_id}/tiles").json()
    assert len(tiles["x"]) == len(tiles["intense_complete"]) == row["n_tiles"]
    assert client.get(f"{API}/slides/{slide_id}/outline").json()
    assert client.get(f"{API}/slides/{slide_id}/attention").json() == []
    assert client.get(f"{API}/slides/{slide_id}/patches").json() == []


def test_images_are_those_of_the_store(client: TestClient, cohort: Cohort) -> None:
    slide_id = highest_scored_slide(client)
    found = client.get(f"{API}/slides/{slide_id}").json()
    assert client.get(found["thumbnail"]).content == cohort.thumbnail(slide_id).read_bytes()
    assert 'Format="jpg"' in client.get(found["deepzoom"]).text
    base = found["deepzoom"].removesuffix(".dzi") + "_files"
    answer = client.get(f"{base}/10/0_0.jpg")
    assert answer.headers["content-type"] == "image/jpeg"
    assert np.ptp(simplejpeg.decode_jpeg(answer.content)) > 50
    for wrong in ("10/99_0", "99/0_0", "-1/0_0"):
        assert client.get(f"{base}/{wrong}.jpg").status_code == 404
    assert client.get(f"{base}/a/0_0.jpg").status_code == 422


def test_unknown_names_are_404_and_posting_is_403(client: TestClient) -> None:
    for name in ("nobody", "..", "%2e%2e%2fcohort", "a%00b"):
        for rest in ("", "/tiles", "/deepzoom.dzi", "/thumbnail.jpg", "/deepzoom_files/0/0_0.jpg"):
            assert client.get(f"{API}/slides/{name}{rest}").status_code == 404
    assert client.get(f"{API}/tickets/x").status_code == 404
    assert client.post(f"{API}/slides", json={"path": "a.svs"}).status_code == 403


def test_review_is_stored_and_the_chain_is_intact(client: TestClient, cohort: Cohort) -> None:
    slide_id = highest_scored_slide(client)
    first = client.post(f"{API}/reviews", json=new_review(client, slide_id))
    assert first.status_code == 201
    assert first.json()["label"] == first.json()["predicted"] == "3+"
    changed = new_review(client, slide_id, verdict="change", label="2+", comment="<b>rim</b>")
    assert client.post(f"{API}/reviews", json=changed).json()["number"] == 2
    entries = client.get(f"{API}/reviews", params={"slide_id": slide_id}).json()
    assert [(one["verdict"], one["label"]) for one in entries] == [("agree", "3+"), ("change", "2+")]
    assert [one["sha256"] for one in entries] == [one["sha256"] for one in reviews.read_reviews(cohort)]
    assert [one["number"] for one in client.get(f"{API}/slides/{slide_id}").json()["reviews"]] == [1, 2]
    listed = client.get(f"{API}/slides", params={"reviewed": True}).json()["slides"]
    assert [(one["slide_id"], one["verdict"], one["label"], one["review"]) for one in listed] == [
        (slide_id, "change", "2+", False)
    ]
    assert list(verify_cohort(cohort)) == []


def test_the_glass_of_a_failed_slide_gets_a_verdict(client: TestClient, cohort: Cohort) -> None:
    row = next(one for one in cohort.rows().values() if one["stain"] == "her2")
    write_row(cohort, {**row, "status": "failed", "error_code": "truncated", "error": "x.svs: cut", "files": []})
    found = client.get(f"{API}/slides/{row['slide_id']}").json()["assessment"]
    assert (found["result"], found["choices"]) == (None, ["0", "1+", "2+", "3+"])
    review = {"slide_id": row["slide_id"], **found["main"], "verdict": "change", "label": "3+", "reviewer": "Dr. Who"}
    assert client.post(f"{API}/reviews", json={**review, "predicted": "3+", "verdict": "agree"}).status_code == 409
    assert client.post(f"{API}/reviews", json=review).status_code == 201
    found = client.get(f"{API}/slides/{row['slide_id']}").json()["assessment"]
    assert (found["state"], found["result"], found["by"]) == ("decided", "3+", "pathologist")
    assert list(reviews.find_chain_problems(cohort)) == []


def test_invalid_and_outdated_reviews_are_refused(client: TestClient, cohort: Cohort) -> None:
    slide_id = highest_scored_slide(client)
    good = new_review(client, slide_id)
    for more, status in (
        ({"predicted": "1+"}, 409),
        ({"method": "clam-sb"}, 409),
        ({"slide_id": "nobody"}, 404),
        ({"verdict": "change"}, 422),
        ({"verdict": "change", "label": "3+"}, 422),
        ({"verdict": "change", "label": "high"}, 422),
        ({"verdict": "maybe"}, 422),
        ({"reviewer": ""}, 422),
        ({"reviewer": "  "}, 422),
        ({"number": 7}, 422),
    ):
        assert client.post(f"{API}/reviews", json={**good, **more}).status_code == status
    assert reviews.read_reviews(cohort) == []


def test_cohort_with_pseudonyms_shows_no_path(cohort: Cohort) -> None:
    for row in cohort.rows().values():
        write_row(cohort, {**row, "path": None})
    headers = {"Authorization": f"Bearer {TOKEN}"}
    client = TestClient(application(cohort.root), base_url="http://127.0.0.1:8300", headers=headers)
    slide_id = highest_scored_slide(client)
    for address in (f"{API}/slides", f"{API}/slides/{slide_id}", f"{API}/cohort"):
        assert ".svs" not in client.get(address).text
        assert str(cohort.root) not in client.get(address).text


def test_posted_slide_gets_a_ticket_and_its_result(cohort: Cohort, tmp_path: Path) -> None:
    slide_id = sorted(cohort.rows())[0]
    scans = tmp_path / "scans"
    scans.mkdir()
    (scans / "a.svs").touch()
    app = application(cohort.root, scans, lambda _: {"slide_id": slide_id})
    client = TestClient(app, base_url="http://127.0.0.1:8300", headers={"Authorization": f"Bearer {TOKEN}"})
    answer = client.post(f"{API}/slides", json={"path": "a.svs"})
    assert (answer.status_code, answer.json()["state"]) == (202, "queued")
    for _ in range(200):
        found = client.get(answer.headers["location"]).json()
        if found["state"] == "done":
            break
    assert (found["slide_id"], found["slide"]["row"]["slide_id"]) == (slide_id, slide_id)
    assert "a.svs" not in json.dumps(answer.json())
    for path in ("../c/cohort.toml", "/etc/passwd", "none.svs"):
        assert client.post(f"{API}/slides", json={"path": path}).status_code == 403


def test_responses_match_the_openapi_schema(client: TestClient) -> None:
    spec = client.get(f"{API}/openapi.json").json()
    slide_id = highest_scored_slide(client)
    client.post(f"{API}/reviews", json=new_review(client, slide_id))
    for path in ("/cohort", "/slides", "/slides/{slide_id}", "/reviews"):
        call = spec["paths"][f"{API}{path}"]["get"]
        schema = call["responses"]["200"]["content"]["application/json"]["schema"]
        data = client.get(f"{API}{path}".format(slide_id=slide_id)).json()
        Draft202012Validator({**schema, "components": spec["components"]}).validate(data)
    assert all(one["get"]["description"] for path, one in spec["paths"].items() if "get" in one)
    assert client.get(f"{API}/docs").status_code == 200
