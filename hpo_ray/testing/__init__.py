"""Laws that every method, searcher, scheduler and trainable obeys: for our tests, and for parts of your own."""

from hpo_ray.testing.laws import (
    check_resumes,
    check_same_decisions,
    check_same_events,
    check_same_proposals,
    check_scheduler_is_a_fold,
    check_searcher_is_a_fold,
    check_time_never_goes_back,
    outcomes,
    resume_study,
    run_study,
    timeless,
)

__all__ = [
    "check_resumes",
    "check_same_decisions",
    "check_same_events",
    "check_same_proposals",
    "check_scheduler_is_a_fold",
    "check_searcher_is_a_fold",
    "check_time_never_goes_back",
    "outcomes",
    "resume_study",
    "run_study",
    "timeless",
]
