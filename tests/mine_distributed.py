"""A user's class for tests of several processes a trial."""

import os
import signal
from pathlib import Path

import torch
from torch import nn

from hpo_ray import get_context
from hpo_ray.trainables import TorchTrainable


class Points(TorchTrainable):
    """Three classes of points in the plane, in float64; each of its processes leaves its id in task.args.path."""

    def setup(self, config):
        """Which may go wrong before the processes have met."""
        faults = get_context().args.get("faults", "")
        if get_context().rank == 1 and f"{get_context().number}-setup1" in faults.split("_"):
            raise ValueError("went wrong in setup")
        super().setup(config)

    def build_model(self, config):
        """Two layers."""
        context = get_context()
        name = f"{context.number}-{self.rank}-{os.getpid()}"
        Path(context.args["path"], name).touch()
        self.wrong = dict(part.split("-") for part in context.args.get("faults", "").split("_") if part)
        self.goes_wrong("build")
        return nn.Sequential(nn.Linear(2, 7), nn.Tanh(), nn.Linear(7, 3)).double()

    def build_optimizer(self, model, config):
        """SGD."""
        return torch.optim.SGD(model.parameters(), lr=config["lr"], momentum=0.9)

    def build_data(self, config):
        """37 rows to train on."""
        target = torch.arange(60) % 3
        angle = target * 2.1 + 0.5 * torch.randn(60)
        x = torch.stack([angle.cos(), angle.sin()], dim=1).double()
        return {"train": (x[:37], target[:37]), "validation": (x[37:50], target[37:50]), "test": (x[50:], target[50:])}

    def loss(self, output, target):
        """In float64, and wrong where it is to be."""
        if self.model.training:
            self.goes_wrong("loss")
        return nn.functional.cross_entropy(output, target)

    def goes_wrong(self, where):
        """What task.args.faults says of this trial, `NUMBER-WHAT`: raise1 or die1 in rank 1, die0, late."""
        what = self.wrong.get(str(get_context().number))
        if what == f"{where}{self.rank}":
            raise ValueError(f"went wrong in {where}")
        if where == "loss" and what == f"die{self.rank}":
            os.kill(os.getpid(), signal.SIGKILL)
