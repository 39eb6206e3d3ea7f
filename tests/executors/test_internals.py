"""The one module that touches Ray's private names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ray.exceptions import OutOfMemoryError

from hpo_ray.errors import StudyError
from hpo_ray.executors import internals

PACKAGE = Path(internals.__file__).parents[1]


def test_this_ray_has_all_that_is_used() -> None:
    internals.check_ray()


def test_a_ray_that_moved_a_name_is_reported_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Moved:
        """Stands for a class of Ray's that lost a method."""

    monkeypatch.setitem(internals._USED, Moved, ("_schedule_trial_save",))
    with pytest.raises(StudyError, match=r"Ray 2\.\d+.* has moved Moved\._schedule_trial_save.*pip install"):
        internals.check_ray()


def test_what_the_controller_overrides_is_there_to_be_overridden() -> None:
    """A private method that Ray renames would otherwise silently be ours alone."""
    own = {"close", "keep_actors", "num_active", "_leave_reset", "_forget_ended", "_wrapper", "study_error"}
    own |= {"save_running", "checkpoint_is_due", "_leaving", "_go_on", "max_lost_nodes", "resources", "_kept"}
    own |= {"_worth_saving", "num_paused"}
    own |= {"_answered", "_end_those_that_hang", "has_news_of"}
    own |= {"resources", "_kept", "num_paused", "max_lost_nodes", "_go_on"}
    own |= {"lost", "lost_nodes", "take_lost", "node_ip"}
    own |= {"kept", "enter", "leave", "bring_output", "share_output", "bring", "checkpoint", "discard"}
    known = own | {"aside", "trainable", "fallback", "oldest", "take_fallback", "drop_checkpoint"}
    known |= {"lost_nodes", "lost", "take_lost", "node_ip"}
    for cls in (internals.Controller, internals._ActorManager, internals.StudyStorage, internals.StudyTrial):
        for name in set(vars(cls)) - known:
            if not name.startswith("__"):
                assert any(name in vars(base) for base in cls.__mro__[1:]), f"{cls.__name__}.{name}"


def test_no_other_module_imports_private_parts_of_ray() -> None:
    private = re.compile(r"^\s*(from|import) ray\S*\._|^\s*from ray\S* import .*\b_\w", re.MULTILINE)
    for path in PACKAGE.rglob("*.py"):
        if path.name != "internals.py":
            assert not private.search(path.read_text()), path


def test_a_worker_that_ray_kills_for_memory_is_a_dead_actor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's manager raises whatever is neither of the two errors that it knows, which would end the study."""
    seen: list[Exception] = []
    base = internals.RayActorManager
    monkeypatch.setattr(base, "_actor_task_failed", lambda self, task, exception: seen.append(exception))
    manager = internals._ActorManager.__new__(internals._ActorManager)
    died = internals.RayActorError(error_msg="died")
    for exception in (OutOfMemoryError("low on memory"), died):
        manager._actor_task_failed(None, exception)
    assert isinstance(seen[0], internals.RayActorError) and seen[1] is died
    assert str(seen[0]) == "the worker died: OutOfMemoryError: low on memory"
