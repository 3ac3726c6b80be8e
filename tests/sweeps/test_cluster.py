"""The recipes of docs/cluster.md: a dask scheduler and two workers in three processes, and Slurm's job script."""

import ast
import os
import re
import shlex
import socket
import subprocess
import sys

import dask
import pytest
from dask_jobqueue import SLURMCluster

from refinecam_lib import paths
from refinecam_lib.reproduce.__main__ import main

DOCUMENT = (paths.ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
RECIPE = next(b for b in re.findall(r"```sh\n(.*?)```", DOCUMENT, re.DOTALL) if "dask scheduler" in b).splitlines()
SLURM = re.search(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)[1]


def environment(results):
    own = {"REFINECAM_RESULTS": str(results), "REFINECAM_ROWS": str(results / "committed")}
    return os.environ | {"CI": "1", "PYTHONPATH": str(paths.ROOT)} | own


@pytest.fixture
def recipe(tmp_path):
    """Start the recipe's scheduler and workers on this machine. Returns the address, the last line and the folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    lines = [line.replace("head", "127.0.0.1").replace("8786", port) for line in RECIPE]
    assert [line.split()[:2] for line in lines[:3]] == [["dask", "scheduler"], ["dask", "worker"], ["dask", "worker"]]
    running = []
    for number, line in enumerate(lines[:3]):
        command = [sys.executable, "-m", *shlex.split(line)]
        with (tmp_path / f"{number}.log").open("w") as log:
            running.append(subprocess.Popen(command, cwd=tmp_path, env=environment(tmp_path / "dask"), stderr=log))
    yield f"tcp://127.0.0.1:{port}", lines[3], tmp_path
    for process in reversed(running):
        process.terminate()
    for process in running:
        process.wait(timeout=30)


SAME = """
import os, sys
from pathlib import Path
import distributed, torch
from refinecam_lib import paths
from refinecam_lib.sweeps.run import sweep
from refinecam_lib.sweeps.shard import plan
from refinecam_lib.sweeps.status import engine
folder, address = Path(sys.argv[1]), sys.argv[2]
def at(name):
    paths.RESULTS = folder / name
    os.environ["REFINECAM_RESULTS"] = str(paths.RESULTS)  # for new processes
torch.set_num_threads(2)  # Grad-CAM++ depends on the number of threads
shards = plan("efficientnet_lite0", ["GradCAM++"], 4, size=1)
at("sequential")
rows = sweep(shards)
at("processes")
assert sweep(shards[::-1], n_jobs=2).equals(rows)
at("dask")
with engine(address):
    client = distributed.get_client()
    client.wait_for_workers(2, timeout=120)
    assert len({os.getpid(), *client.run(os.getpid).values()}) == 3, "two workers in processes of their own"
    assert sweep(shards).equals(rows)
"""


def contents(folder):
    return {path.name: path.read_bytes() for path in (folder / "rows").rglob("*.parquet")}


def test_sequential_processes_and_a_dask_cluster_give_the_same_files(recipe):
    address, _, folder = recipe
    command = [sys.executable, "-c", SAME, str(folder), address]
    done = subprocess.run(command, env=environment(folder), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("4 rows: 0 committed, 0 measured here before, 4 measured now; 0 failed") == 3
    assert len(contents(folder / "dask")) == 4
    assert contents(folder / "sequential") == contents(folder / "processes") == contents(folder / "dask")


KILL = """
import os, signal, sys, threading, time
import distributed
from refinecam_lib import paths
from refinecam_lib.sweeps.run import sweep
from refinecam_lib.sweeps.shard import plan
from refinecam_lib.sweeps.status import engine
shards = plan("efficientnet_lite0", ["GradCAM"], 8, size=2)
if len(sys.argv) == 1:
    sweep(shards)
    raise SystemExit
with engine(sys.argv[1]):
    client = distributed.get_client()
    client.wait_for_workers(2, timeout=120)
    pids = client.run(os.getpid)
    def kill():
        while True:
            done = list(paths.RESULTS.rglob("*.parquet"))  # workers have imported everything
            for worker, tasks in client.processing().items() if done else ():
                if tasks:
                    os.kill(pids[worker], signal.SIGKILL)
                    print("killed a worker during a shard", flush=True)
                    return
            time.sleep(0.01)
    threading.Thread(target=kill, daemon=True).start()
    sweep(shards)
"""


@pytest.mark.slow
def test_the_shard_of_a_killed_dask_worker_is_measured_by_another(recipe):
    address, _, folder = recipe
    for arguments, results in (([], "sequential"), ([address], "dask")):
        command, settings = [sys.executable, "-c", KILL, *arguments], environment(folder / results)
        done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert (
        "killed a worker during a shard" in done.stdout
        and "8 rows: 0 committed, 0 measured here before, 8 measured now" in done.stdout
    )
    assert contents(folder / "sequential") == contents(folder / "dask")


@pytest.mark.slow
def test_the_recipe_to_its_last_line(recipe):
    """Run it with a few images of one notebook, then print the status."""
    _, line, folder = recipe
    few = "--profile standard --only 05 --set n_images=2"
    command = [sys.executable, *shlex.split(line.replace("--profile paper", few))[1:]]
    done = subprocess.run(command, env=environment(folder / "dask"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("measured now; 0 failed\n")
    command = [sys.executable, "-m", "refinecam_lib.reproduce", "status", *shlex.split(few)]
    done = subprocess.run(command, env=environment(folder / "dask"), capture_output=True, text=True, check=True)
    assert re.fullmatch(r"together: (\d+) of \1 rows done, 0 of them committed", done.stdout.splitlines()[-1])


def test_a_scheduler_that_is_not_there_is_one_clear_line(capsys):
    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
        assert main(["measure", "--only", "3", "--dask", "tcp://127.0.0.1:9"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: No dask scheduler at 'tcp://127.0.0.1:9': Timed out")


def test_slurm_gets_one_task_one_gpu_and_one_worker(tmp_path, monkeypatch):
    tree = ast.parse(SLURM)
    call = next(n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "SLURMCluster")
    options = {option.arg: ast.literal_eval(option.value) for option in call.keywords}
    with SLURMCluster(**options, scheduler_options={"dashboard_address": ":0"}) as cluster:
        script = cluster.job_script()
    for line in ("#SBATCH -n 1", "#SBATCH --cpus-per-task=4", "#SBATCH --gres=gpu:1", "export OMP_NUM_THREADS=1"):
        assert line in script.splitlines(), script
    assert re.search(r"--nthreads 1 .*", script) and "--nworkers" not in script
