"""What does a hypergradient cost, in time and memory, here and by other libraries, and is it right?

python experiments/hypergradient/speed.py --peers DIR            # ten minutes; prints tables, writes speed.json
python experiments/hypergradient/speed.py --peers DIR --quick    # small sizes; prints tables

DIR holds an environment for each other library, DIR/NAME/bin/python; README.md says how to make them. Those
that are not there are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import torch
from peers import ENVIRONMENTS, EXTRA_TERM, OURS, TOOLS

HERE = Path(__file__).parent
RESULTS = HERE / "speed.json"
RIGHT = 1e-3  # the error in single precision up to which a hypergradient counts as right
LARGE = 5_000_000  # from this size on there are few rounds and iterations
SLOWEST = 200_000  # up to this size the slowest tool takes part, and Nystrom is measured


class Remote:
    """A worker in an environment, and its answers."""

    def __init__(self, python: str, threads: int, device: str, exact_memory: bool = False) -> None:
        environment = {**os.environ, "PYTHONPATH": str(HERE.parent.parent), "PYTHONWARNINGS": "ignore"}
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            environment[name] = str(threads)
        if exact_memory:  # each tensor mapped on its own, so that a hole in the heap is not taken for use
            environment["MALLOC_MMAP_THRESHOLD_"] = "65536"
        self._process = subprocess.Popen(
            [python, str(HERE / "peers.py"), str(threads), device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def ask(self, do: str, **command: Any) -> dict[str, Any]:
        """Sends a command and waits for the answer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **command}) + "\n")
            self._process.stdin.flush()
            answer: dict[str, Any] = json.loads(self._process.stdout.readline() or '{"failed": "the process ended"}')
        except BrokenPipeError:
            return {"failed": "the process ended"}
        return answer

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


class Benchmark:
    """All measurements of one run."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.pythons = {OURS: sys.executable}
        if options.peers is not None:
            for name in sorted(set(ENVIRONMENTS.values()) - {OURS}):
                python = options.peers / name / "bin" / "python"
                if python.exists():
                    self.pythons[name] = str(python)
        for tool, name in ENVIRONMENTS.items():
            if name not in self.pythons:
                print(f"{tool} is missing: no {name}/bin/python in the folder that --peers names")
        self.results: dict[str, Any] = {
            "date": date.today().isoformat(),
            "threads": options.threads,
            "python": platform.python_version(),
            "cpus": os.cpu_count(),
            "versions": {},
            "references": [],
            "times": [],
            "memory": [],
        }

    def remote(self, name: str, exact_memory: bool = False) -> Remote:
        return Remote(self.pythons[name], self.options.threads, self.device, exact_memory)

    def run(self) -> dict[str, Any]:
        """Times, errors and memory."""
        workers = {name: self.remote(name) for name in self.pythons}
        for name, worker in workers.items():
            answer = worker.ask("versions")
            self.results["versions"][name] = answer.get("versions", answer)
            self.results["device"] = answer.get("device", "CPU") if name == OURS else self.results["device"]
        self._references(workers[OURS], 450, [5], [], self.options.folder)
        for size in self.options.sizes:
            with tempfile.TemporaryDirectory() as folder:
                self._size(workers, size, folder)
            self.save()
        for worker in workers.values():
            worker.close()
        if self.options.memory:
            self._memory(self.options.memory_size)
        return self.results

    def save(self) -> None:
        """Writes what there is so far."""
        if self.options.save:
            self.options.output.write_text(json.dumps(self.results, indent=1) + "\n")

    def _references(self, worker: Remote, size: int, ks: list[int], steps: list[int], folder: str) -> float:
        answer = worker.ask("references", size=size, ks=ks, steps=steps, folder=folder, converge=True)
        if "failed" in answer:
            raise RuntimeError(f"no reference for {size} weights: {answer['failed']}")
        self.results["references"].append({"size": size, **answer})
        print(f"{size} weights: {answer}", flush=True)
        return float(answer["alpha"])

    def _size(self, workers: dict[str, Remote], size: int, folder: str) -> None:
        large = size >= LARGE
        ks = self.options.ks[:1] if large else self.options.ks
        steps = [] if large else self.options.steps[:1] if size >= 500_000 else self.options.steps
        alpha = self._references(workers[OURS], size, ks, steps, folder)
        exact_size = {worker.ask("problem", size=size, alpha=alpha)["size"] for worker in workers.values()}.pop()
        for method, tools in TOOLS.items():
            for k in steps if method == "unrolled" else ks:
                if method == "nystrom" and (
                    k != 10 or size > SLOWEST
                ):  # K vectors, and their products among each other
                    continue
                chosen = [
                    tool
                    for tool in tools
                    if ENVIRONMENTS[tool] in workers
                    and not tool.endswith("forward")  # which is for few hyperparameters
                    and not (size > SLOWEST and tool == "hypergrad")
                ]
                self._round_robin(workers, method, k, chosen, exact_size, folder, self._rounds(size))

    def _rounds(self, size: int) -> int:
        return 3 if size >= LARGE else self.options.rounds

    def _round_robin(
        self, workers: dict[str, Remote], method: str, k: int, tools: list[str], size: int, folder: str, rounds: int
    ) -> None:
        """A warm-up, and then rounds in which each tool has one turn; who begins moves on with each round."""
        seconds: dict[str, list[float]] = {tool: [] for tool in tools}
        failed: dict[str, str] = {}
        for turn in range(-1, rounds):
            first = turn % len(tools)
            for tool in tools[first:] + tools[:first]:
                if tool in failed:
                    continue
                where = {"method": method, "tool": tool, "k": k}
                answer = workers[ENVIRONMENTS[tool]].ask("time", **where, keep=turn == -1)
                if "failed" in answer:
                    failed[tool] = answer["failed"]
                elif turn >= 0:
                    seconds[tool].append(answer["seconds"])
        floor = statistics.median(seconds["bare"])
        for tool in tools:
            entry: dict[str, Any] = {"method": method, "size": size, "k": k, "tool": tool, "seconds": seconds[tool]}
            if tool in failed:
                entry["failed"] = failed[tool]
            else:
                entry["ratio"] = statistics.median(seconds[tool]) / floor
                entry |= self._errors(workers[ENVIRONMENTS[tool]], method, tool, k, folder)
            self.results["times"].append(entry)
            shown = entry.get("failed") or f"{statistics.median(seconds[tool]) * 1e3:.1f} ms, {entry['ratio']:.2f}"
            print(f"{method} K={k} {size} {tool}: {shown} {entry.get('error', '')}", flush=True)

    def _errors(self, worker: Remote, method: str, tool: str, k: int, folder: str) -> dict[str, float]:
        if tool == "bare" and method != "unrolled":
            return {}
        terms = k + 1 if method == "neumann" and tool in EXTRA_TERM else k
        paths = {"error": f"{folder}/{method}-{terms}.pt", "error_to_converged": f"{folder}/converged.pt"}
        if method == "nystrom":
            del paths["error"]
        if method == "unrolled":
            del paths["error_to_converged"]
        return worker.ask("error", method=method, tool=tool, k=k, references=paths)

    def _memory(self, size: int) -> None:
        """A process for each measurement."""
        cases = [
            (method, tool, k, False)
            for method in ("cg", "neumann", "unrolled")
            for tool in TOOLS[method]
            for k in (self.options.memory_steps if method == "unrolled" else self.options.ks)
            if not tool.endswith("forward")
            and (tool in ("bare", OURS) or method == "unrolled" or k == max(self.options.ks))
        ]
        few = ("bare", OURS, f"{OURS} sqrt", f"{OURS} graphs", f"{OURS} forward", "higher")
        cases += [("unrolled", tool, k, True) for tool in few for k in self.options.memory_steps]
        for method, tool, k, shared in cases:
            if ENVIRONMENTS[tool] not in self.pythons:
                continue
            worker = self.remote(ENVIRONMENTS[tool], exact_memory=True)
            exact = worker.ask("problem", size=size, alpha=0.2, shared=shared)["size"]
            answer = worker.ask("memory", method=method, tool=tool, k=k)
            worker.close()
            entry = {"method": method, "tool": tool, "k": k, "size": exact, "few_hyperparameters": shared, **answer}
            if "bytes" in answer:
                entry["vectors"] = answer["bytes"] / (4 * exact)
            self.results["memory"].append(entry)
            print(f"memory: {entry}", flush=True)


def tables(results: dict[str, Any]) -> str:
    """The results as markdown."""
    return "\n\n".join(
        [
            *(
                _times_table(results, method)
                for method in TOOLS
                if any(e["method"] == method for e in results["times"])
            ),
            _error_table(results),
            _memory_table(results),
        ]
    )


def _times_table(results: dict[str, Any], method: str) -> str:
    entries = [entry for entry in results["times"] if entry["method"] == method]
    tools = [tool for tool in TOOLS[method] if any(e["tool"] == tool for e in entries) and tool != "bare"]
    name = {"cg": "CG", "neumann": "Neumann", "nystrom": "Nystrom", "unrolled": "unrolled"}[method]
    letter = "T" if method == "unrolled" else "K"
    lines = [
        f"| {name}: weights | {letter} | bare, ms | " + " | ".join(tools) + " |",
        "|---:" * (3 + len(tools)) + "|",
    ]
    for size, k in dict.fromkeys((entry["size"], entry["k"]) for entry in entries):
        row = {entry["tool"]: entry for entry in entries if (entry["size"], entry["k"]) == (size, k)}
        cells = [_cell(row.get(tool)) for tool in tools]
        floor = statistics.median(row["bare"]["seconds"]) * 1e3
        lines.append(f"| {size:,} | {k} | {floor:.{0 if floor >= 100 else 1}f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return ""
    if "ratio" not in entry:
        return "failed"
    wrong = entry["error"] is None or entry["error"] > RIGHT if "error" in entry else False
    return f"{entry['ratio']:.2f}" + (" (wrong)" if wrong else "")


def _error_table(results: dict[str, Any]) -> str:
    lines = [
        "| largest relative error | CG, to the K-th iterate | Neumann, to as many terms | unrolled |",
        "|---|---:|---:|---:|",
    ]
    for tool in ENVIRONMENTS:
        cells = []
        for method in ("cg", "neumann", "unrolled"):
            found = [
                e["error"] for e in results["times"] if (e["tool"], e["method"]) == (tool, method) and "error" in e
            ]
            cells.append("" if not found else "not finite" if None in found else f"{max(found):.1e}")
        if any(cells):
            lines.append(f"| {tool} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _memory_table(results: dict[str, Any]) -> str:
    lines: list[str] = []
    for method, shared in (("cg", False), ("neumann", False), ("unrolled", False), ("unrolled", True)):
        entries = [e for e in results["memory"] if (e["method"], e["few_hyperparameters"]) == (method, shared)]
        if not entries:
            continue
        ks = sorted({entry["k"] for entry in entries})
        letter = "T" if method == "unrolled" else "K"
        few = ", 6 hyperparameters" if shared else ""
        lines += [
            f"| {method}{few}: peak in vectors like the weights | " + " | ".join(f"{letter} = {k}" for k in ks) + " |",
            "|---" + "|---:" * len(ks) + "|",
        ]
        for tool in dict.fromkeys(entry["tool"] for entry in entries):
            row = {entry["k"]: entry for entry in entries if entry["tool"] == tool}
            cells = [
                "" if k not in row else f"{row[k]['vectors']:.1f}" if "vectors" in row[k] else "failed" for k in ks
            ]
            lines.append(f"| {tool} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines).rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, help="folder of the environments of the other libraries")
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds; speed.json stays as it is")
    parser.add_argument("--sizes", type=lambda s: [int(float(x)) for x in s.split(",") if x], default=None)
    parser.add_argument("--ks", type=lambda s: [int(x) for x in s.split(",")], default=[5, 10, 20])
    parser.add_argument("--threads", type=int, default=1, help="of torch, in every process")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each tool; 3 above five million weights")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="times and errors only")
    parser.add_argument("--no-save", dest="save", action="store_false", help="speed.json stays as it is")
    parser.add_argument("--output", type=Path, default=RESULTS, help="in place of speed.json")
    options = parser.parse_args()
    options.sizes = (
        options.sizes
        if options.sizes is not None
        else ([10**4, 10**5] if options.quick else [10**4, 10**5, 10**6, 10**7])
    )
    options.save = options.save and not options.quick
    options.steps, options.memory_steps = [10, 50], [10, 50]
    options.memory_size = 10**5 if options.quick else 10**6
    if options.quick:
        options.rounds = min(options.rounds, 5)
        options.memory_steps = [10, 20]
    with tempfile.TemporaryDirectory() as folder:
        options.folder = folder
        benchmark = Benchmark(options)
        results = benchmark.run()
    benchmark.save()
    print(f"\n{results['device']}, {results['threads']} thread(s), {results['date']}, {results['versions']}\n")
    print(tables(results))


if __name__ == "__main__":
    main()
