"""Every program of `experiments/` says what it does when it is asked, and starts itself anew as it was called."""

import importlib
import os
import sys
from pathlib import Path

import pytest

from experiments.micro import processes


ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "experiments").glob("*/*.py")
    if '__name__ == "__main__"' in path.read_text()
)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_says_what_it_does(name, capsys):
    program = importlib.import_module(name)
    with pytest.raises(SystemExit) as ended:
        program.main(["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    # Whoever reads it finds the command to copy.
    assert f"python -m {name}" in said and program.__doc__.strip().splitlines()[0] in said


def test_a_program_is_started_anew_as_it_was_called(monkeypatch):
    """By its path in the place of `-m` it would not find the other experiments."""
    started = []
    for name in processes._KEPT:
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr(sys, "orig_argv", ["python3", "-X", "utf8", "-m", "experiments.micro.run", "tokens"])
    monkeypatch.setattr(os, "execv", lambda program, arguments: started.append((program, arguments)))
    processes.keep_heap()
    processes.keep_heap()
    command = [sys.executable, "-X", "utf8", "-m", "experiments.micro.run", "tokens"]
    assert started == [(sys.executable, command)]
    assert {name: os.environ[name] for name in processes._KEPT} == processes._KEPT
