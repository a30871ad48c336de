"""What a page may load: its own text. Hashes are those a browser computes."""

from her2batch.reports.policy import for_file, for_server, script_hash


def test_a_script_is_allowed_by_the_hash_of_its_text_alone() -> None:
    # printf "alert('Hello, world.');" | openssl dgst -sha256 -binary | openssl base64
    known = "'sha256-qznLcsROx4GACP2dm0UCKCzCG+HiZ1guq6ZZDob/Tng='"
    assert script_hash("alert('Hello, world.');") == known
    assert f"script-src {known}" in for_file("alert('Hello, world.');")
    assert script_hash("a\r\nb") == script_hash("a\nb")


def test_a_page_without_scripts_runs_none() -> None:
    assert for_file().startswith("default-src 'none'")
    assert "script-src" not in for_file()


def test_neither_policy_names_another_host_or_lets_scripts_in_by_themselves() -> None:
    for policy in (for_file("x"), for_server("x", "y")):
        assert "http" not in policy
        assert "*" not in policy
        scripts = next(one for one in policy.split("; ") if one.startswith("script-src"))
        assert "unsafe" not in scripts
        assert "'self'" not in scripts
        assert '"' not in policy  # it stands in an attribute
    assert "'self'" not in for_file("x")
    assert "frame-ancestors 'none'" in for_server()
