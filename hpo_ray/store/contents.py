"""What Optuna is told of a study and of each of its trials."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from hpo_ray.events import StudyEnded, StudyStarted
from hpo_ray.space import Space
from hpo_ray.trials import TrialRecord

STATES = {
    "running": TrialState.RUNNING,
    "paused": TrialState.RUNNING,
    "completed": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}
IDENTITY = "identity"
TRIAL_ID = "trial_id"
_LATEST = 253370764800.0
"""1 January 9999: a simulated study may last longer than dates do."""


def study_attrs(started: StudyStarted, ended: StudyEnded | None, identity: str) -> dict[str, Any]:
    """The user attributes of a study."""
    return {
        IDENTITY: identity,
        "folder": started.study,
        "method": started.method,
        "task": started.task,
        "seed": started.seed,
        "metric": started.metric,
        "mode": started.mode,
        "max_resource": started.max_resource,
        "state": "running" if ended is None else ended.state,
        "reason": "" if ended is None else ended.reason,
    }


def metrics(started: StudyStarted) -> Mapping[str, str]:
    """What a study optimises: `min` or `max` by name."""
    return started.metrics or {started.metric: started.mode}


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """Those of a space, as Optuna can read them back.

    A float's grid that is no short decimal would lose its last point when it is read, with a warning each time: it is
    told as a range.
    """
    told = space.to_optuna()
    for name, known in told.items():
        if isinstance(known, FloatDistribution) and known.step is not None:
            low, high, step = (Decimal(str(number)) for number in (known.low, known.high, known.step))
            if (high - low) % step != 0:
                told[name] = FloatDistribution(known.low, known.high)
    return told


def trial(
    record: TrialRecord,
    config: Mapping[str, Any],
    started: StudyStarted,
    times: tuple[float, float | None],
    space: Space | None,
    known: Mapping[str, BaseDistribution],
) -> FrozenTrial:
    """A trial, as Optuna is told it.

    Args:
        record: what is known of it.
        config: what it started with, which of a population differs from what it has now.
        started: the study's first event.
        times: when it was added and when it ended, in seconds since the study started.
        space: of the study; None if it can't be read.
        known: the distributions of that space.
    """
    flat = space.flatten(config) if space is not None else dict(config)
    params = {name: value for name, value in flat.items() if name in known}
    state = STATES[record.state]
    curve = {resource: value for resource, value in record.history}
    return FrozenTrial(
        number=record.number,
        trial_id=-1,
        state=state,
        value=None,
        values=_values(record, state, started),
        datetime_start=_date(started.time + times[0]),
        datetime_complete=None if times[1] is None else _date(started.time + times[1]),
        params=params,
        distributions={name: known[name] for name in params},
        user_attrs=_attrs(record, {name: value for name, value in flat.items() if name not in known}, started),
        system_attrs=_constraints(record, started),
        intermediate_values=curve,
    )


def _values(record: TrialRecord, state: TrialState, started: StudyStarted) -> list[float] | None:
    """The value, or values, of a trial that ended well; of one that was stopped its last, as Optuna itself does."""
    if state not in (TrialState.COMPLETE, TrialState.PRUNED):
        return None
    if not started.metrics:
        return None if record.value is None else [record.value]
    values = [record.metrics.get(name) for name in started.metrics]
    return [float(v) for v in values if v is not None] if None not in values else None


def _attrs(record: TrialRecord, rest: Mapping[str, Any], started: StudyStarted) -> dict[str, Any]:
    attrs = {**record.tags, TRIAL_ID: record.trial_id, "method": started.method}
    if rest:
        attrs["config"] = dict(rest)
    if record.schedule is not None:
        attrs["schedule"] = record.schedule_json()
    if record.lineage is not None:
        attrs["lineage"] = [list(entry) for entry in record.lineage]
    if record.error is not None:
        attrs["error"] = record.error
    if record.state == "running":
        return attrs  # what follows changes with each report, which is there as an intermediate value already
    attrs |= {"resource": record.resource, "trained": record.trained, "seconds": round(record.seconds, 6)}
    if record.feasible is not None:
        attrs["feasible"] = record.feasible
    for name, value in record.metrics.items():
        if name not in metrics(started) and not (isinstance(value, float) and not math.isfinite(value)):
            attrs[f"metrics.{name}"] = value
    return attrs


def _constraints(record: TrialRecord, started: StudyStarted) -> dict[str, Any]:
    """How far a trial is beyond each bound, where Optuna 5 keeps it: 0 or less is feasible."""
    beyond = {}
    for name, bounds in started.constraints.items():
        value = record.metrics.get(name)
        if record.state == "running" or not isinstance(value, int | float) or math.isnan(value):
            continue
        for side, sign in (("low", -1.0), ("high", 1.0)):
            if bounds.get(side) is not None:
                beyond[f"constraints:{name} {side}"] = sign * (float(value) - bounds[side])
    return beyond


def _date(time: float) -> datetime:
    return datetime.fromtimestamp(min(time, _LATEST))
