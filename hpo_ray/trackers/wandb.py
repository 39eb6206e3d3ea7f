"""Weights & Biases: a run per trial, grouped by study, and one run for the study itself with the best checkpoint.

Ray's `WandbLoggerCallback` starts a Ray actor and a queue per trial, so it needs a Ray cluster whatever runs the
trials; a resumed study fails or begins its runs anew (`resume=False`); points go to the step of Ray's iteration, where
W&B drops what goes back, as a population does; it logs Ray's own numbers, uploads every checkpoint or none, ends every
run as a success, and waits for W&B for up to half an hour at the end. Here steps count a trial's reports and curves are
drawn over `resource`; runs have names of their own, under which they go on. Offline, where nobody knows what was
written before, a process that takes over writes the files anew.
"""

from __future__ import annotations

import netrc
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit

from hpo_ray.errors import ConfigError
from hpo_ray.results import StudyState
from hpo_ray.trackers.base import BEST, Memory, Session, Tracked, Tracker, TrialNews

if TYPE_CHECKING:
    from wandb.sdk.wandb_run import Run

RESOURCE = "resource"
_INIT_S = 15.0
_KEY = "WANDB_API_KEY"


class WandbTracker(Tracker):
    """Writes to Weights & Biases, or to files for it.

    The key is taken from the environment variable WANDB_API_KEY or from `wandb login`, and never from a configuration;
    a server of one's own from WANDB_BASE_URL.

    Args:
        project: W&B's project; made if it isn't there.
        entity: the user or team; None: who is logged in.
        mode: `online`, or `offline`: files in the study's folder, which `wandb sync` uploads.
    """

    name: ClassVar[str] = "wandb"
    module: ClassVar[str] = "wandb"

    def __init__(self, project: str = "hpo_ray", entity: str | None = None, mode: str = "online") -> None:
        self._project, self._entity, self._mode = project, entity, mode

    def check(self, root: Path) -> None:
        """Refuses a mode that there is none, a project that W&B wouldn't take, and to be online without a login.

        Raises:
            ConfigError: it is so, or wandb is not installed.
        """
        super().check(root)
        if self._mode not in ("online", "offline"):
            raise ConfigError(f"tracker.mode={self._mode}: must be online or offline", key="tracker.mode")
        for key, value in (("project", self._project), ("entity", self._entity)):
            if value is None and key == "entity":
                continue
            if not isinstance(value, str) or not re.fullmatch(r"[^/\\#?%:\s][^/\\#?%:]{0,127}", value):
                raise ConfigError(
                    f"tracker.{key}={value}: must be a name of at most 128 letters without / \\ # ? % :",
                    key=f"tracker.{key}",
                )
        if self._mode == "online" and not _logged_in(_server()):
            raise ConfigError(
                f"tracker.mode=online: nobody is logged in at {_server()}; type `wandb login`, set {_KEY}, or write "
                f"files that can be uploaded later: tracker.mode=offline",
                key="tracker.mode",
            )

    def open(self, study: Tracked) -> Session:
        """Begins the study's own run, or goes on with it.

        Raises:
            wandb.errors.Error: the server can't be reached, or refuses.
        """
        if self._mode == "offline":
            for folder in (study.folder / "wandb").glob("offline-run-*"):
                shutil.rmtree(folder)
        return _Wandb(study, {"project": self._project, "entity": self._entity, "mode": self._mode})

    def place(self, root: Path) -> str:
        """Its project."""
        return f"wandb, project {self._project}{' (offline)' if self._mode == 'offline' else ''}"


class _Wandb(Session):
    def __init__(self, study: Tracked, where: dict[str, Any]) -> None:
        self._study, self._where = study, where
        online = where["mode"] == "online"
        self._memory = Memory(study, "wandb", f"{_server()}/{where['entity']}/{where['project']}") if online else None
        self._runs: dict[int, Run] = {}
        self._open = True
        self._own = self._init(study.identity, study.name, "study")

    def write(self, news: TrialNews) -> None:
        number = news.trial.number
        if self._memory is not None and number in self._memory.ended:
            return
        run = self._runs.get(number)
        if run is None:
            run_id, name = f"{self._study.identity}-{number}", self._study.run_name(news.trial)
            run = self._runs[number] = self._init(run_id, name, "trial")
            run.config.update(dict(news.config), allow_val_change=True)
            run.define_metric(RESOURCE, hidden=True)
            run.define_metric("*", step_metric=RESOURCE)
        for point in news.points:
            if point.number >= run.starting_step:  # otherwise W&B has it from before
                values = {**point.metrics, RESOURCE: point.resource, "_timestamp": point.time}
                run.log(values, step=point.number, commit=True)
        if news.ended is not None or news.trial.state == "paused":
            run.summary.update(self._study.trial_tags(news.trial))
        if news.ended is not None:
            run.finish(exit_code=1 if news.trial.state == "failed" else 0)
            del self._runs[number]
            if self._memory is not None:
                self._memory.ended.add(number)
                self._memory.save()

    def finish(self, state: StudyState) -> None:
        started, tags = self._study.started, self._study.tags(state)
        own, metric = self._own, f"{BEST}{started.metric}"
        own.define_metric("trained", hidden=True)
        own.define_metric(metric, step_metric="trained")
        for step, best in enumerate(state.incumbents, 1):
            if step >= own.starting_step:
                own.log({metric: best.value, "trained": best.trained}, step=step, commit=True)
        if (trial := state.best) is not None:
            tags["best_run_id"] = f"{self._study.identity}-{trial.number}"
            own.config.update(dict(trial.config), allow_val_change=True)
            if state.ended is not None and state.ended.state == "finished":
                self._upload_best(tags, self._study.best_files(trial))
        own.summary.update(tags)
        for run in self._runs.values():
            run.finish()
        self._runs.clear()
        own.finish(exit_code=1 if state.ended is not None and state.ended.state == "failed" else 0)
        self._open = False

    def close(self) -> None:
        """Ends the runs for now, so that the next session may have them, and sees the files written."""
        import wandb

        for run in [*self._runs.values(), *([self._own] if self._open else [])]:
            run.finish()
        self._runs.clear()
        self._open = False
        wandb.teardown()  # a run's own end doesn't wait for the process that writes

    def _upload_best(self, tags: dict[str, Any], files: Path | None) -> None:
        if files is None:
            return
        import wandb

        name = re.sub(r"[^\w.-]", "_", self._study.name)
        artifact = wandb.Artifact(f"{name}-{self._study.identity}", type="model", metadata=tags)
        artifact.add_dir(str(files))
        self._own.log_artifact(artifact, aliases=["best"])

    def _init(self, run_id: str, name: str, kind: str) -> Run:
        import wandb

        started = self._study.started
        online = self._where["mode"] == "online"
        return wandb.init(
            **self._where,
            id=run_id,
            name=name,
            group=self._study.name,
            job_type=kind,
            tags=[started.method, started.task],
            dir=str(self._study.folder),
            resume="allow" if online else None,
            reinit="create_new",
            settings=wandb.Settings(
                silent=True,
                console="off",
                init_timeout=_INIT_S,
                disable_git=True,
                disable_code=True,
                disable_job_creation=True,
                x_disable_stats=True,
                x_disable_meta=True,
                x_save_requirements=False,
            ),
        )


def _server() -> str:
    return os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"


def _logged_in(server: str) -> bool:
    """Whether there is a key for a server: in the environment, or where `wandb login` puts it."""
    if os.environ.get(_KEY) or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    files = [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]
    for file in files:
        try:
            known = netrc.netrc(os.path.expanduser(file)).hosts
        except (OSError, netrc.NetrcParseError):
            continue
        if (urlsplit(server).hostname or "") in known:
            return True
    return False
