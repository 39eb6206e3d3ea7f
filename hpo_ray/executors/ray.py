"""executor=ray: trials in Ray actors, which are reused from trial to trial."""

from __future__ import annotations

import logging
import math
from typing import Any

import ray

from hpo_ray.clusters.base import Cluster, Local
from hpo_ray.errors import ConfigError
from hpo_ray.executors.base import Executor
from hpo_ray.executors.internals import on_loopback
from hpo_ray.resources import Resources


class RayExecutor(Executor):
    """Runs trials on a local Ray cluster that it starts, and stops at the end.

    That cluster listens on 127.0.0.1 only, and asks whoever connects for its token.
    In a process that is connected to a cluster already, that one is used and left running.

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
        ConfigError: a number is negative, or not whole where it must be.
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
        for key, value in (("num_cpus", num_cpus), ("num_gpus", num_gpus)):
            number = isinstance(value, int) and not isinstance(value, bool)
            if value is not None and (not number or value < (1 if key == "num_cpus" else 0)):
                raise ConfigError(f"executor.{key}={value!r}: must be a whole number, or null", key=f"executor.{key}")
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
        self._cluster = cluster or Local()
        self._started = False

    def start(self, resources: Resources) -> int:
        """Starts Ray, unless the process is connected already, and counts how many trials fit."""
        if not ray.is_initialized():
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
            self._started = True
        total = ray.cluster_resources()
        fits = []
        for kind, asked in (("CPU", resources.cpu), ("GPU", resources.gpu)):
            there = total.get(kind, 0.0)
            if asked > there:
                self.stop()
                fix = f"lower it to {there:g} or less" if there else "use resources=cpu"
                raise ConfigError(
                    f"resources.{kind.lower()}={asked:g}: the cluster has {there:g} {kind}s; {fix}",
                    key=f"resources.{kind.lower()}",
                )
            if asked > 0:
                fits.append(int(there / asked + 1e-9))
        return min(fits, default=max(1, int(total.get("CPU", 1))))

    def actor_manager(self, time_attr: str, until_s: float | None, trial_timeout_s: float | None = None) -> Any:
        """None: Ray's own; the controller ends trials that hang."""
        return None

    def stop(self) -> None:
        """Stops Ray if `start` started it."""
        if self._started:
            ray.shutdown()
            self._started = False
