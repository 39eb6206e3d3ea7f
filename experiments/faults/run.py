"""Kills studies with SIGKILL at random moments, resumes them, and compares with studies that nobody disturbed.

    python experiments/faults/run.py            all of it, about ten minutes on two cores
    python experiments/faults/run.py --kills 50 --ray-kills 10 --methods hyperband asha

In-process a study is a forked child of this process, so that a kill and a resume take no imports; on Ray it is the
command line, and its local cluster has to die with it. Writes results.json, whose other rows are kept, and the table
of README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
METHODS = ("hyperband", "asha", "pbt", "tpe", "evolution")
INTERVAL = 2
TASK = [
    "task=digits_mlp",
    "task.max_resource=9",
    f"store.checkpoint_every={INTERVAL}",
    "store=none",
    "view=none",
    "seed=1",
]
OWN = {
    "hyperband": [],
    "asha": ["budget.trials=12"],
    "pbt": ["scheduler.population=6", "scheduler.interval=2"],
    "tpe": ["budget.trials=8", "searcher.startup=3"],
    "evolution": ["budget.trials=8", "searcher.population=4"],
}


def overrides(method: str, executor: str) -> list[str]:
    where = ["executor=inprocess"] if executor == "inprocess" else ["executor=ray", "executor.num_cpus=2"]
    return [f"method={method}", *TASK, *OWN[method], *where]


def in_child(function: object, *arguments: object) -> int:
    """Calls a function in a forked child; its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 1)
        function(*arguments)  # type: ignore[operator]
        code = 0
    finally:
        os._exit(code)


def start(method: str, executor: str, folder: Path, temp: Path) -> int:
    """Starts a study, or goes on with it; its process id."""
    if executor == "inprocess":
        from hpo_ray.testing import resume_study, run_study

        if folder.exists():
            return in_child(resume_study, folder)
        return in_child(run_study, [*overrides(method, executor), f"study.name={folder.name}"], folder.parent)
    ray = [f"executor.temp_dir={temp}"]
    typed = [*overrides(method, executor), f"study.name={folder.name}", f"study.root={folder.parent}", *ray]
    if folder.exists():
        typed = ["resume", str(folder), *ray]
    with open(folder.parent / "output.log", "a") as output:
        command = [sys.executable, "-m", "hpo_ray", *typed]
        return subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True).pid


def lines(folder: Path) -> int:
    log = folder / "events.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def killed(pid: int, folder: Path, after: int) -> bool:
    """Kills a study when it has written so many more events; False if it ended before."""
    target = lines(folder) + after
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            if status:
                raise SystemExit(f"{folder}: ended with {status}")
            return False
        if lines(folder) >= target:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return True
        time.sleep(0.001)


def left_over(temp: Path) -> list[int]:
    """Processes of a cluster that should have died with its study."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if str(temp).encode() in (place / "cmdline").read_bytes():
                found.append(int(place.name))
        except OSError:
            continue
    return found


def ended(pid: int) -> None:
    _, status = os.waitpid(pid, 0)
    if status:
        raise SystemExit(f"a study ended with status {status}")


def measure(method: str, executor: str, kills: int, per_study: int, draws: random.Random, root: Path) -> dict:
    """Studies of one method, killed `kills` times in all."""
    from hpo_ray.events import read
    from hpo_ray.results import load_study
    from hpo_ray.testing import check_scheduler_is_a_fold, check_searcher_is_a_fold, outcomes

    temp = Path(tempfile.mkdtemp(prefix="hf", dir="/tmp"))
    undisturbed = root / f"{method}-{executor}"
    ended(start(method, executor, undisturbed, temp))
    whole = load_study(undisturbed)
    events = lines(undisturbed)
    found = {"method": method, "executor": executor, "studies": 0, "kills": 0, "lost": 0, "doubled": 0, "different": 0}
    again: list[int] = []
    orphans = 0
    while found["kills"] < kills:
        folder = root / f"{method}-{executor}-{found['studies']}"
        left, deaths = min(per_study, kills - found["kills"]), 0
        while deaths < left and killed(start(method, executor, folder, temp), folder, draws.randint(1, events // 4)):
            deaths += 1
            if executor == "ray":
                time.sleep(2)  # they notice within a second
                orphans += len(left_over(temp))
        if load_state(folder) != "finished":
            ended(start(method, executor, folder, temp))
        result = load_study(folder)
        numbers = [event.number for event in read(folder / "events.jsonl") if event.kind == "trial_added"]
        found["studies"] += 1
        found["kills"] += deaths
        found["lost"] += len(whole.records) - len(set(numbers))
        found["doubled"] += len(numbers) - len(set(numbers))
        if executor == "inprocess":  # one worker: to the digit
            found["different"] += sum(a != b for a, b in zip(outcomes(whole), outcomes(result), strict=False))
            again.append(result.state.trained - whole.state.trained)
        else:
            found["different"] += len(whole.records) != len(result.records) or result.state.ended.state != "finished"
            again.append(repeated(folder))
        check_scheduler_is_a_fold(result)
        check_searcher_is_a_fold(result, cuts=(4,))
    shutil.rmtree(temp, ignore_errors=True)
    return {**found, "orphans": orphans, "epochs": whole.state.trained, "again_per_kill": sum(again) / found["kills"]}


def load_state(folder: Path) -> str:
    from hpo_ray.results import load_study

    ended = load_study(folder).state.ended
    return "" if ended is None else ended.state


def repeated(folder: Path) -> int:
    """Epochs that were reported more than once with the same weights."""
    from hpo_ray.events import Decided, Reported, read

    seen: dict[str, int] = {}
    count = 0
    for event in read(folder / "events.jsonl"):
        if isinstance(event, Reported):
            count += event.resource <= seen.get(event.trial_id, 0)
            seen[event.trial_id] = max(event.resource, seen.get(event.trial_id, 0))
        elif isinstance(event, Decided) and event.action == "exploit":
            seen[event.trial_id] = event.resource or 0
    return count


def table(rows: list[dict]) -> str:
    head = (
        "| method | executor | studies | kills survived | trials lost | trials doubled | outcomes that differ | "
        "epochs of a study | epochs trained again per kill |\n|---|---|---:|---:|---:|---:|---:|---:|---:|"
    )
    body = [
        f"| {r['method']} | {r['executor']} | {r['studies']} | {r['kills']} | {r['lost']} | {r['doubled']} | "
        f"{r['different']} | {r['epochs']} | {r['again_per_kill']:.2f} |"
        for r in rows
    ]
    return "\n".join([head, *body])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="in-process, over all methods")
    parser.add_argument("--ray-kills", type=int, default=10, help="on Ray, over all methods")
    parser.add_argument("--methods", nargs="*", default=METHODS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import hpo_ray.executors.loop
    import hpo_ray.tasks.digits  # noqa: F401  # imported once, before the studies are forked

    known = HERE / "results.json"
    rows = json.loads(known.read_text())["rows"] if known.exists() else []
    with tempfile.TemporaryDirectory(prefix="hpo_ray-faults-") as root:
        for executor, kills in (("inprocess", options.kills), ("ray", options.ray_kills)):
            for i, method in enumerate(options.methods):
                share = kills // len(options.methods) + (i < kills % len(options.methods))
                if not share:
                    continue
                draws = random.Random(f"{options.seed} {method} {executor}")
                row = measure(method, executor, share, 4 if executor == "inprocess" else 2, draws, Path(root))
                rows = [r for r in rows if (r["method"], r["executor"]) != (method, executor)] + [row]
                print(json.dumps(row), flush=True)
    rows.sort(key=lambda r: (r["executor"], METHODS.index(r["method"])))
    machine = f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"
    known.write_text(json.dumps({"machine": machine, "checkpoint_every": INTERVAL, "rows": rows}, indent=1) + "\n")
    readme = HERE / "README.md"
    if readme.exists():
        before, begin, rest = readme.read_text().partition("<!-- table -->\n")
        _, end, after = rest.partition("<!-- end -->")
        readme.write_text(before + begin + table(rows) + "\n" + end + after)
    print(table(rows))


if __name__ == "__main__":
    main()
