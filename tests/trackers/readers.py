"""What a tracker has of a study, as plain values, read with the tracker's own code or from its own files.

MLflow's database and Aim's repository are in `home`; the others' files are in the study's folder.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpo_ray.trials import flat


@dataclass
class Told:
    """A trial: curves as (resource, value) by name, in the order of the reports."""

    name: str
    params: dict[str, Any]
    tags: dict[str, str]
    status: str
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)


@dataclass
class Content:
    """A study: its trials by number, its own tags, the incumbent's curve, and the folder with the best files."""

    trials: dict[int, Told]
    tags: dict[str, str] | None
    incumbent: list[tuple[int, float]] | None
    best_files: Path | None


def number(text: str) -> Any:
    """What a parameter's text stands for."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def tensorboard(folder: Path, home: Path) -> Content:
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    trials: dict[int, Told] = {}
    tags, incumbent = {}, []
    for place in sorted((folder / "tensorboard").iterdir()):
        told = Told(place.name, {}, {}, "running")
        for step, value in _summaries(place):
            plugin = value.metadata.plugin_data
            if value.WhichOneof("value") == "simple_value":
                told.curves.setdefault(value.tag, []).append((step, value.simple_value))
            elif value.tag.endswith("/text_summary"):
                lines = value.tensor.string_val[0].decode().splitlines()[2:]
                told.tags = dict(line.strip("| ").split(" | ", 1) for line in lines)
            elif value.tag == "_hparams_/session_start_info":
                content = HParamsPluginData.FromString(plugin.content).session_start_info
                for name, param in content.hparams.items():
                    told.params[name] = getattr(param, f"{param.WhichOneof('kind')}")
        if place.name == "study":
            tags, (incumbent,) = told.tags, told.curves.values()
        else:
            told.status = told.tags.get("state", "running")
            trials[int(place.name)] = told
    best = tags.pop("best_files", None)
    return Content(trials, tags, incumbent, Path(best) if best else None)


def _summaries(place: Path) -> Iterator[tuple[int, Any]]:
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted(place.iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack("<Q", data[at : at + 8])
            event = Event.FromString(data[at + 12 : at + 12 + length])
            at += 16 + length
            yield from ((event.step, value) for value in event.summary.value)


def mlflow(folder: Path, home: Path) -> Content:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{home}/mlflow.db")
    experiment = client.get_experiment_by_name("hpo_ray")
    runs = [r for r in client.search_runs([experiment.experiment_id], max_results=1000)]
    (parent,) = [r for r in runs if r.data.tags["hpo_ray.trial"] == "study" and r.data.tags["folder"] == str(folder)]
    trials: dict[int, Told] = {}
    for run in runs:
        if run.data.tags.get("mlflow.parentRunId") != parent.info.run_id:
            continue
        assert int(run.data.tags["trial"]) not in trials, "one run each"
        told = trials[int(run.data.tags["trial"])] = Told(
            run.info.run_name,
            {name: number(text) for name, text in run.data.params.items()},
            _own(run.data.tags),
            run.info.status,
        )
        for name in run.data.metrics:
            points = sorted(client.get_metric_history(run.info.run_id, name), key=lambda p: (p.timestamp, p.step))
            told.curves[name] = [(point.step, point.value) for point in points]
    (name,) = parent.data.metrics or ("",)
    points = client.get_metric_history(parent.info.run_id, name) if name else []
    curve = [(p.step, p.value) for p in sorted(points, key=lambda p: (p.timestamp, p.step))]
    tags = _own(parent.data.tags)
    best = tags.pop("best_files", None)
    run_id = tags.pop("best_run_id")
    files = None if best is None else Path(client.download_artifacts(run_id, "best"))
    return Content(trials, tags | {"status": parent.info.status}, curve, files)


def _own(tags: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in tags.items() if not name.startswith(("mlflow.", "hpo_ray."))}


def wandb(folder: Path, home: Path) -> Content:
    trials: dict[int, Told] = {}
    own: tuple[dict[str, str], list[tuple[int, float]]] = ({}, [])
    artifact = None
    for path in sorted((folder / "wandb").glob("offline-run-*/*.wandb")):
        told = Told("", {}, {}, "running")
        history, kind = [], ""
        for record in _records(path):
            what = record.WhichOneof("record_type")
            if what == "run":
                told.name, kind = record.run.display_name, record.run.job_type
                assert (record.run.run_group, record.run.project) == (folder.name, "hpo_ray")
            elif what == "config":
                told.params |= flat({u.key: json.loads(u.value_json) for u in record.config.update})
            elif what == "summary":
                told.tags |= {u.key: json.loads(u.value_json) for u in record.summary.update if u.key}
            elif what == "history":
                item = {"/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
                assert item["_step"] == len(history) + 1
                history.append(item)
            elif what == "exit":
                told.status = "failed" if record.exit.exit_code else "finished"
            elif what == "artifact":
                artifact = record.artifact
        if kind == "study":
            curve = [(item["trained"], v) for item in history for n, v in item.items() if n.startswith("best/")]
            own = told.tags, curve
            continue
        for item in history:
            for name, value in item.items():
                if not name.startswith("_") and name != "resource":
                    told.curves.setdefault(name, []).append((item["resource"], value))
        trial = int(told.name.rpartition("/")[2])
        assert trial not in trials, "one run each"
        trials[trial] = told
    files = None
    if artifact is not None:
        assert (artifact.type, sorted(artifact.aliases)) == ("model", ["best", "latest"])
        files = _staged(artifact, folder / "artifact")
    curves = {name for told in trials.values() for name in told.curves}
    own_tags = {name: value for name, value in own[0].items() if name not in ("best_run_id", "trained")}
    for tags in (own_tags, *(told.tags for told in trials.values())):
        for name in [n for n in tags if n.startswith(("_", "best/")) or n in curves]:
            del tags[name]
    texts = {n: str(v) for n, v in own_tags.items()}
    for told in trials.values():
        told.tags = {n: str(v) for n, v in told.tags.items()}
    return Content(trials, texts, own[1], files)


def _staged(artifact: Any, to: Path) -> Path:
    """The files of an artifact, put together from where W&B has staged them for its upload."""
    import shutil

    for entry in artifact.manifest.contents:
        (to / entry.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(entry.local_path, to / entry.path)
    return to


def _records(path: Path) -> Iterator[Any]:
    """Those of a .wandb file: a LevelDB log, whose blocks of 32 KiB hold parts of records with 7 bytes before each."""
    from wandb.proto import wandb_internal_pb2

    data, at, record = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or its last part
            yield wandb_internal_pb2.Record.FromString(record)
            record = b""


_AIM_RUNS: set[str] = set()
"""Of all the studies that were read: one repository has them all."""


def aim(folder: Path, home: Path) -> Content:
    from aim import Repo, Run

    repo = Repo(str(home))
    known = json.loads((folder / "aim.json").read_text())["runs"]
    trials: dict[int, Told] = {}
    best_tags: dict[str, Any] = {}
    files = None
    _AIM_RUNS.update(known.values())
    assert {path.name for path in (home / ".aim/meta/chunks").iterdir()} == _AIM_RUNS, "a run per trial, and no other"
    for text, run_hash in known.items():
        run = Run(run_hash, repo=repo, system_tracking_interval=None, capture_terminal_logs=False)
        assert run.experiment == folder.name
        told = trials[int(text)] = Told(run.name, flat(run["hparams"]), {}, "")
        told.tags = {name: str(value) for name, value in run["trial"].items()}
        told.status = "failed" if "failed" in run.tags else "finished"
        assert {told.tags["method"], told.tags["task"]} <= set(run.tags)
        for metric in run.metrics():
            _, (values, epochs) = metric.data.view(("val", "epoch")).items_list()
            told.curves[metric.name] = [(int(epoch), value) for epoch, value in zip(epochs, values, strict=True)]
        if "best" in run.tags:
            best_tags = dict(run["best"])
            files = Path(best_tags.pop("files"))
        run.close()
    return Content(trials, {n: str(v) for n, v in best_tags.items()}, None, files)


READERS: dict[str, Callable[[Path, Path], Content]] = {
    "tensorboard": tensorboard,
    "mlflow": mlflow,
    "wandb": wandb,
    "aim": aim,
}
STATUS = {
    "tensorboard": {state: state for state in ("completed", "stopped", "failed", "running", "paused")},
    "mlflow": {
        "completed": "FINISHED",
        "stopped": "FINISHED",
        "failed": "FAILED",
        "running": "KILLED",
        "paused": "KILLED",
    },
}
STATUS["wandb"] = STATUS["aim"] = dict.fromkeys(STATUS["mlflow"], "finished") | {"failed": "failed"}
