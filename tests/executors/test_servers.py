"""Who can reach the Ray cluster that a study starts: nobody but processes of this machine that have its token."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

STARTS_A_CLUSTER = """
import os, sys
from hpo_ray.executors import RayExecutor
from hpo_ray.clusters.nodes import Request

executor = RayExecutor(num_cpus=1, temp_dir=sys.argv[1])
executor.start(Request([{"CPU": 1}]))

import ray

@ray.remote
def in_a_worker():
    return os.getpid()

ray.get(in_a_worker.remote())
from ray._raylet import AuthenticationMode, get_authentication_mode
untouched = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in os.environ
print(get_authentication_mode() == AuthenticationMode.TOKEN, untouched, flush=True)
input()
executor.stop()
"""


def family(pid: int) -> list[int]:
    """A process and all that it has started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(member for child in children for member in family(int(child)))]


def listening(pid: int) -> set[str]:
    """Addresses, in the kernel's hexadecimal notation, on which a process accepts TCP connections."""
    inodes = {os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir() if fd.is_symlink() and fd.exists()}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                found.add(fields[1].partition(":")[0])
    return found


def test_the_table_of_sockets_is_read_right() -> None:
    import socket

    if not Path("/proc/net/tcp").exists():
        pytest.skip("no /proc here")
    with socket.create_server(("127.0.0.1", 0)), socket.create_server(("", 0)):
        assert listening(os.getpid()) >= {"0100007F", "00000000"}


@pytest.mark.ray
def test_a_cluster_listens_on_loopback_only_and_asks_for_its_token() -> None:
    if not Path("/proc/net/tcp").exists():
        pytest.skip("no /proc here")
    temp = tempfile.mkdtemp(prefix="hr", dir="/tmp")
    child = subprocess.Popen(
        [sys.executable, "-c", STARTS_A_CLUSTER, temp], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin is not None and child.stdout is not None
    try:
        assert child.stdout.readline() == "True True\n"
        addresses = {pid: listening(pid) for pid in family(child.pid)}
    finally:
        child.communicate("\n", timeout=60)
        shutil.rmtree(temp, ignore_errors=True)
    loopback = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    assert sum(map(bool, addresses.values())) >= 4, "the driver, the GCS, the raylet, a worker"
    assert set().union(*addresses.values()) <= loopback
