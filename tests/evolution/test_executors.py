"""Executors: the same results in this process, in worker processes and on Ray, whatever becomes of the workers."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray

import namm
from benchmarks.planted import Planted
from namm.errors import RunError
from namm.evolution import evolve
from namm.evolution.config import Workers
from namm.evolution.executors import InProcess, Processes
from tests.evolution.planted import ModelLess, mortal, pid_of, same, small, work
from tests.evolution.test_run import rows


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in this process."""
    out = tmp_path_factory.mktemp("run") / "alone"
    evolve(small(), out, problem=Planted, curves=False)
    return out


def assert_the_same_run(out: Path, alone: Path) -> None:
    assert rows(out) == rows(alone)
    assert same(*(namm.NAMM.from_pretrained(run / "memory") for run in (out, alone)))


def test_worker_processes_of_which_two_die_give_the_same_run(alone: Path, tmp_path: Path) -> None:
    problem = mortal(tmp_path / "deaths", 2)
    evolve(small("workers.count=2"), tmp_path / "run", problem=problem, curves=False)
    assert not list((tmp_path / "deaths").iterdir())
    assert_the_same_run(tmp_path / "run", alone)


def test_units_are_shared_out_and_come_back_in_order() -> None:
    with Processes(Workers(count=2), Planted) as workers:
        pids: set[int] = set()
        while len(pids) < 2:  # one may be ready long before the other
            pids |= set(workers.map(pid_of, [0.1] * 4))
        assert os.getpid() not in pids
        assert workers.map(work, []) == []
        os.kill(min(pids), signal.SIGKILL)  # while it is idle
        assert workers.map(work, [5, 6, 7]) == [5, 6, 7]
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_workers_that_cannot_work_say_so(tmp_path: Path) -> None:
    with Processes(Workers(count=1), Planted) as workers:
        with pytest.raises(RunError, match="3 workers that died of the same unit"):
            workers.map(work, [1, 100, 3])
        with pytest.raises(RunError, match=r"(?s)outcomes from a worker.*ZeroDivisionError: a bug"):
            workers.map(work, [300])
        with pytest.raises(namm.ConfigurationError, match="expected a unit; got 200"):  # ours stay what they are
            workers.map(work, [200])
    without = r"a worker with its model; got worker process \d+ without one: FileNotFound.*nowhere"
    with pytest.raises(RunError, match=without):
        evolve(small("workers.count=2"), tmp_path, problem=ModelLess)


def test_threads_are_lent(alone: Path) -> None:
    import torch

    before = torch.get_num_threads()
    with InProcess(Planted, before + 1) as here:
        assert here.map(lambda problem, unit: torch.get_num_threads(), [0]) == [before + 1]
    assert torch.get_num_threads() == before


def test_a_worker_outlives_its_driver_by_a_moment_only() -> None:
    script = """
import os, time
from namm.evolution.config import Workers
from namm.evolution.executors import Processes
from benchmarks.planted import Planted
from tests.evolution.planted import pid_of
if __name__ == "__main__":
    with Processes(Workers(count=1), Planted) as workers:
        print(workers.map(pid_of, [0.0])[0], flush=True)
        time.sleep(60)
"""
    file = Path(os.environ.get("TMPDIR", "/tmp")) / f"driver-{os.getpid()}.py"
    file.write_text(script)
    root = Path(__file__).parents[2]
    driver = subprocess.Popen(
        [sys.executable, str(file)], stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(root)}
    )
    assert driver.stdout is not None
    pid = int(driver.stdout.readline())
    driver.kill()
    driver.wait()
    file.unlink()
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("the worker is still there")


# -- Ray -----------------------------------------------------------------------------------------------------------


def test_ray_workers_of_which_one_dies_twice_give_the_same_run(alone: Path, tmp_path: Path) -> None:
    problem = mortal(tmp_path / "deaths", 2)
    config = small("workers.count=2", "workers.ray=local", "workers.cpus_per_worker=0.5")
    evolve(config, tmp_path / "run", problem=problem, curves=False)
    assert not list((tmp_path / "deaths").iterdir())
    assert_the_same_run(tmp_path / "run", alone)
    assert not ray.is_initialized()


def test_ray_addresses_that_do_not_answer(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        for number, address in enumerate((f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}", "no-such-host.invalid:1")):
            with pytest.raises(RunError, match=r"a Ray cluster at .*ray start --head"):
                evolve(small(f"workers.ray={address}"), tmp_path / str(number), problem=Planted)
        closed.listen()  # now something answers that is not Ray
        with pytest.raises(RunError, match="no word of Ray within 3 s"):
            evolve(small(f"workers.ray=127.0.0.1:{port}", "workers.timeout=3"), tmp_path / "silent", problem=Planted)
