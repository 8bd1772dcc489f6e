"""Files are whole or absent: after an exception, a full disk, a kill."""

import errno
import hashlib
import io
import os
import resource
import signal

import pytest

from job.errors import InputError
from job.files import HashingWriter, atomic_directory, atomic_file, read_json, sha256_file, write_json, write_text


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def in_a_child(function):
    """Exit status (minus the signal) of `function` in a forked process."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            function()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_readers_see_the_old_content_until_the_end(tmp_path):
    path = tmp_path / "file"
    write_text(path, "old")
    with atomic_file(path, "w") as handle:
        handle.write("new, α")
        handle.flush()
        assert path.read_text() == "old"
    assert path.read_text(encoding="utf-8") == "new, α" and names(tmp_path) == ["file"]


def test_exception_leaves_the_old_content_and_nothing_else(tmp_path):
    write_text(tmp_path / "file", "old")
    with pytest.raises(KeyError), atomic_file(tmp_path / "file") as handle:
        handle.write(b"half")
        raise KeyError("a defect")
    assert (tmp_path / "file").read_text() == "old" and names(tmp_path) == ["file"]


def test_kill_leaves_the_old_content(tmp_path):
    write_text(tmp_path / "file", "old")

    def killed():
        with atomic_file(tmp_path / "file") as handle:
            handle.write(b"half")
            handle.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_a_child(killed) == -signal.SIGKILL
    assert (tmp_path / "file").read_text() == "old"


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_full_disk_is_one_sentence_and_leaves_nothing(kind, tmp_path):
    """A limit on the size of files stands for a full disk: both fail in the middle of a write."""

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            if kind == "file":
                with atomic_file(tmp_path / "file") as handle:
                    handle.write(bytes(5000))
            else:
                with atomic_directory(tmp_path / "file") as directory:
                    (directory / "part").write_bytes(bytes(5000))
        except InputError as error:
            reason = os.strerror(errno.EFBIG)
            assert str(error).startswith(f"cannot write {tmp_path / 'file'}: {reason}; free space or"), error
            return
        raise AssertionError("it was written")

    assert in_a_child(limited) == 0
    assert names(tmp_path) == []


def test_directory_appears_whole(tmp_path):
    with atomic_directory(tmp_path / "made") as directory:
        (directory / "a").write_text("1")
        assert not (tmp_path / "made").exists()
    assert names(tmp_path) == ["made"] and names(tmp_path / "made") == ["a"]
    with pytest.raises(InputError, match="exists already"), atomic_directory(tmp_path / "made"):
        pass


def test_directory_of_a_killed_writer_is_cleared(tmp_path):
    def killed():
        with atomic_directory(tmp_path / "made") as directory:
            (directory / "half").write_text("x")
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_a_child(killed) == -signal.SIGKILL
    assert names(tmp_path) == [".made.writing"]
    with atomic_directory(tmp_path / "made") as directory:
        (directory / "whole").write_text("y")
    assert names(tmp_path) == ["made"] and names(tmp_path / "made") == ["whole"]


def test_two_writers_of_one_directory(tmp_path):
    def second():
        try:
            with atomic_directory(tmp_path / "made"):
                os._exit(3)
        except InputError as error:
            os._exit(0 if "is being written by another process" in str(error) else 4)

    with atomic_directory(tmp_path / "made") as directory:
        (directory / "a").write_text("1")
        assert in_a_child(second) == 0
    assert names(tmp_path / "made") == ["a"]


def test_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*file/below"):
        write_text(tmp_path / "file" / "below", "x")
    with pytest.raises(InputError, match=r"cannot write .*file/below"), atomic_directory(tmp_path / "file" / "below"):
        pass


def test_json(tmp_path):
    value = {"β": [1, 2.5, None], "a": {"nested": True}}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value
    assert "β" in (tmp_path / "x.json").read_text(encoding="utf-8")
    with pytest.raises(InputError, match=r"absent\.json does not exist"):
        read_json(tmp_path / "absent.json")
    for content in (b'{"a": 1', b"\xff\xfe"):
        (tmp_path / "x.json").write_bytes(content)
        with pytest.raises(InputError, match=r"x\.json is not valid JSON"):
            read_json(tmp_path / "x.json")


def test_checksums(tmp_path):
    content = os.urandom(3_000_000)
    (tmp_path / "file").write_bytes(content)
    expected = hashlib.sha256(content).hexdigest()
    assert sha256_file(tmp_path / "file") == expected
    sink = io.BytesIO()
    writer = HashingWriter(sink)
    for start in range(0, len(content), 70_000):
        writer.write(memoryview(content)[start : start + 70_000])
    assert writer.hexdigest() == expected and writer.tell() == len(content) and sink.getvalue() == content
