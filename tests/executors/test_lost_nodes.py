"""What tells a node that has gone from a worker that died: on real ones, tests/clusters/test_nodes_come_and_go.py."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import ActorUnavailableError, NodeDiedError, RayActorError

from hpo_ray.clusters.nodes import gone
from hpo_ray.executors import internals
from hpo_ray.executors.internals import Controller, StudyTrial, lost_node
from hpo_ray.trainables.peers import ProcessFailed

WORKER_DIED = (
    "The actor died unexpectedly before finishing this task.\n\tclass_name: train\n\tpid: 7\n\tip: 10.0.0.1\n"
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR"
)
HEALTH = "terminated unexpectedly: health check failed due to missing too many heartbeats"
NODE_DIED = f"The actor died because its node has died. Node Id: 156e\n\tthe actor's node was {HEALTH}"
DRAINED = "The actor died unexpectedly.\n\tThe node was terminated expectedly: received SIGTERM"


def died(text: str) -> RayActorError:
    """An error of an actor as it reads; Ray makes those of a dead one from a record of its own."""
    return RayActorError(error_msg=text)


UNAVAILABLE = ActorUnavailableError("Connection reset by peer", None)


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """Two nodes that are alive for Ray, the second of which doesn't answer; and one that Ray knows to be dead."""
    with closing(socket.create_server(("127.0.0.1", 0))) as up:
        with closing(socket.create_server(("127.0.0.1", 0))) as down:
            free = down.getsockname()[1]
        known = [("127.0.0.1", up.getsockname()[1], True), ("localhost", free, True), ("10.0.0.4", free, False)]
        listed = [{"NodeManagerAddress": a, "NodeManagerPort": p, "Alive": alive} for a, p, alive in known]
        monkeypatch.setattr(ray, "nodes", lambda: listed)
        yield listed


def test_who_does_not_answer(nodes: list[dict[str, Any]]) -> None:
    addresses = ("127.0.0.1", "localhost", "10.0.0.4", "10.0.0.9")
    assert [gone(address, nodes) for address in addresses] == [False, True, False, False]
    assert gone(None, nodes) and not gone(None, [nodes[0], nodes[2]])


@pytest.mark.parametrize(
    ("error", "address", "says"),
    [
        (
            died(NODE_DIED),
            "10.0.0.1",
            f"its node 10.0.0.1 has gone: {HEALTH}",
        ),
        (
            died(NODE_DIED),
            None,
            f"its node has gone: {HEALTH}",
        ),
        (died(DRAINED), None, "its node has gone: The node was terminated expectedly: received SIGTERM"),
        (NodeDiedError("The node 156e died."), "10.0.0.1", "its node 10.0.0.1 has gone: The node 156e died."),
        (UNAVAILABLE, "localhost", "its node localhost has gone: it no longer answers"),
        (UNAVAILABLE, None, "its node has gone: it no longer answers"),
        # its worker's or its own
        (UNAVAILABLE, "127.0.0.1", None),
        (died(WORKER_DIED), "localhost", None),
        (died("the worker died: OutOfMemoryError: 1 worker(s) were killed"), None, None),
        (ValueError("no"), "localhost", None),
    ],
)
def test_what_is_the_nodes_and_what_the_trials(
    nodes: list[dict[str, Any]], error: Exception, address: str | None, says: str | None
) -> None:
    assert lost_node(error, address) == says


def test_a_lost_node_is_no_failure_of_the_trial_so_many_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes after `failure.max_lost_nodes` of them counts as any failure does."""
    ended: list[str] = []
    monkeypatch.setattr(
        internals.TuneController, "_trial_task_failure", lambda self, trial, error: ended.append("fails")
    )
    controller = Controller.__new__(Controller)
    controller._in_process, controller._resetting_trials, controller.max_lost_nodes = False, set(), 2
    monkeypatch.setattr(controller, "_go_on", lambda trial, error: ended.append(trial.take_lost()))
    trial = StudyTrial.__new__(StudyTrial)
    trial.temporary_state = SimpleNamespace(location=None)
    for error in (WORKER_DIED, NODE_DIED, WORKER_DIED, NODE_DIED, NODE_DIED):
        controller._trial_task_failure(trial, died(error))
    lost = lost_node(died(NODE_DIED), None)
    assert ended == ["fails", lost, "fails", lost, "fails"] and trial.lost_nodes == 2


def test_a_trial_whose_report_comes_while_a_study_is_stopped_is_saved_too() -> None:
    asked: list[str] = []
    controller: Any = SimpleNamespace(
        _leaving={"waits": False, "asked": True},
        _worth_saving=lambda trial: trial == "reported",
        _schedule_trial_save=asked.append,
    )
    for trial in ("waits", "asked", "reported", "saved"):
        Controller._schedule_trial_train(controller, trial)
    assert asked == ["waits", "reported"] and controller._leaving == {"waits": True, "asked": True, "reported": True}


def test_the_node_of_another_of_its_processes(nodes: list[dict[str, Any]]) -> None:
    """A trial of several processes fails in the first, whose node answers; if all do, the failure is its own."""
    error = RuntimeError("ray::train()")
    error.cause = ProcessFailed("rank 1 of the trial's 2 processes died: unavailable")  # type: ignore[attr-defined]
    assert lost_node(error, "127.0.0.1") == (
        "a node of its processes has gone: rank 1 of the trial's 2 processes died: unavailable"
    )
    del nodes[1]
    assert lost_node(error, "127.0.0.1") is None
