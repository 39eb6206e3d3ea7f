"""What `submit` sends: the command as the cluster runs it, checked here first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hpo_ray.clusters.base import Remote, Submission
from hpo_ray.config import load, to_plain
from hpo_ray.errors import ConfigError
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
    path = words.pop(0) if verb == "resume" and words and "=" not in words[0] else None
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
    if "://" in path:
        return Submission(Path(path).name, ("resume", path, *flags, *rest), path)
    folder = Path(path)
    if not folder.is_dir() and folder.is_absolute():  # of the cluster: what is wrong there, the job says
        return Submission(folder.name, ("resume", path, *flags, *rest), str(folder.parent))
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


def _drives(draft: Draft) -> bool:
    return str(draft.config["executor"]["_target_"]).endswith(".RayExecutor")
