"""MLflow: a run per study, and in it a run per trial.

Ray's `MLflowLoggerCallback` keeps the ids of its runs in memory, so that a resumed study makes all its runs a second
time; it knows no parent run, logs `trial.config` and all of Ray's own numbers, fails where a population changes a
configuration (MLflow's parameters can't change), uploads each trial's whole folder or nothing, and calls the server
from the loop, which waits for it. It also sets MLflow's global state, which the user's own code may use. Here a client
of our own writes; runs are found again by their tags, and what they have of a curve is asked before more is added.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from hpo_ray.config import nearest
from hpo_ray.errors import ConfigError
from hpo_ray.results import StudyState
from hpo_ray.store.urls import without_password
from hpo_ray.trackers.base import BEST, Session, Tracked, Tracker, TrialNews, check_no_password

if TYPE_CHECKING:
    from mlflow import MlflowClient

_SERVERS = ("http", "https", "databricks")
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_IDENTITY, _TRIAL = "hpo_ray.study", "hpo_ray.trial"
_STUDY = "study"
"""The value of the second of these tags for the parent run."""
_STATUS = {"completed": "FINISHED", "stopped": "FINISHED", "failed": "FAILED"}
_AT_ONCE = {"metrics": 1000, "params": 100, "tags": 100}
"""What MLflow takes in one call."""
T = TypeVar("T")


class MLflowTracker(Tracker):
    """Writes to an MLflow server or database.

    Args:
        uri: of a tracking server or of a database; None: the environment variable MLFLOW_TRACKING_URI, and where that
            is not set `sqlite:///mlflow.db` in the folder of the studies. MLflow has given up stores in folders.
        experiment: MLflow's experiment, which is made if it isn't there; one for many studies.
    """

    name: ClassVar[str] = "mlflow"
    module: ClassVar[str] = "mlflow"

    def __init__(self, uri: str | None = None, experiment: str = "hpo_ray") -> None:
        self._uri, self._experiment = uri, experiment

    def check(self, root: Path) -> None:
        """Refuses an address that MLflow doesn't take, or with a password in it.

        Raises:
            ConfigError: it is one, or MLflow is not installed.
        """
        super().check(root)
        if not isinstance(self._experiment, str) or not self._experiment.strip():
            raise ConfigError(
                f"tracker.experiment={self._experiment!r}: must be the name of an MLflow experiment",
                key="tracker.experiment",
            )
        if self._uri is not None:
            check_no_password(
                "tracker.uri",
                self._uri,
                "leave it out of it and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or leave "
                "tracker.uri out and set MLFLOW_TRACKING_URI",
            )
        key = "tracker.uri" if self._uri is not None else "MLFLOW_TRACKING_URI"
        uri = self._address(root)
        shown, scheme = f"{key}={without_password(uri)}", uri.partition(":")[0].partition("+")[0]
        if "://" not in uri and uri != "databricks":
            raise ConfigError(
                f"{shown}: MLflow has given up stores in folders; name a server, http://HOST:5000, or a file, "
                f"sqlite:///mlflow.db",
                key=key,
            )
        known = (*_SERVERS, *_DATABASES)
        if scheme not in known:
            raise ConfigError(
                f"{shown}: MLflow takes no {scheme}:// here{nearest(scheme, known)}; write http://HOST:5000 or "
                f"sqlite:///mlflow.db",
                key=key,
            )
        if scheme in ("http", "https") and not re.fullmatch(r"https?://(\[[^\]]+\]|[^\s/:]+)(:\d+)?(/\S*)?", uri):
            raise ConfigError(f"{shown}: can't be parsed; write http://HOST:5000", key=key)
        file = _file_of(uri)
        if file is not None and self._uri is not None and not file.parent.is_dir():
            raise ConfigError(f"{shown}: there is no folder {file.parent}; make it, or name another", key=key)

    def open(self, study: Tracked) -> Session:
        """Connects, and finds the runs of the study or makes the first.

        Raises:
            MlflowException: the server can't be reached, or refuses.
        """
        # Of this process alone: MLflow's own would try for four minutes, at two minutes a try.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        from mlflow import MlflowClient

        uri = self._address(study.folder.parent)
        client = MlflowClient(uri)
        found = client.get_experiment_by_name(self._experiment)
        if found is None:
            file = _file_of(uri)
            # Files go beside the database; MLflow's own choice is the current folder.
            place = None if file is None else (file.absolute().parent / "mlartifacts").as_uri()
            experiment_id = client.create_experiment(self._experiment, place)
        else:
            experiment_id = found.experiment_id
        return _MLflow(study, client, experiment_id)

    def place(self, root: Path) -> str:
        """Its address."""
        return f"mlflow at {without_password(self._address(root))}"

    def _address(self, root: Path) -> str:
        return self._uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root.absolute() / 'mlflow.db'}"


class _MLflow(Session):
    def __init__(self, study: Tracked, client: MlflowClient, experiment_id: str) -> None:
        self._study, self._client, self._experiment_id = study, client, experiment_id
        self._ids: dict[str, str] = {}
        """Of runs, by the number of their trial, or `study`."""
        self._over: set[str] = set()
        """Trials whose end MLflow knew before: their status is told last."""
        self._known: dict[str, set[tuple[str, int, int]]] = {}
        """What MLflow has of the curves of trials that it knew before: name, step, time."""
        self._described: set[str] = set()
        """Trials whose parameters were told."""
        for run in self._find():
            key = run.data.tags[_TRIAL]
            self._ids[key] = run.info.run_id
            if key == _STUDY or run.info.status in ("RUNNING", "KILLED"):
                self._known[key] = {
                    (name, point.step, point.timestamp)
                    for name in run.data.metrics
                    for point in client.get_metric_history(run.info.run_id, name)
                }
                client.update_run(run.info.run_id, status="RUNNING")
            else:
                self._over.add(key)
        if _STUDY not in self._ids:
            self._make(_STUDY, study.name, study.started.time, {})

    def write(self, news: TrialNews) -> None:
        key = str(news.trial.number)
        if key in self._over:
            return
        if key not in self._ids:
            parent = {"mlflow.parentRunId": self._ids[_STUDY]}
            self._make(key, self._study.run_name(news.trial), news.began, parent)
        if key not in self._described:
            self._log(key, params=news.params)  # a second time nothing comes of it
            self._described.add(key)
        curve = [(name, value, p.time, p.resource) for p in news.points for name, value in p.metrics.items()]
        self._log(key, curve, tags=self._study.trial_tags(news.trial))
        if news.ended is not None:
            self._client.set_terminated(self._ids[key], _STATUS[news.trial.state], _ms(news.ended))
            self._known.pop(key, None)
            self._described.discard(key)

    def finish(self, state: StudyState) -> None:
        started, tags = self._study.started, self._study.tags(state)
        name = f"{BEST}{started.metric}"
        curve = [(name, best.value, started.time + best.time, best.trained) for best in state.incumbents]
        best = state.best
        if best is not None:
            run_id = tags["best_run_id"] = self._ids[str(best.number)]
            if state.ended is not None and state.ended.state == "finished":
                files = self._study.best_files(best)
                if files is not None:
                    self._client.log_artifacts(run_id, str(files), "best")
                    tags["best_files"] = f"runs:/{run_id}/best"
        if (config := self._study.folder / "config.yaml").is_file():
            self._client.log_artifact(self._ids[_STUDY], str(config))
        self._log(_STUDY, curve, tags=tags)
        end = started.time + (state.ended.time if state.ended is not None else 0.0)
        for trial in state.trials.unfinished():
            if (key := str(trial.number)) in self._ids:
                self._client.set_terminated(self._ids[key], "KILLED", _ms(end))
        ended = "KILLED" if state.ended is None else state.ended.state
        status = {"finished": "FINISHED", "failed": "FAILED"}.get(ended, "KILLED")
        self._client.set_terminated(self._ids[_STUDY], status, _ms(end))

    def _find(self) -> Iterator[Any]:
        """The runs of this study."""
        token: str | None = None
        wanted = f"tags.`{_IDENTITY}` = '{self._study.identity}'"
        while True:
            page = self._client.search_runs([self._experiment_id], wanted, max_results=1000, page_token=token)
            yield from page
            if not (token := page.token):
                return

    def _make(self, key: str, name: str, began: float, tags: Mapping[str, str]) -> None:
        tags = {_IDENTITY: self._study.identity, _TRIAL: key, "mlflow.source.name": "hpo_ray", **tags}
        run = self._client.create_run(self._experiment_id, _ms(began), tags=tags, run_name=name)
        self._ids[key] = run.info.run_id

    def _log(
        self,
        key: str,
        curve: Sequence[tuple[str, float, float, int]] = (),
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | None = None,
    ) -> None:
        """Adds points (name, value, time, step), which MLflow has not yet, parameters and tags to a run."""
        from mlflow.entities import Metric, Param, RunTag

        known = self._known.get(key, ())
        metrics = [Metric(_name(name), value, _ms(time), step) for name, value, time, step in curve]
        what: dict[str, list[Any]] = {
            "metrics": [m for m in metrics if (m.key, m.step, m.timestamp) not in known],
            "params": [Param(_name(name), str(value)) for name, value in (params or {}).items()],
            "tags": [RunTag(_name(name), str(value)) for name, value in (tags or {}).items()],
        }
        for kind, entries in what.items():
            for part in _parts(entries, _AT_ONCE[kind]):
                self._client.log_batch(self._ids[key], **{kind: part})


def _ms(time: float) -> int:
    return round(time * 1000)


def _name(text: str) -> str:
    """A name that MLflow takes."""
    return re.sub(r"[^\w\-./ ]", "_", text)[:250]


def _parts(entries: list[T], size: int) -> Iterator[list[T]]:
    rest = iter(entries)
    while part := list(islice(rest, size)):
        yield part


def _file_of(uri: str) -> Path | None:
    """The file of an SQLite database; None for any other."""
    found = re.match(r"sqlite(?:\+\w+)?:///([^?]+)", uri)
    return Path(found[1]) if found else None
