"""The best trial of a study: its checkpoint and configuration, copied where they are easy to find, and loaded back."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from omegaconf import OmegaConf

from hpo_ray.errors import StudyError
from hpo_ray.location import Location, is_uri
from hpo_ray.results import BEST_FOLDER, write_whole
from hpo_ray.store.urls import password_free
from hpo_ray.study import bound_trainable, space_of
from hpo_ray.trainables.checkpoint import UnreadableCheckpoint
from hpo_ray.trainables.context import TrialContext, use_context
from hpo_ray.trials import TrialRecord

if TYPE_CHECKING:
    from ray.tune import Checkpoint, Trainable

CONFIG_FILE = "config.yaml"
CHECKPOINT_FOLDER = "checkpoint"
BEST_FILE = "best.json"


def save_best(folder: Path, best: TrialRecord, location: Location | None = None) -> bool:
    """Copies the best trial's configuration and last checkpoint to `best/`; whether there was a checkpoint.

    Args:
        folder: the study's folder.
        best: its best trial.
        location: the study's folder on an object store, where that holds its checkpoints.

    Raises:
        OSError: there is no room, or the store can't be reached. What was in `best/` is as it was.
    """
    target, aside = folder / BEST_FOLDER, folder / f".{BEST_FOLDER}.{os.getpid()}"
    remote = None if location is None or best.checkpoint is None else location.join(best.checkpoint)
    there = folder / str(best.checkpoint)
    saved = best.checkpoint is not None and (there.is_dir() if remote is None else bool(remote.names()))
    content = {
        "trial_id": best.trial_id,
        "number": best.number,
        "config": best.config,
        **best.moved_json(),
        "value": best.value,
        "resource": best.resource,
        "checkpoint_resource": best.checkpoint_resource if saved else None,
    }
    try:
        aside.mkdir()
        if saved and remote is not None:
            remote.download(aside / CHECKPOINT_FOLDER)
        elif saved:
            shutil.copytree(there, aside / CHECKPOINT_FOLDER, copy_function=_link)
        (aside / BEST_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        aside.rename(target)
    except BaseException:  # for want of room: what was there before is better than a half
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return saved


def holds_best(folder: Path, best: TrialRecord) -> bool:
    """Whether `best/` is that of this trial."""
    try:
        return bool(_best(folder)["trial_id"] == best.trial_id)
    except (OSError, ValueError, KeyError):
        return False


def _link(source: str, target: str) -> None:
    """The same file in a second place, at once and without room; a copy where the file system has no links.

    No checkpoint is changed once it is written.
    """
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def save_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Writes the resolved configuration of a study to its folder, whole, without the password of its store."""
    write_whole(folder / CONFIG_FILE, [OmegaConf.to_yaml(OmegaConf.create(password_free(config)))])


def load_config(folder: Path) -> dict[str, Any]:
    """Reads back what `save_config` wrote."""
    return cast("dict[str, Any]", OmegaConf.to_container(OmegaConf.load(folder / CONFIG_FILE)))


def load_best(path: str | Path) -> Trainable | Checkpoint:
    """The best trial of a study, as it was when it ended.

    For a class: the trainable, restored from its checkpoint; of a `TorchTrainable`, `.model` is the trained network.
    Of a differentiable task `.hparams` are the hyperparameters that it ended with, `.params` the weights.

        model = hpo_ray.load_best("outputs/digits_mlp-hyperband-1").model

    For a function, whose own code knows how its files are read: the `ray.tune.Checkpoint` that it reported.

        with hpo_ray.load_best("outputs/custom-hyperband-1").as_directory() as folder: ...

    Args:
        path: the study's folder.

    Nothing in the folder is unpickled; what a class reads from files of its own is its own code's doing.

    Raises:
        StudyError: the folder holds no best trial, or one without a checkpoint that can be read.
        ConfigError: the trainable can't be imported.
    """
    from ray.tune import Checkpoint

    if is_uri(str(path)):
        raise StudyError(f"{path}: bring it here first: python -m hpo_ray fetch '{path}'")
    folder = Path(path)
    checkpoint = folder / BEST_FOLDER / CHECKPOINT_FOLDER
    try:
        best, study = _best(folder), load_config(folder)
    except OSError as error:
        raise StudyError(f"{folder}: no best trial in it: {error.filename}: {error.strerror}") from None
    if not checkpoint.is_dir():
        raise StudyError(f"{folder}: the best trial saved no checkpoint; its configuration is in {BEST_FILE}")
    trainable = bound_trainable(study)
    if not isinstance(trainable, type):
        return Checkpoint(str(checkpoint.resolve()))
    return _restore(trainable, best["config"], checkpoint, _context(study, best["number"]))


def test_best(folder: Path) -> Mapping[str, float] | None:
    """The metrics of the best trial on the test split; None if its trainable has no `test`.

    Args:
        folder: the study's folder, with `best/` and a checkpoint in it.
    """
    study = load_config(folder)
    if not hasattr(bound_trainable(study), "test"):
        return None
    trainable = load_best(folder)
    with use_context(_context(study, _best(folder)["number"])):
        return dict(trainable.test())


def _best(folder: Path) -> dict[str, Any]:
    return cast("dict[str, Any]", json.loads((folder / BEST_FOLDER / BEST_FILE).read_text(encoding="utf-8")))


def _context(study: Mapping[str, Any], number: int) -> TrialContext:
    """The context that the trial had, but on the processor, which has no fp16: its GPU may not be here."""
    fidelity = study.get("fidelity", {})  # a study that is older than the key
    return TrialContext(
        number=number,
        study_seed=study["seed"],
        space=space_of(study),
        max_resource=study["scheduler"].get("max_resource", study["task"]["max_resource"]),
        args=study["task"]["args"],
        precision="fp32" if study["trainable"]["precision"] == "fp16" else study["trainable"]["precision"],
        fidelity=fidelity.get("name", "epochs"),
        steps_per_unit=fidelity.get("steps_per_unit") or 1,
    )


def _restore(cls: Any, config: Mapping[str, Any], checkpoint: Path, context: TrialContext) -> Any:
    from hpo_ray.executors.internals import load_class

    with use_context(context):
        trainable = cls(dict(config))
        try:
            load_class(trainable, str(checkpoint))
        except UnreadableCheckpoint as error:
            raise StudyError(f"the best trial's checkpoint can't be read: {error}") from error
    return trainable
