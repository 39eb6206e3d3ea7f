"""Connecting to a Ray cluster that runs already, and looking at its nodes before a study starts on it."""

from __future__ import annotations

import importlib
import logging
import os
import socket
import uuid
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import ray

from hpo_ray.clusters.base import Attach
from hpo_ray.errors import ConfigError
from hpo_ray.location import Location
from hpo_ray.study import versions

_ANSWER_S = 5.0
"""How long an address may take to answer."""
_SETTINGS = b"\x04"
"""The type of the frame that a gRPC server begins with (RFC 9113, section 6.5), as the head of a cluster is one."""
_NODE_S = 60.0
"""How long a node may take to be looked at: it may have to start a process, with its runtime environment."""
_MUST_AGREE = ("hpo_ray", "ray", "torch")


def connect(cluster: Attach) -> None:
    """Connects this process to a cluster.

    Raises:
        ConfigError: nothing answers, or it is no Ray cluster, or one of another version or with another token.
    """
    from hpo_ray.executors.internals import few_tries, on_loopback

    key = "cluster.address"
    address = _of_this_machine() if cluster.address == "auto" else cluster.address
    host = _reach(address)
    environment = _runtime_env(cluster)
    here = on_loopback() if host in ("127.0.0.1", "localhost") else nullcontext()
    try:
        # Ray takes the machine's own address for 127.0.0.1 otherwise, where a head on loopback doesn't listen.
        with here, few_tries():
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                **({"runtime_env": environment} if environment else {}),
            )
    except ConnectionError:
        raise ConfigError(
            f"{key}={address}: the cluster lets nobody in with this token, or is just starting. The token is in "
            f"RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token; set the cluster's",
            key,
        ) from None
    except SystemExit:  # Ray's, after two minutes without an answer that it understands
        raise ConfigError(
            f"{key}={address}: something answers, but not as the head of a Ray cluster does", key
        ) from None
    except Exception as error:  # Ray raises many kinds
        raise ConfigError(f"{key}={address}: {_said(error)}", key) from error


def _of_this_machine() -> str:
    """What `auto` is: RAY_ADDRESS, which a job has, or else the cluster that this machine is part of.

    Ray itself takes the newest of several, and doesn't find it where that one listens on 127.0.0.1 only.
    """
    from hpo_ray.executors.internals import local_heads

    key = "cluster.address"
    given = os.environ.get("RAY_ADDRESS", "auto")
    if given not in ("", "auto"):
        return given
    heads = local_heads()
    if len(heads) == 1:
        return heads[0]
    if heads:
        raise ConfigError(f"{key}=auto: this machine is part of several clusters, {', '.join(heads)}; say which", key)
    raise ConfigError(
        f"{key}=auto: no Ray runs on this machine; give the address of the head, {key}=HOST:6379, start one, ray start "
        f"--head, or do without: cluster=local runs the study on this machine alone",
        key,
    )


def _reach(address: str) -> str:
    """The host of an address where something listens that may be the head of a cluster."""
    key = "cluster.address"
    if address.startswith(("http://", "https://")):
        raise ConfigError(
            f"{key}={address}: is a dashboard; cluster=attach takes its head, HOST:6379, and a dashboard takes jobs: "
            f"python -m hpo_ray submit cluster=ray_job {key}={address}",
            key,
        )
    if address.startswith("ray://"):
        raise ConfigError(
            f"{key}={address}: a study is not driven through Ray's client, whose connection it would end with; send it "
            f"as a job, python -m hpo_ray submit cluster=ray_job, or attach on a node of the cluster, {key}=auto",
            key,
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"{key}={address}: must be HOST:PORT, the port of the head (6379), or auto", key)
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWER_S).close()
    except OSError as error:
        raise ConfigError(
            f"{key}={address}: can't be reached: {error.strerror or error} (tried for {_ANSWER_S:g} s). Is the head "
            f"up, and is this its port (6379 unless it was started with another)?",
            key,
        ) from None
    answer = _first_words(host, int(port))
    if answer.startswith(b"HTTP/"):
        raise ConfigError(
            f"{key}={address}: is a web page, maybe the cluster's dashboard; the head's own port is 6379 unless it was "
            f"started with another",
            key,
        )
    if answer[3:4] != _SETTINGS and os.environ.get("RAY_USE_TLS", "0") != "1":
        raise ConfigError(
            f"{key}={address}: something listens there, but not the head of a Ray cluster: its port is 6379 unless it "
            f"was started with another",
            key,
        )
    return host


def _first_words(host: str, port: int) -> bytes:
    """How a server begins its answer to a question; nothing if it doesn't answer. Ray itself would wait for minutes."""
    with suppress(OSError), socket.create_connection((host, port), timeout=_ANSWER_S) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return connection.recv(16)
    return b""


def _runtime_env(cluster: Attach) -> dict[str, Any]:
    """What Ray is given for the trials' processes; nothing in a job, which has its own."""
    environment = cluster.runtime_env
    given: dict[str, Any] = {}
    if environment.working_dir is not None:
        given["working_dir"] = environment.working_dir
    if environment.pip:
        given["pip"] = list(environment.pip)
    if variables := environment.variables(os.environ):
        given["env_vars"] = variables
    return given


def _said(error: BaseException) -> str:
    """Ray's error in one line; of versions that differ, all lines that name one."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    text = " ".join(lines) if "ersion mismatch" in str(error) else (lines or [type(error).__name__])[0]
    return text.rstrip(".")


def check_nodes(trainable: Any, root: Path | Location) -> None:
    """Looks at each node: its versions, whether it has the training code, whether it sees where the study will lie.

    Args:
        trainable: the user's function or class.
        root: the folder that studies lie in, or the object store.

    Raises:
        ConfigError: a node differs; the message names it, what it has, and what to set.
    """
    from hpo_ray.clusters import probe

    if isinstance(root, Path):
        _make(root)
    module = getattr(trainable, "__module__", "__main__")
    modules = sorted({"hpo_ray", "torch", module.partition(".")[0]} - {"__main__"})
    token = f".hpo_ray-{uuid.uuid4().hex}"
    nodes = [node for node in ray.nodes() if node["Alive"]]
    # By value, since a node may not have hpo_ray, which is one of the things to find out.
    ray.cloudpickle.register_pickle_by_value(importlib.import_module(probe.__name__))
    asked = {}
    try:
        look = ray.remote(num_cpus=0, max_retries=0)(probe.look)
        for node in nodes:
            where = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            mark = f"{token}-{node['NodeID']}"
            asked[look.options(scheduling_strategy=where).remote(str(root), mark, modules, _MUST_AGREE)] = node, mark
        ray.wait(list(asked), num_returns=len(asked), timeout=_NODE_S)
        for future, (node, mark) in list(asked.items()):
            _check_node(future, node, root, mark)
            del asked[future]
    finally:
        ray.cloudpickle.unregister_pickle_by_value(importlib.import_module(probe.__name__))
        for _, mark in asked.values():  # of those that were not looked at, or refused
            _took(root, mark)


def _check_node(future: Any, node: Mapping[str, Any], root: Path | Location, mark: str) -> None:
    name = f"node {node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
    try:
        seen: dict[str, Any] = ray.get(future, timeout=0)
    except ray.exceptions.GetTimeoutError:
        raise ConfigError(
            f"{name}: did not answer within {_NODE_S:g} s, not even to tell its versions; see its logs, or take it out "
            f"of the cluster",
            "cluster.address",
        ) from None
    except Exception as error:
        raise ConfigError(f"{name}: could not be looked at: {_said(error)}", "cluster.address") from None
    ours = versions()
    python, theirs = ".".join(ours["python"].split(".")[:2]), ".".join(seen["python"].split(".")[:2])
    pairs = {"Python": (python, theirs)}
    pairs |= {package: (ours[package], seen["versions"].get(package)) for package in _MUST_AGREE}
    for package, (here, there) in pairs.items():
        if there is not None and _public(here) != _public(there):
            raise ConfigError(
                f"{name}: has {package} {there}, and here is {here}; a study's numbers depend on it. Install the same, "
                f"or let Ray do it: cluster.runtime_env.pip=['{package.lower()}=={_public(here)}']",
                "cluster.runtime_env",
            )
    if seen["missing"]:
        lacks = ", ".join(seen["missing"])
        raise ConfigError(
            f"{name}: has no {lacks}; install it there, or send this folder with the trials: "
            f"cluster.runtime_env.working_dir=.",
            "cluster.runtime_env.working_dir",
        )
    if seen["error"] is None and not _took(root, mark):
        seen["error"] = "it wrote a file there that is not here"
    if seen["error"] is not None:
        raise ConfigError(
            f"{name}: {'does not see the folder of here' if isinstance(root, Path) else 'can not write to'} {root}: "
            f"{seen['error']}. Checkpoints move between nodes, so studies must lie where all see them: "
            f"store.root=/a/folder/on/a/shared/file/system, or store.root=s3://bucket/folder",
            "store.root",
        )


def _make(root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"study.root={root}: can't be written: {error.strerror}", "study.root") from None


def _took(root: Path | Location, mark: str) -> bool:
    """Whether a file that a node wrote is here, too; it is removed."""
    try:
        if isinstance(root, Path):
            (root / mark).unlink()
        else:
            root.hurried().join(mark).read()
            root.hurried().join(mark).unlink()
    except OSError:
        return False
    return True


def _public(version: str) -> str:
    """A version without what tells builds apart: `2.7.0+cpu` on the driver goes with `2.7.0+cu128` on a GPU."""
    return version.partition("+")[0]
