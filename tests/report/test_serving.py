"""`report --serve`: optuna-dashboard on the studies of a folder, on this machine only."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from hpo_ray.__main__ import main
from hpo_ray.best import save_config
from hpo_ray.config import load
from hpo_ray.events import EventLog, Reported, StudyEnded, StudyStarted, TrialAdded, TrialEnded
from hpo_ray.report.serving import Dashboard
from hpo_ray.store.recovery import rebuild
from hpo_ray.store.storage import Store
from hpo_ray.study import draft

pytest.importorskip("optuna_dashboard")


@cache
def config(*overrides: str) -> Mapping[str, Any]:
    return draft(load(["task=parabola", *overrides])).config


def study(root: Path, name: str, *overrides: str) -> None:
    """A study of one trial that has ended, without its store."""
    (root / name).mkdir(parents=True)
    save_config(root / name, config(*overrides))
    log = EventLog(root / name / "events.jsonl")
    log.append(StudyStarted(name, "random", "parabola", "loss", "min", 0, 9, 1_000_000.0))
    log.append(TrialAdded("0", 0, {"x": 1.5, "y": 2.0}, {}, 0.0))
    log.append(Reported("0", 9, 9, {"loss": 0.5}, 1.0, 1.0))
    log.append(TrialEnded("0", "completed", "", None, 1.0))
    log.append(StudyEnded("finished", "all trials are done", 1.0))
    log.close()


def get(app: Dashboard, path: str, host: str = "127.0.0.1:8080") -> tuple[str, bytes]:
    """What an application answers, without a server."""
    answered: list[str] = []

    def start(status: str, headers: list[tuple[str, str]], info: Any = None) -> None:
        answered.append(status)

    environ = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": path,
        "HTTP_HOST": host,
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8080",
        "wsgi.url_scheme": "http",
        "wsgi.input": sys.stdin.buffer,
        "wsgi.errors": sys.stderr,
    }
    body = b"".join(app(environ, start))
    return answered[0], body


def names(app: Dashboard) -> list[str]:
    status, body = get(app, "/api/studies")
    assert status == "200 OK"
    return sorted(study["study_name"] for study in json.loads(body)["study_summaries"])


def test_a_journal_that_is_not_there_is_written_from_the_logs(tmp_path: Path) -> None:
    study(tmp_path, "a")
    study(tmp_path, "b", "store=none")
    app = Dashboard(Store(tmp_path))
    assert names(app) == ["a", "b"] and app.contents == "2 studies"


def test_studies_that_the_store_lacks_are_caught_up(tmp_path: Path) -> None:
    study(tmp_path, "a")
    rebuild(Store(tmp_path))
    study(tmp_path, "b")
    study(tmp_path, "c", "store=none")
    app = Dashboard(Store(tmp_path))
    assert names(app) == ["a", "b"]
    assert app.contents == "2 studies\nleft out   c: no store, or another one; --rebuild-store takes all in"
    status, body = get(app, "/api/studies/1")
    assert status == "200 OK" and json.loads(body)["trials"][0]["values"] == [0.5]


def test_a_database(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/studies.db"
    study(tmp_path, "a", f"store.url={url}")
    study(tmp_path, "b")
    app = Dashboard(Store(tmp_path, url))
    assert names(app) == ["a"] and app.contents.startswith("1 study\nleft out   b: ")
    app.close()


def test_a_damaged_journal_is_mended(tmp_path: Path) -> None:
    study(tmp_path, "a")
    rebuild(Store(tmp_path))
    with Store(tmp_path).journal.open("ab") as file:
        file.write(b"nonsense\n")
    assert names(Dashboard(Store(tmp_path))) == ["a"]


def test_a_journal_that_is_rebuilt_meanwhile_is_opened_again(tmp_path: Path) -> None:
    study(tmp_path, "a")
    app = Dashboard(Store(tmp_path))
    study(tmp_path, "b")
    rebuild(Store(tmp_path))
    assert names(app) == ["a", "b"]


@pytest.mark.parametrize(
    ("host", "answered"),
    [
        ("127.0.0.1:8080", True),
        ("localhost", True),
        ("localhost:9000", True),  # forwarded from another port
        ("evil.example:8080", False),  # a name that somebody has pointed here
        ("127.0.0.1.evil.example", False),
        ("", False),
    ],
)
def test_only_this_machine_is_answered(tmp_path: Path, host: str, answered: bool) -> None:
    study(tmp_path, "a")
    status, _ = get(Dashboard(Store(tmp_path)), "/api/studies", host)
    assert status == ("200 OK" if answered else "403 Forbidden")


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody listens on."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield int(holder.getsockname()[1])


def test_what_can_not_be_served(
    tmp_path: Path, taken: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    study(tmp_path / "outputs", "a")
    (tmp_path / "empty").mkdir()
    for typed, said in (
        (["nowhere"], "report nowhere: no such folder"),
        (["outputs", "empty"], "report --serve outputs empty: takes one study's folder"),
        (["empty"], "report --serve empty: there are no studies in it yet"),
        (["s3://bucket/outputs"], "bring it here first"),
        (["store=none"], "store=none: there is no store to serve"),
        (["store.url=here"], "store.url=here: can't be parsed"),
        (["--port", "99999"], "--port 99999: must be a whole number from 0 (any that is free) to 65535"),
        (["--port", "http"], "--port http: must be a whole number"),
        (["--port=-1"], "--port -1: must be a whole number"),
        (["--port", str(taken)], f"--port {taken}: can't be had on 127.0.0.1: Address already in use; give another"),
    ):
        assert main(["report", "--serve", *typed]) == 2, typed
        assert said in capsys.readouterr().err
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "optuna_dashboard" else find(name))
    assert main(["report", "--serve"]) == 2
    assert "not installed: pip install 'hpo_ray[dashboard]'" in capsys.readouterr().err
    assert not (tmp_path / "outputs" / "hpo_ray.journal").exists(), "nothing was begun"


def test_it_serves_until_ctrl_c(tmp_path: Path) -> None:
    """The command as it is typed, in a process of its own. A study's folder stands for the one that it lies in."""
    study(tmp_path / "outputs", "a")
    server = subprocess.Popen(
        [sys.executable, "-m", "hpo_ray", "report", "outputs/a", "--serve", "--port", "0"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
    )
    assert server.stdout is not None
    try:
        assert server.stdout.readline() == "outputs/hpo_ray.journal: 1 study\n"
        url = server.stdout.readline().split()[2]
        assert url.startswith("http://127.0.0.1:") and not url.endswith(":0/")
        with urllib.request.urlopen(url) as page:
            assert page.url == f"{url}dashboard" and b"<html" in page.read().lower()
        with urllib.request.urlopen(f"{url}api/studies") as answer:
            assert [found["study_name"] for found in json.load(answer)["study_summaries"]] == ["a"]
        port = int(url.rstrip("/").rpartition(":")[2])
        sockets = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        sockets += [line.split() for line in Path("/proc/net/tcp6").read_text().splitlines()[1:]]
        listening = [fields[1] for fields in sockets if fields[3] == "0A" and fields[1].endswith(f":{port:04X}")]
        assert listening == [f"0100007F:{port:04X}"]
        server.send_signal(signal.SIGINT)
        out, err = server.communicate(timeout=60)
        assert (server.returncode, out, err) == (0, "\n", "")
    finally:
        server.kill()
        server.wait()
