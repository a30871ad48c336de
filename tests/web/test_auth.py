"""Authentication: the token is required, other host names and pages of other origins are refused."""

import pytest
from starlette.testclient import TestClient

from her2batch.store.cohort import Cohort
from tests.web.served import TOKEN, application

HOME = "http://127.0.0.1:8300"


@pytest.fixture
def stranger(cohort: Cohort) -> TestClient:
    app = application(cohort.root, codes=("first", "second"))
    return TestClient(app, base_url=HOME, follow_redirects=False)


ADDRESSES = ("/", "/api/v1/slides", "/api/v1/openapi.json", "/api/v1/docs", "/api/v1/reviews", "/nowhere")


def test_no_data_without_the_token(stranger: TestClient) -> None:
    for address in ADDRESSES:
        for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": TOKEN}, {"Cookie": "her2batch-8300=x"}):
            answer = stranger.get(address, headers=headers)
            assert answer.status_code == 401
            assert "P00" not in answer.text
    assert stranger.post("/api/v1/reviews", json={}).status_code == 401
    assert stranger.get("/static/style.css").status_code == 200


def test_link_works_once_and_sets_a_protected_cookie(stranger: TestClient) -> None:
    answer = stranger.get("/?token=first")
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert TOKEN not in cookie
    assert stranger.get("/api/v1/slides").status_code == 200
    stranger.cookies.clear()
    assert stranger.get("/?token=first").status_code == 401
    assert stranger.get("/?token=second").status_code == 303


def test_token_can_be_entered(stranger: TestClient) -> None:
    assert stranger.post("/login", data={"token": "wrong"}).status_code == 401
    assert stranger.post("/login", data={"token": f" {TOKEN} "}).status_code == 303
    assert stranger.get("/").status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8300", "127.0.0.1.evil.example", "10.0.0.1:8300", ""])
def test_other_host_names_are_refused(stranger: TestClient, host: str) -> None:
    headers = {"Host": host, "Authorization": f"Bearer {TOKEN}"}
    assert stranger.get("/api/v1/slides", headers=headers).status_code == 421


@pytest.mark.parametrize("host", ["localhost:9000", "127.0.0.1", "[::1]:8300"])
def test_tunnel_is_accepted(stranger: TestClient, host: str) -> None:
    headers = {"Host": host, "Authorization": f"Bearer {TOKEN}"}
    assert stranger.get("/api/v1/slides", headers=headers).status_code == 200


def test_browser_writes_need_our_own_page(stranger: TestClient) -> None:
    stranger.get("/?token=first")
    ours = {"x-her2batch": "1"}
    for headers in ({}, {"Origin": HOME}, {**ours, "Origin": "http://127.0.0.1:9"}, {**ours, "Origin": "null"}):
        assert stranger.post("/api/v1/reviews", json={}, headers=headers).status_code == 403
    for headers in (ours, {**ours, "Origin": HOME}):
        assert stranger.post("/api/v1/reviews", json={}, headers=headers).status_code == 422


def test_every_response_has_security_headers(stranger: TestClient) -> None:
    for address in ("/", "/static/app.js", "/api/v1/slides"):
        headers = stranger.get(address).headers
        assert headers["content-security-policy"].startswith("default-src 'self'")
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store"


def test_request_body_has_a_limit(client: TestClient) -> None:
    answer = client.post("/api/v1/reviews", content=b"{" + b" " * 100_000)
    assert answer.status_code == 413
