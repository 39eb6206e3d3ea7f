"""What `submit` sends: the command as the cluster runs it, checked here first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from hpo_ray.clusters.base import Remote, Submission
from hpo_ray.config import load, to_plain
from hpo_ray.errors import ConfigError
from hpo_ray.location import Location, is_uri, reason
from hpo_ray.resources import Resources
from hpo_ray.study import make

if TYPE_CHECKING:
    from hpo_ray.study import Draft

_VERBS = ("run", "resume", "compare")


def submission_of(words: Sequence[str], config_dir: str | None, config_name: str | None) -> tuple[Remote, Submission]:
    """What `submit WORDS` asks for.

    Args:
        words: the verb of the job if it isn't `run`, its path if that is `resume`, and overrides.
        config_dir: see `config.load`.
        config_name: see `config.load`.

    Raises:
        ConfigError: the study can't be, or the cluster isn't one that commands are sent to.
    """
    words = list(words)
    verb = words.pop(0) if words and words[0] in _VERBS else "run"
    path = words.pop(0) if verb == "resume" and words and (is_uri(words[0]) or "=" not in words[0]) else None
    if wrong := next((word for word in words if "=" not in word and not word.startswith("~")), None):
        raise ConfigError(f"{wrong}: not an override; write key=value. The jobs are {', '.join(_VERBS)}", key=wrong)
    of_cluster = [word for word in words if word.lstrip("+~").startswith(("cluster=", "cluster."))]
    rest = [word for word in words if word not in of_cluster]
    cluster = _cluster(of_cluster, config_dir, config_name)
    _check_own(config_dir, config_name)
    flags = [f"--{name}={value}" for name, value in (("config-dir", config_dir), ("config-name", config_name)) if value]
    if verb == "resume":
        return cluster, _resumed(path, rest, flags, config_dir)
    draft = _checked(verb, rest, config_dir, config_name)
    _check_store(draft)
    if not _drives(draft):
        rest = [*rest, "cluster=local"]  # also where the configuration itself says another
    root, of_here = draft.root, draft.location is None and not draft.root.is_absolute()
    if of_here:
        root = root.resolve()
        rest = [*(word for word in rest if not word.startswith(("study.root=", "store.root="))), f"study.root={root}"]
    return cluster, Submission(
        name=draft.name or f"{draft.task.name}-{draft.method}",
        arguments=(*([] if verb == "run" else [verb]), *flags, *rest),
        root=str(draft.location or root),
        resources=draft.resources,
        drives=_drives(draft),
        concurrency=draft.budget.concurrency,
        of_here=of_here,
    )


def _cluster(of_cluster: Sequence[str], config_dir: str | None, config_name: str | None) -> Remote:
    cluster = make("cluster", to_plain(load(of_cluster, config_dir, config_name).cluster))
    if not isinstance(cluster, Remote):
        raise ConfigError(
            f"cluster={cluster.name}: submit sends the command to a cluster; say to which: cluster=ray_job "
            f"cluster.address=http://HOST:8265, cluster=kuberay, or cluster=launcher --render",
            key="cluster",
        )
    return cluster


def _check_own(config_dir: str | None, config_name: str | None) -> None:
    """Refuses a configuration that gives keys of the cluster itself: the job, which starts from it, would have them."""
    if kept := [name for name in load(["cluster=local"], config_dir, config_name).cluster if name != "_target_"]:
        raise ConfigError(
            f"cluster.{kept[0]}: stands in --config-name {config_name} itself, so that the job would have it, too; "
            f"type it, or put it into a file of the group, {config_dir}/cluster/NAME.yaml, and say cluster=NAME",
            key=f"cluster.{kept[0]}",
        )


def _check_store(draft: Draft) -> None:
    """Refuses a database in a file of the job's own folder, which goes with the job."""
    section = draft.config["store"]
    url = str(section["url"] or "")
    if section["project"] and url.startswith("sqlite:///") and not url.startswith("sqlite:////"):
        raise ConfigError(
            f"store.url={url}: is a file in the folder that the job runs in, which goes with the job; write a whole "
            f"path that the cluster sees, sqlite:////mnt/shared/studies.db, or leave it out",
            key="store.url",
        )


def _checked(verb: str, rest: Sequence[str], config_dir: str | None, config_name: str | None) -> Draft:
    """The study, or of a comparison its first one, as it will be there."""
    if verb == "compare":
        from hpo_ray.compare import parse

        return parse(rest, config_dir, config_name).first
    from hpo_ray.study import draft

    return draft(load(rest, config_dir, config_name))


def _resumed(path: str | None, rest: Sequence[str], flags: Sequence[str], config_dir: str | None) -> Submission:
    if path is None:
        raise ConfigError("submit resume: which study? `submit resume /mnt/shared/outputs/NAME cluster=...`")
    if is_uri(path):
        return _resumed_there(path, rest, flags, config_dir)
    folder = Path(path)
    if not folder.is_dir() and folder.is_absolute():  # of the cluster: what is wrong there, the job says
        changed = [word for word in rest if word.startswith(("resources=", "resources.", "executor=", "executor."))]
        asked = to_plain(load(changed, config_dir))
        return Submission(
            name=folder.name,
            arguments=("resume", path, *flags, *rest),
            root=str(folder.parent),
            resources=Resources.of(asked["resources"]),
            drives=str(asked["executor"]["_target_"]).endswith(".RayExecutor"),
        )
    from hpo_ray.resume import reopen

    again = reopen(path, rest, config_dir)
    return Submission(
        name=again.folder.name,
        arguments=("resume", str(again.folder), *flags, *rest),
        root=str(again.folder.parent),
        resources=again.draft.resources,
        drives=_drives(again.draft),
        concurrency=again.draft.budget.concurrency,
    )


def _resumed_there(uri: str, rest: Sequence[str], flags: Sequence[str], config_dir: str | None) -> Submission:
    """A study on an object store, of which only the configuration is read here."""
    from hpo_ray.best import CONFIG_FILE
    from hpo_ray.config import load_again
    from hpo_ray.study import draft

    place = Location.of(uri)
    try:
        saved = yaml.safe_load(place.hurried().join(CONFIG_FILE).read())
    except FileNotFoundError:
        raise ConfigError(f"{uri}: is no study, it has no {CONFIG_FILE}", key=uri) from None
    except OSError as error:
        raise ConfigError(f"{uri}: can't be read from here: {reason(error)}", key=uri) from None
    again = draft(load_again(saved, rest, config_dir))
    return Submission(
        name=place.name,
        arguments=("resume", uri, *flags, *rest),
        root=str(place.parent),
        resources=again.resources,
        drives=_drives(again),
        concurrency=again.budget.concurrency,
    )


def _drives(draft: Draft) -> bool:
    return str(draft.config["executor"]["_target_"]).endswith(".RayExecutor")
