"""Small real studies that several tests of reports read, and the browser that pages are looked at with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from browser import CHROMIUM, Browser

from hpo_ray.report.subject import Subject
from hpo_ray.testing import run_study

SMALL = ["task=parabola", "executor=inprocess", "scheduler.max_resource=9"]


@pytest.fixture(scope="session")
def hyperband(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """R = 9, eta = 3: 17 trials in brackets of 9, 5 and 3."""
    return Subject(run_study(["method=hyperband", *SMALL], tmp_path_factory.mktemp("hyperband")))


@pytest.fixture(scope="session")
def population(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """Four members that may copy each other after each step."""
    settings = ["scheduler.population=4", "scheduler.interval=1"]
    return Subject(run_study(["method=pbt", *settings, *SMALL], tmp_path_factory.mktemp("pbt")))


@pytest.fixture(scope="session")
def evolution(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """Three generations of four."""
    settings = ["budget.trials=12", "searcher.population=4"]
    return Subject(run_study(["method=evolution", *settings, *SMALL], tmp_path_factory.mktemp("evolution")))


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A headless Chromium; skips where there is none."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as running:
        started = Browser(running)
        yield started
        started.close()
