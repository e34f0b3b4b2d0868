import errno
import json
import os

import pytest

from focusvit_hf.utils.files import new_folder, write_json, write_whole


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


@pytest.mark.parametrize("failing", ["pathlib.Path.write_bytes", "os.replace"])
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
    # What a process that was killed left.
    leftover = folder.with_name(".new.incomplete")
    write_whole(leftover / "old.bin", b"old")
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
