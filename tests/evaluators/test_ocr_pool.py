import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from fake_engines import (
    BYTES,
    CRASH,
    ENDLESS,
    FAIL,
    LACK,
    LEAVE,
    NOTHING,
    NUMBERS,
    PROCESS,
    SLOW,
    THREADS,
    WAIT,
    FakeEngine,
    LoadingEngine,
)

from evaluators.ocr.evaluator import ENGINES, TextRendering
from evaluators.ocr.pool import (
    FAILED_SHARE,
    FAILURES_IN_A_ROW,
    FEW,
    SECONDS,
    Pool,
    ReaderStopped,
    patience,
    spare_cores,
    tolerance,
)
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
    with pytest.raises(ReaderStopped, match="fake-1 twice ended its worker process on image 1 of its batch") as stopped:
        wait()
    assert stopped.value.image == 1 and "__main__" not in str(stopped.value)  # another image was read
    assert pool.submit(images(5))() == [["5", "x"]]
    pool.close()


SCRIPT = """
import numpy as np
from pathlib import Path
from evaluators.ocr.pool import Pool
from fake_engines import FakeEngine
print(Pool(FakeEngine(Path.cwd())).submit([np.full((4, 4, 3), 1, np.uint8)])())
"""


def test_a_script_whose_workers_run_it_again_is_told_so(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    path = os.pathsep.join(map(str, (Path(__file__).parents[2], Path(__file__).parents[1])))
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode and 'has no `if __name__ == "__main__":`' in done.stderr.splitlines()[-1]


def test_an_image_answers_for_its_own_crashes_alone(tmp_path):
    pool = Pool(FakeEngine(tmp_path, crashes=2))
    assert pool.submit(images(1, CRASH, CRASH))() == [["1", "x"], [str(CRASH), "x"], [str(CRASH), "x"]]
    pool.close()


def test_a_worker_that_dies_once_is_replaced(pool, tmp_path):
    one, two = pool.submit(images(1, CRASH, 2)), pool.submit(images(3, 4))
    assert one() == [["1", "x"], [str(CRASH), "x"], ["2", "x"]]
    assert two() == [["3", "x"], ["4", "x"]]
    assert len(list(tmp_path.glob("crash*"))) == 1


def test_one_thread_submits_while_another_waits(pool, tmp_path):
    """As beside a GPU; whoever sees first that a worker has died replaces it, and ends nobody's retry."""
    with ThreadPoolExecutor(1) as waiting:
        found = [waiting.submit(pool.submit(images(number, CRASH, 2))) for number in range(1, 7)]
        assert [one.result() for one in found] == [
            [[str(number), "x"], [str(CRASH), "x"], ["2", "x"]] for number in range(1, 7)
        ]
    pool.close()
    assert not multiprocessing.active_children()


def test_that_no_worker_can_be_started_is_no_failure_on_an_image(tmp_path, monkeypatch):
    pool = Pool(FakeEngine(tmp_path))
    wait = pool.submit(images(CRASH))

    def none(image, find):
        raise OSError("too many open files")

    monkeypatch.setattr(pool, "_start", none)
    with pytest.raises(OSError, match="too many open files"):
        wait()


def test_places_are_looked_for_by_workers_that_can_be_replaced(tmp_path, monkeypatch):
    monkeypatch.setitem(ENGINES, "loading", lambda: LoadingEngine(tmp_path, crashes=1))
    evaluator = TextRendering("loading")
    (place,) = evaluator.places([], images(1))
    assert place.shape == (4, 4) and place.any()
    wait = evaluator.pool.submit(images(1, CRASH))
    assert wait() == [["1", "x"], [str(CRASH), "x"]]
    evaluator.pool.close()


def test_a_forgotten_evaluator_is_gone_at_once_and_its_workers_with_it(monkeypatch):
    """Without waiting for a collection of garbage, which may come hours later."""
    monkeypatch.setitem(ENGINES, "loading", lambda: LoadingEngine(Path()))
    evaluator = TextRendering("loading")
    pool = weakref.ref(evaluator.pool)
    gc.disable()
    try:
        del evaluator
        assert pool() is None
    finally:
        gc.enable()


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


@pytest.mark.parametrize(
    "odd, told",
    [
        (NUMBERS, "TypeError: it gives float nan"),
        (BYTES, "TypeError: it gives bytes"),
        (NOTHING, "TypeError"),
        (ENDLESS, "ValueError: it reads 2,000,000 letters"),
    ],
)
def test_what_is_no_text_of_a_picture_is_a_failure_of_the_engine(tmp_path, odd, told, capsys):
    pool = Pool(FakeEngine(tmp_path), 0)
    assert pool.submit(images(1, odd, 2))() == [["1", "x"], [], ["2", "x"]]
    assert f"failed on image 1 of its batch: {told}" in capsys.readouterr().err


def test_an_engine_that_fails_on_many_images_in_all_is_stopped(tmp_path, capsys):
    pool = Pool(FakeEngine(tmp_path), 0, failed_share=0.1)
    for _ in range(FEW // 20):
        pool.submit(images(*[1] * 18, FAIL, FAIL))()  # as many as are allowed
    with pytest.raises(RunStopped, match="so it did on 11 of the latest 101 images, which would count as without text"):
        pool.submit(images(FAIL))()


def test_an_engine_that_begins_to_fail_after_days_is_stopped(tmp_path, capsys):
    pool = Pool(FakeEngine(tmp_path), 0)
    for _ in range(10):
        pool.submit(images(*[1] * 1_000))()
    with pytest.raises(RunStopped, match="so it did on 51 of the latest 1000 images"):
        for _ in range(60):
            pool.submit(images(1, 1, FAIL))()


def test_an_image_on_which_a_worker_hangs_is_tried_once_more(tmp_path, monkeypatch):
    pool = Pool(FakeEngine(tmp_path), seconds=0.3)
    monkeypatch.setattr(pool, "seconds", 50)
    assert pool.submit(images(3))() == [["3", "x"]]  # the worker is there
    kill = pool._kill

    def once():
        kill()
        (tmp_path / "go").touch()
        pool.seconds = 50

    monkeypatch.setattr(pool, "_kill", once)
    pool.seconds = 0.3
    assert pool.submit(images(WAIT, 4))() == [[str(WAIT), "x"], ["4", "x"]]
    pool.close()


@pytest.mark.parametrize("how", ["hangs", "is stopped"])
def test_a_worker_that_hangs_again_stops_the_run(tmp_path, how):
    pool = Pool(FakeEngine(tmp_path), seconds=50)
    (number,) = pool.submit(images(PROCESS))()
    if how == "is stopped":
        os.kill(int(number[0]), signal.SIGSTOP)
    pool.seconds = 0.3
    with pytest.raises(RunStopped, match="fake-1 twice gave no answer for 0.3 seconds on image 0 of its batch: it hangs"):
        pool.submit(images(WAIT))()
    assert not multiprocessing.active_children()


def test_time_runs_only_while_nothing_is_finished(tmp_path):
    pool = Pool(FakeEngine(tmp_path), seconds=50)
    pool.submit(images(1))()
    pool.seconds = 1.0
    batches = [pool.submit(images(*[SLOW] * 4)) for _ in range(2)]  # each takes 0.4 seconds
    assert batches[1]() == [[str(SLOW), "x"]] * 4
    pool.close()


@pytest.mark.parametrize("told", ["", "x", "0", "-1", "nan", "inf"])
def test_the_time_for_an_image_is_a_number_of_seconds(monkeypatch, told):
    assert patience() == SECONDS
    monkeypatch.setenv("STAR_OCR_SECONDS", "7.5")
    assert patience() == 7.5
    monkeypatch.setenv("STAR_OCR_SECONDS", told)
    with pytest.raises(UserError, match="STAR_OCR_SECONDS=.* must be a number of seconds above 0"):
        patience()


@pytest.mark.parametrize("told", ["", "x", "1.5", "-0.1", "nan"])
def test_the_share_that_may_fail_is_one(monkeypatch, told):
    assert tolerance() == FAILED_SHARE
    for share in ("0", "0.2", "1"):
        monkeypatch.setenv("STAR_OCR_FAILURES", share)
        assert tolerance() == float(share)
    monkeypatch.setenv("STAR_OCR_FAILURES", told)
    with pytest.raises(UserError, match="STAR_OCR_FAILURES=.* must be a share in"):
        tolerance()


INTERRUPTED = """
import signal, sys
from pathlib import Path
import numpy as np
from evaluators.ocr.pool import Pool
from fake_engines import PROCESS, WAIT, FakeEngine
from star import cli
def hang(settings):
    pool = Pool(FakeEngine(Path(".")))
    print(pool.submit([np.full((1, 1, 3), PROCESS, np.uint8)])()[0][0], flush=True)
    pool.submit([np.full((1, 1, 3), WAIT, np.uint8)])()
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs tests in the background ignores it
    from types import SimpleNamespace
    import star.training
    # In place of what takes seconds to import.
    sys.modules["star.training.runs"] = star.training.runs = SimpleNamespace(trained=hang)
    sys.argv = ["star", "train"]
    cli.main()
"""


def test_one_interruption_ends_a_run_whose_reader_hangs(tmp_path):
    (tmp_path / "program.py").write_text(INTERRUPTED)
    with subprocess.Popen(
        [sys.executable, "program.py"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), cwd=tmp_path
    ) as parent:  # fmt: skip
        worker = int(parent.stdout.readline())
        time.sleep(0.5)
        parent.send_signal(signal.SIGINT)
        assert parent.wait(20) == 130
        assert (
            parent.stderr.read().splitlines()[-1]
            == "star: interrupted; there is no checkpoint yet, so the same command starts anew"
        )
    assert not alive(worker)


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


def environment() -> dict[str, str]:
    here = Path(__file__).parents[1]
    return os.environ | {"PYTHONPATH": f"{here.parent}{os.pathsep}{here}"}


def test_workers_end_with_a_pool_that_is_forgotten(tmp_path):
    pool = Pool(FakeEngine(tmp_path))
    assert pool.submit(images(3))() == [["3", "x"]]
    assert multiprocessing.active_children()
    del pool
    assert not multiprocessing.active_children()


def test_workers_end_with_a_killed_parent(tmp_path):
    file = tmp_path / "program.py"
    file.write_text(PROGRAM)
    with subprocess.Popen([sys.executable, file], stdout=subprocess.PIPE, text=True, env=environment()) as parent:
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
        (16, {"OMP_NUM_THREADS": "4", "LOCAL_WORLD_SIZE": "1", "WORLD_SIZE": "2"}, 3),
        (8, {"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "1", "WORLD_SIZE": "2"}, 7),  # torchrun, a process on each node
        (8, {"OMP_NUM_THREADS": "1", "ACCELERATE_MIXED_PRECISION": "no"}, 7),  # accelerate launch, one process
        (32, {"LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1", "STAR_CORES": "8"}, 3),  # and the run has two processes
        (2, {"STAR_CORES": "0"}, 1),
        (1, {}, 1),
    ],
)
def test_workers_take_the_cores_that_are_left(monkeypatch, cores, environment, workers):
    for name in ("OMP_NUM_THREADS", "LOCAL_WORLD_SIZE", "WORLD_SIZE", "ACCELERATE_MIXED_PRECISION", "STAR_CORES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("os.cpu_count", lambda: 128)  # of the machine, of which a job has some
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(cores)), raising=False)
    assert spare_cores() == workers


def test_a_worker_that_has_read_much_is_replaced_where_nothing_is_under_way(tmp_path, monkeypatch):
    monkeypatch.setattr("evaluators.ocr.pool.RENEWED", 2)
    pool = Pool(FakeEngine(tmp_path))

    def process():
        while pool._given != pool._finished:  # an image is counted just after it is waited for
            time.sleep(0.001)
        return pool.submit(images(PROCESS))()

    first = process()
    under_way = pool.submit(images(WAIT))
    same = pool.submit(images(PROCESS))
    (tmp_path / "go").touch()
    assert under_way() == [[str(WAIT), "x"]] and same() == first
    second = process()
    assert second != first and process() == second != process()
    pool.close()


def test_several_workers_keep_the_order_of_the_images(tmp_path):
    pool = Pool(FakeEngine(tmp_path), 3)
    assert pool.submit(images(*range(1, 25)))() == [[str(number), "x"] for number in range(1, 25)]
    pool.close()
