"""Learning curves that were recorded before, served again: any method on one's own past runs, in seconds.

The recording is the folder of a study, its `trials.jsonl`, or a table in parquet with one row a report: a column for
each hyperparameter (nested names dotted), `resource` (whole units), `value` (the metric) and `seconds` (what a report
took since the one before). A trial gets the curve of its own configuration or the nearest one; what was not recorded
is an error and never a guess.
"""

from __future__ import annotations

import json
import math
import os
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from ray.tune import Trainable
from ray.tune.result import TRAINING_ITERATION

from hpo_ray.domains import Categorical, Fixed, Range
from hpo_ray.errors import ConfigError, StudyError
from hpo_ray.results import RESULT_FILE, TRIALS_FILE
from hpo_ray.space import Space
from hpo_ray.trainables.context import TrialContext, get_context

_KEY = "task.args.path"


@dataclass(frozen=True)
class Curve:
    """What one configuration reported.

    Attributes:
        place: where it is recorded: `line 4` or `row 17`.
        config: values by dotted name.
        resources: rising.
        values: the metric at each of them.
        seconds: what each report took since the one before.
        error: what the trial failed with after the last of them; None if it did not fail.
    """

    place: str
    config: Mapping[str, Any]
    resources: tuple[int, ...]
    values: tuple[float, ...]
    seconds: tuple[float, ...]
    error: str | None = None


class Recording:
    """The curves of a file.

    Args:
        path: a study's folder, its trials.jsonl, or a parquet file.
        space: the hyperparameters that curves are told apart by.

    Raises:
        ConfigError: the file is missing, empty, torn or lacks a column; the message names file, line and column.
    """

    def __init__(self, path: Path, space: Space) -> None:
        self.path = _file(path)
        self.space = space
        self.curves = (
            _from_parquet(self.path, space) if self.path.suffix.lower() == ".parquet" else _from_jsonl(self.path)
        )
        if not self.curves:
            raise ConfigError(f"{_KEY}={self.path}: holds no curves: no trial in it has reported", _KEY)
        for curve in self.curves:
            _check_names(self.path, curve, space)
        self._exact: dict[tuple[Any, ...], Curve] = {}
        for curve in self.curves:  # of equal configurations the longest counts, the first of these
            known = self._exact.setdefault(self._identity(curve.config), curve)
            if curve.resources[-1] > known.resources[-1]:
                self._exact[self._identity(curve.config)] = curve
        self._known = list(self._exact.values())
        self._points = np.array([self._point(curve.config) for curve in self._known])
        self._unordered = np.array([isinstance(d, Categorical) and not d.ordered for d in space.domains.values()])

    @property
    def longest(self) -> int:
        """The highest resource on record."""
        return max(curve.resources[-1] for curve in self.curves)

    def exact(self, config: Mapping[str, Any]) -> Curve | None:
        """The curve of this configuration."""
        return self._exact.get(self._identity(config))

    def nearest(self, config: Mapping[str, Any]) -> tuple[Curve, float]:
        """(the curve of the nearest configuration, its distance).

        Numbers differ by how far apart they lie in their range (on its scale, so that log ranges count in log),
        ordered choices by their places; other choices differ by 1 or not at all, and so does a hyperparameter that
        only one of the two has. The distance is Euclidean; ties go to the one recorded first.
        """
        point = np.array(self._point(config))
        missing = np.isnan(self._points), np.isnan(point)
        gaps = np.where(self._unordered, self._points != point, np.abs(self._points - point))
        gaps = np.where(missing[0] & missing[1], 0.0, np.where(missing[0] | missing[1], 1.0, gaps))
        distances = np.sqrt((gaps**2).sum(axis=1))
        best = int(distances.argmin())
        return self._known[best], float(distances[best])

    def _identity(self, config: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(
            None if isinstance(domain, Fixed) else _comparable(config.get(name))
            for name, domain in self.space.domains.items()
        )

    def _point(self, config: Mapping[str, Any]) -> list[float]:
        """Places in the unit cube, NaN where the configuration has no value."""
        point = []
        for name, domain in self.space.domains.items():
            value = config.get(name)
            if isinstance(domain, Fixed):
                point.append(0.0)
            elif value is None:
                point.append(math.nan)
            elif isinstance(domain, Range):
                low, high, at = float(domain.low), float(domain.high), float(value)
                if domain.log:
                    low, high, at = math.log(low), math.log(high), math.log(at) if at > 0 else -math.inf
                point.append((at - low) / (high - low))
            else:
                assert isinstance(domain, Categorical)
                place = [_comparable(choice) for choice in domain.choices].index(_comparable(value))
                point.append(place / max(1, len(domain.choices) - 1))
        return point


class Recorded(Trainable):  # type: ignore[misc]  # Ray ships no types
    """Serves a recorded curve. Each step is the next report on record.

    It reports the metric, `cost` (the recorded seconds, which `executor=simulated` counts), and `distance` to the
    configuration whose curve it is. Arguments of the task (`task.args`):

        path: the recording; see the module.
        match: `nearest` or `exact`.
        metric: name under which the value is reported.
    """

    @classmethod
    def check_study(cls, context: TrialContext) -> None:
        """Reads the recording before anything starts.

        Raises:
            ConfigError: it can't be read, holds another metric, or no curve is as long as the study wants them.
        """
        path, match = context.args.get("path"), context.args.get("match")
        if not path:
            raise ConfigError(
                f"{_KEY} is not set: give a study's folder, its {TRIALS_FILE}, or a parquet table", key=_KEY
            )
        if match not in ("nearest", "exact"):
            raise ConfigError(f"task.args.match={match!r}: must be nearest or exact", key="task.args.match")
        _check_metric(Path(path), context)
        recording = _recording(context)
        if recording.longest < context.max_resource:
            raise ConfigError(
                f"scheduler.max_resource={context.max_resource}: the longest of the {len(recording.curves)} curves in "
                f"{recording.path} ends at {recording.longest}; lower it, task.max_resource={recording.longest}",
                key="scheduler.max_resource",
            )

    def setup(self, config: dict[str, Any]) -> None:
        """Finds the curve.

        Raises:
            StudyError: there is none of exactly this configuration, and `match` is `exact`.
        """
        context = get_context()
        recording = _recording(context)
        flat = recording.space.flatten(config)
        self._metric = context.args["metric"]
        self._path, self._number, self._resource = recording.path, context.number, 0
        if context.args["match"] == "nearest":
            self._curve, self._distance = recording.nearest(flat)
            return
        found, self._distance = recording.exact(flat), 0.0
        if found is None:
            raise StudyError(
                f"{_KEY}={recording.path}: none of its {len(recording.curves)} curves is of trial {context.number}'s "
                f"configuration {flat}; use task.args.match=nearest, or propose recorded ones"
            )
        self._curve = found

    def step(self) -> dict[str, Any]:
        """The next report.

        Raises:
            StudyError: the curve ends here. If its trial failed there, this one fails, too.
        """
        curve = self._curve
        at = bisect_right(curve.resources, self._resource)
        if at == len(curve.resources):
            if curve.error is not None:
                raise RuntimeError(f"failed in the recording ({self._path}, {curve.place}): {curve.error}")
            raise StudyError(
                f"{_KEY}={self._path}: trial {self._number} wants more than was recorded: the curve of {curve.place} "
                f"ends at {curve.resources[-1]}. Record every trial in full (method=random), or lower task.max_resource"
            )
        self._resource = curve.resources[at]
        return {
            self._metric: curve.values[at],
            "cost": curve.seconds[at],
            "distance": self._distance,
            TRAINING_ITERATION: self._resource,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, int]:
        """The resource, which Ray writes to a file."""
        return {"resource": self._resource}

    def load_checkpoint(self, checkpoint: dict[str, int]) -> None:
        """Goes on after the resource of a checkpoint."""
        self._resource = checkpoint["resource"]

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Finds another curve."""
        self.setup(new_config)
        return True


def _recording(context: TrialContext) -> Recording:
    assert context.space is not None
    path = _file(Path(context.args["path"]))
    return _read(str(path), path.stat().st_mtime_ns, context.space)


@lru_cache(maxsize=4)
def _read(path: str, changed: int, space: Space) -> Recording:
    """Once a process, unless the file changes."""
    return Recording(Path(path), space)


def _file(path: Path) -> Path:
    file = path / TRIALS_FILE if path.is_dir() else path
    if not file.is_file():
        what = f"the study has no {TRIALS_FILE} yet" if path.is_dir() else "no such file"
        raise ConfigError(f"{_KEY}={path}: {what}; give a study's folder, its {TRIALS_FILE}, or a parquet table", _KEY)
    if not os.access(file, os.R_OK):
        raise ConfigError(f"{_KEY}={path}: {file} can't be read: permission denied", _KEY)
    return file


def _check_metric(path: Path, context: TrialContext) -> None:
    """A study says beside its trials what they were measured by."""
    beside = (path if path.is_dir() else path.parent) / RESULT_FILE
    try:
        recorded = json.loads(beside.read_text(encoding="utf-8"))["metric"]
        name, mode = recorded["name"], recorded["mode"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    wanted = context.args["metric"], context.args["mode"]
    if (name, mode) != wanted:
        raise ConfigError(
            f"task.metric={wanted[0]}, task.mode={wanted[1]}: {path} recorded {name} ({mode}); "
            f"use task.metric={name} task.mode={mode}",
            key="task.metric",
        )


def _from_jsonl(path: Path) -> list[Curve]:
    text = path.read_text(encoding="utf-8", errors="replace")
    if not text.strip():
        raise ConfigError(f"{_KEY}={path}: is empty", _KEY)
    lines = text.split("\n")
    curves = []
    for number, line in enumerate(lines, 1):
        if not line and number == len(lines):
            break
        where = f"{_KEY}={path}, line {number}"
        try:
            trial = json.loads(line)
        except ValueError as error:
            last = number == len(lines)
            what = "torn: the file ends in the middle of it; cut it off, or write the file again"
            if not last:
                what = f"no JSON: {getattr(error, 'msg', error)} at character {getattr(error, 'colno', '?')}"
            raise ConfigError(f"{where}: {what}", _KEY) from None
        for column in ("config", "history", "seconds", "trained"):
            if not isinstance(trial, dict) or column not in trial:
                raise ConfigError(f"{where}, column {column}: missing; a {TRIALS_FILE} of a study has it", _KEY)
        curve = _curve_of_trial(where, f"line {number}", trial)
        if curve is not None:
            curves.append(curve)
    return curves


def _curve_of_trial(where: str, place: str, trial: Mapping[str, Any]) -> Curve | None:
    """None for a trial that never reported. Its seconds are spread over its reports by their resource."""
    try:
        points = {int(resource): math.nan if value is None else float(value) for resource, value in trial["history"]}
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"{where}, column history: must be a list of [resource, value]", _KEY) from None
    if not isinstance(trial["config"], Mapping):
        raise ConfigError(f"{where}, column config: {trial['config']!r}: must be a mapping", _KEY)
    if not points:
        return None
    resources = sorted(points)
    seconds, trained = trial["seconds"], trial["trained"]
    if not _is_seconds(seconds):
        raise ConfigError(f"{where}, column seconds: {seconds!r}: must be a finite number >= 0", _KEY)
    if not isinstance(trained, int) or trained < 0:
        raise ConfigError(f"{where}, column trained: {trained!r}: must be a whole number >= 0", _KEY)
    a_unit = seconds / max(1, trained)
    return Curve(
        place,
        _flat(trial["config"]),
        tuple(resources),
        tuple(points[resource] for resource in resources),
        tuple(a_unit * (resource - before) for before, resource in zip([0, *resources], resources, strict=False)),
        str(trial.get("error") or "it failed") if trial.get("state") == "failed" else None,
    )


def _from_parquet(path: Path, space: Space) -> list[Curve]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        what = "is empty" if path.stat().st_size == 0 else f"is no complete parquet file: {str(error).splitlines()[0]}"
        raise ConfigError(f"{_KEY}={path}: {what}", _KEY) from None
    names = [name for name, domain in space.domains.items() if not isinstance(domain, Fixed)]
    for column in (*names, "resource", "value", "seconds"):
        if column not in table.column_names:
            raise ConfigError(
                f"{_KEY}={path}, column {column}: missing; it has {', '.join(table.column_names) or 'none'}", _KEY
            )
    if not table.num_rows:
        raise ConfigError(f"{_KEY}={path}: is empty: it has columns, but no rows", _KEY)
    columns = {column: table.column(column).to_pylist() for column in (*names, "resource", "value", "seconds")}
    rows: dict[tuple[Any, ...], dict[int, int]] = {}
    for row, values in enumerate(zip(*(columns[name] for name in names), strict=True)):
        where = f"{_KEY}={path}, row {row}"
        resource, seconds, value = (columns[column][row] for column in ("resource", "seconds", "value"))
        for name, of_name in zip(names, values, strict=True):
            if isinstance(of_name, list | dict):
                raise ConfigError(f"{where}, column {name}: {of_name!r}: must be a number or a text", _KEY)
        if isinstance(resource, float) and resource.is_integer():  # what pandas makes of a column with gaps
            resource = int(resource)
        if not isinstance(resource, int) or resource < 1:
            raise ConfigError(f"{where}, column resource: {resource!r}: must be a whole number >= 1", _KEY)
        if not _is_seconds(seconds):
            raise ConfigError(f"{where}, column seconds: {seconds!r}: must be a finite number >= 0", _KEY)
        if value is not None and not isinstance(value, int | float):
            raise ConfigError(f"{where}, column value: {value!r}: must be a number", _KEY)
        points = rows.setdefault(tuple(_comparable(v) for v in values), {})
        if resource in points:
            raise ConfigError(
                f"{where}, column resource: {resource} is there already for this configuration, in row "
                f"{points[resource]}",
                _KEY,
            )
        points[resource] = row
    curves = []
    for points in rows.values():
        ordered = [points[resource] for resource in sorted(points)]
        config = {name: columns[name][ordered[0]] for name in names}
        measured = [columns["value"][row] for row in ordered]
        curves.append(
            Curve(
                f"row {min(ordered)}",
                {name: value for name, value in config.items() if value is not None},
                tuple(sorted(points)),
                tuple(math.nan if value is None else float(value) for value in measured),
                tuple(float(columns["seconds"][row]) for row in ordered),
            )
        )
    return curves


def _check_names(path: Path, curve: Curve, space: Space) -> None:
    """Each hyperparameter of the space has a value in its domain, unless it is conditional."""
    for name, domain in space.domains.items():
        where = f"{_KEY}={path}, {curve.place}, column {name}"
        value = curve.config.get(name)
        if isinstance(domain, Fixed):
            continue
        if value is None:
            if not domain.conditions:
                known = ", ".join(curve.config) or "none"
                raise ConfigError(
                    f"{where}: missing; its configuration has {known}. Set space= to what was searched", _KEY
                )
            continue
        if isinstance(domain, Categorical):
            fits = _comparable(value) in [_comparable(choice) for choice in domain.choices]
        else:
            fits = isinstance(value, int | float) and math.isfinite(value)
        if not fits:
            raise ConfigError(f"{where}: {value!r} is not {domain.describe()}; set space= to what was searched", _KEY)


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _comparable(value: Any) -> Any:
    """1 and 1.0 are one value, True and 1 are two."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _is_seconds(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


__all__: Sequence[str] = ["Curve", "Recorded", "Recording"]
