"""A PostgreSQL of the tests' own, and what an Optuna storage holds as plain values."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from postgresql import PostgreSQL, programs


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a study waits for its store as long as it takes: how quick a disk is, is not what is tested."""
    from hpo_ray.executors import loop

    monkeypatch.setattr(loop, "_STORE_S", 120.0)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A PostgreSQL that runs."""
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'hpo_ray[postgresql]'")
    found = programs()
    if found is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="hpo_ray-pg-", dir="/tmp"))  # a socket's path has to be short
    try:
        server = PostgreSQL(found, folder)
        server.start()
        yield server
        server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
