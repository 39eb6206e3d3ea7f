"""The configuration: its schema, how it is composed, and errors that name the key, the value and the fix.

Every verb composes with Hydra's `compose`. `hydra.main` would exit with 1 on errors, make an output folder before
anything is checked, and know no verbs.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hpo_ray.errors import ConfigError
from hpo_ray.overrides import rewrite


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


@dataclass
class MethodSection:
    """`method.*`: the name of the method."""

    name: str = "custom"


@dataclass
class TrainableSection:
    """`trainable.*`: how the task is trained."""

    name: str = "task"
    precision: str = "fp32"


@dataclass
class ResourcesSection:
    """`resources.*`: what one trial gets."""

    cpu: float = 1.0
    gpu: float = 0.0


@dataclass
class BudgetSection:
    """`budget.*`: what a study may spend; null is not limited by this."""

    trials: int | None = None  # null: the method's own number
    rounds: int | None = None  # of Hyperband; null: 1
    time_s: float | None = None  # seconds of wall clock; without trials or rounds it alone ends the study
    target: float | None = None  # end when the metric reaches this value
    concurrency: int | None = None  # trials at a time; null: as many as the resources allow


@dataclass
class FailureSection:
    """`failure.*`: what happens to a trial that fails."""

    max_retries: int = 0  # per trial, from its last checkpoint


@dataclass
class TrackerSection:
    """`tracker.*`: Ray Tune callbacks that record the trials elsewhere."""

    callbacks: list[Any] = field(default_factory=list)


@dataclass
class Config:
    """Everything that can be configured."""

    seed: int = 0
    view: str = "auto"  # live | plain | none; auto: live in a terminal
    study: StudySection = field(default_factory=StudySection)
    task: TaskSection = field(default_factory=TaskSection)
    space: dict[str, Any] = field(default_factory=dict)
    method: MethodSection = field(default_factory=MethodSection)
    searcher: Any = None
    scheduler: Any = None
    trainable: TrainableSection = field(default_factory=TrainableSection)
    executor: Any = None
    resources: ResourcesSection = field(default_factory=ResourcesSection)
    tracker: TrackerSection = field(default_factory=TrackerSection)
    budget: BudgetSection = field(default_factory=BudgetSection)
    failure: FailureSection = field(default_factory=FailureSection)


ConfigStore.instance().store("hpo_ray_schema", Config, provider="hpo_ray")


def conf_dir() -> Path:
    """The folder of the shipped configuration: inside an installed package, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


def search_path(config_dir: str | None) -> tuple[Path, list[Path]]:
    """(primary folder, further folders): a user's own folder comes first, ours after it.

    Raises:
        ConfigError: `config_dir` is no folder.
    """
    if config_dir is None:
        return conf_dir(), []
    folder = Path(config_dir).resolve()
    if not folder.is_dir():
        raise ConfigError(f"--config-dir {config_dir}: no such folder", key="--config-dir")
    return folder, [conf_dir()]


def load(overrides: Sequence[str] = (), config_dir: str | None = None, config_name: str | None = None) -> DictConfig:
    """Composes the configuration.

    Args:
        overrides: as typed, for example `["method=random", "space.lr.low=1e-3"]`.
        config_dir: a folder with groups and configurations of the user's own, searched before ours.
        config_name: the configuration to start from, in `config_dir` or ours; by default ours, `config`.

    Raises:
        ConfigError: an unknown key, choice or configuration, or a value of the wrong type.
    """
    primary, further = search_path(config_dir)
    extra = [f"hydra.searchpath=[{','.join(f'file://{path}' for path in further)}]"] if further else []
    try:
        rewritten = rewrite(list(overrides))
        return _compose(primary, config_name or "config", [*rewritten, *extra])
    except MissingConfigException as error:
        raise _unknown_choice(error, primary, config_name) from None
    except OverrideParseException as error:
        raise ConfigError(
            f"{error.override}: can't be parsed: {_first_line(error)}; quote the whole argument if it has spaces, "
            f"braces or brackets: 'key={{a: 1}}'",
            key=error.override,
        ) from None
    except (HydraException, OmegaConfBaseException) as error:
        raise _explain(error, overrides, primary, config_name or "config", extra) from None


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
    """The files of a group by choice, the user's own before ours."""
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


def _compose(primary: Path, config_name: str, overrides: list[str]) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(primary), version_base="1.3", job_name="hpo_ray"):
        return compose(config_name, overrides)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".")


def _unknown_choice(error: MissingConfigException, primary: Path, config_name: str | None) -> ConfigError:
    missing = error.missing_cfg_file or ""
    group, _, name = missing.rpartition("/")
    options = sorted(option for option in error.options or [] if option)
    if not group:
        known = sorted(path.stem for path in primary.glob("*.yaml"))
        return ConfigError(
            f"--config-name {name or config_name}: no such configuration in {primary}{nearest(name, known)}; "
            f"there are: {', '.join(known) or 'none'}",
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
    text = "\n".join(str(cause) for cause in causes)
    if match := re.search(r"Could not (?:override|append|delete|delete from config)\D*'([^']+)'", text):
        key = match.group(1).split("@")[0]
        typed = next((o for o in overrides if o.lstrip("+~").split("=")[0] == key), key)
        if "already" in text:
            return ConfigError(f"{typed}: {key} is there already; change it without the +", key=key)
        if "No match in the defaults list" in text or "not in struct" in text or "does not exist" in text:
            known = _known_keys(primary, config_name, extra)
            names = [*known, *groups(str(primary) if extra else None)]
            siblings = [name for name in known if name.rpartition(".")[0] == key.rpartition(".")[0]]
            hint = nearest(key, siblings) or nearest(key, names)
            return ConfigError(f"{typed}: unknown key {key!r}{hint}; `--cfg job` prints all of them", key=key)
    key = str(next((getattr(c, "full_key", None) for c in causes if getattr(c, "full_key", None)), "")) or _key_in(text)
    typed = next((o for o in overrides if key and o.lstrip("+~").split("=")[0] == key), "")
    reason = _first_line(Exception(str(causes[-1])))
    return ConfigError(f"{typed or key or 'configuration'}: {reason}", key=key)


def _key_in(text: str) -> str:
    match = re.search(r"full_key: (\S+)", text)
    return match.group(1) if match else ""


def _known_keys(primary: Path, config_name: str, extra: list[str]) -> list[str]:
    """All dotted keys of the configuration without the overrides."""
    try:
        config = OmegaConf.to_container(_compose(primary, config_name, extra), resolve=False)
    except (ConfigCompositionException, HydraException, OmegaConfBaseException):
        return []
    keys: list[str] = []

    def walk(node: Any, prefix: str) -> None:
        for name, value in node.items():
            keys.append(f"{prefix}{name}")
            if isinstance(value, dict):
                walk(value, f"{prefix}{name}.")

    walk(config, "")
    return keys
