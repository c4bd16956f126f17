import functools
import hashlib
import threading
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from star.common.errors import UserError
from star.config import load
from star.tasks import Prompt, Task, pickscore
from star.tasks import prompt_files as data
from star.training.given import check_given, given, prompts_digest

TRAIN, TEST = b"one\n two \nthree\n", b'say "four"\nfive'


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A source folder with small prompt files that stand for the published ones; the working directory is another."""
    files = {"train.txt": data.Published(3), "test.txt": data.Published(2, hashlib.sha256(TEST).hexdigest())}
    monkeypatch.setattr(data, "FILES", {"ocr": files, "pickscore": files})
    source = tmp_path / "source" / "ocr"
    source.mkdir(parents=True)
    (source / "train.txt").write_bytes(TRAIN)
    (source / "test.txt").write_bytes(TEST)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return source


def put():
    """What lies in data/ocr, by name."""
    folder = data.ROOT / "ocr"
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


def test_what_is_published():
    counts = {task: {name: file.lines for name, file in files.items()} for task, files in data.FILES.items()}
    assert counts == {
        "ocr": {"train.txt": 19653, "test.txt": 1018},
        "pickscore": {"train.txt": 25432, "test.txt": 2048},
    }
    digests = {task: files["test.txt"].sha256 for task, files in data.FILES.items()}
    assert digests == {
        "ocr": "4dd8caf3ab6ade73bd376c7d14c6ca49b6eacfb1bd321e22c40714ae4a98d4dc",
        "pickscore": "d75c025fa451866e70f7e36243f7cdd93095523cb51f5f9651f2ce3236d20262",
    }


def test_a_folder_is_put_in_place_and_loaded(published):
    assert data.fetch("ocr", published) == data.ROOT / "ocr"
    assert put() == {"train.txt": TRAIN, "test.txt": TEST}
    assert data.load_prompts("ocr", "train") == ["one", "two", "three"]
    assert data.load_prompts("ocr", "test") == ['say "four"', "five"]


def test_a_run_knows_its_training_prompts_again_whose_published_digest_is_not_known(published):
    data.fetch("pickscore", published)
    config = load(["scale=paper", "task=pickscore"])
    config.model.path = None

    def now(**what):
        train, test = pickscore.train("paper"), pickscore.test("paper")
        return given(config, Task("pickscore", None, lambda: train, lambda: test), **what)

    before = now()
    (data.ROOT / "pickscore" / "train.txt").write_bytes(b"two\none\nthree\n")
    with pytest.raises(UserError, match="data/pickscore/train.txt has other prompts than when it was begun; put it back"):
        check_given(config, before, now(), "it was begun; put it back")
    assert now(training=False)["prompts"] == ""


def test_prompts_are_known_by_their_texts_in_order_and_by_the_core_words_of_training():
    ring, star, cross = Prompt("a red ring", ((2, 5),)), Prompt("a red star", ((2, 5),)), Prompt("a red cross", ((2, 5),))
    moved = replace(ring, spans=((6, 10),))

    def digest(train, test):
        return prompts_digest(Task("own", None, lambda: train, lambda: test))

    lists = [([ring, star], [cross, cross]), ([star, ring], [cross, cross]), ([ring], [cross, cross]), ([ring, star], [cross])]
    lists += [([moved, star], [cross, cross]), ([ring, moved], [cross, cross]), ([ring, star], [cross, ring])]
    lists += [([ring, star], [ring, cross])]
    assert len({digest(*both) for both in lists}) == len(lists)
    assert digest([ring, star], [replace(cross, spans=())] * 2) == digest(*lists[0])


def test_one_file_is_put_in_place(published):
    data.fetch("ocr", published / "test.txt")
    assert put() == {"test.txt": TEST}
    with pytest.raises(UserError, match=r"data/ocr/train.txt is missing; `star data ocr`"):
        data.load_prompts("ocr", "train")
    other = published / "prompts.txt"
    other.write_bytes(TEST)
    with pytest.raises(UserError, match="prompts.txt must be called train.txt or test.txt"):
        data.fetch("ocr", other)


def test_files_are_downloaded(published, monkeypatch):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=published.parent)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(data, "SOURCE", f"http://127.0.0.1:{server.server_port}")
        data.fetch("ocr")
        assert put() == {"train.txt": TRAIN, "test.txt": TEST}
        with pytest.raises(
            UserError, match=r"cannot download http://.*/pickscore/train.txt: .*404.*; get the file another way"
        ):
            data.fetch("pickscore")
        server.shutdown()
    assert not (data.ROOT / "pickscore").exists()


def test_no_network_is_one_line(published, monkeypatch):
    monkeypatch.setattr(data, "SOURCE", (published.parent / "elsewhere").as_uri())
    with pytest.raises(UserError, match="cannot download file://.*/elsewhere/ocr/train.txt") as error:
        data.fetch("ocr")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("test.txt", TEST + b"\n", "the sha256 of test.txt is .*, but Flow-GRPO's ocr/test.txt has"),
        ("test.txt", TEST + b"\nsix", "test.txt has 3 lines, but Flow-GRPO's ocr/test.txt has 2"),
        ("train.txt", TRAIN + b"four", "train.txt has 4 lines, but Flow-GRPO's ocr/train.txt has 3"),
        ("train.txt", b"\xff\n\n\n", "train.txt is no UTF-8 text"),
    ],
)
def test_a_wrong_file_is_refused_and_nothing_is_written(published, name, content, message):
    data.fetch("ocr", published)
    (published / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        data.fetch("ocr", published)
    assert put() == {"train.txt": TRAIN, "test.txt": TEST}
    (data.ROOT / "ocr" / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        data.load_prompts("ocr", name.removesuffix(".txt"))


def test_a_wrong_source_is_one_line(published):
    with pytest.raises(UserError, match="no such file or folder"):
        data.fetch("ocr", published / "none")
    with pytest.raises(UserError, match="no prompts to fetch for 'geneval' .*generated.*; there are for: ocr, pickscore"):
        data.fetch("geneval", published)
    (published / "test.txt").unlink()
    with pytest.raises(UserError, match="has no test.txt; it must be Flow-GRPO's folder dataset/ocr"):
        data.fetch("ocr", published)
    assert put() == {}
