"""Clusters of several nodes: one goes in the middle of a study, one comes, one does not see the folder of the studies.

What a study comes to is what it would have come to: nothing is lost with a node, and that a worker dies by itself is
still a failure of its trial.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from hpo_ray.events import FILE_NAME, Reported, TrialRetried, read
from hpo_ray.results import StudyResult, load_study
from hpo_ray.schedulers import hyperband_brackets
from hpo_ray.testing import check_resumes, run_study

PATH = os.pathsep.join(str(Path(__file__).parents[up]) for up in (1, 2))

# A cluster of three nodes with a core each, and a study that attaches to it. One node is taken away while a trial is in
# the middle of a step on it.
NODES = """
import json, subprocess, sys, time
from pathlib import Path
import ray
from ray.cluster_utils import Cluster

folder, how, words = Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3:]
here = {"num_cpus": 1, "node_ip_address": "127.0.0.1", "include_dashboard": False}
soon = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
cluster = Cluster(initialize_head=True, head_node_args={**here, "_system_config": soon})
nodes = [cluster.add_node(**here), cluster.add_node(**here)]
ids = [node.node_id for node in (cluster.head_node, *nodes)]
(folder / "ids.json").write_text(json.dumps(ids))
args = {"path": str(folder), "victim": ids[1], **({"known": "_".join(ids)} if how["add"] else {})}
words += ["cluster=attach", f"cluster.address={cluster.address}"]
words += [f"task.args.{name}={value}" for name, value in args.items()]
study = subprocess.Popen([sys.executable, "-m", "hpo_ray", *words], cwd=folder)
while not (folder / "held").exists() and study.poll() is None:
    time.sleep(0.02)
if study.poll() is None:
    cluster.remove_node(nodes[0], allow_graceful=how["graceful"])
    if how["add"]:
        cluster.add_node(**here)
code = study.wait()
cluster.shutdown()
sys.exit(code)
"""

STUDY = [
    *["task=custom", "task.trainable=mine.OnNodes", "space={lr: {low: 0.1, high: 1.0}}", "task.max_resource=9"],
    *["executor=ray", "failure.max_retries=0", "study.name=s", "view=none"],
]
METHODS = {
    "hyperband": ["method=hyperband"],
    "pbt": ["method=pbt", "scheduler.population=4", "scheduler.interval=3", "scheduler.synchronous=true"],
}


def on_nodes(
    folder: Path, overrides: list[str], add: bool = False, graceful: bool = False
) -> tuple[StudyResult, list[str]]:
    """A study on nodes of which the second goes; it, and the ids of the first three."""
    temp = tempfile.mkdtemp(prefix="hr", dir="/tmp")
    how = json.dumps({"add": add, "graceful": graceful})
    given = [*overrides, f"study.root={folder}", f"cluster.runtime_env.env_vars.PYTHONPATH='{PATH}'"]
    environment = {**os.environ, "RAY_TMPDIR": temp, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "t" * 32}
    try:
        child = subprocess.run(
            [sys.executable, "-c", NODES, str(folder), how, *given],
            env={**environment, "PYTHONPATH": PATH, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"},
            capture_output=True,
            text=True,
            timeout=240,
        )
    finally:
        shutil.rmtree(temp, ignore_errors=True)
    assert child.returncode == 0, child.stderr[-3000:]
    return load_study(folder / "s"), json.loads((folder / "ids.json").read_text())


def undisturbed(folder: Path, overrides: list[str]) -> StudyResult:
    return run_study([*overrides, "executor=inprocess"], folder / "clean")


@pytest.mark.ray
@pytest.mark.parametrize(
    ("method", "add", "graceful"),
    [
        ("hyperband", True, False),
        ("pbt", False, False),
        pytest.param("hyperband", False, True, marks=pytest.mark.slow),
        pytest.param("pbt", True, True, marks=pytest.mark.slow),
    ],
)
def test_a_node_that_goes_costs_nothing(folder: Path, method: str, add: bool, graceful: bool) -> None:
    overrides = [*STUDY, *METHODS[method]]
    # What is reported together goes with the node before it is heard, and would be trained again: its first steps too.
    result, ids = on_nodes(folder, [*overrides, "executor.report_every_s=0"], add, graceful)
    check_resumes(undisturbed(folder, overrides), result)
    events = read(result.path / FILE_NAME)
    retried = [event for event in events if isinstance(event, TrialRetried)]
    assert retried and not any(event.counted for event in retried)
    assert all(re.match(r"its node (127\.0\.0\.1 )?has gone: ", event.error) for event in retried), retried
    assert result.state.states["failed"] == 0
    for trial in result.records:
        assert sorted({resource for resource, _ in trial.history}) == list(range(1, trial.resource + 1)), trial
    nodes = {str(event.metrics["node"]) for event in events if isinstance(event, Reported)}
    assert ids[1] in nodes, "its first steps"
    assert bool(nodes - set(ids)) == add, "what comes is used"
    if method == "hyperband":
        for index, bracket in enumerate(hyperband_brackets(9)):
            reached = [trial.resource for trial in result.records if trial.tags["bracket"] == index]
            assert [sum(r >= rung.r for r in reached) for rung in bracket.rungs] == [rung.n for rung in bracket.rungs]
