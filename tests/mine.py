"""A user's own training code: Ray Tune functions and classes, good and bad."""

import ctypes
import functools
import json
import math
import os
import resource
import signal
import sys
import tempfile
import time

from ray import tune

SPACE = "space={lr: {low: 0.01, high: 1.0}}"


def loss(config, step):
    """Falls with the steps; who starts best ends best."""
    return config["lr"] + 1 / step


def train(config):
    """Reports a checkpoint with each step, and goes on from the last."""
    start = 0
    checkpoint = tune.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as folder, open(os.path.join(folder, "step.json")) as file:
            start = json.load(file)
    print("starts at", start)
    for step in range(start + 1, 1000):
        with tempfile.TemporaryDirectory() as folder:
            with open(os.path.join(folder, "step.json"), "w") as file:
                json.dump(step, file)
            tune.report({"loss": loss(config, step)}, checkpoint=tune.Checkpoint.from_directory(folder))


def no_checkpoint(config):
    """Reports no checkpoints."""
    for step in range(1, 1000):
        tune.report({"loss": loss(config, step)})


def short(config):
    """Ends by itself after four steps."""
    for step in range(1, 5):
        tune.report({"loss": loss(config, step)})


def generator(config):
    """Yields its reports, as Ray Tune allows."""
    for step in range(1, 1000):
        yield {"loss": loss(config, step)}


def raises(config):
    """Fails at its second step if the rate is low."""
    for step in range(1, 1000):
        if step == 2 and config["lr"] < 0.5:
            print("about to fail")
            raise ValueError(f"the rate {config['lr']:.3f} is too low")
        tune.report({"loss": loss(config, step)})


def always_raises(config):
    """Fails at once."""
    raise RuntimeError("never works")


def exits(config):
    """Ends its process, which must not be the driver's."""
    sys.exit(3)


def not_finite(config):
    """Reports NaN at its second step if the rate is low."""
    for step in range(1, 1000):
        tune.report({"loss": float("nan") if step == 2 and config["lr"] < 0.5 else loss(config, step)})


def other_metric(config):
    """Reports metrics of other names."""
    for _ in range(1000):
        tune.report({"accuracy": 1.0, "perplexity": 2.0})


def never_reports(config):
    """Reports nothing."""


def text_metric(config):
    """Reports the metric as a text."""
    tune.report({"loss": "low"})


def no_argument():
    """Takes no configuration."""


def two_arguments(config, data):
    """Takes one argument too many."""


def asks_context(config):
    """Reports what it knows about itself."""
    from hpo_ray import get_context

    context = get_context()
    for _ in range(1000):
        tune.report({"loss": config["lr"], "number": context.number, "seed": context.seed, "arg": context.args["path"]})


def on_gpus(config):
    """Trains on GPUs."""
    short(config)


wants_gpus = tune.with_resources(on_gpus, {"cpu": 1, "gpu": 64})


def of_two(data, config):
    """Takes data and a configuration."""
    for _ in range(1000):
        tune.report({"loss": config["lr"] + data})


partial = functools.partial(of_two, 0.5)


class Called:
    """An object that can be called."""

    def __call__(self, config):
        """Trains."""
        short(config)


called = Called()


def changes_folder(config):
    """Works in a folder of its own."""
    for step in range(1, 1000):
        folder = f"folder-{config['lr']:.6f}"
        if step == 1:
            os.mkdir(folder)
            os.chdir(folder)
        tune.report({"loss": loss(config, step), "in_its_own": os.path.basename(os.getcwd()) == folder or step == 1})


def stops_by_keyboard_interrupt(config):
    """Raises what Ctrl-C raises."""
    raise KeyboardInterrupt


def interrupts_itself(config):
    """Presses Ctrl-C in the middle of a very long step."""
    tune.report({"loss": 1.0})
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(10_000)


class Plain:
    """No Ray Tune class."""


class NoCheckpoint(tune.Trainable):
    """Has neither checkpoints nor `reset_config`."""

    def setup(self, config):
        """Nothing trained yet."""
        self.lr, self.steps = config["lr"], 0

    def step(self):
        """One step."""
        self.steps += 1
        return {"loss": loss({"lr": self.lr}, self.steps)}


class DictCheckpoint(NoCheckpoint):
    """Saves a dict, as Ray Tune allows."""

    def save_checkpoint(self, checkpoint_dir):
        """The number of steps."""
        return {"steps": self.steps}

    def load_checkpoint(self, checkpoint):
        """The number of steps."""
        self.steps = checkpoint["steps"]


class Learns(tune.Trainable):
    """Its weight grows by the rate with each step, which a checkpoint keeps: what is copied shows in the loss."""

    def setup(self, config):
        """Nothing learnt yet."""
        self.weight = 0.0

    def reset_config(self, new_config):
        """As a new one; `self.config` is the new configuration already."""
        self.weight = 0.0
        return True

    def step(self):
        """One step."""
        self.weight += self.config["lr"]
        return {"loss": -self.weight}

    def save_checkpoint(self, checkpoint_dir):
        """The weight."""
        return {"weight": self.weight}

    def load_checkpoint(self, checkpoint):
        """The weight."""
        self.weight = checkpoint["weight"]


class LearnsUntilItFails(Learns):
    """Some fail at a step of their own."""

    def step(self):
        """One step, or an error."""
        from hpo_ray import get_context

        if (get_context().number, self.iteration) in ((1, 0), (2, 2), (5, 4), (7, 8)):
            raise ValueError("fails")
        return super().step()


class LearnsInLeaps(Learns):
    """Its resource, `epoch`, grows by 2, so that it steps over interval points."""

    def step(self):
        """Two epochs."""
        return {**super().step(), "epoch": 2 * (self.iteration + 1)}


def learns(config):
    """As `Learns`, as a function; it saves at every other step only, and ends by itself."""
    weight, start = 0.0, 0
    checkpoint = tune.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as folder, open(os.path.join(folder, "state.json")) as file:
            weight, start = json.load(file)
    for step in range(start + 1, 9):
        weight += config["lr"]
        with tempfile.TemporaryDirectory() as folder:
            with open(os.path.join(folder, "state.json"), "w") as file:
                json.dump([weight, step], file)
            saved = tune.Checkpoint.from_directory(folder) if step % 2 == 0 else None
            tune.report({"loss": -weight, "epoch": step}, checkpoint=saved)


class FailsToSave(DictCheckpoint):
    """Fails when a trial with a low rate is saved."""

    def save_checkpoint(self, checkpoint_dir):
        """Fails."""
        if self.lr < 0.5:
            raise OSError("no space left on device")
        return super().save_checkpoint(checkpoint_dir)


class WritesThenFailsToSave(DictCheckpoint):
    """Writes a file named by its number of saves, and with a low rate fails after that."""

    def save_checkpoint(self, checkpoint_dir):
        """One file, and no more."""
        with open(os.path.join(checkpoint_dir, f"{self.lr}.txt"), "w") as file:
            file.write(str(self.steps))
        if self.lr < 0.2:
            raise OSError("disk full")

    def load_checkpoint(self, checkpoint_dir):
        """Only what this trial wrote is there."""
        (name,) = os.listdir(checkpoint_dir)
        assert name == f"{self.lr}.txt"
        with open(os.path.join(checkpoint_dir, name)) as file:
            self.steps = int(file.read())


class FailsToReset(DictCheckpoint):
    """Refuses to be used again for a low rate, in both ways that Ray Tune knows."""

    def reset_config(self, new_config):
        """False, or an error."""
        if new_config["lr"] < 0.3:
            return False
        if new_config["lr"] < 0.6:
            raise RuntimeError("can't be reset")
        self.setup(new_config)
        return True


class FailsToLoad(DictCheckpoint):
    """Fails when a paused trial with a low rate goes on."""

    def load_checkpoint(self, checkpoint):
        """Fails."""
        if self.lr < 0.1:
            raise OSError("the checkpoint is damaged")
        super().load_checkpoint(checkpoint)


class FailsOnce(DictCheckpoint):
    """Fails at step 2 the first time; a marker in the folder `task.args.path` says whether it did."""

    def step(self):
        """One step, or an error."""
        from hpo_ray import get_context

        context = get_context()
        marker = os.path.join(context.args["path"], f"failed-{context.number}")
        if self.steps == 1 and not os.path.exists(marker):
            open(marker, "w").close()
            raise ValueError("fails once")
        return super().step()


class KillsItsProcess(DictCheckpoint):
    """Takes its process with it at step 2 if the rate is very low."""

    def step(self):
        """One step, or the end."""
        if self.steps == 1 and self.lr < 0.2:
            os._exit(1)
        return super().step()


class RefusesReset(DictCheckpoint):
    """Can't be used again, and says so as Ray Tune allows."""

    def reset_config(self, new_config):
        """No."""
        return False


class CantSayWhatItNeeds(DictCheckpoint):
    """Fails when it is asked for its resources."""

    @classmethod
    def default_resource_request(cls, config):
        """Looks for a hyperparameter that isn't there."""
        return tune.PlacementGroupFactory([{"CPU": config["cores"]}])


class FailsAtTheEnd(DictCheckpoint):
    """Fails when it is cleaned up, by when its trial is over."""

    def cleanup(self):
        """Fails."""
        raise OSError("a socket is closed already")


class Costs(DictCheckpoint):
    """Says what each step cost: its rate."""

    def step(self):
        return {**super().step(), "cost": self.config["lr"]}


class CostsNothingSane(DictCheckpoint):
    """Says that its third step cost less than nothing."""

    def step(self):
        result = super().step()
        return {**result, "cost": -1.0 if self.iteration == 2 else 1.0}


def costly_function(config):
    """Ends by itself after three steps of five seconds."""
    for step in range(1, 4):
        tune.report({"loss": loss(config, step), "cost": 5.0})


def seconds(config, resource):
    """What a step costs: more for a high rate, and more later."""
    return 10 * config["lr"] + resource


def infinite_seconds(config, resource):
    """No cost that a clock could take."""
    return float("inf") if resource == 2 else 1.0


def raising_seconds(config, resource):
    """A cost that can't be told."""
    return config["batch_size"]


class TensorMetric(DictCheckpoint):
    """Returns its metric as a scalar of torch's."""

    def step(self):
        """One step."""
        import torch

        return {"loss": torch.tensor(super().step()["loss"])}


def second_not_finite(config):
    for _ in range(2):
        tune.report({"loss": config["lr"], "other": 1.0 if config["lr"] >= 0.5 else math.nan})


class TensorCheckpoint(DictCheckpoint):
    """Saves a dict of what JSON can't hold."""

    def save_checkpoint(self, checkpoint_dir):
        """Tensors, arrays and the state of a generator."""
        import numpy as np
        import torch

        state = np.random.RandomState(self.steps).get_state()
        return {"steps": torch.tensor(self.steps), "history": (1, np.ones(3)), "random": state}

    def load_checkpoint(self, checkpoint):
        """The number of steps."""
        self.steps = int(checkpoint["steps"])


class FileCheckpoint(DictCheckpoint):
    """Writes files of its own."""

    def save_checkpoint(self, checkpoint_dir):
        """A file with the number of steps."""
        with open(os.path.join(checkpoint_dir, "steps.txt"), "w") as file:
            file.write(str(self.steps))

    def load_checkpoint(self, checkpoint_dir):
        """The number of steps."""
        with open(os.path.join(checkpoint_dir, "steps.txt")) as file:
            self.steps = int(file.read())


class ObjectCheckpoint(DictCheckpoint):
    """Saves what can't be read back without running code."""

    def save_checkpoint(self, checkpoint_dir):
        """Itself, as it were."""
        return {"steps": self.steps, "model": Called()}


class BigFile(FileCheckpoint):
    """Writes a file of 200 KB."""

    def save_checkpoint(self, checkpoint_dir):
        """The number of steps, and much else."""
        super().save_checkpoint(checkpoint_dir)
        with open(os.path.join(checkpoint_dir, "big"), "wb") as file:
            file.write(b"x" * 200_000)


class BigDict(TensorCheckpoint):
    """Saves a tensor of 200 KB."""

    def save_checkpoint(self, checkpoint_dir):
        """The number of steps, and much else."""
        import torch

        return {**super().save_checkpoint(checkpoint_dir), "big": torch.ones(50_000)}


def big(config):
    """Reports checkpoints of 200 KB."""
    start = 0
    checkpoint = tune.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as folder:
            start = os.path.getsize(os.path.join(folder, "big")) - 200_000
    for step in range(start + 1, 1000):
        with tempfile.TemporaryDirectory() as folder:
            with open(os.path.join(folder, "big"), "wb") as file:
                file.write(b"x" * (200_000 + step))
            tune.report({"loss": loss(config, step)}, checkpoint=tune.Checkpoint.from_directory(folder))


def reads_then_fails(config):
    """Fails at its fourth step, while others than its checkpoint are open."""
    start = 0
    checkpoint = tune.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as folder, open(os.path.join(folder, "step.json")) as file:
            start = json.load(file)
    for step in range(start + 1, 1000):
        if step == 4:
            raise ValueError("fails at 4")
        with tempfile.TemporaryDirectory() as folder:
            with open(os.path.join(folder, "step.json"), "w") as file:
                json.dump(step, file)
            tune.report({"loss": loss(config, step)}, checkpoint=tune.Checkpoint.from_directory(folder))


def faults():
    """What is to go wrong at which step of which trial: `task.args.faults=3-1-raise_5-9-hang`, as {(3, 1): "raise"}.

    With a folder in `task.args.path` each goes wrong once only.
    """
    from hpo_ray import get_context

    context = get_context()
    parts = (fault.split("-") for fault in context.args.get("faults", "").split("_") if fault)
    return context, {(int(number), int(step)): kind for number, step, kind in parts}


def goes_wrong(step):
    """Goes wrong here if it is to; True if the loss is to be NaN."""
    context, known = faults()
    kind = known.get((context.number, step))
    if kind is None:
        return False
    if "path" in context.args:
        marker = os.path.join(context.args["path"], f"{context.number}-{step}")
        if os.path.exists(marker):
            return False
        open(marker, "w").close()
    print("about to", kind, flush=True)
    if kind == "raise":
        raise ValueError("went wrong")
    if kind == "interrupt":
        raise KeyboardInterrupt
    if kind == "hang":
        time.sleep(1000)
    if kind == "loop":
        while True:
            pass
    if kind == "stubborn":  # catches whatever it can
        try:
            time.sleep(1000)
        except Exception:
            pass
        except BaseException:
            time.sleep(1000)
    if kind == "stuck":  # in C, with Python's lock held
        ctypes.PyDLL(None).sleep(1000)
    if kind == "kill":  # as the kernel does when memory runs out
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "memory":
        resource.setrlimit(resource.RLIMIT_AS, (2**34, 2**34))
        bytearray(2**36)
    return kind == "nan"


class Faulty(DictCheckpoint):
    """Goes wrong where `task.args.faults` says."""

    def setup(self, config):
        """Step 0."""
        super().setup(config)
        goes_wrong(0)

    def reset_config(self, new_config):
        """As a new one."""
        self.setup(new_config)
        return True

    def step(self):
        """One step."""
        wrong = goes_wrong(self.steps + 1)
        result = super().step()
        return {"loss": math.nan} if wrong else result


def faulty(config):
    """As `Faulty`, as a function."""
    start = 0
    checkpoint = tune.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as folder, open(os.path.join(folder, "step.json")) as file:
            start = json.load(file)
    for step in range(start + 1, 1000):
        wrong = goes_wrong(step)
        with tempfile.TemporaryDirectory() as folder:
            with open(os.path.join(folder, "step.json"), "w") as file:
                json.dump(step, file)
            report = {"loss": math.nan if wrong else loss(config, step)}
            tune.report(report, checkpoint=tune.Checkpoint.from_directory(folder))


class Slow(DictCheckpoint):
    """Takes its time."""

    def step(self):
        """One step."""
        time.sleep(0.3)
        return super().step()


class SlowUntil(DictCheckpoint):
    """Takes its time until the file `task.args.path` is there."""

    def step(self):
        """One step."""
        from hpo_ray import get_context

        if not os.path.exists(get_context().args["path"]):
            time.sleep(0.3)
        return super().step()


class Sluggish(DictCheckpoint):
    """A step takes a while."""

    def step(self):
        """One step."""
        time.sleep(0.03)
        return super().step()


class Endless(DictCheckpoint):
    """Its first step never ends."""

    def step(self):
        """Waits, and says so."""
        print("waits", flush=True)
        while True:
            time.sleep(0.01)


class Suicidal(DictCheckpoint):
    """Its third trial kills its process."""

    def step(self):
        """One step, or the last one."""
        from hpo_ray import get_context

        if get_context().number == 2 and self.steps == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step()


class OnNodes(Learns):
    """Reports on which node it runs. On `task.args.victim` no trial gets beyond its first step.

    None does elsewhere, until one has come so far there; with `task.args.known`, ids of nodes, until one runs on a node
    that is not among them.
    """

    def step(self):
        """One step."""
        import ray

        from hpo_ray import get_context

        args = get_context().args
        if "victim" not in args:
            return super().step()
        node, known = ray.get_runtime_context().get_node_id(), args.get("known")
        held, used = (os.path.join(args["path"], name) for name in ("held", "used"))
        if known is not None and node not in known:
            open(used, "w").close()
        if self.iteration >= 1:
            if node == args["victim"]:
                open(held, "w").close()
            while node == args["victim"] or not os.path.exists(held if known is None else used):
                time.sleep(0.01)
        return {**super().step(), "node": node}
