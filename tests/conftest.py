"""What several tests share: a working folder of their own with a user's code in it, and one small Ray cluster."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from objectstore import CREDENTIALS, Server

from hpo_ray import importing
from hpo_ray.location import Location
from hpo_ray.results import REPORT_FILE, StudyResult

# A user's own module, as `task.trainable=mine.NAME` finds it in the current folder.
MINE = Path(__file__).parent / "mine.py"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, except for the user's module."""
    shutil.copy(MINE, tmp_path / "mine.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(MINE.parent))
    return tmp_path


@pytest.fixture(autouse=True)
def no_reports(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A report takes longer than most studies here: only tests marked `reports` have it written, with all in it."""
    if request.node.get_closest_marker("reports") is None:
        from hpo_ray.report import writing

        def write(result: StudyResult, path: Path | None = None) -> Path:
            target = path or result.path / REPORT_FILE
            target.write_text("left out in this test")
            return target

        def write_several(results: object, path: Path, title: str) -> Path:
            path.write_text("left out in this test")
            return path

        monkeypatch.setattr(writing, "write_report", write)
        monkeypatch.setattr(writing, "write_several", write_several)


@pytest.fixture(autouse=True)
def nothing_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test hands to `tune_study` must not stand for what another imports by the same name."""
    monkeypatch.setattr(importing, "_given", {})


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray cluster with four logical cores, which all studies of the session use."""
    import hpo_ray.executors  # noqa: F401  # sets Ray's environment before its import

    ray = pytest.importorskip("ray")
    temp = tempfile.mkdtemp(prefix="hr", dir="/tmp")
    # The checkout whose tests run, too: another one may be installed.
    environment = {"env_vars": {"PYTHONPATH": f"{MINE.parent}{os.pathsep}{MINE.parents[1]}", **CREDENTIALS}}
    ray.init(
        address="local",
        num_cpus=4,
        num_gpus=0,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env=environment,
        _temp_dir=temp,
    )
    yield
    ray.shutdown()
    shutil.rmtree(temp, ignore_errors=True)
    sys.modules.pop("mine", None)


@pytest.fixture(scope="session")
def _server() -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        running = Server()
        yield running
        running.stop()


@pytest.fixture
def server(_server: Server) -> Server:
    """An S3-compatible server, which runs."""
    _server.start()
    return _server


@pytest.fixture
def store(server: Server) -> Location:
    """An empty prefix on it."""
    return server.prefix()
