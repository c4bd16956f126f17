import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fake_engines import CRASH, FAIL, LACK, LEAVE, PROCESS, THREADS, WAIT, FakeEngine

from evaluators.ocr.pool import FAILURES_IN_A_ROW, Pool, spare_cores
from star.common.errors import RunStopped, UserError

pytestmark = pytest.mark.timeout(60)


def images(*numbers):
    return [np.full((4, 4, 3), number, np.uint8) for number in numbers]


@pytest.fixture
def pool(tmp_path):
    pool = Pool(FakeEngine(tmp_path, crashes=1))
    yield pool
    pool.close()


def test_a_worker_reads_what_this_process_reads_in_the_same_order(pool, tmp_path):
    batch = images(3, 0, 1, 2)
    assert pool.submit(batch)() == Pool(FakeEngine(tmp_path), 0).submit(batch)() == [["3", "x"], [], ["1", "x"], ["2", "x"]]
    assert pool.submit(images(PROCESS))() != [[str(os.getpid())]]
    assert Pool(FakeEngine(tmp_path), 0).submit(images(PROCESS))() == [[str(os.getpid())]]
    assert pool.submit(images(THREADS))() == [["1", "1"]]
    assert pool.submit([])() == []


def test_recognition_goes_on_beside_this_process(pool, tmp_path):
    first, second = pool.submit(images(WAIT)), pool.submit(images(7))
    (tmp_path / "go").touch()  # were submit to wait, this line would not be reached
    assert second() == [["7", "x"]]
    assert first() == [[str(WAIT), "x"]]


def test_no_worker_starts_before_there_are_images(pool):
    assert pool._executor is None


@pytest.mark.parametrize("death", [CRASH, LEAVE])
def test_a_worker_that_always_dies_stops_the_run_and_names_the_image(tmp_path, death):
    pool = Pool(FakeEngine(tmp_path))
    wait = pool.submit(images(1, death, 2))
    with pytest.raises(RunStopped, match="fake-1 twice ended its worker process on image 1 of its batch"):
        wait()
    assert pool.submit(images(5))() == [["5", "x"]]
    pool.close()


def test_a_worker_that_dies_once_is_replaced(pool, tmp_path):
    one, two = pool.submit(images(1, CRASH, 2)), pool.submit(images(3, 4))
    assert one() == [["1", "x"], [str(CRASH), "x"], ["2", "x"]]
    assert two() == [["3", "x"], ["4", "x"]]
    assert len(list(tmp_path.glob("crash*"))) == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_failures_of_the_engine_are_told(tmp_path, workers, capsys):
    pool = Pool(FakeEngine(tmp_path), workers)
    for _ in range(FAILURES_IN_A_ROW):
        assert pool.submit(images(1, FAIL, 2))() == [["1", "x"], [], ["2", "x"]]
    told = capsys.readouterr().err.splitlines()
    assert (
        told
        == [
            "star: caution: fake-1 failed on image 1 of its batch: RuntimeError: the net is broken; "
            "the image counts as one without text"
        ]
        * FAILURES_IN_A_ROW
    )
    with pytest.raises(
        RunStopped, match="failed on image 10 of its batch: RuntimeError: the net is broken; so it did on at least 9"
    ):
        pool.submit(images(1, *[FAIL] * FAILURES_IN_A_ROW))()
    with pytest.raises(RunStopped, match="failed on image 0 of its batch"):  # whoever tries again is told again
        pool.submit(images(FAIL))()
    with pytest.raises(UserError, match="^no models; get them$"):
        pool.submit(images(LACK))()
    assert pool.submit(images(6))() == [["6", "x"]]
    pool.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_engine_that_reads_nothing_at_all_is_broken_from_the_first_image_on(tmp_path, workers):
    pool = Pool(FakeEngine(tmp_path, blank=FAIL), workers)
    with pytest.raises(RunStopped, match="failed on image 0 .* the net is broken; nor can it read a blank image"):
        pool.submit(images(FAIL))()
    pool.close()


PROGRAM = """
import sys, time
from pathlib import Path
import numpy as np
from evaluators.ocr.pool import Pool
from fake_engines import PROCESS, FakeEngine
if __name__ == "__main__":
    pool = Pool(FakeEngine(Path(".")))
    print(pool.submit([np.full((1, 1, 3), PROCESS, np.uint8)])()[0][0], flush=True)
    time.sleep(60)
"""


def test_workers_end_with_a_pool_that_is_forgotten(tmp_path):
    pool = Pool(FakeEngine(tmp_path))
    assert pool.submit(images(3))() == [["3", "x"]]
    assert multiprocessing.active_children()
    del pool
    assert not multiprocessing.active_children()


def test_workers_end_with_a_killed_parent(tmp_path):
    file = tmp_path / "program.py"
    file.write_text(PROGRAM)
    here = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": f"{here.parent}{os.pathsep}{here}"}
    with subprocess.Popen([sys.executable, file], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        worker = int(parent.stdout.readline())
        os.kill(worker, 0)  # it lives
        parent.send_signal(signal.SIGKILL)
    for _ in range(500):
        if not alive(worker):
            return
        time.sleep(0.02)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker outlived its parent by 10 seconds")


def alive(process):
    """Whether a process runs; one that ended but that nobody has waited for does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("cores", "environment", "workers"),
    [
        (2, {}, 1),
        (16, {}, 8),
        (16, {"LOCAL_WORLD_SIZE": "8"}, 1),
        (32, {"LOCAL_WORLD_SIZE": "8", "OMP_NUM_THREADS": "1"}, 3),
        (4, {"OMP_NUM_THREADS": "2,1"}, 3),
        (16, {"OMP_NUM_THREADS": "1"}, 1),  # a matrix gave each of its runs a share
        (16, {"OMP_NUM_THREADS": "4"}, 3),
        (None, {}, 1),
    ],
)
def test_workers_take_the_cores_that_are_left(monkeypatch, cores, environment, workers):
    for name in ("OMP_NUM_THREADS", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    assert spare_cores() == workers


def test_several_workers_keep_the_order_of_the_images(tmp_path):
    pool = Pool(FakeEngine(tmp_path), 3)
    assert pool.submit(images(*range(1, 25)))() == [[str(number), "x"] for number in range(1, 25)]
    pool.close()
