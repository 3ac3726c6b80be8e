"""Nothing is lost by kills, full or read-only disks, or two sweeps at once. Each test really does it.

The random seed is printed. Set the environment variable FAULT_SEED to repeat it.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

TESTS = Path(__file__).parent.parent
SEED = int(os.environ.get("FAULT_SEED", random.SystemRandom().randrange(2**31)))
PLAN = """
import sys
from pathlib import Path
from refinecam_lib import paths
from refinecam_lib.errors import InputError
from refinecam_lib.sweeps.run import sweep
from refinecam_lib.sweeps.shard import plan
from refinecam_lib.sweeps.store import finished
"""
TOYS = PLAN + "import toys\nfolder = Path(sys.argv[1])\ntoys.register(folder)\nshards = toys.plan(images=12)\n"
NETWORK = PLAN + "shards = plan('efficientnet_lite0', ['GradCAM'], 6, size=1)\n"


def environment(**more):
    return os.environ | {"OMP_NUM_THREADS": "1", "CI": "1", "PYTHONPATH": f"{TESTS.parent}:{TESTS}"} | more


def victims(kind, folder, kills=0):
    print(f"FAULT_SEED={SEED}")
    command = [sys.executable, TESTS / "victims.py", kind, str(folder), str(kills), str(SEED)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    print(done.stdout)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("kills", [3, pytest.param(25, marks=pytest.mark.slow)])
def test_a_sweep_killed_at_random_moments_ends_with_the_same_files(tmp_path, kills):
    result = victims("sweep", tmp_path, kills)
    assert result["kills"] == kills and result["equal"]
    assert any(0 < kept < result["shards"] for kept in result["kept"]), "one kill came during the sweep"


@pytest.mark.slow
def test_a_sweep_killed_while_it_writes(tmp_path):
    assert victims("moments", tmp_path) == {"kills": 6, "as planned": True, "equal": True}


@pytest.mark.slow
def test_a_killed_training_ends_with_the_same_weights(tmp_path):
    result = victims("training", tmp_path, 4)
    assert result["kills"] == 4 and result["in writing"] and result["equal"]
    assert any(0 < step < result["of"] for step in result["steps"]), "one kill came during an epoch"


def run(code, *arguments, **more):
    """Run code in a new process. Returns its exit code, the last line of stderr, and stdout."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=environment(**more), capture_output=True, text=True, check=False)
    return done.returncode, (done.stderr.splitlines() or [""])[-1], done.stdout


def mounted():
    """Return a command prefix that may mount private file systems, or None if that is not allowed."""
    for prefix in (["unshare", "-m"], ["unshare", "-Urm"]):
        probe = [*prefix, "sh", "-c", "d=$(mktemp -d) && mount -t tmpfs tmpfs $d && umount $d; s=$?; rmdir $d; exit $s"]
        try:
            if subprocess.run(probe, capture_output=True, check=False).returncode == 0:
                return prefix
        except FileNotFoundError:
            break
    return None


DISK = (
    TOYS
    + """
import subprocess
undisturbed = sweep(shards)
expected = toys.files(folder / "results")
disk = folder / "disk"
disk.mkdir()
def mount(options):
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], check=True)
def refused(words):
    try:
        sweep(shards)
    except InputError as error:
        assert words in str(error) and "\\n" not in str(error), error
        print(error)
    else:
        raise AssertionError("it was written")
paths.RESULTS = disk
mount("size=64k")
refused("No space left on device")
part = toys.files(disk)
assert 0 < len(part) < len(shards) and all(expected[name] == content for name, content in part.items())
assert not list(disk.rglob("*.part")), "no partial file stays"
mount("remount,ro")
refused("Read-only file system")
assert finished(min(shards, key=lambda s: s.path.name not in part)) is not None, "finished files can be read"
mount("remount,rw,size=10m")
assert sweep(shards).equals(undisturbed) and toys.files(disk) == expected
mount("remount,ro")
assert sweep(shards).equals(undisturbed), "nothing has to be written"
"""
)


@pytest.mark.slow
def test_full_disk_and_read_only_folder(tmp_path):
    prefix = mounted()
    if prefix is None:
        pytest.skip("this user may not mount a small disk")
    command = [*prefix, sys.executable, "-c", DISK, str(tmp_path)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "cannot be written" in line]
    assert len(lines) == 2 and all("What is measured is kept: run the same again" in line for line in lines)


LIMITED = (
    TOYS
    + """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))  # smaller than a file of rows
try:
    sweep(shards)
except InputError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert not list((folder / "results" / "rows").rglob("*.parquet"))
print(len(sweep(shards)))
"""
)


def test_a_disk_that_takes_no_large_file(tmp_path):
    code, error, out = run(LIMITED, tmp_path)
    assert code == 0, error
    refusal, *_, rows = out.splitlines()
    assert refusal.startswith("Results cannot be written to ") and "File too large" in refusal and rows == "36"


@pytest.mark.slow
def test_two_sweeps_of_the_same_shards_at_once_share_the_work(tmp_path):
    code = TOYS.replace("images=12", "images=16, size=1") + "print(sweep(shards).to_json())"
    (tmp_path / "alone").mkdir()
    alone = run(code, tmp_path / "alone")[2].splitlines()[-1]
    together = tmp_path / "together"
    together.mkdir()
    command = [sys.executable, "-c", code.replace("toys.plan(", "input() or toys.plan("), str(together)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, env=environment(), **pipes) for _ in range(2)]
    time.sleep(20)  # both have imported everything
    for process in both:
        process.stdin.write("\n")
        process.stdin.flush()
    outs = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert [out.splitlines()[-1] for out in outs] == [alone, alone]
    assert len(list((together / "results" / "rows").rglob("*.parquet"))) == 32, "no other file"


@pytest.mark.slow
def test_a_killed_worker_gives_one_clear_line_and_a_killed_parent_loses_nothing(tmp_path):
    alone = run(NETWORK + "print(sweep(shards).to_json())", REFINECAM_RESULTS=str(tmp_path / "alone"))[2]
    code = NETWORK + "print(sweep(shards, n_jobs=2).to_json())"
    for victim in ("worker", "parent"):
        results = tmp_path / victim
        settings = environment(REFINECAM_RESULTS=str(results))
        log = tmp_path / f"{victim}.log"  # orphaned workers would keep a pipe open
        with log.open("w") as file:
            process = subprocess.Popen([sys.executable, "-c", code], env=settings, stderr=file)
        parent = psutil.Process(process.pid)
        while not list(results.rglob("*.parquet")):  # wait for a worker to finish a shard
            assert process.poll() is None
            time.sleep(0.05)
        workers = [child for child in parent.children() if "LokyProcess" in " ".join(child.cmdline())]
        os.kill(workers[0].pid if victim == "worker" else parent.pid, signal.SIGKILL)
        process.wait(timeout=120)
        if victim == "worker":
            error = log.read_text().splitlines()[-1]
            assert error.startswith("refinecam_lib.errors.Stopped: A process of the sweep died"), error
        for worker in workers:  # orphans would end after five minutes
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.kill()
        again = run(code, REFINECAM_RESULTS=str(results))[2]
        assert again.splitlines()[-1] == alone.splitlines()[-1]
        shutil.rmtree(results)
