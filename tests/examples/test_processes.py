"""A command that would wait for ever ends, and tells where it stood."""

import sys

import pytest

from processes import Hung, run_command


WAITING = "def waiting():\n    import time; time.sleep(1000)\nwaiting()"


def test_a_command_that_hangs_is_ended_and_tells_where_each_process_stood():
    code = f"import subprocess, sys\nprint('begun', flush=True)\nsubprocess.run([sys.executable, '-c', {WAITING!r}])"
    with pytest.raises(Hung) as error:
        run_command([sys.executable, "-c", code], seconds=5)
    assert "begun" in str(error.value)
    assert "in waiting" in str(error.value)
    assert "in communicate" in str(error.value) or "in wait" in str(error.value)
