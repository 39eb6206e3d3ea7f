"""The configuration: its schema, how it is composed, and errors that name the key, the value and the fix.

Every verb composes with Hydra's `compose`. `hydra.main` would exit with 1 on errors, make an output folder before
anything is checked, and know no verbs.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hpo_ray.errors import ConfigError
from hpo_ray.location import is_uri
from hpo_ray.overrides import rewrite, without


@dataclass
class StudySection:
    """`study.*`: what it is called and where it goes."""

    name: str | None = None  # default: <task>-<method>-<n>, n the next free number
    root: str = "outputs"


@dataclass
class TaskSection:
    """`task.*`: what is tuned."""

    name: str = "custom"
    trainable: str | None = None  # dotted path of a Ray Tune function or Trainable class
    metric: str = "loss"
    mode: str = "min"
    max_resource: int = 27  # units of one full training
    unit: str = "step"  # what one unit is called
    args: dict[str, Any] = field(default_factory=dict)  # constants for the trainable: data paths and the like
    cost: str | None = None  # dotted path of `cost(config, resource)`: seconds of a step, for executor=simulated
    metrics: Any = field(default_factory=dict)  # several metrics at once: {accuracy: max, parameters: min}
    constraints: Any = field(default_factory=dict)  # bounds to keep: {parameters: {high: 20000}}
    optimum: float | None = None  # the best value there is, where it is known: `compare` then gives regrets
    architecture: list[str] = field(default_factory=list)  # names that shape the model: they can't change in training
    # Both Any, so that one typed whole replaces that of the file: OmegaConf can't set a typed mapping to null first.
    tradeoff: Any = field(default_factory=dict)  # metrics worth trading off against one another: name -> min | max
    reference: Any = field(default_factory=dict)  # of these metrics the worst values that still count: name -> number


@dataclass
class FidelitySection:
    """`fidelity.*`: what one unit of resource is."""

    name: str = "epochs"  # epochs | steps | data_fraction
    steps_per_unit: int | None = None  # of the optimizer, for name=steps only


@dataclass
class MethodSection:
    """`method.*`: the name of the method."""

    name: str = "custom"
    several: bool = False  # it trades off several metrics, task.metrics


@dataclass
class ResourcesSection:
    """`resources.*`: what one trial gets."""

    cpu: float = 1.0  # cores, of each of its processes
    gpu: float = 0.0  # GPUs of each of its processes: 0, a share 1/n, or a whole number
    workers: int = 1  # processes that train one trial together
    strategy: str = "ddp"  # how they do: ddp | fsdp
    placement: str = "PACK"  # of these processes on the nodes: PACK | SPREAD | STRICT_PACK | STRICT_SPREAD
    accelerator: Any = None  # the kind of GPU that a node must have, by its label: A100, or [A100, H100]
    labels: Any = field(default_factory=dict)  # further labels of nodes: {market-type: on-demand}
    free_gpu_memory: float = 0.9  # the share of its part of the GPU's memory that must be free before it starts


@dataclass
class BudgetSection:
    """`budget.*`: what a study may spend; null is not limited by this."""

    trials: int | None = None  # null: the method's own number
    rounds: int | None = None  # of Hyperband; null: 1
    time_s: float | None = None  # seconds of the study's clock; without trials or rounds it alone ends the study
    resource: int | None = None  # units of training in all; without trials or rounds it alone ends the study
    target: float | None = None  # end when the metric reaches this value
    concurrency: int | None = None  # trials at a time; null: as many as the resources allow
    # A trial that doesn't report for so many seconds has failed; null: never. In-process, a hang in C can't be ended.
    trial_timeout_s: float | None = None


@dataclass
class FailureSection:
    """`failure.*`: what happens to a trial that fails."""

    max_retries: int = 0  # per trial, from its last checkpoint
    max_lost_nodes: int = 10  # per trial, and not counted above: how often it goes on after the node it ran on has gone
    max_failed_fraction: float = 0.9  # a study in which more of the trials fail ends, once 8 have; 1: it never does


@dataclass
class StoreSection:
    """`store.*`: the Optuna storage that studies are projected into, and what of a study stays on disk."""

    project: bool = True  # whether studies are written to the storage
    root: str | None = None  # where studies lie, if not in study.root: a folder that all nodes see, s3://..., gs://...
    url: str | None = None  # of a database, any that Optuna takes, without password; null: a journal in study.root
    keep_checkpoints: str = "best"  # of trials that ended: best | completed | all
    checkpoint_every: int | None = None  # units of training between two checkpoints of a class; null: by seconds alone
    checkpoint_every_s: float | None = 60.0  # seconds of training between them; null: by units alone


@dataclass
class Config:
    """Everything that can be configured."""

    seed: int = 0
    view: str = "auto"  # live | plain | none; auto: live in a terminal
    report: bool = True  # whether report.html is written when the study has ended
    study: StudySection = field(default_factory=StudySection)
    task: TaskSection = field(default_factory=TaskSection)
    fidelity: FidelitySection = field(default_factory=FidelitySection)
    space: dict[str, Any] = field(default_factory=dict)
    method: MethodSection = field(default_factory=MethodSection)
    searcher: Any = None
    scheduler: Any = None
    trainable: Any = None  # how the task is trained; `_target_` makes a trainable of a differentiable task
    executor: Any = None
    resources: ResourcesSection = field(default_factory=ResourcesSection)
    cluster: Any = None
    tracker: Any = None  # `_target_` names a tracker; `callbacks`: Ray Tune callbacks of one's own, beside it or alone
    store: StoreSection = field(default_factory=StoreSection)
    budget: BudgetSection = field(default_factory=BudgetSection)
    failure: FailureSection = field(default_factory=FailureSection)


_SAVED = "hpo_ray_saved"
_LIKE_A_URI = re.compile(r"[A-Za-z][\w+.-]*:/|(s3|s3a|gs|gcs|abfs|hdfs|http|https|file):?/")
_SECTIONS = ("searcher", "scheduler", "trainable", "executor", "task", "method")

ConfigStore.instance().store("hpo_ray_schema", Config, provider="hpo_ray")


def conf_dir() -> Path:
    """The folder of the shipped configuration: inside an installed package, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


def search_path(config_dir: str | None = None, config_name: str | None = None) -> tuple[Path, list[Path]]:
    """(folder that the configuration starts in, further folders): ours and, if there is one, the user's.

    Raises:
        ConfigError: `config_dir` is no folder, or has a choice of the same name as one of ours.
    """
    if config_dir is None:
        return conf_dir(), []
    folder = Path(config_dir).resolve()
    if not folder.is_dir():
        raise ConfigError(f"--config-dir {config_dir}: no such folder", key="--config-dir")
    for path in sorted(folder.glob("*/*.yaml")):
        if (conf_dir() / path.relative_to(folder)).exists():
            raise ConfigError(
                f"--config-dir {config_dir}: {path.relative_to(folder)} is the name of one of ours; rename it",
                key="--config-dir",
            )
    if config_name is not None and (folder / f"{config_name}.yaml").exists():
        return folder, [conf_dir()]
    return conf_dir(), [folder]


def load(overrides: Sequence[str] = (), config_dir: str | None = None, config_name: str | None = None) -> DictConfig:
    """Composes the configuration.

    Args:
        overrides: as typed, for example `["method=random", "space.lr.low=1e-3"]`.
        config_dir: a folder with groups and configurations of the user's own, beside ours.
        config_name: the configuration to start from, in `config_dir` or ours; by default ours, `config`.

    Raises:
        ConfigError: an unknown key, choice or configuration, or a value of the wrong type.
    """
    primary, extra = _folders(config_dir, config_name)
    try:
        config = _compose(
            primary, config_name or "config", [*final_overrides(overrides, config_dir, config_name), *extra]
        )
        _check_known(config, Config, "")
        if missing := next((key for key in _SECTIONS if config.get(key) is None), None):
            raise ConfigError(
                f"--config-name {config_name}: it has no {missing}; let it start with `defaults: [config, _self_]`",
                key="--config-name",
            )
        _name_by_parts(config, overrides)
        _first_metric(config, overrides)
        _settle_root(config)
        return config
    except MissingConfigException as error:
        folders = search_path(config_dir, config_name)
        raise _unknown_choice(error, [folders[0], *folders[1]], config_name) from None
    except OverrideParseException as error:
        raise ConfigError(
            f"{error.override}: can't be parsed: {_first_line(error)}; quote a mapping or list whole, 'key={{a: 1}}', "
            f"and a text with spaces or signs inside as well, 'key=\"a b\"'",
            key=error.override,
        ) from None
    except (HydraException, OmegaConfBaseException) as error:
        raise _explain(error, overrides, primary, config_name or "config", extra) from None
    except RecursionError:
        raise ConfigError(
            f"--config-name {config_name}: its defaults lead back to itself", key="--config-name"
        ) from None
    except (ValueError, TypeError) as error:  # Hydra, of a value that can't be a choice
        if isinstance(error, ConfigError):
            raise
        choice = re.compile(r"(?!(null|true|false)$)[A-Za-z_][\w./-]*$")
        wrong = (o for o in overrides if _key(o) in ("", *groups(config_dir)) and not choice.match(o.partition("=")[2]))
        typed = next(wrong, " ".join(overrides))
        raise ConfigError(
            f"{typed}: must be the name of a choice; `python -m hpo_ray list` tells them", key=_key(typed)
        ) from None


def load_again(saved: Mapping[str, Any], overrides: Sequence[str] = (), config_dir: str | None = None) -> DictConfig:
    """Composes a configuration that was resolved before, with changes.

    Args:
        saved: the resolved configuration.
        overrides: as typed; a choice (`executor=inprocess`) replaces its whole section.
        config_dir: as of `load`.

    Raises:
        ConfigError: as `load`.
    """
    if not overrides:  # there is nothing to compose
        return cast(DictConfig, OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.create(dict(saved))))
    chosen = {_key(o): o.partition("=")[2] for o in overrides if _key(o) in groups(config_dir)}
    kept = {name: value for name, value in saved.items() if name not in chosen}
    defaults = ["hpo_ray_schema", *({group: choice} for group, choice in chosen.items()), "_self_"]
    ConfigStore.instance().store(_SAVED, {"defaults": defaults, **kept}, provider="hpo_ray")
    return load(overrides, config_dir, _SAVED)


def final_overrides(
    overrides: Sequence[str], config_dir: str | None = None, config_name: str | None = None
) -> list[str]:
    """What was typed, rewritten so that Hydra does what it says; arguments as of `load`."""
    rewritten = rewrite(list(overrides))
    if "~space" not in rewritten:
        return rewritten
    primary, extra = _folders(config_dir, config_name)
    others = [line for line in rewritten if not line.lstrip("+~").startswith(("space=", "space."))]
    inline = _compose(primary, config_name or "config", [*others, *extra]).space
    return without(rewritten, [str(name) for name in inline])


def to_plain(node: Any) -> Any:
    """A configuration node as plain dicts, lists and scalars, interpolations resolved.

    Raises:
        ConfigError: an interpolation leads nowhere, or a mandatory value is missing.
    """
    try:
        return OmegaConf.to_container(node, resolve=True, throw_on_missing=True) if OmegaConf.is_config(node) else node
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or ""
        raise ConfigError(f"{key}: {_first_line(error)}", key=key) from None


def nearest(name: str, known: Iterable[str]) -> str:
    """`; nearest: X` for the known name that is most like `name`, or nothing."""
    close = difflib.get_close_matches(name, list(known), 1, 0.5)
    return f"; nearest: {close[0]}" if close else ""


def choices(group: str, config_dir: str | None = None) -> dict[str, Path]:
    """The files of a group by choice."""
    found: dict[str, Path] = {}
    primary, further = search_path(config_dir)
    for folder in [primary, *further]:
        for path in sorted((folder / group).glob("*.yaml")):
            found.setdefault(path.stem, path)
    return found


def groups(config_dir: str | None = None) -> list[str]:
    """The names of all groups."""
    primary, further = search_path(config_dir)
    return sorted({path.name for folder in [primary, *further] for path in folder.iterdir() if path.is_dir()})


def _folders(config_dir: str | None, config_name: str | None) -> tuple[Path, list[str]]:
    """(folder that the configuration starts in, Hydra's override that names the further ones)."""
    primary, further = search_path(config_dir, config_name)
    return primary, [f"hydra.searchpath=[{','.join(f'file://{path}' for path in further)}]"] if further else []


def _compose(primary: Path, config_name: str, overrides: list[str]) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(primary), version_base="1.3", job_name="hpo_ray"):
        return compose(config_name, overrides)


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0].rstrip(".")


def _unknown_choice(error: MissingConfigException, folders: list[Path], config_name: str | None) -> ConfigError:
    missing = error.missing_cfg_file or ""
    group, _, name = missing.rpartition("/")
    options = sorted(option for option in error.options or [] if option)
    if not group:
        known = sorted(path.stem for folder in folders for path in folder.glob("*.yaml"))
        return ConfigError(
            f"--config-name {name or config_name}: no such configuration{nearest(name, known)}; "
            f"there are: {', '.join(known)}",
            key="--config-name",
        )
    return ConfigError(
        f"{group}={name}: no such {group}{nearest(name, options)}; there are: {', '.join(options) or 'none'}", key=group
    )


def _explain(
    error: Exception, overrides: Sequence[str], primary: Path, config_name: str, extra: list[str]
) -> ConfigError:
    """The message for an override that Hydra or OmegaConf refuse, in terms of what was typed."""
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    first, text = _first_line(error), "\n".join(str(cause) for cause in causes)
    quoted = re.search(r"'([^']+)'", first)
    key = quoted.group(1).partition("=")[0] if quoted else str(getattr(causes[-1], "full_key", None) or "")
    typed = next((o for o in overrides if _key(o) == key), key or "configuration")
    if "already at" in first:
        return ConfigError(f"{typed}: {key} is there already; change it without the +", key=key)
    if "Ambiguous value" in first or "requires --multirun" in text:
        return ConfigError(
            f"{typed}: several values are not taken; to compare methods: compare methods=[random,asha]", key=key
        )
    if "Could not override" in first or "Could not delete" in first:
        known = _known_keys(primary, config_name, [*_group_choices(overrides, key), *extra])
        siblings = [name for name in known if name.rpartition(".")[0] == key.rpartition(".")[0]]
        known, siblings = ([name for name in names if name != key] for names in (known, siblings))
        hint = nearest(key, siblings) or nearest(key, known)
        there = f"; there are: {', '.join(n.rpartition('.')[2] for n in siblings)}" if siblings and "." in key else ""
        return ConfigError(f"{typed}: unknown key {key!r}{hint}{there}; `--cfg job` prints all keys", key=key)
    key = str(getattr(causes[-1], "full_key", None) or key)
    if "Cannot merge" in str(causes[-1]) and key.startswith("space."):
        return ConfigError(
            f"{key} is a list of choices and has no keywords; replace it, for example "
            f"'{key}={{choices: [a, b], ordered: true}}'",
            key,
        )
    typed = next((o for o in overrides if _key(o) == key), key or "configuration")
    return ConfigError(f"{typed}: {_first_line(causes[-1])}", key=key)


def _name_by_parts(config: DictConfig, overrides: Sequence[str]) -> None:
    """Lets the method's name say which of its parts were changed on the command line: `hyperband+fifo`."""
    typed = {_key(override): override.partition("=")[2] for override in overrides}
    if "method.name" not in typed:
        parts = [typed[group] for group in ("searcher", "scheduler") if group in typed]
        config.method.name = "+".join([config.method.name, *parts])


def _first_metric(config: DictConfig, overrides: Sequence[str]) -> None:
    """Of several metrics the first is the one that views, budgets and schedulers look at, unless another is named."""
    metrics = config.task.metrics
    if not OmegaConf.is_dict(metrics) or not all(mode in ("min", "max") for mode in metrics.values()):
        return  # what is wrong with it is said where the task is checked
    if len(metrics):
        typed = {_key(override): override.partition("=")[2] for override in overrides}
        if typed.get("task.metric", config.task.metric) not in metrics and "task.metric" in typed:
            raise ConfigError(
                f"task.metric={typed['task.metric']}: is none of task.metrics ({', '.join(map(str, metrics))}), of "
                f"which it says the first to look at; add it there, or leave it out",
                key="task.metric",
            )
        if config.task.metric not in metrics:
            config.task.metric = next(iter(metrics))
        mode = metrics[config.task.metric]
        if typed.get("task.mode", mode) != mode:
            raise ConfigError(
                f"task.mode={typed['task.mode']}: task.metrics says {mode} for {config.task.metric}; leave one out",
                key="task.mode",
            )
        config.task.mode = mode


def _settle_root(config: DictConfig) -> None:
    """`store.root` that is a folder is the one that studies lie in; a URI stays what it is.

    Raises:
        ConfigError: it is neither, so that a slip of the keyboard would make a folder here.
    """
    root = config.store.root
    if is_uri(config.study.root):
        raise ConfigError(
            f"study.root={config.study.root}: is a folder of this machine; an object store is store.root="
            f"{config.study.root}",
            key="study.root",
        )
    for key, value in (("study.root", config.study.root), ("store.root", root)):
        if value is not None and not is_uri(value) and _LIKE_A_URI.match(value) and not value.startswith("file://"):
            raise ConfigError(
                f"{key}={value}: is neither a folder nor a URI; write s3://bucket/prefix, gs://bucket/prefix, or "
                f"./{value} for a folder of that name",
                key=key,
            )
    if root is not None and config.study.root != StudySection.root and not is_uri(root):
        raise ConfigError(
            f"store.root={root} and study.root={config.study.root}: name two folders for the same studies; give one",
            key="store.root",
        )
    if root is not None and not is_uri(root):
        config.study.root, config.store.root = root.removeprefix("file://"), None


def _key(override: str) -> str:
    """The key of an override as typed: `scheduler.eta` of `++scheduler.eta=4`."""
    return override.lstrip("+~").partition("=")[0].partition("@")[0]


def _group_choices(overrides: Sequence[str], wrong: str) -> list[str]:
    """The overrides that choose a file of a group, without the wrong one: they decide which keys there are."""
    return [o for o in overrides if "=" in o and "." not in _key(o) and _key(o) != wrong and "{" not in o]


def _check_known(node: Any, schema: type, prefix: str) -> None:
    """Refuses keys that `+` has added where the schema names all there are."""
    known = {f.name: f for f in fields(schema)}
    for name in node:
        if name not in known:
            raise ConfigError(
                f"+{prefix}{name}: unknown key {prefix + str(name)!r}{nearest(str(name), known)}", key=name
            )
        default = known[name].default_factory
        if isinstance(default, type) and is_dataclass(default) and OmegaConf.is_config(node[name]):
            _check_known(node[name], default, f"{prefix}{name}.")


def _known_keys(primary: Path, config_name: str, overrides: list[str]) -> list[str]:
    """All dotted keys of the configuration that these overrides give."""
    try:
        config = OmegaConf.to_container(_compose(primary, config_name, overrides), resolve=False)
    except (HydraException, OmegaConfBaseException, ValueError, TypeError):
        return []
    keys: list[str] = []

    def walk(node: Any, prefix: str) -> None:
        for name, value in node.items():
            keys.append(f"{prefix}{name}")
            if isinstance(value, dict):
                walk(value, f"{prefix}{name}.")

    walk(config, "")
    return [*keys, "experiment"]
