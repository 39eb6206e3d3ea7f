"""Laws that every method, searcher, scheduler and trainable obeys: for our tests, and for parts of your own."""

from hpo_ray.testing.laws import check_same_events, run_study, timeless

__all__ = ["check_same_events", "run_study", "timeless"]
