"""Units and crontab of the workstation: systemd accepts them, and they keep their promises."""

import configparser
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from her2batch.cli.app import app
from her2batch.nightly.summary import HELD_EXIT_CODE

FOLDER = Path(__file__).parents[2] / "cluster" / "workstation"
PROXY = FOLDER.parent / "proxy"
UNITS = sorted([*FOLDER.glob("*.service"), *FOLDER.glob("*.timer"), *PROXY.glob("*.service")])

KNOWN = {
    "Unit": {"Description", "Documentation", "After", "Wants", "Conflicts"},
    "Timer": {"OnCalendar", "Persistent", "AccuracySec"},
    "Install": {"WantedBy"},
    "Service": {
        "Type", "User", "Group", "UMask", "ExecStart", "EnvironmentFile", "Environment", "SuccessExitStatus", "Restart",
        "RestartSec", "TimeoutStopSec", "KillMode", "Nice", "NoNewPrivileges", "ProtectSystem", "ProtectHome",
        "PrivateTmp", "PrivateDevices", "ProtectKernelTunables", "ProtectControlGroups", "RestrictSUIDSGID",
        "ReadOnlyPaths", "ReadWritePaths", "CacheDirectory", "LimitNOFILE",
    },
}  # fmt: skip
"""The directives of systemd.unit(5), systemd.service(5), systemd.exec(5) and systemd.timer(5) in use."""


def read(path: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str
    parser.read_string(path.read_text())
    return parser


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_unit_has_known_directives_only(path: Path) -> None:
    parsed = read(path)
    for section in parsed.sections():
        assert set(parsed[section]) <= KNOWN[section]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_systemd_accepts_the_unit(path: Path, tmp_path: Path) -> None:
    for one in UNITS:  # with a program that is there
        text = one.read_text().replace("/opt/her2batch/bin/her2batch", "/bin/true")
        (tmp_path / one.name).write_text(text.replace("/usr/local/bin/oauth2-proxy", "/bin/true"))
    run = subprocess.run(
        ["systemd-analyze", "verify", tmp_path / path.name], capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    assert path.stem not in run.stderr


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_refuses_an_invalid_time(tmp_path: Path) -> None:
    when = read(FOLDER / "her2batch-night.timer")["Timer"]["OnCalendar"]
    good, bad = (
        subprocess.run(["systemd-analyze", "calendar", one], capture_output=True, timeout=60).returncode
        for one in (when, "25:00")
    )
    assert (good, bad != 0) == (0, True)


def test_service_stops_in_time_and_knows_the_exit_codes() -> None:
    night = read(FOLDER / "her2batch-night.service")["Service"]
    assert set(night["SuccessExitStatus"].split()) == {"3", "130"}
    assert str(HELD_EXIT_CODE) not in night["SuccessExitStatus"].split()
    assert int(night["TimeoutStopSec"]) > 10
    assert night["UMask"] == "0077"


def test_scheduled_commands_exist() -> None:
    commands = [read(path)["Service"]["ExecStart"] for path in FOLDER.glob("*.service")]
    commands += [line.split("umask 077; ")[1] for line in cron_lines()]
    known = {one.callback.__name__ for one in app.registered_commands}
    for command in commands:
        words = shlex.split(command)
        assert words[0].endswith("/her2batch")
        assert words[1] in known


def test_the_web_page_is_served_as_the_proxy_expects() -> None:
    """Unit, nginx and oauth2-proxy agree on ports, names and headers; secrets are in files of root only."""
    command = shlex.split(read(FOLDER / "her2batch-serve.service")["Service"]["ExecStart"])
    options = dict(zip(command[3::2], command[4::2], strict=True))
    site = (PROXY / "nginx.conf").read_text()
    config = tomllib.loads((PROXY / "oauth2-proxy.cfg").read_text())
    assert f"server_name {options['--allowed-host']};" in site
    assert f"proxy_set_header {options['--user-header']} $user;" in site
    assert f"proxy_set_header {options['--groups-header']} $groups;" in site
    assert options["--reviewer"] in config["allowed_groups"]
    assert config["http_address"] in site
    assert config["redirect_url"] == f"https://{options['--allowed-host']}/oauth2/callback"
    assert not {"client_secret", "cookie_secret"} & config.keys()
    assert "include /etc/nginx/her2batch-secret.conf;" in site


def test_logs_of_cron_are_rotated() -> None:
    rotated = set((FOLDER / "logrotate").read_text().split("{")[0].splitlines()[-1].split())
    logs = {word for line in cron_lines() for word in line.split() if word.startswith("/data/nights.")}
    assert rotated == logs


@pytest.mark.skipif(shutil.which("logrotate") is None, reason="no logrotate here")
def test_logrotate_accepts_its_file(tmp_path: Path) -> None:
    text = (
        (FOLDER / "logrotate").read_text().replace("/data", str(tmp_path)).replace("her2batch her2batch", "root root")
    )
    (tmp_path / "nights.jsonl").write_text("{}\n")
    (tmp_path / "config").write_text(text)
    command = ["logrotate", "--force", "--state", str(tmp_path / "state"), str(tmp_path / "config")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stderr) == (0, "")
    assert (tmp_path / "nights.jsonl.1").read_text() == "{}\n"


def cron_lines() -> list[str]:
    lines = (FOLDER / "crontab").read_text().splitlines()
    return [one for one in lines if one and not one.startswith("#") and not re.match(r"^[A-Z]+=", one)]


def test_crontab_line_has_five_fields_and_a_command() -> None:
    ranges = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
    assert len(cron_lines()) == 1
    for line in cron_lines():
        *fields, command = line.split(None, 5)
        assert len(fields) == 5
        for field, (low, high) in zip(fields, ranges, strict=True):
            assert field == "*" or low <= int(field) <= high
        assert "%" not in command  # cron takes it for a line break
