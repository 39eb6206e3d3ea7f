"""What a cluster is: `run` drives a study on one (`Local`, `Attach`), `submit` sends the whole command to one."""

from __future__ import annotations

import math
import shlex
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from hpo_ray.config import nearest
from hpo_ray.errors import ConfigError
from hpo_ray.resources import Resources

WAIT_S = 900.0
"""How long a study waits by default when no node has room for a trial."""


class Cluster(ABC):
    """Where the processes of a study run."""

    name: ClassVar[str]
    """Its choice, `cluster=NAME`."""


@dataclass(frozen=True)
class RuntimeEnv:
    """What the processes of a cluster get: Ray's `runtime_env`, as far as a study needs it.

    Attributes:
        working_dir: a folder of here, or the URI of an archive, that they run in; None for none.
        pip: packages that are installed for them.
        env_vars: environment variables; those without a value have that of the process that reads this.
    """

    working_dir: str | None = None
    pip: tuple[str, ...] = ()
    env_vars: Mapping[str, str | None] = field(default_factory=dict)

    @classmethod
    def of(cls, section: Any) -> RuntimeEnv:
        """Reads `cluster.runtime_env`.

        Raises:
            ConfigError: a key is unknown, or a value of the wrong kind.
        """
        key, known = "cluster.runtime_env", ("working_dir", "pip", "env_vars")
        if not isinstance(section, Mapping):
            raise ConfigError(f"{key}={section!r}: must be a mapping, {{env_vars: {{NAME: value}}}}", key=key)
        if unknown := next((name for name in section if name not in known), None):
            raise ConfigError(
                f"{key}.{unknown}={section[unknown]!r}: no such key{nearest(str(unknown), known)}; there are: "
                f"{', '.join(known)}",
                key=f"{key}.{unknown}",
            )
        folder, pip, variables = (section.get(name) for name in known)
        if folder is not None and not (isinstance(folder, str) and folder):
            raise ConfigError(f"{key}.working_dir={folder!r}: must be a folder or null", key=f"{key}.working_dir")
        pip, variables = pip or [], variables or {}
        if not isinstance(pip, Sequence) or isinstance(pip, str) or not all(isinstance(p, str) for p in pip):
            raise ConfigError(f"{key}.pip={pip!r}: must be a list of packages, ['rich>=13']", key=f"{key}.pip")
        if not isinstance(variables, Mapping):
            raise ConfigError(f"{key}.env_vars={variables!r}: must be a mapping", key=f"{key}.env_vars")
        texts = {str(name): None if value is None else str(value) for name, value in variables.items()}
        return cls(folder, tuple(pip), texts)

    def variables(self, environment: Mapping[str, str]) -> dict[str, str]:
        """The environment variables, those without a value from `environment`.

        Raises:
            ConfigError: one is not in it.
        """
        found = {}
        for name, value in self.env_vars.items():
            if value is None and name not in environment:
                key = f"cluster.runtime_env.env_vars.{name}"
                raise ConfigError(f"{key} has no value, and {name} is not set here; export it, or give one", key=key)
            found[name] = environment[name] if value is None else value
        return found

    def shown(self) -> dict[str, str]:
        """The environment variables without what was taken from here, which may be secret."""
        return {name: f"${{{name}}}" if value is None else value for name, value in self.env_vars.items()}


class Local(Cluster):
    """This machine. `executor=ray` starts a Ray cluster on it, and stops it at the end."""

    name = "local"


class Attach(Cluster):
    """A Ray cluster that runs already. The study is driven from here, its trials run there.

    Args:
        address: `host:port` of the cluster's head; `auto` is the cluster that this machine is part of.
        grow_to: how many trials may ask for room at a time, so that an autoscaler adds nodes; by default as many as
            there is room for.
        wait_s: seconds that the study waits when no node has room for a single trial: an autoscaler may bring one.
        runtime_env: see `RuntimeEnv`.

    Raises:
        ConfigError: an argument can't be.
    """

    name = "attach"

    def __init__(
        self,
        address: str = "auto",
        grow_to: int | None = None,
        wait_s: float = WAIT_S,
        runtime_env: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(address, str) or not address:
            raise ConfigError(f"cluster.address={address!r}: must be HOST:PORT of the head, or auto", "cluster.address")
        self.address = address
        self.grow_to = checked_grow_to(grow_to)
        self.wait_s = checked_wait_s(wait_s)
        self.runtime_env = RuntimeEnv.of(runtime_env or {})


SEEN = "HPO_RAY_SEES"
"""The environment variable that names a file in the folder of the studies, which a job has to see."""


@dataclass(frozen=True)
class Submission:
    """A command that is to run on a cluster.

    Attributes:
        name: what jobs are called after: the study's name if it has one, otherwise `<task>-<method>`.
        arguments: what follows `python -m hpo_ray` there, without anything about the cluster.
        root: where its studies lie there: an absolute folder or a URI.
        resources: what one trial gets.
        drives: whether its trials run on the cluster; otherwise in the process of the job.
        concurrency: the most trials at a time that were asked for; None if it was left to the cluster.
        env_vars: environment variables that the job needs besides those of its configuration.
        of_here: whether `root` was typed as a folder of this machine, which the cluster may see or not.
    """

    name: str
    arguments: tuple[str, ...]
    root: str
    resources: Resources = field(default_factory=Resources)
    drives: bool = True
    concurrency: int | None = None
    env_vars: Mapping[str, str] = field(default_factory=dict)
    of_here: bool = False

    def entrypoint(self, grow_to: int | None, python: str = "python", wait_s: float = WAIT_S) -> str:
        """The command line of the job. It replaces its shell, so that it hears signals itself."""
        attach = ["cluster=attach", "cluster.address=auto"] if self.drives else []
        if self.drives and grow_to is not None:
            attach.append(f"cluster.grow_to={grow_to}")
        if self.drives and wait_s != WAIT_S:
            attach.append(f"cluster.wait_s={wait_s:g}")
        return "exec " + shlex.join([python, "-m", "hpo_ray", *self.arguments, *attach])


class Remote(Cluster):
    """A cluster that whole commands are sent to. What is sent, sending it and reading the reply are three steps."""

    @abstractmethod
    def render(self, submission: Submission) -> str:
        """The text of what is sent: the same for the same submission, and without secrets. Asks nobody."""

    @abstractmethod
    def submit(self, submission: Submission, detach: bool) -> int:
        """Sends it, follows it unless detached, and gives the exit code.

        Raises:
            ConfigError: it can't be sent; nothing runs.
        """


def checked_wait_s(wait_s: Any) -> float:
    """`cluster.wait_s`, in seconds."""
    if isinstance(wait_s, int | float) and not isinstance(wait_s, bool) and 0 <= wait_s < math.inf:
        return float(wait_s)
    raise ConfigError(f"cluster.wait_s={wait_s!r}: must be a number of seconds >= 0", key="cluster.wait_s")


def checked_grow_to(grow_to: Any) -> int | None:
    """`cluster.grow_to`, a whole number or None."""
    if grow_to is None or (isinstance(grow_to, int) and not isinstance(grow_to, bool) and grow_to >= 1):
        return grow_to
    raise ConfigError(f"cluster.grow_to={grow_to!r}: must be a whole number >= 1, or null", key="cluster.grow_to")
