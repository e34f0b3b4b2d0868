"""A sample of the hostile folders, and that the tool notices what it looks for."""

import pytest

from tests.fuzz import folders


def test_every_hostile_folder_ends_in_one_line():
    found = folders.run(25, seed=0)
    assert found.failures == [] and found.pickles_run == 0 and found.tries == 25
    assert found.statuses[2] > 8 and found.statuses[0] > 2


@pytest.mark.parametrize(
    ("ends", "complaint"),
    [
        (KeyError("id2label"), "KeyError: 'id2label'"),
        (folders.Hangs("longer than 1 s"), "longer than 1 s"),
        (0, None),
        (3, "status 3"),
        (2, "status 2, stderr ''"),
    ],
)
def test_the_tool_notices(ends, complaint, monkeypatch):
    def command(argv):
        if isinstance(ends, BaseException):
            raise ends
        return ends

    monkeypatch.setattr(folders, "main", command)
    _, found = folders.complaint(["classify"], seconds=5)
    assert found is None if complaint is None else complaint in found


def test_a_try_is_repeated_by_its_number(tmp_path):
    base = folders.write_bases(tmp_path)["checkpoint"]
    said = []
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        for file in base.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        done = [folders.spoil_value(folder, folders.random.Random(f"0 {number}")) for number in range(5)]
        said.append((done, (folder / "config.json").read_bytes(), (folder / "preprocessor_config.json").read_bytes()))
    assert said[0] == said[1]
