"""executor=ray: trials in Ray actors, which are reused from trial to trial."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path
from typing import Any

import ray

from hpo_ray.clusters.base import Attach, Cluster, Local
from hpo_ray.clusters.nodes import Request, fits, lacking, nodes_of
from hpo_ray.errors import ConfigError, StudyError
from hpo_ray.executors.base import Executor
from hpo_ray.executors.internals import on_loopback
from hpo_ray.location import Location

_LOOK_AGAIN_S = 1.0
"""How old what is known of the cluster's nodes may be."""


class RayExecutor(Executor):
    """Runs trials on a Ray cluster: one that it starts on this machine, or one that runs already (`cluster=attach`).

    A cluster that it starts listens on 127.0.0.1 only, and asks whoever connects for its token. In a process that is
    connected to a cluster already, that one is used and left running.

    As many trials run at a time as the nodes have room for, also when nodes come or go. With `cluster.grow_to` more
    trials ask for room than there is, up to that number, which makes an autoscaler add nodes.

    Args:
        num_cpus: cores of the cluster; by default those of the machine. More than there are is allowed: Ray counts
            them, it doesn't pin them.
        num_gpus: GPUs of the cluster; by default those of the machine.
        temp_dir: where Ray keeps its session; by default Ray's own choice, /tmp/ray.
        report_every_s: steps of a trial that end within so many seconds are reported together, as far as nothing is to
            be decided in between: up to the next rung, the next checkpoint that is due by its units, or the trial's
            end. It spares this process, through which all reports go, a message for each; a step that takes longer is
            reported by itself. Ends that count seconds may come so much later, and what a process that dies had not
            reported yet is trained again. 0 reports each step at once, as do studies with `budget.target` and
            schedulers of your own.
        cluster: where trials run; by default a cluster that is started here.

    Raises:
        ConfigError: a number is negative, not whole where it must be, or given for a cluster that is not started here.
    """

    name = "ray"

    def __init__(
        self,
        num_cpus: int | None = None,
        num_gpus: int | None = None,
        temp_dir: str | None = None,
        report_every_s: float = 0.5,
        cluster: Cluster | None = None,
    ) -> None:
        self._cluster = cluster or Local()
        for key, value in (("num_cpus", num_cpus), ("num_gpus", num_gpus)):
            number = isinstance(value, int) and not isinstance(value, bool)
            if value is not None and (not number or value < (1 if key == "num_cpus" else 0)):
                raise ConfigError(f"executor.{key}={value!r}: must be a whole number, or null", key=f"executor.{key}")
        for key, given in (("num_cpus", num_cpus), ("num_gpus", num_gpus), ("temp_dir", temp_dir)):
            if given is not None and not isinstance(self._cluster, Local):
                raise ConfigError(
                    f"executor.{key}={given}: says how a cluster is started here, and with cluster="
                    f"{self._cluster.name} it runs already; leave it out",
                    key=f"executor.{key}",
                )
        number = isinstance(report_every_s, int | float) and not isinstance(report_every_s, bool)
        if not number or not 0 <= report_every_s < math.inf:
            raise ConfigError(
                f"executor.report_every_s={report_every_s!r}: must be a number of seconds >= 0; 0 reports each step "
                f"at once",
                key="executor.report_every_s",
            )
        self.report_every_s = float(report_every_s)
        self.num_cpus = num_cpus
        self.num_gpus = num_gpus
        self.temp_dir = temp_dir
        self._started = False
        self._request = Request([])
        self._looked_at = self._had_room_at = 0.0
        self._room = 0

    def start(self, request: Request) -> int:
        """Starts Ray or connects to it, unless the process is connected already; how many trials may run at a time."""
        if not ray.is_initialized():
            if isinstance(self._cluster, Attach):
                from hpo_ray.clusters.connection import connect

                connect(self._cluster)
            else:
                self._start_here()
            self._started = True
        self._request, self._looked_at, self._had_room_at = request, 0.0, time.monotonic()
        nodes = nodes_of(ray.nodes())
        if not fits(nodes, request, most=1) and not self._may_grow:
            self.stop()
            attached = isinstance(self._cluster, Attach)
            where = "the cluster" if attached else "Ray here"
            grow = ". If an autoscaler brings nodes, say for how many trials: cluster.grow_to=8" if attached else ""
            raise ConfigError(
                f"resources: a trial asks for {request}, and {where} will never have that: "
                f"{lacking(nodes, request)}{grow}",
                key="resources",
            )
        return self.capacity()

    def _start_here(self) -> None:
        try:
            with on_loopback():
                ray.init(
                    address="local",
                    num_cpus=self.num_cpus,
                    num_gpus=self.num_gpus,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    _temp_dir=self.temp_dir,
                )
        except Exception as error:  # Ray raises many kinds
            last = str(error).strip().splitlines()[-1:] or [type(error).__name__]
            raise ConfigError(
                f"executor=ray: Ray could not start: {last[0]}; use executor=inprocess to do without it",
                key="executor",
            ) from error

    def check(self, trainable: Any, root: Path | Location) -> None:
        """Looks at the nodes of a cluster that was not started here: versions, code, storage."""
        if isinstance(self._cluster, Attach) and self._started:
            from hpo_ray.clusters.connection import check_nodes

            try:
                check_nodes(trainable, root)
            except BaseException:
                self.stop()
                raise

    @property
    def _may_grow(self) -> bool:
        return isinstance(self._cluster, Attach) and self._cluster.grow_to is not None

    def capacity(self) -> int:
        """How many trials may run or wait for room at a time, as the nodes are now.

        Raises:
            StudyError: there has been no room for a single trial for `cluster.wait_s`.
        """
        now = time.monotonic()
        if now - self._looked_at >= _LOOK_AGAIN_S or not self._looked_at:
            self._looked_at = now
            self._room = fits(nodes_of(ray.nodes()), self._request)
            if self._room:
                self._had_room_at = now
        wait_s = self._cluster.wait_s if isinstance(self._cluster, Attach) else 0.0
        if not self._room and now - self._had_room_at > wait_s:
            raise StudyError(
                f"no node has had room for a trial ({self._request}) for {wait_s:g} s (cluster.wait_s): "
                f"{lacking(nodes_of(ray.nodes()), self._request)}. What is there is saved; the study can be resumed"
            )
        grow_to = self._cluster.grow_to if isinstance(self._cluster, Attach) else None
        return max(1, self._room, grow_to or 0)

    def actor_manager(self, time_attr: str, until_s: float | None, trial_timeout_s: float | None = None) -> Any:
        """None: Ray's own; the controller ends trials that hang."""
        return None

    def stop(self) -> None:
        """Stops Ray if `start` started it, and leaves a cluster that it connected to."""
        if self._started:
            ray.shutdown()
            self._started = False
