"""A command that would wait for ever ends, and tells where it stood."""

import sys
from pathlib import Path

import pytest

from processes import Hung, run_command


WAITING = "def waiting(): import time; open('begun', 'w').close(); time.sleep(1000)\nwaiting()"
CODE = f"import subprocess, sys\nprint('said', flush=True)\nsubprocess.run([sys.executable, '-c', {WAITING!r}])"


def test_a_command_that_hangs_is_ended_and_tells_where_each_process_stood(tmp_path: Path):
    # On a busy machine two processes may take long to start, and what has not begun has nothing to tell.
    for seconds in (5, 30, 120):
        with pytest.raises(Hung) as error:
            run_command([sys.executable, "-c", CODE], seconds, cwd=tmp_path)
        if (tmp_path / "begun").exists():
            break
    text = str(error.value)
    assert "said" in text
    assert "in waiting" in text
    assert "in communicate" in text or "in wait" in text
