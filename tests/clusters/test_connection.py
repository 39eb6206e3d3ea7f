"""cluster=attach: which cluster is meant, whether it is one, and what its nodes are asked before a study starts."""

from __future__ import annotations

import platform
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from hpo_ray.clusters import Attach, connection, probe
from hpo_ray.errors import ConfigError
from hpo_ray.executors import RayExecutor, internals
from hpo_ray.location import Location
from hpo_ray.study import versions

NODE = {"NodeManagerHostname": "gpu-7", "NodeManagerAddress": "10.0.0.7", "NodeID": "7", "Alive": True}
OURS = versions()
PYTHON = re.escape(".".join(platform.python_version_tuple()[:2]))


class Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(404)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def page() -> Iterator[str]:
    """The address of a web page."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of one that accepts connections, and says nothing."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def head() -> Iterator[str]:
    """The address of one that begins as a gRPC server does, with an empty SETTINGS frame: as far as told, a head."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:

        def answer() -> None:
            with suppress(OSError):
                while True:
                    one, _ = server.accept()
                    with one:
                        if one.recv(64):
                            one.sendall(b"\x00\x00\x00\x04\x00\x00\x00\x00\x00")

        threading.Thread(target=answer, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


# Where it is.


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (
            "http://h:8265",
            r"is a dashboard; .* python -m hpo_ray submit cluster=ray_job cluster\.address=http://h:8265",
        ),
        ("ray://h:10001", "a study is not driven through Ray's client"),
        ("h", r"must be HOST:PORT, the port of the head \(6379\), or auto"),
        (":6379", "must be HOST:PORT"),
        ("h:", "must be HOST:PORT"),
        ("h:redis", "must be HOST:PORT"),
        ("name.invalid:6379", r"can't be reached: .* \(tried for 5 s\)\. Is the head up"),
    ],
)
def test_addresses_that_cannot_be(address: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        connection.connect(Attach(address))
    assert error.value.key == "cluster.address" and str(error.value).startswith(f"cluster.address={address}: ")


def test_nobody_there() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    with pytest.raises(ConfigError) as error:
        connection.connect(Attach(address))
    assert str(error.value) == (
        f"cluster.address={address}: can't be reached: Connection refused (tried for 5 s). Is the head up, and is this "
        f"its port (6379 unless it was started with another)?"
    )


def test_who_takes_no_connections_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full queue of connections: the kernel answers no more, as behind a firewall."""
    assert connection._ANSWER_S * 2 <= 10
    monkeypatch.setattr(connection, "_ANSWER_S", 0.1)
    with closing(socket.socket()) as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        waiting = []
        for _ in range(3):
            waiting.append(socket.socket())
            waiting[-1].setblocking(False)
            waiting[-1].connect_ex(server.getsockname())
        with pytest.raises(ConfigError, match=r"can't be reached: timed out \(tried for 0\.1 s\)"):
            connection._reach(f"127.0.0.1:{server.getsockname()[1]}")
        for one in waiting:
            one.close()


def test_a_dashboard_and_a_stranger_are_told_from_a_head(
    page: str, silent: str, head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=f"cluster.address={page}: is a web page, maybe the cluster's dashboard"):
        connection._reach(page)
    assert connection._reach(head) == "127.0.0.1"
    monkeypatch.setattr(connection, "_ANSWER_S", 0.1)
    with pytest.raises(ConfigError, match=f"cluster.address={silent}: something listens there, but not the head of a"):
        connection._reach(silent)


@pytest.mark.parametrize(
    ("given", "heads", "expected"),
    [
        (None, ["10.0.0.1:6379"], "10.0.0.1:6379"),
        ("", ["10.0.0.1:6379"], "10.0.0.1:6379"),
        ("auto", ["10.0.0.1:6379"], "10.0.0.1:6379"),
        ("10.0.0.2:6379", ["10.0.0.1:6379"], "10.0.0.2:6379"),  # in a job
        (None, [], r"auto: no Ray runs on this machine; give the address of the head, cluster\.address=HOST:6379"),
        (None, ["a:1", "b:2"], "auto: this machine is part of several clusters, a:1, b:2; say which"),
    ],
)
def test_auto(monkeypatch: pytest.MonkeyPatch, given: str | None, heads: list[str], expected: str) -> None:
    monkeypatch.setattr(internals, "local_heads", lambda: heads)
    monkeypatch.setenv("RAY_ADDRESS", given or "")
    if given is None:
        monkeypatch.delenv("RAY_ADDRESS")
    if expected[0].isdigit():
        assert connection._of_this_machine() == expected
    else:
        with pytest.raises(ConfigError, match=expected):
            connection._of_this_machine()


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (ConnectionError("no"), "lets nobody in with this token, or is just starting. The token is in RAY_AUTH_TOKEN"),
        (SystemExit(1), "something answers, but not as the head of a Ray cluster does"),
        (
            RuntimeError(
                "Version mismatch: The cluster was started with:\n    Ray: 2.9.3\nThis process with:\n    Ray: 9\n"
            ),
            "Version mismatch: The cluster was started with: Ray: 2.9.3 This process with: Ray: 9",
        ),
        (RuntimeError("Something went wrong.\nAt length."), "Something went wrong$"),
        (ValueError(), "ValueError$"),
    ],
)
def test_what_ray_raises_is_one_message(
    head: str, monkeypatch: pytest.MonkeyPatch, raised: BaseException, message: str
) -> None:
    def init(**_: Any) -> None:
        raise raised

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(ConfigError, match=message) as error:
        connection.connect(Attach(head))
    assert str(error.value).startswith(f"cluster.address={head}: ") and "\n" not in str(error.value)


def test_what_ray_is_given(head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(ray, "init", lambda **arguments: given.update(arguments))
    monkeypatch.setenv("HF_TOKEN", "hunter2")
    variables = {"HF_TOKEN": None, "MODE": "fast"}
    connection.connect(Attach(head, runtime_env={"working_dir": ".", "pip": ["rich"], "env_vars": variables}))
    assert given["address"] == head and given["log_to_driver"] is False
    assert given["runtime_env"] == {
        "working_dir": ".",
        "pip": ["rich"],
        "env_vars": {"HF_TOKEN": "hunter2", "MODE": "fast"},
    }
    given.clear()
    connection.connect(Attach(head))
    assert "runtime_env" not in given, "a job has its own, which Ray would refuse to merge with another"


# What its nodes are asked.


def answers(monkeypatch: pytest.MonkeyPatch, root: Path | None, **changed: Any) -> None:
    """Has each node answer as one does on which all is well, but for what is changed; it wrote into `root`."""
    seen = {"python": platform.python_version(), "versions": dict(OURS), "missing": [], "error": None, **changed}

    def get(future: Any, timeout: float) -> dict[str, Any]:
        if isinstance(future, BaseException):
            raise future
        if root is not None:
            (root / future).touch()
        return dict(seen)

    monkeypatch.setattr(ray, "get", get)


def test_a_node_on_which_all_is_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = ".".join([*OURS["python"].split(".")[:2], "99"])
    build = {"hpo_ray": None, "ray": OURS["ray"], "torch": OURS["torch"].partition("+")[0] + "+cu128"}
    for changed in ({}, {"python": python}, {"versions": build}):
        answers(monkeypatch, tmp_path, **changed)
        connection._check_node("mark", NODE, tmp_path, "mark")
    assert list(tmp_path.iterdir()) == []
    place = Location(f"file://{tmp_path}")
    connection._check_node("mark", NODE, place, "mark")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changed", "key", "message"),
    [
        ({"python": "3.8.1"}, "runtime_env", rf"has Python 3\.8, and here is {PYTHON}; a study's numbers depend on it"),
        (
            {"versions": {**OURS, "ray": "2.9.3"}},
            "runtime_env",
            rf"has ray 2\.9\.3, and here is {OURS['ray']}; .*\['ray==",
        ),
        (
            {"versions": {**OURS, "torch": "2.1.0+cu121"}},
            "runtime_env",
            r"has torch 2\.1\.0\+cu121, .*pip=\['torch==\d",
        ),
        ({"versions": {**OURS, "hpo_ray": "0.0.1"}}, "runtime_env", r"has hpo_ray 0\.0\.1, and here is"),
        ({"missing": ["mine"]}, "runtime_env.working_dir", r"has no mine; .* cluster\.runtime_env\.working_dir=\."),
        (
            {"missing": ["hpo_ray", "mine", "torch"]},
            "runtime_env.working_dir",
            "has no hpo_ray, mine, torch; install it there",
        ),
    ],
)
def test_a_node_that_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], key: str, message: str
) -> None:
    answers(monkeypatch, tmp_path, **changed)
    with pytest.raises(ConfigError, match=message) as error:
        connection._check_node("mark", NODE, tmp_path, "mark")
    assert error.value.key == f"cluster.{key}" and str(error.value).startswith("node gpu-7 (10.0.0.7): ")


@pytest.mark.parametrize(
    ("error", "wrote", "root", "message"),
    [
        (
            "there is no such folder",
            False,
            "folder",
            "does not see the folder of here {root}: there is no such folder. ",
        ),
        (None, False, "folder", "does not see the folder of here {root}: it wrote a file there that is not here. "),
        ("PermissionError: no", False, "s3://b/s", "can not write to s3://b/s: PermissionError: no. "),
    ],
)
def test_a_node_that_does_not_see_the_studies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str | None, wrote: bool, root: str, message: str
) -> None:
    place = tmp_path if root == "folder" else Location(root)
    answers(monkeypatch, None, error=error)
    with pytest.raises(ConfigError) as raised:
        connection._check_node("mark", NODE, place, "mark")
    assert raised.value.key == "store.root"
    assert str(raised.value) == (
        "node gpu-7 (10.0.0.7): " + message.format(root=tmp_path) + "Checkpoints move between nodes, so studies must "
        "lie where all see them: store.root=/a/folder/on/a/shared/file/system, or store.root=s3://bucket/folder"
    )


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (ray.exceptions.GetTimeoutError(), "did not answer within 60 s, not even to tell its versions; see its logs"),
        (RuntimeError("The node died.\nmore"), "could not be looked at: The node died$"),
    ],
)
def test_a_node_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: BaseException, message: str
) -> None:
    answers(monkeypatch, tmp_path)
    with pytest.raises(ConfigError, match=message) as error:
        connection._check_node(raised, NODE, tmp_path, "mark")
    assert error.value.key == "cluster.address" and str(error.value).startswith("node gpu-7 (10.0.0.7): ")


def test_no_mark_stays_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the first node is refused already: the others have left theirs."""
    nodes = [{**NODE, "NodeID": number * 56, "Alive": number != "4"} for number in "1234"]
    asked: list[str] = []

    class Look:
        def options(self, scheduling_strategy: Any) -> Look:
            assert scheduling_strategy.soft is False, "there, and nowhere else"
            return self

        def remote(self, root: str, mark: str, modules: list[str], packages: Any) -> str:
            assert (root, modules, packages) == (
                str(tmp_path / "new"),
                ["hpo_ray", "mine", "torch"],
                ("hpo_ray", "ray", "torch"),
            )
            asked.append(mark)
            (Path(root) / mark).touch()
            return mark

    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray, "remote", lambda **_: lambda function: Look())
    monkeypatch.setattr(ray, "wait", lambda *_, **__: None)
    answers(monkeypatch, None, missing=["mine"])
    with pytest.raises(ConfigError, match="has no mine"):
        connection.check_nodes(SimpleNamespace(__module__="mine.code"), tmp_path / "new")
    assert [mark.rpartition("-")[2] for mark in asked] == ["1" * 56, "2" * 56, "3" * 56]
    assert list((tmp_path / "new").iterdir()) == []


def test_what_a_node_tells(tmp_path: Path) -> None:
    look = probe.look(str(tmp_path), "mark", ["hpo_ray", "not_there"], ["ray", "not-there"])
    assert look == {
        "python": platform.python_version(),
        "versions": {"ray": OURS["ray"], "not-there": None},
        "missing": ["not_there"],
        "error": None,
    }
    assert (tmp_path / "mark").read_text() == "mark"
    assert probe.look(str(tmp_path / "none"), "mark", [], [])["error"] == "there is no such folder"
    (tmp_path / "mark").unlink()
    (tmp_path / "mark").mkdir()
    assert probe.look(str(tmp_path), "mark", [], [])["error"].startswith("IsADirectoryError: ")
    assert probe.look(f"file://{tmp_path}", "there", [], [])["error"] is None
    assert (tmp_path / "there").read_text() == "there"
    assert probe.look("nothing://bucket/s", "mark", [], [])["error"].startswith("ValueError: ")


# Keys that can't be.


@pytest.mark.parametrize(
    ("keys", "key", "message"),
    [
        ({"address": ""}, "cluster.address", "must be HOST:PORT of the head, or auto"),
        ({"address": 6379}, "cluster.address", "must be HOST:PORT of the head, or auto"),
        ({"grow_to": 1.5}, "cluster.grow_to", "must be a whole number >= 1, or null"),
        ({"grow_to": True}, "cluster.grow_to", "must be a whole number >= 1, or null"),
        ({"wait_s": -1}, "cluster.wait_s", "must be a number of seconds >= 0"),
        ({"wait_s": float("nan")}, "cluster.wait_s", "must be a number of seconds >= 0"),
        ({"wait_s": "long"}, "cluster.wait_s", "must be a number of seconds >= 0"),
        ({"runtime_env": {"envvars": {}}}, "cluster.runtime_env.envvars", "no such key; nearest: env_vars"),
    ],
)
def test_keys_that_cannot_be(keys: dict[str, Any], key: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        Attach(**keys)
    assert error.value.key == key


@pytest.mark.parametrize("key", ["num_cpus", "num_gpus", "temp_dir"])
def test_what_says_how_to_start_a_cluster_does_not_go_with_one_that_runs(key: str) -> None:
    with pytest.raises(ConfigError, match=f"executor.{key}=2: says how a cluster is started here, and with cluster=at"):
        RayExecutor(cluster=Attach(), **{key: 2})
