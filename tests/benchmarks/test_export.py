"""`benchmarks/export.py` refuses graphs of other commits or versions."""

import json

import pytest


COMMIT = "0" * 40


@pytest.fixture(scope="module")
def script(benchmark_script):
    return benchmark_script("export")


@pytest.fixture
def made_with(script, monkeypatch):
    """What graphs are made with now; to be changed."""
    made = {"commit": COMMIT, "torch": "2.13.0"}
    monkeypatch.setattr(script, "makers", lambda: dict(made))
    return made


def test_graphs_carry_what_made_them(script):
    assert {"commit", "torch", "transformers", "onnx", "onnxruntime"} <= script.makers().keys()


def test_graphs_are_used_again_by_the_same_commit_and_versions(script, made_with, tmp_path):
    exports = tmp_path / "graphs"
    script.check_exports(exports)
    assert json.loads((exports / script.RECORD).read_text()) == made_with
    (exports / "vit.onnx").write_bytes(b"graph")
    script.check_exports(exports)


@pytest.mark.parametrize("change", [{"commit": "1" * 40}, {"torch": "2.14.0"}], ids=str)
def test_graphs_of_others_are_refused(change, script, made_with, tmp_path):
    script.check_exports(tmp_path)
    made_with |= change
    with pytest.raises(ValueError, match=r"Expected graphs made with .*, got some made with .*; choose an empty"):
        script.check_exports(tmp_path)


def test_graphs_without_a_record_are_refused(script, made_with, tmp_path):
    (tmp_path / "vit.onnx").write_bytes(b"graph")
    with pytest.raises(ValueError, match=r"Expected graphs made with .*, got some made with nobody knows what"):
        script.check_exports(tmp_path)


@pytest.mark.parametrize("commit", [f"{COMMIT}-dirty", None])
def test_graphs_of_no_commit_are_not_used_again(commit, script, made_with, tmp_path):
    made_with["commit"] = commit
    script.check_exports(tmp_path)
    (tmp_path / "vit.onnx").write_bytes(b"graph")
    with pytest.raises(ValueError, match=f"Expected a commit without changes .*, got {commit}"):
        script.check_exports(tmp_path)


def test_the_error_ends_the_script_before_anything_is_measured(script, made_with, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script, "systems", lambda exports: pytest.fail("exported before it was checked"))
    (tmp_path / "vit.onnx").write_bytes(b"graph")
    options = ["--exports", str(tmp_path), "--part", "speed", "--out", str(tmp_path / "out.json")]
    monkeypatch.setattr("sys.argv", ["export.py", *options])
    with pytest.raises(SystemExit) as stopped:
        script.main()
    assert stopped.value.code == 2 and "Expected graphs made with" in capsys.readouterr().err
