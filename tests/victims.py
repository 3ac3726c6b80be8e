"""Kill work and check that it resumes: python victims.py sweep|moments|training FOLDER KILLS SEED

Each child is a fork of this process, which has imported everything already and runs no threads. So a kill interrupts the
work, not an import. It prints one line of JSON.
"""

import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import toys

from refinecam_lib import paths
from refinecam_lib.sweeps import run as sweep
from refinecam_lib.training import loop as fit
from refinecam_lib.training.recipe import Recipe


def killed(work: Callable[[], object], after: float | None = None) -> bool:
    """Run `work` in a fork. Kill it after some seconds, or let it kill itself. Return whether SIGKILL ended it."""
    child = os.fork()
    if child == 0:
        with contextlib.redirect_stdout(io.StringIO()):
            work()
        os._exit(0)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def sweeps(folder: Path, kills: int, dice: random.Random) -> dict:
    """Kill a sweep at random moments and start it again each time. A finished sweep starts from nothing."""
    shards = toys.plan(images=12, size=2, methods=("LayerCAM", "GradCAM++", "RandomCAM"))
    paths.RESULTS = folder / "undisturbed"
    sweep.sweep(shards[:1])  # a warm-up
    begun = time.monotonic()
    rows = sweep.sweep(shards)
    seconds, expected = time.monotonic() - begun, toys.files(paths.RESULTS)
    paths.RESULTS = folder / "killed"
    kept, equal, mid = [], True, 0
    while mid < kills and len(kept) < 10 * kills:  # a child that finished before its kill does not count
        mid += killed(lambda: sweep.sweep(shards), dice.uniform(0, seconds))
        found = toys.files(paths.RESULTS)
        kept.append(len(found))
        equal &= all(expected[name] == content for name, content in found.items())
        if len(found) == len(shards):
            shutil.rmtree(paths.RESULTS)
    equal &= rows.equals(sweep.sweep(shards)) and toys.files(paths.RESULTS) == expected
    return {"kills": mid, "shards": len(shards), "kept": kept, "equal": equal, "seconds": seconds}


def moments(folder: Path, kills: int, dice: random.Random) -> dict:
    """Kill a sweep between the steps that write a file: before it is written, synced or moved into place."""
    shards = toys.plan(methods=("LayerCAM",))
    paths.RESULTS = folder / "undisturbed"
    rows = sweep.sweep(shards)
    expected, seen, equal = toys.files(paths.RESULTS), [], True
    paths.RESULTS = folder / "killed"
    for name in ("fsync", "replace"):
        for nth in (1, 2, 3):

            def work(name=name, nth=nth):
                calls, real = [], getattr(os, name)

                def dies(*arguments):
                    calls.append(arguments)
                    if len(calls) == nth:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return real(*arguments)

                setattr(os, name, dies)
                sweep.sweep(shards)

            shutil.rmtree(paths.RESULTS, ignore_errors=True)
            seen.append(killed(work) and len(toys.files(paths.RESULTS)) == nth - 1)
            equal &= rows.equals(sweep.sweep(shards)) and toys.files(paths.RESULTS) == expected
    return {"kills": len(seen), "as planned": all(seen), "equal": equal}


def training(folder: Path, kills: int, dice: random.Random) -> dict:
    """Kill a training at random moments and while it writes its state. It must end with the undisturbed weights."""
    recipe = Recipe(
        weights="none", images=48, batch=4, lr=1e-2, stages=((32, 0.5), (48, 0.5)), validation=6, validate_every=8
    )

    def train(name: str):
        with contextlib.redirect_stdout(io.StringIO()):
            return fit.fit(recipe, "cpu", 0, folder / name, progress=False)

    begun = time.monotonic()
    whole, record = train("undisturbed")
    seconds, steps, mid = time.monotonic() - begun, [], 0
    while mid < kills and len(steps) < 10 * kills:
        mid += killed(lambda: train("killed"), dice.uniform(0.2, 0.8) * seconds)
        states = list((folder / "killed").glob("*.pt")) if (folder / "killed").is_dir() else []
        steps += [torch.load(path, weights_only=True)["record"]["step"] for path in states]
        if steps and steps[-1] == recipe.steps:
            shutil.rmtree(folder / "killed")

    def ends_as_planned() -> bool:
        resumed, after = train("killed")
        equal = [torch.equal(value, resumed.state_dict()[key]) for key, value in whole.state_dict().items()]
        return all(equal) and after["history"] == record["history"]

    equal, real = ends_as_planned(), torch.save

    def dies(content: object, part: Path):
        """Write only half of the state in the middle of the run, then die."""
        written = io.BytesIO()
        real(content, written)
        if content["record"]["step"] == recipe.steps // 2:
            Path(part).write_bytes(written.getvalue()[: written.tell() // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        Path(part).write_bytes(written.getvalue())

    shutil.rmtree(folder / "killed", ignore_errors=True)
    torch.save = dies
    in_writing = killed(lambda: train("killed"))
    torch.save = real
    equal &= ends_as_planned()
    return {"kills": mid, "in writing": in_writing, "steps": steps, "of": recipe.steps, "equal": equal}


if __name__ == "__main__":
    kind, folder, kills, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    toys.register(folder)
    with contextlib.redirect_stdout(io.StringIO()):
        result = {"sweep": sweeps, "moments": moments, "training": training}[kind](folder, kills, random.Random(seed))
    print(json.dumps(result))
