"""`pip install .`: a wheel with the configuration inside, used outside of the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment with the wheel and, borrowed from this one, what it depends on."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    quiet = ["--quiet", "--disable-pip-version-check", "--no-deps"]
    build = [sys.executable, "-m", "pip", "wheel", *quiet, "--no-build-isolation", "-w", str(folder), str(CHECKOUT)]
    subprocess.run(build, check=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    python = folder / "venv" / "bin" / "python"
    wheel = next(folder.glob("*.whl"))
    subprocess.run([str(python), "-m", "pip", "install", *quiet, str(wheel)], check=True)
    query = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = subprocess.run(query, check=True, capture_output=True, text=True).stdout.strip()
    # Packages only: the editable install of the checkout works by a .pth file, which is not followed from here.
    Path(site, "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python.parent


def test_the_console_script_and_the_module_run_outside_of_the_checkout(installed: Path, folder: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    where = subprocess.run(
        [str(installed / "python"), "-c", "import hpo_ray; print(hpo_ray.__file__)"],
        capture_output=True, text=True, check=True, cwd=folder, env=environment,
    ).stdout  # fmt: skip
    assert str(installed.parent) in where and str(CHECKOUT) not in where
    typed = [
        "task=custom",
        "task.trainable=mine.train",
        "space={lr: [0.1, 0.2]}",
        "executor=inprocess",
        "method=random",
    ]
    for program in ([str(installed / "hpo_ray")], [str(installed / "python"), "-m", "hpo_ray"]):
        listed = subprocess.run(
            [*program, "list"], capture_output=True, text=True, check=True, cwd=folder, env=environment
        )
        assert "digits_mlp" in listed.stdout and "hyperband" in listed.stdout
        run = [*program, *typed, "budget.trials=1"]
        done = subprocess.run(run, capture_output=True, text=True, check=True, cwd=folder, env=environment)
        assert "finished" in done.stdout and "best       loss" in done.stdout
