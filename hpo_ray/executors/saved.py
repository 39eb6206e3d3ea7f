"""Which checkpoints the log of a study needs: of each trial that lives the last two."""

from __future__ import annotations

from hpo_ray.events import CheckpointSaved, Decided, Event, TrialEnded


class LastTwo:
    """A fold over the log: the last two checkpoints of each trial that has not ended, of the weights that it has.

    None from before it copied another trial, and of another configuration none but the last. The one before the last
    is there for when the last can't be read.

    Attributes:
        paths: as in the log, by the trial's id, the last one last.
    """

    def __init__(self) -> None:
        self.paths: dict[str, list[str]] = {}

    def observe(self, event: Event) -> list[str]:
        """Takes an event into account; the paths that aren't needed any more."""
        if isinstance(event, TrialEnded):
            self.paths.pop(event.trial_id, None)
            return []
        if not isinstance(event, CheckpointSaved | Decided):
            return []
        before = self.paths.get(event.trial_id, [])
        after = self._after(before, event)
        if after is before:
            return []
        self.paths[event.trial_id] = after
        return [path for path in before if path not in after]

    def _after(self, known: list[str], event: CheckpointSaved | Decided) -> list[str]:
        if isinstance(event, Decided):
            if event.checkpoint is not None:
                return [event.checkpoint]
            return known[-1:] if event.config is not None else known
        if event.path is None:
            return known
        if event.path in known:  # recorded again: a function's at each pause, or the one before one that can't be read
            known = known[: known.index(event.path)]
        return [*known, event.path][-2:]
