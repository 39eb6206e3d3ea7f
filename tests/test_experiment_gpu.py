"""experiments/gpu, as far as it goes without a GPU."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hpo_ray.tasks.digits import DigitsCNN

SCRIPT = Path(__file__).parents[1] / "experiments" / "gpu" / "run.py"
pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="the source package leaves experiments out")


@pytest.mark.slow
def test_the_script_runs_on_a_processor_and_without_ray(tmp_path: Path) -> None:
    (tmp_path / "ray.py").write_text("raise ImportError('there is no Ray')")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--device", "cpu", "--quick"],
        env={"PYTHONPATH": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [(case["network"], case["precision"]) for case in found["precisions"]] == [
        ("digits_cnn", "fp32"),
        ("wide", "fp32"),
    ]
    assert [(case["network"], case["processes"]) for case in found["sharing"]] == [
        ("digits_cnn", 1),
        ("digits_cnn", 2),
        ("wide", 1),
        ("wide", 2),
    ]
    assert [(case["strategy"], case["ranks"]) for case in found["together"]] == [
        ("ddp", 1),
        ("ddp", 2),
        ("fsdp", 1),
        ("fsdp", 2),
    ]
    assert (found["gpus"], found["freeing"]) == (0, None)


def test_its_network_is_that_of_the_task() -> None:
    spec = importlib.util.spec_from_file_location("gpu_run", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    theirs, ours = DigitsCNN({}).model, script.digits_cnn()
    assert repr(ours) == repr(theirs)
    assert {n: p.shape for n, p in ours.state_dict().items()} == {n: p.shape for n, p in theirs.state_dict().items()}
    x = torch.randn(2, 64)
    ours.load_state_dict(theirs.state_dict())
    assert torch.equal(ours.eval()(x), theirs.eval()(x))
