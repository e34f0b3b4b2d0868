import errno
import json
import os
import threading
from pathlib import Path

import pytest

from focusvit_hf.utils.files import (
    check_file,
    new_folder,
    read_json,
    replace_files,
    staging_path,
    write_json,
    write_whole,
)


def test_files_are_replaced_and_folders_made(tmp_path):
    path = tmp_path / "new" / "folder" / "file.bin"
    write_whole(path, b"first")
    write_whole(path, b"second")
    assert path.read_bytes() == b"second"
    assert os.listdir(path.parent) == ["file.bin"]


def test_json_is_readable_by_people(tmp_path):
    write_json(tmp_path / "file.json", {"b": "Kätzchen", "a": tmp_path})
    text = (tmp_path / "file.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"a": str(tmp_path), "b": "Kätzchen"}
    assert text.index('"a"') < text.index("Kätzchen") and text.endswith("}\n")


@pytest.mark.parametrize("failing", ["os.fsync", "os.replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(failing, tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    write_json(path, {"old": True})

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(failing, full)
    with pytest.raises(OSError, match="No space left"):
        write_json(path, {"old": False})
    assert json.loads(path.read_text()) == {"old": True}
    assert os.listdir(tmp_path) == ["file.json"]


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_appears_whole(there, tmp_path):
    folder = tmp_path / "above" / "new"
    if there:
        folder.mkdir(parents=True)
    with new_folder(folder) as staging:
        write_whole(staging / "inner" / "file.bin", b"content")
        assert not folder.exists() or not os.listdir(folder)
    assert (folder / "inner" / "file.bin").read_bytes() == b"content"
    assert os.listdir(folder.parent) == ["new"] and os.listdir(folder) == ["inner"]


def test_a_folder_that_fails_or_that_holds_something_stays_as_it_was(tmp_path):
    with pytest.raises(RuntimeError, match="half-way"), new_folder(tmp_path / "new") as staging:
        write_whole(staging / "file.bin", b"content")
        raise RuntimeError("half-way")
    assert os.listdir(tmp_path) == []
    write_whole(tmp_path / "old" / "file.bin", b"content")
    for taken in (tmp_path / "old", tmp_path / "old" / "file.bin"):
        with pytest.raises(ValueError, match="expected a new or an empty folder"), new_folder(taken):
            pass
    assert (tmp_path / "old" / "file.bin").read_bytes() == b"content"
    assert os.listdir(tmp_path) == ["old"] and os.listdir(tmp_path / "old") == ["file.bin"]


def test_the_content_is_on_the_disk_before_its_name(tmp_path, monkeypatch):
    events = []
    real_sync, real_replace, real_rename = os.fsync, os.replace, os.rename
    monkeypatch.setattr(os, "fsync", lambda *args: (events.append("sync"), real_sync(*args)))
    monkeypatch.setattr(os, "replace", lambda *args: (events.append("name"), real_replace(*args)))
    monkeypatch.setattr(os, "rename", lambda *args: (events.append("name"), real_rename(*args)))
    write_whole(tmp_path / "file.bin", b"content")
    assert events == ["sync", "name"]
    events.clear()
    with new_folder(tmp_path / "new") as staging:
        (staging / "inner").mkdir()
        for name in ("a.bin", "inner/b.bin"):
            (staging / name).write_bytes(b"content")
    assert events == ["sync", "sync", "name"]


def test_a_users_own_file_is_never_taken_for_ours(tmp_path):
    own = {"x.json.incomplete", ".new.incomplete", ".incomplete"}
    for name in own:
        (tmp_path / name).write_text("mine")
    write_json(tmp_path / "x.json", {"a": 1})
    with new_folder(tmp_path / "new") as staging:
        (staging / "file.bin").write_bytes(b"content")
    assert set(os.listdir(tmp_path)) == own | {"x.json", "new"}
    assert all((tmp_path / name).read_text() == "mine" for name in own)


def together(*actions):
    threads = [threading.Thread(target=action) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_two_writers_of_one_file_never_mix_their_halves(tmp_path):
    path, seen = tmp_path / "file.bin", set()
    contents = [letter * 200_000 for letter in (b"a", b"b")]
    write_whole(path, contents[0])

    def write(content):
        for _ in range(20):
            write_whole(path, content)

    def read():
        for _ in range(200):
            seen.add(path.read_bytes())

    together(*(lambda content=content: write(content) for content in contents), read)
    assert seen <= set(contents) and os.listdir(tmp_path) == ["file.bin"]


def halves(folder: Path) -> list[str]:
    return sorted((folder / name).read_text() for name in os.listdir(folder))


def test_of_two_writers_of_a_new_folder_the_first_one_wins(tmp_path):
    folder = tmp_path / "new"
    refused = pytest.raises(ValueError, match="expected a new or an empty folder")
    with refused, new_folder(folder) as late, new_folder(folder) as early:
        for writer, staging in (("late", late), ("early", early)):
            for name in "ab":
                (staging / name).write_text(writer)
    assert halves(folder) == ["early"] * 2 and os.listdir(tmp_path) == ["new"]


def test_two_writers_of_a_folder_that_is_there_take_turns(tmp_path):
    target = tmp_path / "run"

    def write(writer):
        for _ in range(10):
            staging = staging_path(target)
            staging.mkdir(parents=True)
            for index in range(20):
                (staging / f"{index}.txt").write_text(writer)
            replace_files(staging, target)

    together(lambda: write("first"), lambda: write("second"))
    assert len(set(halves(target))) == 1 and len(os.listdir(target)) == 20


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "expected JSON in .*config.json, got"),
        (b"", "expected JSON in .*config.json, got"),
        (b"\xff\xfe{}", "expected JSON in .*config.json, got"),
        (b"[" * 200_000, "expected JSON in .*config.json, got"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "expected JSON in .*config.json, got"),
        (b'{"a":' * 101 + b"1" + b"}" * 101, "expected JSON of at most 100 levels in .*config.json, got more"),
        (b"null", "expected a JSON object in .*config.json, got NoneType"),
        (b"[1]", "expected a JSON object in .*config.json, got list"),
    ],
    ids=["half", "empty", "no-utf8", "deep", "long-number", "nested", "null", "list"],
)
def test_json_that_cannot_be_read_names_the_file_and_the_reason(content, message, tmp_path):
    (tmp_path / "config.json").write_bytes(b'{"a":' * 100 + b"1" + b"}" * 100)
    assert len(read_json(tmp_path / "config.json")) == 1
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_json(tmp_path / "config.json")


def test_a_link_stays_a_link_and_the_file_behind_it_is_replaced(tmp_path):
    (tmp_path / "real.json").write_bytes(b"old")
    for name, target in (("link.json", "real.json"), ("ahead.json", "new.json")):
        (tmp_path / name).symlink_to(target)
        write_whole(tmp_path / name, b"new")
        assert (tmp_path / name).is_symlink() and (tmp_path / target).read_bytes() == b"new"


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
def test_a_replaced_file_keeps_who_may_read_it(mode, tmp_path):
    path = tmp_path / "private.json"
    path.write_bytes(b"old")
    path.chmod(mode)
    write_whole(path, b"new")
    assert path.read_bytes() == b"new" and path.stat().st_mode & 0o777 == mode


def test_a_new_file_has_the_usual_permissions(tmp_path):
    (tmp_path / "usual").touch()
    write_whole(tmp_path / "new", b"new")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_what_is_no_regular_file_is_written_into(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    check_file(pipe)
    write_whole(pipe, b"content")
    assert os.read(reader, 100) == b"content" and pipe.is_fifo()
    os.close(reader)
    check_file(Path(os.devnull))
    write_whole(Path(os.devnull), b"content")
    assert Path(os.devnull).is_char_device()
    assert os.listdir(tmp_path) == ["pipe"]


def test_a_file_is_checked_before_the_work(tmp_path):
    image, link, hard = tmp_path / "cat.png", tmp_path / "link.png", tmp_path / "hard.png"
    image.write_bytes(b"image")
    link.symlink_to(image)
    hard.hardlink_to(image)
    for same in (image, link, hard, tmp_path / "." / "cat.png"):
        with pytest.raises(ValueError, match="none of the inputs"):
            check_file(same, [image])
    with pytest.raises(ValueError, match="none of the inputs"):
        check_file(tmp_path / "absent.png", [tmp_path / "absent.png"])
    with pytest.raises(ValueError, match="got the folder"):
        check_file(tmp_path)
    with pytest.raises(OSError, match=r"cat\.png"):
        check_file(image / "result.json")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="loop"):
        check_file(tmp_path / "loop")
    check_file(tmp_path / "result.json", [image])
    assert image.read_bytes() == b"image" and not (tmp_path / "result.json").exists()


def test_a_failed_write_keeps_the_old_json(tmp_path):
    path = tmp_path / "log.json"
    write_json(path, {"a": 1})
    content: dict = {}
    content["self"] = content
    with pytest.raises(ValueError, match="Circular"):
        write_json(path, content)
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]
