"""What is the same in every import is composed once."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from typing import Any

import pytest

from hpo_ray.config import load
from hpo_ray.importers import writing


@cache
def _composed(*overrides: str) -> Any:
    return load(overrides)


@pytest.fixture(autouse=True)
def composed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra takes a quarter of a second."""
    monkeypatch.setattr(writing, "load", lambda overrides: deepcopy(_composed(*overrides)))
