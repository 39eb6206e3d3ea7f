"""Ray's storage for a study on an object store: trials put their checkpoints there, from wherever they run.

What a trial writes besides lies on its machine's own disk: in the study's folder if the trial runs in the driver,
in a temporary one otherwise, of which the trial's output goes to the store.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from ray.tune import Checkpoint

from hpo_ray.executors.internals import StudyStorage
from hpo_ray.executors.outage import StoreDown, insist
from hpo_ray.location import Location
from hpo_ray.trainables.checkpoint import UnreadableCheckpoint

_THIS_PROCESS = uuid.uuid4().hex


class RemoteStorage(StudyStorage):
    """The storage of a study on an object store.

    Args:
        location: the study's folder there.
        folder: the study's folder on the driver's disk.
    """

    kept = None  # removals are left to the mirror

    def __init__(self, location: Location, folder: Path) -> None:
        self.location, self.folder = location, folder
        self._driver = _THIS_PROCESS
        self._brought: str | None = None
        self._shared_bytes = 0
        parent = location.parent
        super().__init__(parent.path, location.name, storage_filesystem=parent.filesystem)

    def _create_validation_file(self) -> None:
        """Nothing: whether the store can be used has been looked at."""

    @property
    def experiment_driver_staging_path(self) -> str:
        """The study's folder on the driver's disk; elsewhere, a temporary one."""
        return str(self.folder) if self._driver == _THIS_PROCESS else f"{_scratch()}/{self.experiment_dir_name}"

    @property
    def trial_driver_staging_path(self) -> str:
        """The trial's folder in that."""
        return f"{self.experiment_driver_staging_path}/{self.trial_dir_name}"

    @property
    def trial_working_directory(self) -> str:
        """The same."""
        return self.trial_driver_staging_path

    @property
    def _trial(self) -> Location:
        return self.location.join(self.trial_dir_name)

    def enter(self) -> None:
        """A trial comes to this process."""
        self._shared_bytes = 0

    def leave(self) -> None:
        """Removes what was needed here for the trial's sake only."""
        self.drop_brought()
        if self._driver != _THIS_PROCESS:
            shutil.rmtree(self.trial_working_directory, ignore_errors=True)
            with suppress(OSError):
                os.removedirs(os.path.dirname(self.trial_working_directory))

    def persist_current_checkpoint(self, checkpoint: Checkpoint) -> Checkpoint:
        """Copies a checkpoint to its place: from this machine's disk, or, there, from another trial's.

        Raises:
            StoreDown: the store can't be reached.
            FileNotFoundError: the other trial's is gone.
        """
        place = self._trial.join(self.checkpoint_dir_name)
        local = self._is_local(checkpoint)

        def copy() -> None:
            place.delete()  # a retried trial writes a checkpoint of the same name again
            if local:
                place.upload(Path(checkpoint.path))
            else:
                place.copy_from(self._location_of(checkpoint))

        insist(copy, self.location)
        if Path(checkpoint.path) == self.aside():
            shutil.rmtree(checkpoint.path, ignore_errors=True)
        return self.checkpoint(f"{self.trial_dir_name}/{self.checkpoint_dir_name}")

    def bring(self, saved: Any) -> Any:
        """What was saved, on this machine's disk until the trial leaves it or `drop_brought` is called.

        Raises:
            UnreadableCheckpoint: it is gone.
            StoreDown: the store can't be reached.
        """
        checkpoint = getattr(saved, "checkpoint", saved)
        if not isinstance(checkpoint, Checkpoint) or self._is_local(checkpoint):
            return saved
        self.drop_brought()
        self._brought = tempfile.mkdtemp(prefix="hpo_ray-")
        folder, source = Path(self._brought), self._location_of(checkpoint)
        try:
            insist(lambda: source.download(folder), self.location)
        except FileNotFoundError as error:
            raise UnreadableCheckpoint(f"{source}: it is gone") from error
        local = Checkpoint(self._brought)
        return local if saved is checkpoint else type(saved)(local, saved.metrics)

    def drop_brought(self) -> None:
        """Removes what `bring` has brought."""
        if self._brought is not None:
            shutil.rmtree(self._brought, ignore_errors=True)
            self._brought = None

    def discard(self, checkpoint: Checkpoint) -> None:
        """Nothing: it goes when the log that is in the store needs it no more."""

    def bring_output(self, path: Path) -> None:
        """Brings what the trial has printed elsewhere, where that is more than what is here."""
        there = self._trial.join(path.name)

        def bring() -> None:
            size = there.size() or 0
            if size > (path.stat().st_size if path.exists() else 0):
                there.get(path)

        with suppress(OSError, StoreDown):
            insist(bring, self.location)

    def share_output(self, path: Path) -> None:
        """Copies what the trial has printed to the store; in the driver the mirror does."""
        if self._driver == _THIS_PROCESS or not path.exists():
            return
        size = path.stat().st_size
        if size != self._shared_bytes:
            with suppress(OSError):
                self._trial.join(path.name).put(path)
                self._shared_bytes = size

    def _is_local(self, checkpoint: Checkpoint) -> bool:
        return bool(checkpoint.filesystem.type_name == "local")

    def _location_of(self, checkpoint: Checkpoint) -> Location:
        """Where a checkpoint of this study lies."""
        return self.location.join(os.path.relpath(checkpoint.path, self.experiment_fs_path))


@cache
def _scratch() -> str:
    """A temporary folder of this process."""
    return tempfile.mkdtemp(prefix="hpo_ray-")
