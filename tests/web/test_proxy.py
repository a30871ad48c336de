"""Access through a reverse proxy: users from headers only with the secret and from a trusted address; roles; prefix."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from starlette.testclient import TestClient

from her2batch.errors import InputError
from her2batch.store.cohort import Cohort
from her2batch.store.reviews import read_reviews
from her2batch.web.proxy import NO_PROXY, SECRET_HEADER, ProxyAccess, check_access
from tests.nightly.mail_server import make_certificate
from tests.web.served import TOKEN, application, listening

SECRET = "a-secret-of-proxy-and-server"
ACCESS = ProxyAccess(
    hosts=("her2.example.org",),
    user_header="X-Forwarded-User",
    groups_header="X-Forwarded-Groups",
    reviewers=frozenset({"her2-reviewers", "chief@example.org"}),
    secret=SECRET,
)
ORIGIN = "https://her2.example.org"
OURS = {"x-her2batch": "1", "Origin": ORIGIN}
FROM_PROXY = {SECRET_HEADER: SECRET, "X-Forwarded-User": "ada@example.org"}
REVIEWER = {**FROM_PROXY, "X-Forwarded-Groups": "staff, her2-reviewers"}


def browser(cohort: Cohort, access: ProxyAccess = ACCESS, peer: str = "127.0.0.1") -> TestClient:
    """A client of the application as the proxy calls it. peer: the address that the connection comes from."""
    app = application(cohort.root, access=access)
    return TestClient(app, base_url=ORIGIN, client=(peer, 50000), follow_redirects=False)


def review_of(client: TestClient, headers: dict[str, str]) -> dict[str, object]:
    slide = client.get("/api/v1/slides?limit=1", headers=headers).json()["slides"][0]["slide_id"]
    prediction = client.get(f"/api/v1/slides/{slide}", headers=headers).json()["predictions"][0]
    keys = {name: prediction[name] for name in ("bundle", "task", "method", "predicted")}
    return {"slide_id": slide, "reviewer": "somebody else", "verdict": "agree", **keys}


# -- who is believed ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_user_of_the_proxy_reads_without_a_token(cohort: Cohort) -> None:
    facts = browser(cohort).get("/api/v1/cohort", headers=FROM_PROXY).json()
    assert (facts["user"], facts["may_review"]) == ("ada@example.org", False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "peer", ["10.0.0.7", "192.168.1.1", "8.8.8.8", "2001:db8::1", "127.0.0.1.evil", "testclient", ""]
)
def test_a_header_from_an_untrusted_address_is_ignored(cohort: Cohort, peer: str) -> None:
    """Even with the right secret, and whatever the request says about where it comes from."""
    client = browser(cohort, peer=peer)
    for more in ({}, {"X-Forwarded-For": "127.0.0.1"}, {"X-Real-IP": "127.0.0.1"}, {"Forwarded": "for=127.0.0.1"}):
        assert client.get("/api/v1/slides", headers={**REVIEWER, **more}).status_code == 401
    assert client.get("/api/v1/slides", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize(
    ("peer", "trusted"), [("10.1.2.3", "10.1.0.0/16"), ("::1", "::1"), ("::ffff:127.0.0.1", "127.0.0.1")]
)
def test_a_trusted_network_is_believed(cohort: Cohort, peer: str, trusted: str) -> None:
    client = browser(cohort, replace(ACCESS, trusted=(trusted,)), peer)
    assert client.get("/api/v1/slides", headers=FROM_PROXY).status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize("secret", ["", "wrong", SECRET[:-1], f"{SECRET} x", "ä"])
def test_a_header_without_the_secret_is_ignored(cohort: Cohort, secret: str) -> None:
    """Every program on the machine can connect to loopback, which is a trusted address."""
    client = browser(cohort)
    headers = {**REVIEWER, SECRET_HEADER: secret.encode()}
    assert client.get("/api/v1/slides", headers=headers).status_code == 401
    assert client.post("/api/v1/reviews", json={}, headers={**headers, **OURS}).status_code == 401


@pytest.mark.slow
def test_a_header_is_ignored_where_no_proxy_is_set_up(cohort: Cohort) -> None:
    for access in (NO_PROXY, replace(ACCESS, user_header=None), replace(ACCESS, secret="")):
        app = application(cohort.root, access=access)
        client = TestClient(app, base_url="http://127.0.0.1:8300", client=("127.0.0.1", 5))
        assert client.get("/api/v1/slides", headers={**REVIEWER, SECRET_HEADER: access.secret}).status_code == 401


@pytest.mark.slow
def test_a_header_that_is_there_twice_names_nobody(cohort: Cohort) -> None:
    client = browser(cohort)
    user, secret = ("X-Forwarded-User", "eve@example.org"), (SECRET_HEADER, SECRET)
    twice = [(secret, user, ("X-Forwarded-User", "ada@example.org")), (secret, secret, user)]
    for headers in twice:
        assert client.get("/api/v1/slides", headers=list(headers)).status_code == 401
    groups = [("X-Forwarded-Groups", "her2-reviewers"), ("X-Forwarded-Groups", "staff")]
    assert client.get("/api/v1/cohort", headers=[secret, user, *groups]).json()["may_review"] is False


@pytest.mark.slow
@pytest.mark.parametrize("name", ["", "  ", "a" * 101, "a\x1fb"])
def test_a_name_that_is_none_names_nobody(cohort: Cohort, name: str) -> None:
    assert browser(cohort).get("/api/v1/slides", headers={**REVIEWER, "X-Forwarded-User": name}).status_code == 401


# -- roles -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("headers", "may_review"),
    [
        (FROM_PROXY, False), ({**FROM_PROXY, "X-Forwarded-Groups": "staff"}, False), (REVIEWER, True),
        ({**FROM_PROXY, "X-Forwarded-Groups": "her2-reviewers-not"}, False),
        ({**FROM_PROXY, "X-Forwarded-User": "chief@example.org"}, True),
    ],
)  # fmt: skip
def test_only_reviewers_write(cohort: Cohort, headers: dict[str, str], may_review: bool) -> None:
    client = browser(cohort)
    body = review_of(client, headers)
    answer = client.post("/api/v1/reviews", json=body, headers={**headers, **OURS})
    assert answer.status_code == (201 if may_review else 403)
    assert client.post("/api/v1/slides", json={"path": "x"}, headers={**headers, **OURS}).status_code == 403
    assert [entry["reviewer"] for entry in read_reviews(cohort)] == [headers["X-Forwarded-User"]] * may_review


@pytest.mark.slow
def test_a_page_of_another_origin_cannot_write_with_the_session_of_the_proxy(cohort: Cohort) -> None:
    client = browser(cohort)
    body = review_of(client, REVIEWER)
    for more in ({}, {"Origin": ORIGIN}, {"x-her2batch": "1", "Origin": "https://evil.example"}):
        assert client.post("/api/v1/reviews", json=body, headers={**REVIEWER, **more}).status_code == 403
    assert read_reviews(cohort) == []


# -- names and addresses -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("host", "status"), [
    ("her2.example.org", 200), ("HER2.example.org:443", 200), ("evil.example", 421),
    ("her2.example.org.evil.example", 421),
])  # fmt: skip
def test_only_allowed_hosts_are_answered(cohort: Cohort, host: str, status: int) -> None:
    assert browser(cohort).get("/api/v1/slides", headers={**FROM_PROXY, "Host": host}).status_code == status


@pytest.mark.slow
@pytest.mark.parametrize("is_passed_on", [True, False])
def test_every_address_has_the_prefix(cohort: Cohort, is_passed_on: bool) -> None:
    """The proxy passes the prefix on, or removes it."""
    client = browser(cohort, replace(ACCESS, prefix="/her2"))
    before = "/her2" if is_passed_on else ""
    assert client.get(f"{before}/", headers=FROM_PROXY).status_code == 200
    assert client.get(f"{before}/static/style.css").status_code == 200
    listed = client.get(f"{before}/api/v1/slides?limit=1", headers=FROM_PROXY).json()["slides"][0]["slide_id"]
    slide = client.get(f"{before}/api/v1/slides/{listed}", headers=FROM_PROXY).json()
    for name in ("deepzoom", "thumbnail"):
        assert slide[name].startswith("/her2/api/v1/slides/")
        address = slide[name] if is_passed_on else slide[name].removeprefix("/her2")
        assert client.get(address, headers=FROM_PROXY).status_code == 200
    page = client.get(f"{before}/")
    assert page.status_code == 401
    assert 'action="/her2/login"' in page.text
    signed_in = client.post(f"{before}/login", data={"token": TOKEN})
    assert (signed_in.headers["location"], "Path=/her2/" in signed_in.headers["set-cookie"]) == ("/her2/", True)


@pytest.mark.slow
def test_pages_name_no_address_from_the_root_of_the_host() -> None:
    """Under a prefix such an address would be that of another application."""
    static = Path(__file__).parents[2] / "her2batch" / "web" / "static"
    for path in [*static.glob("*.html"), *static.glob("*.js")]:
        text = path.read_text()
        assert not any(f"{mark}/{part}" in text for mark in "\"'`" for part in ("api", "static", "report", "nights")), (
            path
        )
        assert 'href="/"' not in text


@pytest.mark.slow
def test_nights_are_shown_and_names_are_no_paths(cohort: Cohort) -> None:
    client = browser(cohort)
    assert client.get("/api/v1/cohort", headers=FROM_PROXY).json()["nights"] is False
    assert client.get("/nights/", headers=FROM_PROXY).status_code == 404
    folder = cohort.nights / "20260601-190000"
    folder.mkdir(parents=True)
    sources = "default-src &#39;none&#39;; style-src &#39;unsafe-inline&#39;"
    policy = f'<meta http-equiv="Content-Security-Policy" content="{sources}">'
    (folder / "report.html").write_text(f"{policy}report")
    (cohort.nights / "index.html").write_text(f"{policy}nights")
    assert client.get("/api/v1/cohort", headers=FROM_PROXY).json()["nights"] is True
    answer = client.get("/nights/20260601-190000/report.html", headers=FROM_PROXY)
    assert answer.text.endswith("report")
    assert answer.headers["content-security-policy"].startswith("default-src 'none'; style-src 'unsafe-inline'")
    for name in ("..", "%2e%2e", "20260602-190000", "index.html"):
        assert client.get(f"/nights/{name}/report.html", headers=FROM_PROXY).status_code == 404
    assert client.get("/nights/").status_code == 401


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"secret": "short"}, "secret of the proxy has 5 characters"), ({"hosts": ("https://x",)}, "not a host name"),
        ({"prefix": "her2"}, "not a path"), ({"prefix": "/her2/"}, "not a path"), ({"prefix": '/"><b>'}, "not a path"),
        ({"trusted": ("everybody",)}, "trusted-proxy"), ({"user_header": None}, "need --user-header"),
        ({"user_header": "a b"}, "not the name of a header"),
    ],
)  # fmt: skip
def test_settings_that_cannot_work_are_refused(change: dict, words: str) -> None:
    check_access(ACCESS)
    check_access(NO_PROXY)
    with pytest.raises(InputError, match=words):
        check_access(replace(ACCESS, **change))


# -- a real nginx ------------------------------------------------------------------------------------------------------


class SignIn(ThreadingHTTPServer):
    """Stands in for oauth2-proxy: the cookie `session=NAME` is a session; `groups` has the groups of a user."""

    groups: dict[str, str] = {}  # noqa: RUF012  (of the class: the handler reads it)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = dict(part.strip().split("=", 1) for part in self.headers.get("Cookie", "x=").split(";")).get(
                "session"
            )
            known = self.path == "/oauth2/auth" and name in SignIn.groups
            self.send_response(202 if known else 401 if self.path == "/oauth2/auth" else 200)
            if known:
                self.send_header("X-Auth-Request-Email", f"{name}@example.org")
                self.send_header("X-Auth-Request-Groups", SignIn.groups[name])
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return


class Site(NamedTuple):
    """The site behind nginx.  address: of nginx.  direct: of the application."""

    address: str
    direct: str
    certificate: Path
    cohort: Cohort

    def client(self, session: str = "", **headers: str) -> httpx.Client:
        cookies = {"session": session} if session else {}
        return httpx.Client(base_url=self.address, verify=str(self.certificate), cookies=cookies, headers=headers)


@contextmanager
def nginx(folder: Path, application_port: str, sign_in_port: int, port: int) -> Iterator[Path]:
    """Run nginx with the project's configuration, with other ports and a certificate for 127.0.0.1."""
    certificate = make_certificate(folder)
    (folder / "secret.conf").write_text(f'proxy_set_header X-Her2batch-Proxy "{SECRET}";\n')
    site = (Path(__file__).parents[2] / "cluster" / "proxy" / "nginx.conf").read_text()
    for old, new in (
        ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"), ("127.0.0.1:8300", f"127.0.0.1:{application_port}"),
        ("127.0.0.1:4180", f"127.0.0.1:{sign_in_port}"), ("/etc/nginx/tls/her2.example.org.pem", str(certificate)),
        ("/etc/nginx/tls/her2.example.org.key", str(certificate)),
        ("/etc/nginx/her2batch-secret.conf", f"{folder}/secret.conf"),
        ("server_name her2.example.org", "server_name 127.0.0.1"),
    ):  # fmt: skip
        assert old in site
        site = site.replace(old, new)
    paths = "".join(
        f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/pid; error_log {folder}/error.log; worker_processes 1;\n"
        f"events {{ worker_connections 64; }}\nhttp {{ access_log off; {paths}\n{site}\n}}\n"
    )
    command = ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")]
    checked = subprocess.run([*command, "-t"], capture_output=True, text=True, timeout=30)
    assert checked.returncode == 0, checked.stderr
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            try:
                httpx.get(f"https://127.0.0.1:{port}/oauth2/x", verify=str(certificate))
                break
            except httpx.ConnectError:
                time.sleep(0.05)
        yield certificate
    finally:
        process.send_signal(signal.SIGQUIT)
        process.wait(30)


@pytest.fixture
def site(cohort: Cohort, tmp_path: Path) -> Iterator[Site]:
    folder = tmp_path / "nginx"
    folder.mkdir()
    tmp_path.chmod(0o755)  # nginx' workers are another user
    sign_in = SignIn(("127.0.0.1", 0), SignIn.Handler)
    SignIn.groups = {"ada": "her2-readers", "grace": "her2-readers,her2-reviewers"}
    threading.Thread(target=sign_in.serve_forever, daemon=True).start()
    probe = SignIn(("127.0.0.1", 0), SignIn.Handler)  # a free port
    port = probe.server_address[1]
    probe.server_close()
    access = replace(ACCESS, reviewers=frozenset({"her2-reviewers"}))
    try:
        with (
            listening(application(cohort.root, access=access)) as direct,
            nginx(folder, direct.rpartition(":")[2], sign_in.server_address[1], port) as certificate,
        ):
            yield Site(f"https://127.0.0.1:{port}", direct, certificate, cohort)
    finally:
        sign_in.shutdown()
        sign_in.server_close()


needs_nginx = pytest.mark.skipif(shutil.which("nginx") is None, reason="no nginx here")


@needs_nginx
@pytest.mark.slow
def test_nginx_signs_users_in_and_passes_their_roles_on(site: Site) -> None:
    with site.client() as stranger:
        assert stranger.get("/").headers["location"] == f"{site.address}/oauth2/start?rd=/"
        assert stranger.get("/api/v1/slides").status_code == 401
    with site.client("ada") as reader:
        facts = reader.get("/api/v1/cohort").json()
        assert (facts["user"], facts["may_review"]) == ("ada@example.org", False)
        page = reader.get("/")
        assert page.status_code == 200
        assert "strict-transport-security" in page.headers
        assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
        body = review_of(reader, {})
        ours = {"x-her2batch": "1", "Origin": site.address}
        assert reader.post("/api/v1/reviews", json=body, headers=ours).status_code == 403
    with site.client("grace") as reviewer:
        assert (
            reviewer.post(
                "/api/v1/reviews", json=body, headers={"x-her2batch": "1", "Origin": "https://evil.example"}
            ).status_code
            == 403
        )
        saved = reviewer.post("/api/v1/reviews", json=body, headers=ours)
        assert (saved.status_code, saved.json()["reviewer"]) == (201, "grace@example.org")
        slide = reviewer.get(f"/api/v1/slides/{body['slide_id']}").json()
        assert reviewer.get(slide["deepzoom"]).status_code == 200
    assert [entry["reviewer"] for entry in read_reviews(site.cohort)] == ["grace@example.org"]


@needs_nginx
@pytest.mark.slow
def test_headers_that_a_browser_sends_are_replaced_by_nginx(site: Site) -> None:
    forged = {"X-Forwarded-User": "grace@example.org", "X-Forwarded-Groups": "her2-reviewers", SECRET_HEADER: "guess"}
    with site.client("ada", **forged, Authorization=f"Bearer {TOKEN}") as reader:
        facts = reader.get("/api/v1/cohort").json()
        assert (facts["user"], facts["may_review"]) == ("ada@example.org", False)
    with site.client(**forged) as stranger:
        assert stranger.get("/api/v1/slides").status_code == 401
    for headers in (forged, {**forged, "X-Forwarded-For": "127.0.0.1"}):  # past nginx, from the same machine
        assert httpx.get(f"{site.direct}/api/v1/slides", headers=headers).status_code == 401
    right = {**forged, SECRET_HEADER: SECRET}
    assert httpx.get(f"{site.direct}/api/v1/slides", headers=right).status_code == 200  # the secret is what is believed
    assert json.loads(httpx.get(f"{site.direct}/api/v1/cohort", headers=right).text)["user"] == "grace@example.org"
