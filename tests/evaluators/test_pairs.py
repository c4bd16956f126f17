"""Prompts are read as the eye reads them, or told: nothing is cut, stripped or swallowed."""

import os
from pathlib import Path

import pytest
from PIL import Image

from evaluators.pairs import read_lines, read_pairs
from star.common.errors import UserError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Images 1.png, 2.png and 10.png, one beside the folder, and what macOS leaves on foreign disks."""
    monkeypatch.chdir(tmp_path)
    images = Path("images")
    images.mkdir()
    for name in ("images/10.png", "images/2.png", "images/1.png", "out.png"):
        Image.new("RGB", (2, 2)).save(name)
    (images / "._1.png").write_bytes(b"resource fork")
    (images / "3.png").mkdir()
    return images


def pairs(folder, name, text):
    Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return [(path.relative_to(folder).as_posix(), prompt) for path, prompt in read_pairs(folder, Path(name))]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("p.txt", "one\ntwo\nten\n", [("1.png", "one"), ("2.png", "two"), ("10.png", "ten")]),
        ("p.txt", "[one\ntwo\nten]\n", [("1.png", "[one"), ("2.png", "two"), ("10.png", "ten]")]),
        ("p.txt", "1\n2 dogs\n10.pngs\n", [("1.png", "1"), ("2.png", "2 dogs"), ("10.png", "10.pngs")]),
        ("p.txt", "see 1.png\na 2.png, b\nx\n", [("1.png", "see 1.png"), ("2.png", "a 2.png, b"), ("10.png", "x")]),
        ("p.txt", '"A"\n"B" or "C"\n""\n', [("1.png", '"A"'), ("2.png", '"B" or "C"'), ("10.png", '""')]),
        ("p.txt", "one\r\ntwo\r\nten\r\n", [("1.png", "one"), ("2.png", "two"), ("10.png", "ten")]),
        ("p.csv", 'file,prompt\r\n1.png,"a\nb"\r\n2.png,two\r\n', [("1.png", "a\nb"), ("2.png", "two")]),
        ("p.jsonl", '{"file": "1.png", "prompt": "one"}\r\n', [("1.png", "one")]),
        ("p.jsonl", '{"file": "1.png", "prompt": "👩\u200d🎨 می\u200cخواهم"}', [("1.png", "👩\u200d🎨 می\u200cخواهم")]),
        ("p", "one\ntwo\nten\n", [("1.png", "one"), ("2.png", "two"), ("10.png", "ten")]),
        ("P.TXT", "- one\ntwo\n- ten\n", [("1.png", "- one"), ("2.png", "two"), ("10.png", "- ten")]),
        ("p.txt", "1. a\n3. b\n2. c\n", [("1.png", "1. a"), ("2.png", "3. b"), ("10.png", "2. c")]),
        ("p.txt", "1 dog\n2 dogs\n3 dogs\n", [("1.png", "1 dog"), ("2.png", "2 dogs"), ("10.png", "3 dogs")]),
        ("p.txt", "1.5 dogs\n2.5 dogs\n3.5\n", [("1.png", "1.5 dogs"), ("2.png", "2.5 dogs"), ("10.png", "3.5")]),
        ("p.txt", '"A", he said\n"B",\nC,\n', [("1.png", '"A", he said'), ("2.png", '"B",'), ("10.png", "C,")]),
        ("p.csv", 'file,prompt\n1.png," one"\n2.png,two \n', [("1.png", " one"), ("2.png", "two ")]),
        ("p.csv", 'file,prompt\n1.png,a sign "OPEN"\n', [("1.png", 'a sign "OPEN"')]),
        ("p.csv", 'file,prompt\n1.png,"""OPEN"", he said"\n', [("1.png", '"OPEN", he said')]),
        ("p.csv", "prompt,file,note\none,1.png\n\ntwo,2.png,x\n", [("1.png", "one"), ("2.png", "two")]),
        ("p.csv", "file,prompt\n1.png,one\n1.png,two\n", [("1.png", "one"), ("1.png", "two")]),
        ("p.csv", "file,prompt\n1.png,=1+1\n", [("1.png", "=1+1")]),
        ("p.jsonl", '{"file": "1.png", "prompt": " one ", "n": null}\n', [("1.png", " one ")]),
    ],
)
def test_what_is_clear_is_taken_word_by_word(folder, name, text, expected):
    assert pairs(folder, name, text) == expected


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.csv", "file,prompt\n1.png,a red sign, with text\n", "p.csv line 2: 3 cells, but the header has 2"),
        ("p.csv", 'file,prompt\n1.png,"a sign\n2.png,two\n', "p.csv line 3 is no row of a table"),
        ("p.csv", 'file,prompt\n1.png,"OPEN" on a door\n', "p.csv line 2 is no row of a table"),
        ("p.tsv", 'file\tprompt\n1.png\t"OPEN" on a door\n', "p.tsv line 2 is no row of a table"),
        ("p.csv", f"file,prompt\n1.png,{'x' * 140_000}\n", "line 2 is no row of a table .*field limit"),
        ("p.csv", "file,prompt,prompt\n1.png,one,two\n", "p.csv has two columns prompt"),
        ("p.csv", "file;prompt\n1.png;one\n", 'row 1: "file" is missing'),
        ("p.csv", "file,prompt\n1.png,one\n2.png,two\n1.png,one\n", "row 3: the same file and prompt as in row 1"),
        (
            "p.csv",
            "file,prompt\n../out.png,one\n",
            "p.csv names ../out.png; files are named relative to images, and lie",
        ),
        ("p.csv", "file,prompt\n/out.png,one\n", "p.csv names /out.png; files are named relative"),
        ("p.csv", f"file,prompt\n{'x' * 5000}.png,one\n", "p.csv names x{120}..., which is not in images"),
        ("p.jsonl", '{"file": "3\\n.png", "prompt": "one"}', "p.jsonl names 3 .png, which is not in images"),
        ("p.csv", "file,prompt\n3.png,a folder\n", "p.csv names 3.png, which is not in images"),
        ("p.jsonl", '{"file": "1.png", "prompt": "\\ud800"}\n', 'row 1: "prompt" holds half a character'),
        ("p.jsonl", '{"file": "1.png\\ud800", "prompt": "one"}\n', 'row 1: "file" holds half a character'),
        ("p.jsonl", '{"file": "1.png\\u0000", "prompt": "one"}\n', 'row 1: "file" holds a null character'),
        ("p.csv", "file,prompt\n1.png,o\0ne\n", 'row 1: "prompt" holds a null character'),
        ("p.txt", "one\nt\0wo\nten\n", "line 2 holds a null character, which is no text"),
        ("p.jsonl", '{"file": "1.png", "prompt": "one\\rtwo"}\n', 'row 1: "prompt" holds a carriage return'),
        ("p.jsonl", '{"file": "1.png", "prompt": "one", "prompt": "two"}\n', "'prompt' stands twice in one object"),
        ("p.jsonl", "[" * 100_000 + "\n", "nested too deeply"),
        ("p.txt", '["one",\n"two",\n"ten"]\n', "looks like a table"),
        ("p.ndjson", '{"file": "1.png"}\n{"file": "2.png"}\n{"file": "10.png"}\n', "looks like a table"),
        ("p.txt", "1.png,one\n2.png,two\n10.png,ten\n", "looks like a table"),
        ("p.txt", "10.png,ten\n2.png,two\n1.png,one\n", "looks like a table"),
        ("p.txt", "file,prompt\n1.png,one\n2.png,two\n10.png,ten\n", "looks like a table"),
        ("p.txt", '"2.png","two"\n"1.png","one"\n"10.png","ten"\n', "looks like a table"),
        ("p.txt", "./2.png\ttwo\n./1.png\tone\n./10.png\tten\n", "looks like a table"),
        ("p.txt", "images/2.png two\nimages/1.png one\nimages/10.png ten\n", "looks like a table"),
        ("p.txt", "two\t2.png\none\t1.png\nten\t10.png\n", "looks like a table"),
        ("p.txt", 'a,"2.png"\nb,"1.png"\nc,"10.png"\n', "looks like a table"),
        ("p.txt", 'one\n"a sign ""HELLO"""\nten\n', "p.txt line 2 is in quotes like a table's cell; make it a .csv with"),
        ("p.txt", '"one"\n"two"\n"ten"\n', "p.txt line 1 is in quotes like a table's cell"),
        ("p.txt", "one\rtwo\nthree\nten\n", "p.txt line 1 holds a carriage return"),
        ("p.csv", 'file,prompt\n1.png,"a\r\nb"\n', 'row 1: "prompt" holds a carriage return'),
        ("p.csv", 'file,prompt\n1.png,"a\rb"\n', 'row 1: "prompt" holds a carriage return'),
        (
            "p.csv",
            'file,prompt\n1.png, "one"\n',
            "p.csv line 2: a cell begins with a space; take it out, or put the cell in double",
        ),
        ("p.csv", "file,prompt,note\n1.png,a red sign, with text\n", "p.csv line 2: a cell begins with a space"),
        ("p.tsv", "file\tprompt\n1.png\t one\n", "p.tsv line 2: a cell begins with a space"),
        ("p.yaml", "- one\n- two\n- ten\n", "p.yaml is read as one prompt per line if it is called .txt, as a table if .csv"),
        ("p.json", "one\ntwo\nten\n", "p.json is read as one prompt per line if it is called .txt, as a table if .csv, .tsv"),
        ("p.txt", "- one\n- two\n- ten\n", "p.txt looks like a list of another format"),
        ("p.txt", "1. one\n2. two\n3. ten\n", "p.txt looks like a list of another format"),
        ("p.txt", "0000,one\n0001,two\n0002,ten\n", "p.txt looks like a list of another format"),
        ("p.txt", "0001\tone\n0002\ttwo\n0003\tten\n", "p.txt looks like a list of another format"),
        ("p", '"one",\n"say \\"two\\"",\n"ten"\n', "p looks like a list of another format"),
        ("p.txt", "'one',\n'two',\n'ten',\n", "p.txt looks like a list of another format"),
        ("p.csv", "file,prompt\n1.png,one\n./1.png,one\n", "row 2: the same file and prompt as in row 1"),
        ("p.txt", "one\ntwo\n", r"2 prompts, but images has 3 images; .* natural order of their names \(2 before 10\)"),
        ("p.csv", b"file,prompt\n1.png,\xff\n", "cannot be read as a text file"),
        ("x" * 300 + ".txt", None, "cannot be read as a text file"),
    ],
)
def test_what_can_be_read_in_two_ways_is_one_clear_line(folder, name, text, message):
    with pytest.raises(UserError, match=message) as error:
        read_pairs(folder, Path(name)) if text is None else pairs(folder, name, text)
    assert "\n" not in str(error.value) and len(str(error.value)) < 700


@pytest.mark.parametrize("name", ["2b.gif", "3.TIF", "x.heic", "3.jfif", "4.JPE"])
def test_a_picture_that_would_be_left_out_is_told(folder, name):
    """A line per image would go to other images than it was meant for; a table says which image it means."""
    Path("images", name).write_bytes(b"picture")
    with pytest.raises(UserError, match=f"images/{name} is a picture of a kind that is not read .*; convert it or move it"):
        pairs(folder, "p.txt", "one\ntwo\nten\n")
    assert len(pairs(folder, "p.csv", "file,prompt\n1.png,one\n")) == 1


def test_names_that_differ_in_case_alone_have_an_order(folder):
    for name in ("B.png", "b.png"):
        Image.new("RGB", (2, 2)).save(folder / name)
    assert [file for file, _ in pairs(folder, "p.txt", "1\n2\n3\n4\n5\n")][-2:] == ["B.png", "b.png"]


@pytest.mark.timeout(20)
def test_a_pipe_is_waited_for_only_if_a_shell_fills_it(folder):
    os.mkfifo("p.txt")
    with pytest.raises(UserError, match="p.txt is a pipe, for which one may wait forever; name a file"):
        read_pairs(folder, Path("p.txt"))
    reader, writer = os.pipe()
    os.write(writer, b"one\ntwo\nten\n")
    os.close(writer)
    assert [prompt for _, prompt in read_pairs(folder, Path(f"/dev/fd/{reader}"))] == ["one", "two", "ten"]
    os.close(reader)


def test_lines_end_at_line_feeds_alone(tmp_path):
    (tmp_path / "p.txt").write_bytes("one\u2028still one\r\n two \n\n".encode())
    assert read_lines(tmp_path / "p.txt") == ["one\u2028still one", "two"]
