"""`compare`: methods times seeds, one study each, under the same budget; interrupted, it goes on where it was."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig

from hpo_ray.clusters.nodes import Request
from hpo_ray.config import load
from hpo_ray.errors import ConfigError, StudyError
from hpo_ray.events import FILE_NAME as LOG
from hpo_ray.events import LogError, is_running
from hpo_ray.report.comparison import Row, Scale, Trace, draw, markdown, rows_of, table, target_of, trace
from hpo_ray.results import REPORT_FILE, RESULT_FILE, StudyResult, load_study, write_whole
from hpo_ray.schedulers.brackets import DEFAULT_TRIALS
from hpo_ray.study import Draft, build, draft

FILE = "comparison.json"
TABLE = "table.md"
FIGURE = "incumbent.png"


_SHARED = ("name", "metric", "mode", "unit", "optimum")


@dataclass(frozen=True)
class Entry:
    """One of the methods that are compared.

    Attributes:
        label: as typed: a method, and maybe overrides after it: `asha scheduler.eta=4`.
        config: its configuration; seed and name are set for each study.
        draft: the study that it is.
    """

    label: str
    config: DictConfig
    draft: Draft

    def folder(self, seed: int) -> str:
        """The name of its study of a seed: the label, made short and plain, and a hash where that lost something."""
        name = re.sub(r"[^A-Za-z0-9_.+=-]+", "_", self.label)[:80]
        if name != self.label:
            name += f"-{hashlib.sha256(self.label.encode()).hexdigest()[:6]}"
        return f"{name}-seed{seed}"

    @property
    def has_budget(self) -> bool:
        """Whether its configuration says when it ends."""
        budget = self.draft.budget
        return budget.trials is not None or budget.rounds is not None or budget.open_ended

    def study(self, root: Path, seed: int) -> Draft:
        """Its study of a seed, without store and report: there may be hundreds, and a comparison has its own."""
        self.config.seed = seed
        self.config.store.project = False
        self.config.report = False
        self.config.study.root = str(root)
        self.config.study.name = self.folder(seed)
        return draft(self.config)


@dataclass(frozen=True)
class Comparison:
    """What is compared.

    Attributes:
        overrides: what all methods share, as typed.
        entries: the methods.
        seeds: one study of each method for each.
        name: the comparison's folder in `root`; None for the next free one.
    """

    overrides: tuple[str, ...]
    entries: tuple[Entry, ...]
    seeds: tuple[int, ...]
    root: Path
    name: str | None
    config_dir: str | None
    config_name: str | None

    @property
    def first(self) -> Draft:
        """The first method's study, for what all share."""
        return self.entries[0].draft

    @property
    def report(self) -> bool:
        """Whether it has one of its own."""
        return bool(self.first.config["report"])

    @property
    def scale(self) -> Scale:
        """How values are compared."""
        task = self.first.task
        virtual = bool(self.first.virtual_workers)
        return Scale(task.metric, 1 if task.mode == "min" else -1, task.optimum, task.unit, virtual)

    def command(self) -> dict[str, Any]:
        """What makes two comparisons the same, but for the number of seeds."""
        return {
            "methods": [entry.label for entry in self.entries],
            "overrides": sorted(o for o in self.overrides if not o.startswith(("study.", "view=", "store.url="))),
            "config_dir": self.config_dir,
            "config_name": self.config_name,
        }


@dataclass(frozen=True)
class Outcome:
    """A comparison that has run, or as much of it as has.

    Attributes:
        folder: where it lies.
        rows: the table; empty while some method has no study yet.
        target: (whose median, what loss).
        done: studies that have ended, of `total`.
        failed: of these, those that failed, with why.
        interrupted: the reason, if a signal ended it.
        report_note: why its report could not be written.
    """

    folder: Path
    rows: tuple[Row, ...]
    target: tuple[str, float]
    done: int
    total: int
    failed: tuple[tuple[str, str], ...]
    interrupted: str | None
    report_note: str | None = None


def parse(overrides: Sequence[str], config_dir: str | None = None, config_name: str | None = None) -> Comparison:
    """Takes `methods=` and `seeds=` out of what was typed, and drafts a study of each method.

    Unless the configuration has a budget, all get the same resource: that of 20 full trainings, or two for each virtual
    worker if that is more.

    Raises:
        ConfigError: they are missing or can't be, or a method's configuration can't.
    """
    own = {"methods": "", "seeds": "10"}
    shared = []
    for override in overrides:
        key, _, value = override.partition("=")
        if key in own:
            own[key] = value
        elif key.lstrip("+~") in ("method", "seed"):
            raise ConfigError(
                f"{override}: compare takes {key}s={'[random,asha]' if key == 'method' else '20'}", key=key
            )
        else:
            shared.append(override)
    labels, seeds = _labels(own["methods"]), _seeds(own["seeds"])
    drafted = [_entry(label, shared, config_dir, config_name) for label in labels]
    if not any(entry.has_budget for entry in drafted):
        trainings = max(DEFAULT_TRIALS, *(2 * entry.draft.virtual_workers for entry in drafted))
        resource = trainings * max(entry.draft.max_resource for entry in drafted)
        drafted = [_entry(label, [*shared, f"budget.resource={resource}"], config_dir, config_name) for label in labels]
    first = drafted[0].draft
    if first.location is not None:
        raise ConfigError(
            f"store.root={first.location}: a comparison has its studies in a folder; leave it out, or name one that "
            f"all nodes see",
            key="store.root",
        )
    for entry in drafted:
        _check_comparable(drafted[0], entry)
    return Comparison(tuple(shared), tuple(drafted), seeds, first.root, first.name, config_dir, config_name)


def run_all(comparison: Comparison, say: Callable[[str], None]) -> Outcome:
    """Runs what has not run yet, and writes table and figure.

    Args:
        comparison: what to compare.
        say: is told a line as each study ends.

    Raises:
        ConfigError: a method can't be built, or the folder is taken. Nothing was run.
    """
    studies = [build(entry.study(Path("."), comparison.seeds[0])) for entry in comparison.entries]  # errors come first
    keeper = studies[0].executor  # one Ray cluster for all
    keeper.start(Request.of(studies[0].draft.resources))
    keeper.check(studies[0].trainable, Path(comparison.root).resolve())
    try:
        with _folder(comparison) as folder:
            say(f"{headline(comparison)} -> {folder}")
            return _write(comparison, folder, _run_missing(comparison, folder, say))
    finally:
        keeper.stop()


def _run_missing(comparison: Comparison, folder: Path, say: Callable[[str], None]) -> str | None:
    """Runs the studies that have not ended yet; the reason if a signal ended it."""
    # All methods of a seed, then the next seed, so that an interrupted comparison is balanced.
    order = [(entry, seed) for seed in comparison.seeds for entry in comparison.entries]
    for number, (entry, seed) in enumerate(order, 1):
        place = folder / entry.folder(seed)
        if _result(place) is not None:
            continue
        who = f"[{number}/{len(order)}] {entry.label}, seed {seed}"
        try:
            ended = _run_one(entry, folder, seed).state.ended
        except StudyError as error:
            say(f"{who}: failed: {str(error).splitlines()[0]}")
            continue
        except KeyboardInterrupt:  # between two studies; one that runs handles it itself
            return "SIGINT received"
        if ended is not None and ended.state == "interrupted":
            return ended.reason
        say(f"{who}: {_one_line(_result(place), comparison)}")
    return None


def _run_one(entry: Entry, folder: Path, seed: int) -> StudyResult:
    """Runs a study, or goes on with it if it was interrupted; a simulated one starts again, which costs no time."""
    from hpo_ray.executors.loop import run
    from hpo_ray.resume import reopen
    from hpo_ray.view import View

    place = folder / entry.folder(seed)
    if is_running(place / LOG):
        raise StudyError(f"{place}: this study is running, in another process")
    if place.exists() and not entry.draft.virtual_workers:
        try:
            reopened = reopen(str(place))
        except (ConfigError, LogError):  # it had hardly begun, or is damaged: nothing is deleted that holds results
            number = next(n for n in itertools.count(1) if not place.with_name(f"{place.name}.damaged-{n}").exists())
            place.rename(place.with_name(f"{place.name}.damaged-{number}"))
        else:
            return run(build(reopened.draft), View(), reopened.folder)
    shutil.rmtree(place, ignore_errors=True)
    return run(build(entry.study(folder, seed)), View())


def headline(comparison: Comparison) -> str:
    """What is compared, in one line."""
    from hpo_ray.view import clock, count

    first = comparison.first
    plan, budget, unit = first.plan, first.budget, first.task.unit
    limits = [clock(budget.time_s)] if budget.time_s is not None else []
    limits += [count(budget.resource, unit)] if budget.resource is not None else []
    limits = limits or ([count(plan.trials, "trial")] if plan.trials and budget.trials else ["each its own budget"])
    where = count(first.virtual_workers, "virtual worker") if first.virtual_workers else ""
    parts = [f"{count(len(comparison.entries), 'method')} x {count(len(comparison.seeds), 'seed')}", *limits, where]
    return f"compare on {first.task.name}: {', '.join(part for part in parts if part)}"


def _check_comparable(first: Entry, other: Entry) -> None:
    """One task, one unit, one full resource, one clock, and no end before the budget's."""
    a, b = first.draft, other.draft
    pairs: dict[str, tuple[Any, Any]] = {
        f"fidelity.{what}": (a.config["fidelity"][what], b.config["fidelity"][what])
        for what in ("name", "steps_per_unit")
    }  # before the unit, which follows from it
    pairs |= {f"task.{what}": (getattr(a.task, what), getattr(b.task, what)) for what in _SHARED}
    pairs["scheduler.max_resource"] = a.max_resource, b.max_resource
    pairs["executor"] = a.virtual_workers > 0, b.virtual_workers > 0
    for key, (ours, theirs) in pairs.items():
        if key == "executor":
            ours, theirs = ("simulated" if virtual else "in real time" for virtual in (ours, theirs))
        if ours != theirs:
            raise ConfigError(
                f"methods={other.label}: its {key} is {theirs}, that of {first.label} is {ours}; compare methods on "
                f"one task, to one full resource, on one clock",
                key="methods",
            )
    if b.budget.target is not None:
        raise ConfigError(
            f"budget.target={b.budget.target:g}: compare lets every method use its whole budget, and tells when each "
            f"has reached what random search ends with; leave it out",
            key="budget.target",
        )


def _labels(text: str) -> list[str]:
    example = "methods=[random,hyperband,asha]"
    if not text:
        raise ConfigError(f"compare needs methods, {example}", key="methods")
    if "," in text and not text.lstrip().startswith("["):
        raise ConfigError(f"methods={text}: write methods=[{text}]", key="methods")
    try:
        labels = yaml.safe_load(text)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or "no list"
        raise ConfigError(f"methods={text}: can't be parsed: {problem}; write {example}", key="methods") from None
    labels = [labels] if isinstance(labels, str) else labels
    if not isinstance(labels, list) or not labels or not all(isinstance(label, str) and label for label in labels):
        raise ConfigError(f"methods={text}: must be a list of at least one name, {example}", key="methods")
    labels = [" ".join(str(label).split()) for label in labels]
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        raise ConfigError(f"methods={text}: {twice} is there twice", key="methods")
    return labels


def _seeds(text: str) -> tuple[int, ...]:
    numbers = re.fullmatch(r"\d+", text), re.fullmatch(r"\[\s*\d+(\s*,\s*\d+)*\s*\]", text)
    seeds = range(int(text)) if numbers[0] else [int(n) for n in re.findall(r"\d+", text)] if numbers[1] else []
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(
            f"seeds={text}: must be how many, seeds=20, or a list of different ones, seeds=[3,4]", key="seeds"
        )
    return tuple(seeds)


def _entry(label: str, shared: Sequence[str], config_dir: str | None, config_name: str | None) -> Entry:
    try:
        method, *own = shlex.split(label)
    except ValueError as error:
        raise ConfigError(f"methods={label}: can't be parsed: {error}", key="methods") from None
    typed = [method if "=" in method else f"method={method}", *shared, *own]
    try:
        config = load(typed, config_dir, config_name)
        return Entry(label, config, draft(config))
    except ConfigError as error:
        raise ConfigError(f"methods={label}: {error}", error.key) from None


@contextmanager
def _folder(comparison: Comparison) -> Iterator[Path]:
    """The comparison's folder, locked: an unfinished one of the same command, or a new one."""
    root = comparison.root
    prefix = f"{comparison.first.task.name}-compare-"
    taken = [
        int(path.name[len(prefix) :])
        for path in (root.iterdir() if root.is_dir() else ())
        if path.name.startswith(prefix) and path.name[len(prefix) :].isdigit()
    ]
    candidates = [comparison.name] if comparison.name else [f"{prefix}{n}" for n in sorted(taken)]
    for name in candidates:
        folder = root / name
        known = _read(folder / FILE)
        if known is None:
            if comparison.name and folder.exists():
                raise ConfigError(f"study.name={name}: {folder} is there already; choose another name", "study.name")
            continue
        if known["command"] != comparison.command():
            if comparison.name:
                raise ConfigError(
                    f"study.name={name}: {folder} is another comparison, of {', '.join(known['command']['methods'])}; "
                    f"choose another name",
                    key="study.name",
                )
            continue
        if known["finished"] and set(comparison.seeds) <= set(known["asked"]) and not comparison.name:
            continue
        with _lock(folder) as free:
            if free:
                yield folder
                return
            if comparison.name:
                raise ConfigError(f"study.name={name}: {folder} is running in another process", key="study.name")
    while True:
        folder = root / (comparison.name or f"{prefix}{max(taken, default=0) + 1}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            if comparison.name:
                raise ConfigError(f"study.name={comparison.name}: {folder} is there already", "study.name") from None
            taken.append(max(taken, default=0) + 1)
            continue
        except OSError as error:
            raise ConfigError(f"study.root={root}: can't be written: {error.strerror}", key="study.root") from None
        break
    with _lock(folder):
        _write_file(folder, {"command": comparison.command(), "finished": False, "asked": list(comparison.seeds)})
        yield folder


@contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """Whether the folder is ours alone; where the system has no such locks, it is taken to be."""
    try:
        import fcntl
    except ImportError:
        yield True
        return
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True


def _write(comparison: Comparison, folder: Path, interrupted: str | None) -> Outcome:
    """Table and figure of the seeds that all methods have done."""
    scale = comparison.scale
    results = {
        e.label: {seed: _result(folder / e.folder(seed)) for seed in comparison.seeds} for e in comparison.entries
    }
    complete = [seed for seed in comparison.seeds if all(of_method[seed] for of_method in results.values())]
    failed = tuple(
        (f"{label}, seed {seed}", result["reason"].splitlines()[0])
        for label, of_method in results.items()
        for seed, result in of_method.items()
        if result and result["state"] == "failed"
    )
    done = sum(result is not None for of_method in results.values() for result in of_method.values())
    total = len(comparison.entries) * len(comparison.seeds)
    asked = sorted({*comparison.seeds, *(_read(folder / FILE) or {}).get("asked", ())})
    content: dict[str, Any] = {
        "command": comparison.command(),
        "finished": all(_result(folder / e.folder(seed)) for e in comparison.entries for seed in asked),
        "asked": asked,
        "failed": len(failed),
        "seeds": complete,
        "metric": {"name": scale.metric, "mode": comparison.first.task.mode, "optimum": scale.optimum},
    }
    if not complete:
        _write_file(folder, content)
        return Outcome(folder, (), ("", math.inf), done, total, failed, interrupted)
    traces: dict[str, list[Trace]] = {
        label: [trace(result, scale) for seed in complete if (result := of_method[seed])]
        for label, of_method in results.items()
    }
    rows = rows_of(traces, scale)
    whose, target = target_of(traces)
    content["target"] = {"of": whose, scale.name: scale.shown(target) if math.isfinite(target) else None}
    content["rows"] = [asdict(row) for row in rows]
    _write_file(folder, content)
    write_whole(folder / TABLE, [f"{headline(comparison)}\n\n{markdown(table(rows, scale))}\n"])
    draw(folder / FIGURE, traces, scale, headline(comparison))
    note = None if interrupted or not comparison.report else _report(comparison, folder, complete)
    return Outcome(folder, tuple(rows), (whose, target), done, total, failed, interrupted, note)


def _report(comparison: Comparison, folder: Path, seeds: Sequence[int]) -> str | None:
    """Writes the report of the studies of these seeds; why that can't be, which costs nobody the comparison."""
    try:
        from hpo_ray.report.writing import write_several

        studies = [load_study(folder / entry.folder(seed)) for entry in comparison.entries for seed in seeds]
        write_several(studies, folder / REPORT_FILE, folder.name)
    except Exception as error:
        return f"{REPORT_FILE} could not be written: {type(error).__name__}: {error}"
    return None


def _write_file(folder: Path, content: dict[str, Any]) -> None:
    write_whole(folder / FILE, [json.dumps({"schema_version": 1, **content}, indent=2) + "\n"])


def _result(folder: Path) -> dict[str, Any] | None:
    """What a study left, if it has ended by itself."""
    result = _read(folder / RESULT_FILE)
    return result if result is not None and result.get("state") in ("finished", "failed") else None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _one_line(result: dict[str, Any] | None, comparison: Comparison) -> str:
    from hpo_ray.view import clock, count

    if result is None:
        return "left no result"
    best, totals, unit = result["best"], result["totals"], comparison.first.task.unit
    value = f"{result['metric']['name']} {best['value']:.6g} at {unit} {best['resource']}" if best else "no value"
    virtual = " virtual" if comparison.scale.virtual else ""
    return f"{value}, {count(totals['resource'], unit)}, {clock(totals['seconds'])}{virtual}"
