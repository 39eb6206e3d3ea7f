"""The composition root: a configuration becomes a study.

In two stages, both before the first trial. `draft` is cold: schema, space, plan; it imports neither Ray nor torch.
`build` is warm: it imports the user's code and makes the parts.
"""

from __future__ import annotations

import importlib
import inspect
import math
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from hpo_ray.clusters.base import Cluster, Local, Remote
from hpo_ray.config import nearest, to_plain
from hpo_ray.domains import Fixed
from hpo_ray.errors import ConfigError
from hpo_ray.importing import load_trainable, locate
from hpo_ray.location import Location
from hpo_ray.resources import Resources
from hpo_ray.schedulers.brackets import Budget, Ladder, Plan
from hpo_ray.schedulers.fifo import FIFOCore
from hpo_ray.space import Space
from hpo_ray.store.urls import check_driver, check_url
from hpo_ray.trainables.context import FIDELITIES, TrialContext

if TYPE_CHECKING:
    from ray.tune import Callback
    from ray.tune.schedulers import TrialScheduler
    from ray.tune.search import Searcher

    from hpo_ray.executors.base import Executor
    from hpo_ray.searchers.core import SearcherCore
    from hpo_ray.trackers.base import Tracker
    from hpo_ray.trainables.settings import Hypergradient


@dataclass(frozen=True)
class Task:
    """What is tuned.

    Attributes:
        name: what it is called.
        trainable: dotted path of a Ray Tune function or `Trainable` class.
        metric: the reported value that counts.
        mode: `min` or `max`.
        max_resource: units of one full training.
        unit: what one unit of resource is called.
        args: constants for the trainable.
        cost: dotted path of a function that tells what a step costs; None if there is none.
        optimum: the best value that the metric can have, if that is known.
        metrics: what is optimised when that is more than one metric: `min` or `max` by name.
        constraints: bounds that a trial has to keep: `{metric: {low: 0.9}}`, `high`, or both.
        tradeoff: metrics that are worth trading off against one another, and for each whether `min` or `max` is better.
        reference: for each of these the worst value that still counts: the point that a hypervolume is measured from.
        architecture: names of hyperparameters that shape the model, and so can't change during a training.
    """

    name: str
    trainable: str
    metric: str
    mode: str
    max_resource: int
    unit: str = "step"
    args: Mapping[str, Any] = field(default_factory=dict)
    cost: str | None = None
    optimum: float | None = None
    metrics: Mapping[str, str] = field(default_factory=dict)
    constraints: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    tradeoff: Mapping[str, str] = field(default_factory=dict)
    reference: Mapping[str, float] = field(default_factory=dict)
    architecture: Sequence[str] = ()


@dataclass(frozen=True)
class Draft:
    """A study as far as it is known without running any of its code.

    Attributes:
        config: the resolved configuration, plain.
        name: the name that was given; None for the next free one.
        root: the folder that studies lie in.
        plan: what the scheduler will do with the budget.
        max_resource: where every trial stops.
        ladder: at which resources the scheduler compares trials.
        grid_size: how many configurations the searcher has; None for no end.
        settings: how a differentiable task is trained; None where a task's own code says so.
        resources: what one trial gets.
        cluster: where the study's processes run.
        command: what was typed for it; None if nobody typed anything.
    """

    config: Mapping[str, Any]
    name: str | None
    root: Path
    task: Task
    method: str
    space: Space
    budget: Budget
    plan: Plan
    max_resource: int
    seed: int
    ladder: Ladder
    resources: Resources
    cluster: Cluster
    grid_size: int | None = None
    settings: Hypergradient | None = None
    command: str | None = None

    @property
    def keep_checkpoints(self) -> str:
        """Which checkpoints of trials that ended stay: `best`, `completed` or `all`."""
        return str(self.config["store"]["keep_checkpoints"])

    @property
    def virtual_workers(self) -> int:
        """How many workers are simulated; 0 where trials run in real time."""
        executor = self.config["executor"]
        return int(executor.get("workers", 0)) if str(executor["_target_"]).endswith(".SimulatedExecutor") else 0

    @property
    def location(self) -> Location | None:
        """The object store that studies are copied to, and that holds their checkpoints; None for the disk alone."""
        root = self.config["store"].get("root")  # a study that is older than the key
        return None if root is None else Location.of(root)

    def free_name(self) -> str:
        """The name that was given, or `<task>-<method>-<n>` with the next free n, on the disk and in the object store.

        Raises:
            ConfigError: a study of the name that was given is there already, or the store can't be reached.
        """
        taken = {path.name: str(path) for path in (self.root.iterdir() if self.root.is_dir() else ())}
        if (location := self.location) is not None:
            with location.explained():
                taken.update((name, str(location.join(name))) for name in location.hurried().names())
        if self.name is not None:
            if (place := taken.get(self.name)) is not None:
                raise ConfigError(
                    f"study.name={self.name}: {place} is there already. To go on with it: "
                    f"`python -m hpo_ray resume {place}`; otherwise choose another name or root, or "
                    f"leave study.name out to get the next free one",
                    key="study.name",
                )
            return self.name
        prefix = f"{self.task.name}-{self.method}-"
        ends = [name[len(prefix) :] for name in taken if name.startswith(prefix)]
        return f"{prefix}{max((int(end) for end in ends if end.isdigit()), default=0) + 1}"


@dataclass(frozen=True)
class Study:
    """A study that can run: a draft and its parts.

    Attributes:
        draft: what was known before.
        trainable: the user's function or class.
        tracker: who is told what is in its log; None for nobody.
        callbacks: Ray Tune callbacks of the user's own.
        context: what all trials share.
        time_attr: name of the reported value that counts resource.
        max_retries: how often a trial that fails is tried again.
        max_failed_fraction: of the trials; the study ends when more than that have failed.
    """

    draft: Draft
    trainable: Callable[..., Any] | type
    searcher: Searcher
    scheduler: TrialScheduler
    executor: Executor
    tracker: Tracker | None
    callbacks: tuple[Callback, ...]
    context: TrialContext
    time_attr: str
    max_retries: int
    max_failed_fraction: float


def draft(config: DictConfig) -> Draft:
    """Checks everything that can be checked without importing Ray, torch or the user's code.

    Raises:
        ConfigError: something can't be; the message names key, value and fix.
    """
    plain: dict[str, Any] = to_plain(config)
    task = _task(plain["task"])
    _check_one_of("view", plain["view"], ("auto", "live", "plain", "none"))
    settings = _settings(plain["trainable"])
    _check_one_of("trainable.precision", plain["trainable"]["precision"], ("fp32", "bf16", "fp16"))
    _check_fidelity(plain["fidelity"])
    if plain["trainable"]["precision"] == "fp16" and plain["resources"]["gpu"] == 0:
        raise ConfigError(
            "trainable.precision=fp16: needs a GPU, resources=gpu; on a CPU use bf16 or fp32",
            key="trainable.precision",
        )
    resources = Resources.of(plain["resources"])
    executor = str(plain["executor"]["_target_"]).rpartition(".")[2]
    if resources.workers > 1 and executor in ("InProcessExecutor", "SimulatedExecutor"):
        raise ConfigError(
            f"resources.workers={resources.workers}: {executor} runs each trial in this one process; use executor=ray",
            key="resources.workers",
        )
    cluster: Cluster = make("cluster", plain["cluster"] or {"_target_": "hpo_ray.clusters.Local"})
    for key in ("max_retries", "max_lost_nodes"):
        _check_count(f"failure.{key}", plain["failure"][key], least=0)
    if plain["store"]["checkpoint_every"] is not None:
        _check_count("store.checkpoint_every", plain["store"]["checkpoint_every"])
    seconds = plain["store"]["checkpoint_every_s"]
    if seconds is not None and not (math.isfinite(seconds) and seconds >= 0):
        raise ConfigError(
            f"store.checkpoint_every_s={seconds:g}: must be a number of seconds >= 0, or null",
            key="store.checkpoint_every_s",
        )
    _check_one_of("store.keep_checkpoints", plain["store"]["keep_checkpoints"], ("best", "completed", "all"))
    fraction = plain["failure"]["max_failed_fraction"]
    if not 0.0 <= fraction <= 1.0:  # not a number, too
        raise ConfigError(
            f"failure.max_failed_fraction={fraction:g}: must be a number from 0 to 1; 1 goes on whatever fails",
            key="failure.max_failed_fraction",
        )
    _check_count("seed", plain["seed"], least=0)
    if plain["store"]["project"] and plain["store"]["url"] is not None:
        check_url(plain["store"]["url"])
    if plain["store"].get("root") is not None:
        Location.of(plain["store"]["root"])  # looks at its text
    budget = _budget(plain["budget"])
    space = space_of(plain)
    if not len(space):
        raise ConfigError(
            f"space is empty: there is nothing to tune in task={task.name}; give one, for example "
            f"'space={{lr: {{low: 1e-5, high: 0.1, log: true}}}}'",
            key="space",
        )
    _check_initial(plain["searcher"].get("initial"), space)
    core = _core(plain["scheduler"], task, space)
    ladder = getattr(core, "ladder", None) or Ladder.single(core.max_resource)
    searcher = _searcher_core(plain["searcher"], space, ladder)
    _check_together(searcher, core, plain, task)
    plan = _plan(core, searcher, budget)
    return Draft(
        config=plain,
        name=_name(plain["study"]["name"]),
        root=Path(plain["study"]["root"]),
        task=task,
        method=plain["method"]["name"],
        space=space,
        budget=budget,
        plan=plan,
        max_resource=core.max_resource,
        seed=plain["seed"],
        ladder=ladder,
        grid_size=searcher.size if searcher else None,
        settings=settings,
        resources=resources,
        cluster=cluster,
    )


def build(drafted: Draft) -> Study:
    """Imports the user's code and makes the parts of a study. Starts nothing and writes nothing.

    A trainable says by an attribute `fidelities` which of them it follows; one without counts as one unit whatever a
    step of it is. One whose trials may have several processes says so by `distributed = True`. A trainable class that
    has a class method `check_study(context)` is asked whether it can do what the study wants.

    Raises:
        ConfigError: something can't be imported, or a part refuses its settings.
    """
    from hpo_ray.executors.binding import can_save

    config, task = drafted.config, drafted.task
    _check_cluster(drafted)
    if config["store"]["project"] and config["store"]["url"] is not None:
        check_driver(config["store"]["url"])
    trainable = bound_trainable(config)
    searcher = make("searcher", config["searcher"], space=drafted.space, ladder=drafted.ladder)
    scheduler = make("scheduler", _without_moved(config["scheduler"], trainable, drafted), space=drafted.space)
    waits = getattr(scheduler, "on_missing_checkpoint", None) == "error" and scheduler.core.pauses
    if waits and isinstance(trainable, type) and not can_save(trainable):
        raise ConfigError(
            f"task.trainable={task.trainable}: the class has no save_checkpoint, and {type(scheduler).__name__} pauses "
            f"trials. Give it save_checkpoint and load_checkpoint, or set scheduler.on_missing_checkpoint=restart to "
            f"train promoted trials again from the start",
            key="task.trainable",
        )
    _check_follows(trainable, task, config["fidelity"]["name"])
    _check_workers(trainable, drafted)
    resources = drafted.resources
    context = TrialContext(
        study_seed=drafted.seed,
        max_resource=drafted.max_resource,
        args=task.args,
        cpus=resources.cpu,
        gpus=resources.gpu,
        precision=config["trainable"]["precision"],
        space=drafted.space,
        fidelity=config["fidelity"]["name"],
        steps_per_unit=config["fidelity"]["steps_per_unit"] or 1,
        workers=resources.workers,
        strategy=resources.strategy,
        free_gpu_memory=resources.free_gpu_memory,
    )
    if hasattr(trainable, "check_study"):
        trainable.check_study(context)
    return Study(
        draft=drafted,
        trainable=trainable,
        searcher=searcher,
        scheduler=scheduler,
        executor=make("executor", config["executor"], cluster=drafted.cluster),
        tracker=tracker_of(config),
        callbacks=tuple(make(f"tracker.callbacks[{i}]", section) for i, section in enumerate(_callbacks(config))),
        context=context,
        time_attr=config["scheduler"].get("time_attr", "training_iteration"),
        max_retries=config["failure"]["max_retries"],
        max_failed_fraction=config["failure"]["max_failed_fraction"],
    )


def tracker_section(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration says of its tracker: `_target_` and its arguments; nothing if there is none."""
    section = config.get("tracker") or {}
    return {name: value for name, value in section.items() if name != "callbacks"} if "_target_" in section else {}


def tracker_of(config: Mapping[str, Any]) -> Tracker | None:
    """The tracker of a configuration, checked; None if there is none. Asks no server.

    Raises:
        ConfigError: its package lacks, or its settings can't be.
    """
    section = tracker_section(config)
    if not section:
        return None
    tracker: Tracker = make("tracker", section)
    tracker.check(Path(config["study"]["root"]).absolute())
    return tracker


def _callbacks(config: Mapping[str, Any]) -> Sequence[Any]:
    section = config.get("tracker") or {}
    callbacks = section.get("callbacks") or () if isinstance(section, Mapping) else section
    unknown = set(section) - {"callbacks"} if isinstance(section, Mapping) and "_target_" not in section else set()
    if unknown or isinstance(callbacks, str) or not isinstance(callbacks, Sequence):
        raise ConfigError(
            f"tracker={section!r}: must be one of its choices (`python -m hpo_ray list`), with tracker.callbacks a "
            f"list of Ray Tune callbacks, [{{_target_: my_package.MyCallback}}], if there are any",
            key="tracker",
        )
    return callbacks


def _check_cluster(drafted: Draft) -> None:
    """Refuses a cluster that the study would take no notice of."""
    cluster, executor = drafted.cluster, str(drafted.config["executor"]["_target_"])
    if isinstance(cluster, Remote):
        raise ConfigError(
            f"cluster={cluster.name}: takes whole commands, python -m hpo_ray submit cluster={cluster.name} ...; "
            f"a study that is driven from here takes cluster=local or cluster=attach",
            key="cluster",
        )
    if not isinstance(cluster, Local) and not executor.endswith(".RayExecutor"):
        raise ConfigError(
            f"cluster={cluster.name}: its nodes run trials for executor=ray, and {executor.rpartition('.')[2]} runs "
            f"them in this process; use executor=ray, or leave cluster out",
            key="cluster",
        )


def make(key: str, section: Mapping[str, Any], **offered: Any) -> Any:
    """Calls what `_target_` names with the rest of a configuration section.

    Args:
        key: what messages call the section.
        section: `_target_`, the dotted path of a class, and its arguments.
        offered: arguments that no configuration can hold, for a target that has parameters of these names.

    Raises:
        ConfigError: the target can't be imported, or doesn't take an argument.
    """
    if not isinstance(section, Mapping) or "_target_" not in section:
        raise ConfigError(f"{key}={section!r}: must be a mapping with a _target_, the dotted path of a class", key=key)
    arguments = {name: value for name, value in section.items() if name != "_target_"}
    target = locate(f"{key}._target_", section["_target_"])
    parameters = inspect.signature(target).parameters
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        for name in arguments:
            if name not in parameters:
                raise ConfigError(
                    f"{key}.{name}={arguments[name]!r}: {section['_target_']} takes no {name!r}"
                    f"{nearest(name, parameters)}; it takes {', '.join(parameters)}",
                    key=f"{key}.{name}",
                )
    wanted = {name: value for name, value in offered.items() if name in parameters and name not in arguments}
    return target(**arguments, **wanted)


def bound_trainable(config: Mapping[str, Any]) -> Callable[..., Any] | type:
    """What Ray Tune runs of a configuration: `task.trainable`, or what `trainable` makes of a differentiable task.

    Raises:
        ConfigError: it can't be imported, or is not of the kind that is needed.
    """
    from ray.tune import Trainable

    from hpo_ray.trainables.differentiable import REQUIRED, as_task, missing
    from hpo_ray.trainables.settings import Hypergradient

    path, settings = config["task"]["trainable"], _settings(config["trainable"])
    found = load_trainable(path)
    task = as_task(found) if isinstance(found, type) and not issubclass(found, Trainable) else None
    if task is None:
        if settings is not None:
            raise ConfigError(
                f"task.trainable={path}: trainable={settings.name} needs a differentiable task, a class with "
                f"{', '.join(REQUIRED)} (hpo_ray.trainables.DifferentiableTask), task=hyper_cleaning for example"
                + (f"; it lacks {', '.join(missing(found))}" if isinstance(found, type) else "; it is a function"),
                key="task.trainable",
            )
        if isinstance(found, type) and not issubclass(found, Trainable):
            raise ConfigError(
                f"task.trainable={path}: the class is no ray.tune.Trainable; derive it from that, give a function "
                f"`def train(config)`, or a hpo_ray.trainables.DifferentiableTask",
                key="task.trainable",
            )
        return found
    if lacking := missing(task):
        raise ConfigError(
            f"task.trainable={path}: the differentiable task lacks {', '.join(lacking)}", key="task.trainable"
        )
    precision = str(config["trainable"]["precision"])
    return (settings or Hypergradient(name="task", precision=precision, estimator="none")).bind(task)


def space_of(config: Mapping[str, Any]) -> Space:
    """The space of a configuration: `space`, and the settings of the trainable that are domains.

    Raises:
        ConfigError: it can't be, or a name is in both.
    """
    from hpo_ray.trainables.settings import searched

    section = config.get("trainable") or {}
    domains = searched(section) if "_target_" in section else {}
    if both := [name for name in domains if name in config["space"]]:
        raise ConfigError(
            f"trainable.{both[0]}={domains[both[0]]}: {both[0]} is in the space, too; leave one out",
            key=f"trainable.{both[0]}",
        )
    return Space.from_config({**config["space"], **domains})


def _settings(section: Any) -> Hypergradient | None:
    """How a differentiable task is trained; None for `trainable=task`.

    Raises:
        ConfigError: a setting is unknown, or out of its range.
    """
    from hpo_ray.trainables.settings import searched

    if not isinstance(section, Mapping) or "precision" not in section:
        raise ConfigError(f"trainable={section!r}: must be a choice, trainable=task", key="trainable")
    if "_target_" not in section:
        _check_keys("trainable", section, str(section.get("name")), ("name", "precision"))
        return None
    domains = searched(section)
    made: Hypergradient = make("trainable", {key: value for key, value in section.items() if key not in domains})
    _check_keys("trainable", domains, type(made).__name__, tuple(vars(made)))
    return made.searching(domains)


def _without_moved(section: Mapping[str, Any], trainable: Any, drafted: Draft) -> Mapping[str, Any]:
    """The section of a scheduler that explores, told to leave alone what trials move by themselves.

    Raises:
        ConfigError: nothing is left to explore.
    """
    if "frozen" not in section or drafted.settings is None:
        return section
    from hpo_ray.trainables.bilevel import moved_names

    domains = drafted.space.domains
    moved = moved_names(trainable.task_class, domains)
    frozen = [*section["frozen"], *moved]
    if set(moved) & set(trainable.task_class.per_step):
        frozen.append("inner_steps")  # it shapes them
    if not any(name not in frozen and not isinstance(domain, Fixed) for name, domain in domains.items()):
        raise ConfigError(
            f"space: every name in it is moved by the gradient ({', '.join(domains)}), and {_choice_name(section)} has "
            f"nothing to explore; give a setting as a domain, 'trainable.outer_lr={{low: 0.01, high: 1.0, log: true}}'",
            key="space",
        )
    return {**section, "frozen": frozen}


def _task(section: Mapping[str, Any]) -> Task:
    if not section["trainable"]:
        raise ConfigError(
            f"task.trainable is not set in task={section['name']}: give the dotted path of a function "
            f"`def train(config)` or of a ray.tune.Trainable, task.trainable=my_package.train",
            key="task.trainable",
        )
    _check_one_of("task.mode", section["mode"], ("min", "max"))
    _check_count("task.max_resource", section["max_resource"])
    metrics = _by_metric("metrics", section["metrics"], "{accuracy: max, parameters: min}")
    for name, mode in metrics.items():
        _check_one_of(f"task.metrics.{name}", mode, ("min", "max"))
    if len(metrics) == 1:
        raise ConfigError(
            f"task.metrics={metrics}: names one metric; give two or more, or task.metric and task.mode",
            key="task.metrics",
        )
    constraints = _by_metric("constraints", section["constraints"], "{parameters: {high: 2e4}}")
    for name, bounds in constraints.items():
        key = f"task.constraints.{name}"
        if not isinstance(bounds, Mapping) or not bounds or not {*bounds} <= {"low", "high"}:
            raise ConfigError(f"{key}={bounds}: must give low, high or both, {{low: 0.9}}", key=key)
        numbers = [b for b in bounds.values() if isinstance(b, int | float) and not isinstance(b, bool)]
        if len(numbers) < len(bounds) or not all(math.isfinite(bound) for bound in numbers):
            raise ConfigError(f"{key}={bounds}: bounds must be finite numbers", key=key)
    tradeoff = _by_metric("tradeoff", section["tradeoff"], "{accuracy: max, parameters: min}")
    for name, mode in tradeoff.items():
        _check_one_of(f"task.tradeoff.{name}", mode, ("min", "max"))
    reference = _by_metric("reference", section["reference"], "{accuracy: 0.1, parameters: 1e5}")
    for name, value in reference.items():
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise ConfigError(
                f"task.reference.{name}={value}: must be a finite value of {name}, the worst that still counts",
                key=f"task.reference.{name}",
            )
    given = {"metrics": metrics, "constraints": constraints, "tradeoff": tradeoff, "reference": reference}
    return Task(**{**section, **given})


def _by_metric(what: str, section: Any, example: str) -> Mapping[str, Any]:
    """A mapping by the names of metrics; null is an empty one."""
    if section is None:
        return {}
    if not isinstance(section, Mapping) or not all(isinstance(name, str) for name in section):
        raise ConfigError(
            f"task.{what}={section!r}: must be a mapping by the names of metrics, 'task.{what}={example}'",
            key=f"task.{what}",
        )
    return section


def _plan(core: Any, searcher: SearcherCore | None, budget: Budget) -> Plan:
    """What scheduler and searcher will do together: a searcher with an end ends the study."""
    size = searcher.size if searcher is not None else None
    plan: Plan | None = None
    if size is not None and budget.trials is budget.rounds is None and not budget.open_ended:
        try:
            plan = core.plan(replace(budget, trials=size))
        except ConfigError:  # a scheduler that decides this itself
            plan = None
    plan = plan or core.plan(budget)
    if searcher is None or size is None:
        return plan
    trials = plan.trials
    if budget.resource is not None and not plan.brackets:
        most = -(-budget.resource // plan.max_resource)
        trials = most if trials is None else min(trials, most)
    searcher.check_budget(trials)
    if trials is not None and trials <= size:
        return plan
    if plan.brackets and plan.exact:
        raise ConfigError(
            f"searcher: it has {size} configurations in all, and the brackets of the scheduler take "
            f"{trials or 'one after another'}; give it more (searcher.grid_points=), or use scheduler=fifo or asha",
            key="searcher",
        )
    return replace(plan, trials=size)


def _check_together(searcher: SearcherCore | None, scheduler: Any, config: Mapping[str, Any], task: Task) -> None:
    """Refuses a searcher and a scheduler that don't go together."""
    if config["method"]["several"] and not task.metrics:
        raise ConfigError(
            f"method={config['method']['name']}: trades off several metrics, and task={task.name} names none; give "
            f"'task.metrics={{accuracy: max, parameters: min}}' with names that it reports",
            key="task.metrics",
        )
    names = {key: _choice_name(config[key]) for key in ("searcher", "scheduler")}
    if searcher is not None and searcher.learns and not getattr(scheduler, "searcher_may_learn", True):
        raise ConfigError(
            f"searcher={names['searcher']}: {names['scheduler']} takes only the first population from a searcher and "
            f"then changes it by itself, so there is nothing that this one could learn; use searcher=random or sobol",
            key="searcher",
        )
    for key, wanted, use in (
        ("metrics", task.metrics, "method=nsga2 or method=tpe_multi"),
        ("constraints", task.constraints, "method=tpe or method=gp"),
    ):
        if wanted and searcher is not None and searcher.learns and key not in config["searcher"]:
            raise ConfigError(
                f"task.{key}={dict(wanted)}: {names['searcher']} optimises one metric without constraints; use {use}",
                key=f"task.{key}",
            )
    for key, wanted in (("metrics", task.metrics), ("constraints", task.constraints)):
        if wanted and getattr(scheduler, "ranks", True):
            raise ConfigError(
                f"task.{key}={dict(wanted)}: {names['scheduler']} ranks trials by {task.metric} alone; use "
                f"scheduler=fifo",
                key=f"task.{key}",
            )


def _choice_name(section: Mapping[str, Any]) -> str:
    return str(section["_target_"]).rpartition(".")[2]


def _budget(section: Mapping[str, Any]) -> Budget:
    for key in ("trials", "rounds", "resource", "concurrency"):
        if section[key] is not None:
            _check_count(f"budget.{key}", section[key])
    target = section["target"]
    for key in ("time_s", "trial_timeout_s"):
        seconds = section[key]
        if seconds is not None and not (math.isfinite(seconds) and seconds > 0):
            raise ConfigError(f"budget.{key}={seconds:g}: must be a number of seconds > 0, or null", f"budget.{key}")
    if target is not None and not math.isfinite(target):
        raise ConfigError(f"budget.target={target}: must be a finite value of the metric, or null", key="budget.target")
    return Budget(**section)


def _check_fidelity(section: Mapping[str, Any]) -> None:
    name, steps = section["name"], section["steps_per_unit"]
    _check_one_of("fidelity.name", name, FIDELITIES)
    key = "fidelity.steps_per_unit"
    if name == "steps" and steps is None:
        raise ConfigError(f"{key} is not set: give how many steps of the optimizer a unit is, {key}=10", key=key)
    if name != "steps" and steps is not None:
        raise ConfigError(f"{key}={steps}: fidelity={name} has no steps to count; use fidelity=steps", key=key)
    if steps is not None:
        _check_count(key, steps)


def _check_follows(trainable: Callable[..., Any] | type, task: Task, fidelity: str) -> None:
    """Refuses a fidelity that the trainable would take no notice of, and so train something else than is counted."""
    followed = getattr(trainable, "fidelities", ("epochs",))
    if fidelity not in followed:
        raise ConfigError(
            f"fidelity={fidelity}: task.trainable={task.trainable} follows {', '.join(followed)} only; use "
            f"fidelity={followed[0]}. If it does what get_context().fidelity says, let it say so: an attribute "
            f'fidelities = ("epochs", "{fidelity}")',
            key="fidelity",
        )


def _check_workers(trainable: Callable[..., Any] | type, drafted: Draft) -> None:
    """Refuses several processes a trial where only the first would do anything, or all would do the same."""
    workers, gpu, path = drafted.resources.workers, drafted.resources.gpu, drafted.task.trainable
    if workers == 1 or getattr(trainable, "distributed", False):
        return
    if hasattr(trainable, "distributed"):
        why = (
            "has a train_epoch of its own. If that takes its share of the data by self.rank and self.world_size, let "
            "it say so, by an attribute distributed = True; otherwise"
        )
    else:
        why = "trains in one process, as all but a TorchTrainable does;"
    use = f"resources.workers=1 resources.gpu={workers * gpu:g}" if gpu else "resources.workers=1"
    raise ConfigError(
        f"resources.workers={workers}: task.trainable={path} {why} use {use}"
        + (f" (one process with {workers * gpu:g} GPUs of one node)" if gpu else ""),
        key="resources.workers",
    )


def _check_initial(initial: Any, space: Space) -> None:
    if initial is None:
        return
    if not isinstance(initial, list) or not all(isinstance(config, Mapping) for config in initial):
        raise ConfigError(
            f"searcher.initial={initial!r}: must be a list of configurations, 'searcher.initial=[{{lr: 0.1}}]'",
            key="searcher.initial",
        )
    for i, config in enumerate(initial):
        space.check(config, where=f"searcher.initial[{i}]")


def _searcher_core(section: Any, space: Space, ladder: Ladder) -> SearcherCore | None:
    """The algorithm of a searcher of ours, `GridCore` of `GridSearcher`; None of any other."""
    if not isinstance(section, Mapping) or "_target_" not in section:
        raise ConfigError(f"searcher={section!r}: must be a choice, searcher=random, or have a _target_")
    module_name, _, name = str(section["_target_"]).rpartition(".")
    if not module_name.startswith("hpo_ray."):
        return None
    cls = getattr(importlib.import_module(module_name), f"{name.removesuffix('Searcher')}Core", None)
    if cls is None:
        raise ConfigError(f"searcher._target_={section['_target_']}: there is no such searcher")
    parameters = inspect.signature(cls).parameters
    known = (*parameters, *_NOT_OF_THE_CORE)
    _check_keys("searcher", section, name, known)
    arguments = {key: value for key, value in section.items() if key in parameters}
    core: SearcherCore = cls(space=space, ladder=ladder, **arguments)
    return core


def _check_keys(key: str, section: Mapping[str, Any], name: str, known: tuple[str, ...]) -> None:
    if unknown := next((name for name in section if name not in known), None):
        raise ConfigError(
            f"{key}.{unknown}={section[unknown]!r}: {name} takes no {unknown!r}{nearest(unknown, known)}",
            key=f"{key}.{unknown}",
        )


def _core(section: Any, task: Task, space: Space) -> Any:
    """The algorithm of a scheduler, from `<_target_>Core`; a scheduler without is planned as plain training."""
    if not isinstance(section, Mapping) or "_target_" not in section:
        raise ConfigError(f"scheduler={section!r}: must be a choice, scheduler=hyperband, or have a _target_")
    module_name, _, name = str(section["_target_"]).rpartition(".")
    if not module_name.startswith("hpo_ray."):
        core = FIFOCore(section.get("max_resource", task.max_resource))
        core.ranks = True  # for all that is known
        return core
    cls = getattr(importlib.import_module(module_name), f"{name}Core", None)
    if cls is None:
        raise ConfigError(f"scheduler._target_={section['_target_']}: there is no such scheduler")
    parameters = inspect.signature(cls).parameters
    known = (*(name for name in parameters if name != "space"), *_NOT_OF_THE_CORE)
    _check_keys("scheduler", section, name, known)
    arguments = {name: value for name, value in section.items() if name in parameters}
    return cls(**arguments, **({"space": space} if "space" in parameters else {}))


NAME = r"\w[\w.+=-]*"
"""What a study may be called."""
_NOT_OF_THE_CORE = ("_target_", "metric", "mode", "time_attr", "on_missing_checkpoint")


def _name(name: str | None) -> str | None:
    if name is not None and not re.fullmatch(NAME, name):
        raise ConfigError(
            f"study.name={name!r}: must be a plain folder name of letters, digits and _ - . + =; "
            f"where it lies is study.root",
            key="study.name",
        )
    return name


def _check_count(key: str, value: int, least: int = 1) -> None:
    if value < least:
        raise ConfigError(f"{key}={value}: must be a whole number >= {least}", key=key)


def _check_one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{key}={value}: must be one of {', '.join(allowed)}{nearest(value, allowed)}", key=key)


def versions() -> dict[str, str]:
    """Of Python and of the packages that a study's numbers depend on."""
    names = ("hpo_ray", "ray", "torch", "optuna", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
