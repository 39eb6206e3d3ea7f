"""What one trial gets: what can't be is named, what can is what Ray is asked for."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from hpo_ray.config import load, to_plain
from hpo_ray.errors import ConfigError
from hpo_ray.resources import ACCELERATOR_LABEL, PLACEMENTS, STRATEGIES, Resources


def of(**keys: Any) -> Resources:
    return Resources.of({**to_plain(load().resources), **keys})


def test_what_is_typed_is_what_a_trial_gets() -> None:
    assert of() == Resources()
    typed = ["resources.cpu=4", "resources.gpu=1", "resources.workers=2", "resources.strategy=fsdp"]
    typed += ["resources.placement=STRICT_SPREAD", "resources.free_gpu_memory=0", "resources.accelerator=[A100, H100]"]
    typed += ["resources.labels={zone: x}", "resources.labels.rack=3"]
    labels = {"zone": ("x",), "rack": ("3",), ACCELERATOR_LABEL: ("A100", "H100")}
    expected = Resources(4.0, 1.0, 2, "fsdp", "STRICT_SPREAD", labels, 0.0)
    assert Resources.of(to_plain(load(typed).resources)) == expected


@pytest.mark.parametrize("choice", ["cpu", "gpu", "gpu_fraction", "multi_gpu"])
def test_each_choice_can_be(choice: str) -> None:
    asked = Resources.of(to_plain(load([f"resources={choice}"]).resources))
    assert (asked.gpu > 0) == (choice != "cpu") and (asked.workers > 1) == (choice == "multi_gpu")
    assert {field.name for field in fields(asked)} >= {"cpu", "gpu", "workers", "labels"}


@pytest.mark.parametrize(
    ("keys", "bundle"),
    [
        ({}, {"CPU": 1.0}),
        ({"cpu": 0.5}, {"CPU": 0.5}),
        ({"gpu": 1.0}, {"CPU": 1.0, "GPU": 1.0}),
        ({"cpu": 0.0, "gpu": 0.25}, {"GPU": 0.25}),
    ],
)
def test_what_ray_is_asked_for(keys: dict[str, Any], bundle: dict[str, float]) -> None:
    assert of(**keys).bundle == bundle


@pytest.mark.parametrize(
    ("keys", "selector"),
    [
        ({}, {}),
        ({"accelerator": "A100"}, {ACCELERATOR_LABEL: "A100"}),
        ({"accelerator": ["A100", "H100"]}, {ACCELERATOR_LABEL: "in(A100,H100)"}),
        ({"labels": {"zone": "x", "rack": [1, 2]}}, {"zone": "x", "rack": "in(1,2)"}),
        ({"labels": {ACCELERATOR_LABEL: "V100"}, "accelerator": "A100"}, {ACCELERATOR_LABEL: "A100"}),
        ({"labels": None}, {}),
    ],
)
def test_labels_as_ray_writes_them(keys: dict[str, Any], selector: dict[str, str]) -> None:
    assert of(**keys).label_selector == selector


@pytest.mark.parametrize("share", [0.5, 0.3333, 0.333, 0.33, 0.25, 0.2, 0.1, 0.05, 0.01, 1.0, 2.0, 0.99])
def test_shares_of_a_gpu_that_leave_next_to_nothing(share: float) -> None:
    assert of(gpu=share).gpu == share


@pytest.mark.parametrize(
    ("keys", "key", "message"),
    [
        ({"cpu": -1.0}, "cpu", "resources.cpu=-1: must be >= 0"),
        ({"cpu": float("nan")}, "cpu", "resources.cpu=nan: must be >= 0"),
        ({"gpu": float("inf")}, "gpu", "resources.gpu=inf: must be >= 0"),
        ({"cpu": 0.0}, "cpu", "resources.cpu=0: a trial without cores needs a GPU; use 1"),
        ({"gpu": 1.5}, "gpu", "resources.gpu=1.5: more than one GPU must be a whole number; use 1 or 2"),
        (
            {"gpu": 0.4},
            "gpu",
            "resources.gpu=0.4: 2 trials fit on a GPU, and 20% of it would stay unused; use 0.5 (2 on a GPU) or "
            "0.3333 (3)",
        ),
        (
            {"gpu": 0.6},
            "gpu",
            "resources.gpu=0.6: 1 trials fit on a GPU, and 40% of it would stay unused; use 1 (1 on a GPU) or 0.5 (2)",
        ),
        ({"workers": 0}, "workers", "resources.workers=0: must be a whole number >= 1"),
        (
            {"workers": 2, "gpu": 0.5},
            "gpu",
            "resources.gpu=0.5: each of the 2 processes of a trial needs a GPU of its own; use resources.gpu=1",
        ),
        ({"strategy": "dp"}, "strategy", f"resources.strategy=dp: must be one of {', '.join(STRATEGIES)}"),
        ({"placement": "pack"}, "placement", f"resources.placement=pack: must be one of {', '.join(PLACEMENTS)}"),
        (
            {"free_gpu_memory": 1.1},
            "free_gpu_memory",
            "resources.free_gpu_memory=1.1: must be a share from 0 (not looked at) to 1",
        ),
        ({"labels": ["zone"]}, "labels", "resources.labels=['zone']: must be a mapping, {NAME: VALUE}"),
        (
            {"labels": {"zone": None}},
            "labels.zone",
            "resources.labels.zone=None: must be the value of a label, or a list of some",
        ),
        (
            {"labels": {"zone": []}},
            "labels.zone",
            "resources.labels.zone=[]: must be the value of a label, or a list of some",
        ),
        (
            {"accelerator": " "},
            "accelerator",
            "resources.accelerator=' ': must be the value of a label, or a list of some",
        ),
        (
            {"accelerator": ["A100", {}]},
            "accelerator",
            "resources.accelerator=['A100', {}]: must be the value of a label, or a list of some",
        ),
    ],
)
def test_what_cannot_be(keys: dict[str, Any], key: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        of(**keys)
    assert str(error.value) == message and error.value.key == f"resources.{key}"
