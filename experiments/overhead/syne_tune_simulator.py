"""The same study in Syne Tune's simulator, to be run by a Python that has it. Prints one line of JSON.

pip install syne-tune huggingface_hub
python experiments/overhead/syne_tune_simulator.py TRIALS WORKERS METHOD REPORTS    # METHOD: random or asha
"""

import json
import logging
import os
import resource
import sys
import tempfile
import time

os.environ["SYNETUNE_FOLDER"] = tempfile.mkdtemp(prefix="syne-")

import numpy as np
import syne_tune
from syne_tune import StoppingCriterion, Tuner
from syne_tune.backend.simulator_backend.simulator_callback import SimulatorCallback
from syne_tune.blackbox_repository.blackbox import Blackbox
from syne_tune.blackbox_repository.simulated_tabular_backend import UserBlackboxBackend
from syne_tune.config_space import randint, uniform
from syne_tune.optimizer.baselines import ASHA, RandomSearch

TRIALS, WORKERS, METHOD, REPORTS = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])


class Objective(Blackbox):
    """`x` at each of the reports, one second apart."""

    def __init__(self):
        super().__init__({"x": uniform(0.0, 1.0)}, {"epoch": randint(1, REPORTS)}, ["loss", "elapsed"])

    @property
    def fidelity_values(self):
        """Every epoch."""
        return np.arange(1, REPORTS + 1)

    def _objective_function(self, configuration, fidelity=None, seed=None):
        if fidelity is not None:
            return {"loss": configuration["x"], "elapsed": float(fidelity["epoch"])}
        epochs = np.arange(1, REPORTS + 1, dtype=float)
        return np.column_stack([np.full(REPORTS, configuration["x"]), epochs])

    def hyperparameter_objectives_values(self, predict_curves=False):
        """Not asked for."""
        raise NotImplementedError


def main():
    logging.disable(logging.CRITICAL)
    space = {"x": uniform(0.0, 1.0), "epochs": REPORTS}
    if METHOD == "asha":
        scheduler = ASHA(
            space, metric="loss", time_attr="epoch", max_t=REPORTS, grace_period=1, reduction_factor=3, random_seed=0
        )
    else:
        scheduler = RandomSearch(space, metrics=["loss"], random_seed=0)
    tuner = Tuner(
        trial_backend=UserBlackboxBackend(Objective(), elapsed_time_attr="elapsed", max_resource_attr="epochs"),
        scheduler=scheduler,
        stop_criterion=StoppingCriterion(max_num_trials_finished=TRIALS),
        n_workers=WORKERS,
        sleep_time=0,
        callbacks=[SimulatorCallback()],
        print_update_interval=1e9,
        results_update_interval=1e9,
        save_tuner=False,
        suffix_tuner_name=True,
        tuner_name="overhead",
    )
    started = time.perf_counter()
    tuner.run()
    seconds = time.perf_counter() - started
    status = tuner.tuning_status
    print(
        json.dumps(
            {
                "seconds": seconds,
                "trials": len(status.trial_rows),
                "reports": int(status.overall_metric_statistics.count),
                "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "version": syne_tune.__version__,
            }
        )
    )


main()
