"""Histories for searchers, made without Ray, and the law of continuation that holds for each of them."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from hpo_ray.schedulers import HyperbandCore
from hpo_ray.searchers import Proposal, SearcherCore
from hpo_ray.space import Categorical, Float, Int, Space

MIXED = Space(
    {
        "lr": Float(1e-4, 0.3, log=True),
        "dropout": Float(0.0, 0.6, step=0.1),
        "layers": Int(1, 3),
        "units": Int(16, 256, log=True),
        "batch": Int(32, 128, step=32),
        "size": Categorical(("s", "m", "l", "xl"), ordered=True),
        "optimizer": ["sgd", "adam", "lion"],
        "momentum": Float(0.0, 0.99, when={"optimizer": "sgd"}),
        "nesterov": Categorical((True, False), when={"optimizer": "sgd"}),
        "epochs": 7,
    }
)
"""Every kind of domain, and conditions."""


def mixed_loss(config: Mapping[str, Any], fidelity: float = 1.0) -> float:
    """Smallest at lr 0.3, three layers, sgd with momentum 0.99; it falls with the fidelity."""
    value = abs(config["lr"] - 0.3) + 0.1 * (3 - config["layers"]) + config["dropout"]
    return float(value + (0.5 - config.get("momentum", 0.0)) + 1.0 - fidelity)


def play(
    core: SearcherCore,
    loss: Callable[[Mapping[str, Any]], float],
    trials: int,
    workers: int = 1,
    failing: Collection[int] = (),
    resource: int = 1,
) -> list[Proposal]:
    """Trials that are trained in full, `workers` at a time, those that start first ending first."""
    proposals: list[Proposal] = []
    running: deque[int] = deque()
    while len(proposals) < trials or running:
        while len(proposals) < trials and len(running) < workers:
            number = len(proposals)
            proposal = core.suggest(number)
            assert proposal is not None
            core.add(number, proposal.config, proposal.tags)
            proposals.append(proposal)
            running.append(number)
        number = running.popleft()
        if number not in failing:
            core.report(number, resource, [loss(proposals[number].config)])
        core.end(number, "failed" if number in failing else "completed")
    return proposals


def play_hyperband(
    core: SearcherCore,
    loss: Callable[[Mapping[str, Any], float], float],
    max_resource: int,
    rounds: int = 1,
    failing: Collection[int] = (),
) -> list[Proposal]:
    """Brackets one after the other, rung by rung; trials of `failing` fail where they would be promoted."""
    proposals: list[Proposal] = []
    for bracket in HyperbandCore(max_resource).brackets * rounds:
        members: list[int] = []
        for place, rung in enumerate(bracket.rungs):
            if place == 0:
                members = list(range(len(proposals), len(proposals) + rung.n))
            else:
                members.sort(key=lambda n: core.trials[n].rank_key)
                for number in members[rung.n :]:
                    core.end(number, "stopped")
                members = members[: rung.n]
            for number in members:
                if place == 0:
                    proposal = core.suggest(number)
                    assert proposal is not None
                    core.add(number, proposal.config, proposal.tags)
                    proposals.append(proposal)
                elif number in failing:
                    core.end(number, "failed")
                    continue
                core.report(number, rung.r, [loss(proposals[number].config, rung.r / max_resource)])
        for number in members:
            core.end(number, "completed")
    return proposals


def check_continuation(make: Callable[[], SearcherCore], journal: Sequence[Sequence[Any]]) -> None:
    """Law: who hears what was heard before a trial was added, suggests this trial, with the same words, each time.

    Args:
        make: a fresh core, as the one that wrote the journal was.
        journal: of a core whose suggestions were added as soon as they were made.

    Raises:
        AssertionError: the message names the trial.
    """
    written = json.loads(json.dumps(journal))
    for place, (what, number, *rest) in enumerate(written):
        if what != "add":
            continue
        core = make()
        core.replay(written[:place])
        for _ in range(2):
            proposal = core.suggest(number)
            assert proposal is not None
            config, tags = rest
            assert proposal.config == config, f"trial {number} is another"
            assert proposal.tags == {key: tags[key] for key in proposal.tags}, "a scheduler may have said more"
        assert [list(entry) for entry in core.journal] == written[:place], "suggesting changes nothing"
