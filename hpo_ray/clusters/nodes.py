"""What the nodes of a cluster have, how many trials fit on them, and whether one has gone."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hpo_ray.resources import Resources

_TINY = 1e-6
"""Ray counts resources in ten-thousandths."""


@dataclass(frozen=True)
class Node:
    """One machine of a cluster.

    Attributes:
        address: its name or IP address, for messages.
        resources: what it has in all, by Ray's names: CPU, GPU, memory, ...
        labels: its labels.
    """

    address: str
    resources: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)

    def matches(self, labels: Mapping[str, Sequence[str]]) -> bool:
        """Whether it has each label, with one of its values."""
        return all(self.labels.get(name) in values for name, values in labels.items())


@dataclass(frozen=True)
class Request:
    """What one trial asks for.

    Attributes:
        bundles: what each of its processes needs.
        strategy: how they are placed: PACK, SPREAD, STRICT_PACK or STRICT_SPREAD.
        labels: of the nodes that take part.
    """

    bundles: Sequence[Mapping[str, float]]
    strategy: str = "PACK"
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, resources: Resources) -> Request:
        """What a configuration's resources ask for."""
        return cls([resources.bundle] * resources.workers, resources.placement, resources.labels)

    def __str__(self) -> str:
        each = ", ".join(f"{amount:g} {kind}" for kind, amount in self.bundles[0].items()) if self.bundles else ""
        same = all(dict(bundle) == dict(self.bundles[0]) for bundle in self.bundles)
        many = "" if len(self.bundles) == 1 else f"{len(self.bundles)} times " if same else "several processes, first "
        where = ", ".join(f"{name}={' or '.join(values)}" for name, values in self.labels.items())
        return f"{many}{each or 'nothing'}{f' on nodes with {where}' if where else ''}"


def nodes_of(listed: Iterable[Mapping[str, Any]]) -> list[Node]:
    """The nodes that are alive, of those that `ray.nodes()` lists."""
    return [
        Node(str(node["NodeManagerAddress"]), dict(node["Resources"]), dict(node.get("Labels") or {}))
        for node in listed
        if node["Alive"]
    ]


def fits(nodes: Sequence[Node], request: Request, most: int = 100_000) -> int:
    """How many trials fit on the nodes at a time, at most `most`.

    A share of a GPU lies on one GPU: three trials of 0.4 need two. The processes of a trial are placed one after
    another, each where there is room first, so with bundles of several sizes it may be fewer than Ray can place.
    """
    free = [_Free(node.resources) for node in nodes if node.matches(request.labels)]
    bundles = [bundle for bundle in request.bundles if any(bundle.values())]
    if not free or not bundles:
        return most if free and not bundles else 0
    if len(bundles) == 1 or request.strategy == "STRICT_PACK":
        return min(most, sum(_fits_on(node, bundles, most) for node in free))
    count = 0
    while count < most and _place(free, bundles, apart=request.strategy == "STRICT_SPREAD"):
        count += 1
    return count


def lacking(nodes: Sequence[Node], request: Request) -> str:
    """Why not a single trial fits, and what to set."""
    if request.labels and not any(node.matches(request.labels) for node in nodes):
        asked = ", ".join(f"{name}={' or '.join(values)}" for name, values in request.labels.items())
        seen = sorted(
            {f"{name}={node.labels[name]}" for node in nodes for name in request.labels if name in node.labels}
        )
        return f"no node has the label {asked}; the nodes have {', '.join(seen) or 'none of these labels'}"
    nodes = [node for node in nodes if node.matches(request.labels)]
    for bundle in request.bundles:
        for kind, amount in bundle.items():
            there = max((node.resources.get(kind, 0.0) for node in nodes), default=0.0)
            if amount > there + _TINY:
                key = f"resources.{kind.lower()}"
                fix = (
                    f"lower {key} to {there:g} or less" if there else f"use {'resources=cpu' if kind == 'GPU' else key}"
                )
                return f"no node has {amount:g} {kind}s, the largest has {there:g}; {fix}"
    every = {kind for bundle in request.bundles for kind in bundle}
    has = ", ".join(f"{sum(node.resources.get(kind, 0.0) for node in nodes):g} {kind}s" for kind in sorted(every))
    return f"the {len(nodes)} nodes have {has} together, which is not enough for one trial"


class _Free:
    """What is left of a node's resources; of its GPUs one by one."""

    def __init__(self, resources: Mapping[str, float]) -> None:
        self.rest = {kind: amount for kind, amount in resources.items() if kind != "GPU"}
        self.gpus = [1.0] * int(resources.get("GPU", 0.0) + _TINY)

    def take(self, bundle: Mapping[str, float]) -> bool:
        """Takes what a process needs, if it is there."""
        gpu = bundle.get("GPU", 0.0)
        if any(self.rest.get(kind, 0.0) + _TINY < need for kind, need in bundle.items() if kind != "GPU" and need):
            return False
        if gpu >= 1:
            whole = [index for index, left in enumerate(self.gpus) if left > 1 - _TINY][: round(gpu)]
            if len(whole) < round(gpu):
                return False
            for index in whole:
                self.gpus[index] = 0.0
        elif gpu:
            room = [index for index, left in enumerate(self.gpus) if left + _TINY >= gpu]
            if not room:
                return False
            self.gpus[room[0]] -= gpu
        for kind, need in bundle.items():
            if kind != "GPU" and need:
                self.rest[kind] -= need
        return True

    def state(self) -> tuple[dict[str, float], list[float]]:
        return dict(self.rest), list(self.gpus)

    def back_to(self, state: tuple[dict[str, float], list[float]]) -> None:
        self.rest, self.gpus = dict(state[0]), list(state[1])


def _fits_on(node: _Free, bundles: Sequence[Mapping[str, float]], most: int) -> int:
    """How many times all the bundles fit on one node."""
    count = 0
    while count < most:
        before = node.state()
        if not all(node.take(bundle) for bundle in bundles):
            node.back_to(before)
            break
        count += 1
    return count


def _place(nodes: list[_Free], bundles: Sequence[Mapping[str, float]], apart: bool) -> bool:
    """Places one trial's processes on the nodes; leaves all as it was if there is no room for them."""
    before, used = [node.state() for node in nodes], set()
    for bundle in bundles:
        for index, node in enumerate(nodes):
            if not (apart and index in used) and node.take(bundle):
                used.add(index)
                break
        else:
            for node, state in zip(nodes, before, strict=True):
                node.back_to(state)
            return False
    return True


def gone(address: str | None, nodes: Sequence[Mapping[str, Any]], timeout_s: float = 1.0) -> bool:
    """Whether a node that Ray takes for alive doesn't answer: Ray may need half a minute to notice.

    Args:
        address: of the node; None for any of them.
        nodes: as `ray.nodes()` lists them.
        timeout_s: how long a node may take to answer.
    """
    for node in nodes:
        if not node["Alive"] or (address is not None and node["NodeManagerAddress"] != address):
            continue
        try:
            where = (node["NodeManagerAddress"], node["NodeManagerPort"])
            socket.create_connection(where, timeout=timeout_s).close()
        except OSError:
            return True
    return False
