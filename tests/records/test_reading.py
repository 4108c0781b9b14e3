"""Small files that are damaged, made to harm, or no files at all are refused at once, in bounded memory."""

from __future__ import annotations

import math
import os
import random
import resource
import struct
from pathlib import Path

import pytest
import yaml

from peftlab.reading import (
    MOST_DEPTH,
    MOST_NODES,
    Unreadable,
    parse_json,
    parse_json_fast,
    read_bytes,
    read_json,
    read_yaml,
)  # fmt: skip
from tests.conftest import Peftlab
from tests.runs.small_runs import finished

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join(f'*{before}' for _ in range(9))}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


def test_plain_files_are_read_as_yaml_and_json_say(scratch: Path) -> None:
    text = "a: &one [1, {b: 2}]\nc: *one\nd: {<<: {e: 1}, f: ä}\n"
    Path("f").write_text(text, encoding="utf-8")
    assert read_yaml(Path("f")) == yaml.safe_load(text)
    Path("f").write_text('{"a": ["ä", 1e3, null]}', encoding="utf-8")
    assert read_json(Path("f")) == {"a": ["ä", 1000.0, None]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"z: " + b"[" * 50_000, "brackets within brackets"),
        (b"z: " + b"{a: " * 50_000, "brackets within brackets"),
        (BOMB.encode(), "aliases"),
        (b"[" + b"x," * MOST_NODES + b"x]", "values"),
        (b"a: \xff", "utf-8"),
        (b"a: 2020-99-99", "month"),
    ],
)
def test_yaml_that_harms(scratch: Path, content: bytes, said: str) -> None:
    Path("f").write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Unreadable, match=said):
        read_yaml(Path("f"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "KiB"


def test_what_is_just_allowed(scratch: Path) -> None:
    Path("f").write_text("[" * MOST_DEPTH + "]" * MOST_DEPTH)
    assert str(read_yaml(Path("f"))) == "[" * MOST_DEPTH + "]" * MOST_DEPTH


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1, "b": [true, null, "ä\\u00e4\\ud83d\\ude00"], "a": {"c": ""}}',
        "[0, -0, -0.0, 1e5, 1E-7, 1e400, 123456789012345678901234567890, 12345678901234567890.0]",
        "[NaN, Infinity, -Infinity]",
        '["half of a pair: \\ud800"]',
        "[" * 150 + "]" * 150,
        "[" * 300 + "]" * 300,
        " 1 ",
    ],
)  # fmt: skip
def test_the_fast_reader_of_json_reads_the_same(text: str) -> None:
    assert repr(parse_json_fast(text.encode())) == repr(parse_json(text.encode()))


def test_the_fast_reader_of_json_reads_numbers_to_the_bit() -> None:
    generator = random.Random(0)
    drawn = [struct.unpack("d", struct.pack("Q", generator.getrandbits(64)))[0] for _ in range(20_000)]
    numbers = [number for number in drawn if math.isfinite(number)]
    assert list(map(repr, parse_json_fast(repr(numbers).encode()))) == list(map(repr, numbers))


@pytest.mark.parametrize(
    "content",
    [b"[" * 100_000, b"\xff\xfe", b"{", b"", b"[1,]", b"01", b'"\x01"', b'"\xff"', b"\xef\xbb\xbf1", b"nan"],
)
def test_the_fast_reader_of_json_refuses_the_same_in_the_same_words(content: bytes) -> None:
    with pytest.raises(Unreadable) as plain:
        parse_json(content)
    with pytest.raises(Unreadable) as fast:
        parse_json_fast(content)
    assert str(fast.value) == str(plain.value)


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff\xfe", b"{", b""])
def test_json_that_is_none(scratch: Path, content: bytes) -> None:
    Path("f").write_bytes(content)
    with pytest.raises(Unreadable):
        read_json(Path("f"))


def test_a_named_pipe_is_no_file(scratch: Path) -> None:
    os.mkfifo("pipe")
    for read in (read_bytes, read_json, read_yaml):
        with pytest.raises(OSError, match="no regular file"):
            read(Path("pipe"))


SMALL = ("config.yaml", "metrics.csv", "adapter.json", "vocabulary.json", "record.json")


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"\xff", b"[" * 60_000, b"{" * 60_000, None])
def test_no_small_file_of_a_run_ends_in_a_traceback(
    peftlab: Peftlab, reviews: Path, name: str, content: bytes | None
) -> None:
    run = finished(reviews)
    (run / name).unlink()
    if content is None:
        os.mkfifo(run / name)
    else:
        (run / name).write_bytes(content)
    for words in (("predict", run, "--text", "x"), ("verify", run), ("evaluate", run)):
        result = peftlab(*words)
        assert result.status in (1, 2)
        assert name in result.out + result.err
        assert "Traceback" not in result.err


@pytest.mark.parametrize("content", [b"", b"[" * 60_000, b"\xff", None])
def test_a_report_survives_a_damaged_sweep_file(peftlab: Peftlab, reviews: Path, content: bytes | None) -> None:
    run = finished(reviews)
    file = run.parent / "sweep.json"
    if content is None:
        os.mkfifo(file)
    else:
        file.write_bytes(content)
    result = peftlab("report", "outputs", "--to", "made", "--format", "csv")
    assert "Traceback" not in result.err
    assert "sweep.json" in result.out + result.err
    assert run.name in Path("made/report.csv").read_text()
