"""The nodes that a cluster adds: how many trials they hold, their labels, and a place that all of them see."""

from __future__ import annotations

import math
import posixpath
import re
from dataclasses import dataclass
from typing import Any

from hpo_ray.clusters.base import Submission
from hpo_ray.clusters.rendering import matching, whole
from hpo_ray.errors import ConfigError
from hpo_ray.resources import Resources

_LABEL = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"  # Kubernetes' and Ray's syntax


@dataclass(frozen=True)
class Workers:
    """The nodes for the trials, all of one kind.

    Attributes:
        cpu: cores of each.
        gpu: GPUs of each.
        most: the most of them at a time.
    """

    cpu: int
    gpu: int
    most: int

    def trials(self, submission: Submission) -> int | None:
        """How many trials may ask for room at a time: those that fit, but no more than were asked for.

        Returns:
            A whole number >= 1; None where trials run in the process of the job, and need no workers.

        Raises:
            ConfigError: no trial ever fits.
        """
        if not submission.drives:
            return None
        asked = submission.resources
        fits = self._trials(asked, self._processes(asked))
        return fits if submission.concurrency is None else min(fits, submission.concurrency)

    def _processes(self, asked: Resources) -> int:
        """How many processes of trials fit on one worker."""
        cpu = math.floor(self.cpu / asked.cpu + 1e-9) if asked.cpu else math.inf
        gpu: float = math.inf
        if asked.gpu >= 1:
            gpu = self.gpu // int(asked.gpu)
        elif asked.gpu:
            gpu = self.gpu * math.floor(1 / asked.gpu + 1e-9)  # a share is of one GPU
        for kind, fits, there, wanted in (("cpu", cpu, self.cpu, asked.cpu), ("gpu", gpu, self.gpu, asked.gpu)):
            if fits < 1:
                raise ConfigError(
                    f"resources.{kind}={wanted:g}: a worker has {there} (cluster.worker.{kind}), so that no trial ever "
                    f"fits; use workers with cluster.worker.{kind}={math.ceil(wanted)}",
                    key=f"resources.{kind}",
                )
        return int(min(cpu, gpu))

    def _trials(self, asked: Resources, each: int) -> int:
        """How many trials fit on all workers, `each` processes on one, with Ray's four placements."""
        fits = self.most * each // asked.workers
        if asked.placement == "STRICT_PACK":
            fits = self.most * (each // asked.workers)
        elif asked.placement == "STRICT_SPREAD" and self.most < asked.workers:
            fits = 0
        if fits < 1:
            raise ConfigError(
                f"resources.workers={asked.workers}: {self.most} workers (cluster.max_workers) with room for {each} "
                f"process{'es' if each > 1 else ''} each never hold a trial with resources.placement="
                f"{asked.placement}; use more or larger ones",
                key="resources.workers",
            )
        return fits


def bounds(least: Any, most: Any) -> tuple[int, int]:
    """`cluster.min_workers` and `cluster.max_workers`."""
    fewest, many = whole("cluster.min_workers", least), whole("cluster.max_workers", most, 1)
    if fewest > many:
        raise ConfigError(
            f"cluster.min_workers={fewest}: more than cluster.max_workers={many}; lower one or raise the other",
            key="cluster.min_workers",
        )
    return fewest, many


def folder_of(key: str, path: Any) -> str:
    """The folder in which nodes mount a volume: below the root, without blanks."""
    folder = posixpath.normpath(matching(key, path, r"/[\w.-][\w./-]*", "/mnt/studies"))
    return matching(key, folder, r"/[^/].*", "/mnt/studies")


def node_labels(asked: Resources) -> dict[str, str]:
    """The labels that the workers need so that trials run on them.

    Raises:
        ConfigError: several values would do for one, and all workers are of one kind; or a value can't be.
    """
    for name, values in asked.labels.items():
        if len(values) > 1:
            raise ConfigError(
                f"resources.labels.{name}={list(values)}: the workers of this cluster are of one kind; use one value",
                key="resources.labels",
            )
        if not re.fullmatch(_LABEL, values[0]):
            raise ConfigError(
                f"resources.labels.{name}={values[0]}: is no value of a label; use up to 63 letters, digits, '-', '_' "
                f"and '.', a letter or digit first and last",
                key="resources.labels",
            )
    return {name: values[0] for name, values in asked.labels.items()}


def check_root(root: str, path: str | None, volume: str) -> None:
    """Raises `ConfigError` unless all nodes see the folder of the studies.

    Args:
        root: the folder, or a URI.
        path: where they have a file system in common; None if they have none.
        volume: the key that gives them one, and how, for the error.
    """
    if "://" in root and not root.startswith("file:"):
        return
    if path is not None and posixpath.commonpath([path, posixpath.normpath(posixpath.join("/", root))]) == path:
        return
    fix = f"use a folder below {path}" if path is not None else f"give the nodes a volume ({volume})"
    raise ConfigError(
        f"study.root={root}: the nodes of the cluster don't all see it; {fix}, or a URI, store.root=s3://BUCKET/FOLDER",
        key="study.root",
    )
