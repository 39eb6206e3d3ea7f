"""A folder of Ray Tune's: `~/ray_results/<experiment>`, with a folder a trial.

Of a trial's folder `result.json` (a line a report; `progress.csv` where it is missing), `params.json` and `error.txt`
are read; of the experiment `experiment_state-*.json`, for how its trials ended, and `pbt_global.txt`, for which of them
copied which. All of it is text: the pickles beside it, and those inside the JSON, are left alone. Checkpoints stay
where they are: a study's log names only those that lie in its own folder, so the trial's folder is kept as a tag.

Metric and mode are in none of these files. Nested metrics have the names that Ray Tune gives them, `info/accuracy`.
"""

from __future__ import annotations

import csv
import json
import math
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

from hpo_ray.config import nearest
from hpo_ray.errors import ConfigError
from hpo_ray.events import FILE_NAME, LogError
from hpo_ray.importers.spaces import plain
from hpo_ray.importers.writing import Change, Imported, ImportedTrial, Report
from hpo_ray.trials import flat

RESULTS, PROGRESS, PARAMS, ERROR = "result.json", "progress.csv", "params.json", "error.txt"
TIME_ATTR = "training_iteration"
_OLDER = ("experiment_id", "warmup_time")
"""What Ray has added to results before, beside what it adds now."""
_ERROR_LINES = 20
_NUMBERED = re.compile(r"(\d+)(_|$)")


@dataclass(frozen=True)
class _Folder:
    """A trial's folder.

    Attributes:
        path: where it lies.
        lines: what it reported, as it stands in its file, with numbers of lines.
        params: its configuration by dotted name, as it was in the end.
        trial_id: its id.
        status: how it ended, as Ray Tune says: `TERMINATED`, `ERROR`, `RUNNING`, …; None if that is not on record.
        error: what it failed with last.
    """

    path: Path
    lines: Sequence[tuple[int, Mapping[str, Any]]]
    params: Mapping[str, Any]
    trial_id: str
    status: str | None
    error: str | None

    @property
    def tag(self) -> int:
        """The number of the trial in its experiment, which stands in its folder's name after its id."""
        return _tag(self.path.name, self.trial_id)


def is_ray_tune(path: Path) -> bool:
    """Whether a folder is an experiment, one of its trials, or has experiments in it."""
    if (path / FILE_NAME).exists():
        return False
    return _is_experiment(path) or _is_trial(path) or any(_is_experiment(inside) for inside in _folders(path))


def read(path: Path, metric: str | None, mode: str | None, time_attr: str | None = None) -> Imported:
    """Reads an experiment.

    Args:
        path: its folder.
        metric: the reported value that counts.
        mode: `min` or `max`.
        time_attr: the reported whole number that counts resource; by default `training_iteration`.

    Raises:
        ConfigError: it can't be read, is damaged, no trial has reported, or metric or mode are missing or unknown.
        LogError: the folder holds nothing of Ray Tune's.
    """
    attr = time_attr or TIME_ATTR
    try:
        folders = _experiment(path)
    except OSError as error:
        raise ConfigError(f"{error.filename}: can't be read: {error.strerror}") from None
    whose = path.resolve()
    metric, mode = _checked(path, folders, metric, mode)
    reports = [_reports(folder, metric, attr) for folder in folders]
    highest = max((report.resource for known in reports for report in known), default=0)
    exploits = _exploits(path, folders)
    trials = [
        _trial(folder, known, metric, highest, exploits.get(number, []) if exploits else None, reports)
        for number, (folder, known) in enumerate(zip(folders, reports, strict=True))
    ]
    words = ["python", "-m", "hpo_ray", "report", str(whose), f"task.metric={metric}", f"task.mode={mode}"]
    words += [f"scheduler.time_attr={attr}"] if attr != TIME_ATTR else []
    return Imported(
        source=f"Ray Tune, {whose}",
        name=whose.name,
        task=whose.name,
        metric=metric,
        mode=mode,
        max_resource=highest,
        unit="iteration" if attr == TIME_ATTR else "unit",
        trials=trials,
        time_attr=attr,
        command=shlex.join(words),
    )


def _experiment(path: Path) -> list[_Folder]:
    """The trials of an experiment, in the order in which they were made."""
    if not path.is_dir():
        raise LogError(f"{path}: is no folder")
    if _is_trial(path):
        raise ConfigError(f"{path}: is the folder of one trial of Ray Tune; give the experiment's, {path.parent}")
    if not _is_experiment(path):
        inside = [found.name for found in _folders(path) if _is_experiment(found)]
        if inside:
            more = ", …" if len(inside) > 5 else ""
            raise ConfigError(
                f"{path}: holds {len(inside)} experiments of Ray Tune; give one, for example {path / inside[0]} "
                f"({', '.join(inside[:5])}{more})"
            )
        found = ", ".join(sorted(entry.name for entry in path.iterdir())[:5]) or "nothing"
        raise LogError(
            f"{path}: is no study (it has no {FILE_NAME}) and no experiment of Ray Tune (no folder in it has a "
            f"{PARAMS}); it holds {found}"
        )
    states = _states(path)
    folders = [_folder(found, states.get(found.name)) for found in _folders(path) if _is_trial(found)]
    return sorted(folders, key=lambda folder: (folder.tag, folder.path.name))


def _folders(path: Path) -> list[Path]:
    return sorted(found for found in path.iterdir() if found.is_dir()) if path.is_dir() else []


def _is_trial(path: Path) -> bool:
    """One of ours may have a result.json, too, and Ray Tune's files in folders below."""
    known = (path / PARAMS, path / PROGRESS, path / RESULTS)
    return any(file.exists() for file in known) and not (path / FILE_NAME).exists()


def _is_experiment(path: Path) -> bool:
    if (path / FILE_NAME).exists():
        return False
    return any(path.glob("experiment_state-*.json")) or any(_is_trial(inside) for inside in _folders(path))


def _states(path: Path) -> dict[str, Mapping[str, Any]]:
    """What the newest state of the experiment says of each trial, by the name of its folder; nothing if it is torn."""
    found: dict[str, Mapping[str, Any]] = {}
    for file in sorted(path.glob("experiment_state-*.json"))[-1:]:
        try:
            for entry in json.loads(file.read_text(encoding="utf-8"))["trial_data"]:
                state = json.loads(entry[0] if isinstance(entry, list) else entry)
                found[str(state["relative_logdir"])] = state
        except (ValueError, KeyError, TypeError, IndexError, RecursionError):
            continue
    return found


def _folder(path: Path, state: Mapping[str, Any] | None) -> _Folder:
    lines = list(_lines(path / RESULTS)) or list(_rows(path / PROGRESS))
    said = lines[-1][1].get("trial_id") if lines else None
    trial_id = str((state or {}).get("trial_id") or said or _id_in(path.name))
    error = path / ERROR
    text = error.read_text(encoding="utf-8", errors="replace") if error.exists() else None
    if text is None and (path / "error.pkl").exists():
        text = "failed; what with is in error.pkl, which is not read"
    return _Folder(path, lines, _params(path / PARAMS, lines), trial_id, (state or {}).get("status"), text)


def _lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The lines of result.json. A last one that is torn is left out."""
    if not path.exists():
        return
    raw = path.read_bytes().split(b"\n")
    last = max((number for number, line in enumerate(raw, 1) if line.strip()), default=0)
    for number, line in enumerate(raw, 1):
        if not line.strip():
            continue
        try:
            result = json.loads(line)
            if not isinstance(result, dict):
                raise ValueError("not a JSON object")
        except (ValueError, RecursionError) as error:
            if number == last and number == len(raw):  # nothing ends it: it was being written
                return
            raise ConfigError(f"{path}, line {number}: damaged: {error}; mend or remove that line") from None
        yield number, result


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The rows of progress.csv, as result.json would have them, but for what is nested, whose names are joined."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        rows = csv.DictReader(file)
        for row in rows:
            if None in row.values() or None in row:  # torn, or more than its head has
                continue
            found = {name: _cell(value) for name, value in row.items() if value != ""}
            config = {name.removeprefix("config/").replace("/", "."): value for name, value in found.items()
                      if name.startswith("config/")}  # fmt: skip
            yield rows.line_num, {**found, "config": config}


def _cell(text: str) -> Any:
    if text in ("True", "False"):
        return text == "True"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _params(path: Path, lines: Sequence[tuple[int, Mapping[str, Any]]]) -> dict[str, Any]:
    """The configuration of a trial: that of params.json, or, where that was cut off, of its first report."""
    text = path.read_bytes() if path.exists() else b""
    try:
        known = json.loads(text) if text.strip() else None
        if known is not None and not isinstance(known, dict):
            raise ValueError("not a JSON object")
    except (ValueError, RecursionError) as error:
        if not lines:
            raise ConfigError(f"{path}: damaged: {error}; mend it, or remove {path.parent}") from None
        known = None
    config = known if known is not None else lines[0][1].get("config") if lines else None
    return flat(config) if isinstance(config, Mapping) else {}


def _id_in(name: str) -> str:
    """The id in the name of a trial's folder: `train_153f6_00003_3_lr=0.1_2026-…` is of 153f6_00003."""
    found = re.search(r"_([0-9a-f]{5}_\d{5}|[0-9a-f]{8})_\d+(_|$)", name)
    return found[1] if found else name


def _tag(name: str, trial_id: str) -> int:
    found = _NUMBERED.match(name.partition(f"_{trial_id}_")[2])
    return int(found[1]) if found else 10**9


def _checked(path: Path, folders: Sequence[_Folder], metric: str | None, mode: str | None) -> tuple[str, str]:
    """Metric and mode, if they are given and a trial has reported the metric as a number."""
    known: dict[str, None] = {}
    for folder in folders:
        for _, line in folder.lines:
            known.update(dict.fromkeys(name for name, value in _metrics(line).items() if _is_number(value)))
    if not known:
        raise ConfigError(f"{path}: none of its {len(folders)} trials has reported a number; there is nothing to load")
    there = f"its trials report {', '.join(known)}"
    if metric is None:
        raise ConfigError(
            f"{path}: an experiment of Ray Tune doesn't say which metric counts; give task.metric= and task.mode= "
            f"(metric=, mode= in Python); {there}",
            key="task.metric",
        )
    if metric not in known:
        raise ConfigError(
            f"task.metric={metric}: no trial in {path} has reported it as a number{nearest(metric, known)}; {there}",
            key="task.metric",
        )
    if mode is None:
        raise ConfigError(
            f"{path}: an experiment of Ray Tune doesn't say whether more of {metric} is better; give task.mode=min or "
            f"max (mode= in Python)",
            key="task.mode",
        )
    return metric, mode


def _metrics(line: Mapping[str, Any]) -> dict[str, Any]:
    """What the user's code reported, nested names joined by slashes; without what Ray Tune adds."""
    from hpo_ray.executors.recorder import metrics_of

    found = metrics_of(_joined({name: value for name, value in line.items() if name != "config"}))
    return {name: value for name, value in found.items() if name not in _OLDER}


def _joined(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _joined(value, f"{prefix}{name}/")
        else:
            found[f"{prefix}{name}"] = value
    return found


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _reports(folder: _Folder, metric: str, attr: str) -> list[Report]:
    """The reports that have the metric; what the others between them took counts for the next."""
    found: list[Report] = []
    config: Mapping[str, Any] | None = None
    waited = 0.0
    for number, line in folder.lines:
        metrics = _metrics(line)
        waited += float(line["time_this_iter_s"]) if _is_number(line.get("time_this_iter_s")) else 0.0
        if not _is_number(metrics.get(metric)):
            continue
        resource = _resource(folder.path, number, line, attr)
        now = _config(folder, line)
        change = None
        if config is not None and now != config:
            change = Change(now, _started_from(line, attr, found, resource))
        config = now
        stamp = line.get("timestamp")
        time = float(stamp) if _is_number(stamp) else None
        found.append(Report(resource, metrics, waited if math.isfinite(waited) else 0.0, time, change))
        waited = 0.0
    return found


def _resource(path: Path, number: int, line: Mapping[str, Any], attr: str) -> int:
    value = line.get(attr)
    if not _is_number(value) or not math.isfinite(value) or value != int(value) or value < 1:
        said = "is missing" if value is None else f"is {value!r}"
        raise ConfigError(
            f"{path / RESULTS}, line {number}: {attr} {said}; it has to count resource in whole numbers from 1; "
            f"give another time_attr",
            key="scheduler.time_attr",
        )
    return int(value)


def _config(folder: _Folder, line: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration that a report was trained under: each hyperparameter as the report has it, if it does."""
    now = line.get("config")
    reported = flat(now) if isinstance(now, Mapping) else {}
    return {name: plain(reported.get(name, value)) for name, value in folder.params.items()}


def _started_from(line: Mapping[str, Any], attr: str, before: Sequence[Report], resource: int) -> int:
    """What a report went on from whose configuration is another one than that of the report before."""
    since = line.get("iterations_since_restore")
    if attr == TIME_ATTR and isinstance(since, int) and 0 < since <= resource:
        return resource - since
    return min(before[-1].resource, resource - 1)


@dataclass(frozen=True)
class _Exploit:
    """A trial has copied another one, and went on under another configuration."""

    parent: int
    config: Mapping[str, Any]


def _exploits(path: Path, folders: Sequence[_Folder]) -> dict[int, list[_Exploit]]:
    """Who copied whom, as population based training logs it: by the number of the one that copied, in its order.

    It logs, too, where the other one was, which may be an iteration before the checkpoint that was copied: that is
    taken from the first report afterwards.
    """
    log = path / "pbt_global.txt"
    numbers = {folder.tag: number for number, folder in enumerate(folders)}
    found: dict[int, list[_Exploit]] = {}
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else ():
        try:
            who, whom, _, _, _, config = json.loads(line)
            number, parent = (numbers[int(str(tag).partition("_")[0])] for tag in (who, whom))
            found.setdefault(number, []).append(_Exploit(parent, _plain(flat(config))))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue  # torn, or of a trial whose folder has gone: its configurations are on record all the same
    return found


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: plain(value) for name, value in config.items()}


def _trial(
    folder: _Folder,
    reports: Sequence[Report],
    metric: str,
    highest: int,
    exploits: Sequence[_Exploit] | None,
    all_reports: Sequence[Sequence[Report]],
) -> ImportedTrial:
    """A trial; `exploits` are its own, None where there is no population."""
    state, reason, error = _end(folder, reports, metric, highest)
    first = next((line for _, line in folder.lines if _is_number(_metrics(line).get(metric))), None)
    return ImportedTrial(
        trial_id=folder.trial_id,
        config=_plain(folder.params) if first is None else _config(folder, first),
        reports=list(_with_parents(reports, exploits or (), all_reports)),
        state=state,
        reason=reason,
        error=error,
        tags={"folder": folder.path.name, **({} if exploits is None else {"exploits": 0})},
    )


def _with_parents(
    reports: Sequence[Report], exploits: Sequence[_Exploit], all_reports: Sequence[Sequence[Report]]
) -> Iterable[Report]:
    """The reports, each change with the trial that was copied, where that is on record."""
    left = list(exploits)
    for report in reports:
        change = report.change
        known = next((e for e in left if change is not None and e.config == change.config), None)
        if change is None or known is None:
            yield report
            continue
        left = left[left.index(known) + 1 :]
        there = [r.metrics for r in all_reports[known.parent] if r.resource == change.resource]
        yield replace(report, change=replace(change, parent=known.parent, metrics=there[-1] if there else None))


def _end(folder: _Folder, reports: Sequence[Report], metric: str, highest: int) -> tuple[str | None, str, str | None]:
    """State, reason and error. Without the experiment's state a trial with an error has failed, others are done."""
    status = folder.status
    if status == "ERROR" or (status is None and folder.error is not None):
        text = _last_failure(folder.error or "failed; Ray Tune has kept no reason")
        return "failed", "raised an error", text
    if status in ("RUNNING", "PENDING", "PAUSED") or (status is None and not folder.lines):
        return None, "", None
    if not reports:
        return "failed", f"ended without reporting {metric}", f"ended without reporting {metric}"
    reached = max(report.resource for report in reports)
    if reached >= highest:
        return "completed", f"reached {highest}, the highest resource of all", None
    return "stopped", f"ended at {reached}, before the highest resource of all ({highest})", None


def _last_failure(text: str) -> str:
    """What a trial raised last, as ours are told: Ray appends one failure to another."""
    from hpo_ray.executors.binding import readable

    last = text.rpartition("Failure # ")[2].partition("\n")[2] or text
    return "\n".join(readable(last).splitlines()[-_ERROR_LINES:]) or "unknown error"
