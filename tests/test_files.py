import errno
import json
import os

import pytest

from focusvit_hf.files import write_json, write_whole


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
