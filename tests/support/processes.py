"""Commands in processes of their own, which end even where one of them would wait for ever."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from typing import Any

import psutil


# Several times what the slowest command takes on a busy machine.
SECONDS = 240
# For a process to write where each of its threads stands.
_SECONDS_FOR_STACKS = 10


class Hung(AssertionError):
    """A command that had to be ended, with its output and the stacks of all its Python processes."""


def run_command(command: list[str], seconds: float = SECONDS, **options: Any) -> subprocess.CompletedProcess[str]:
    """
    `subprocess.run` with captured text and an end: after `seconds` the command and all its descendants are killed, and
    the error tells where each of them stood.

    Args:
        command (`list[str]`): The program and its arguments.
        options: Those of `subprocess.Popen`, such as `cwd` and `env`.

    Raises:
        Hung: If the command did not end.
    """
    # A process that hangs writes its stacks when it is told to abort.
    options["env"] = {**options.get("env", os.environ), "PYTHONFAULTHANDLER": "1"}
    # Files and no pipes: a descendant that is still alive would keep a pipe open.
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        process = subprocess.Popen(command, stdout=stdout, stderr=stderr, **options)
        try:
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _abort(process)
        texts = []
        for file in (stdout, stderr):
            file.seek(0)
            texts.append(file.read())
    if code is None:
        raise Hung(f"expected {command} to end within {seconds} s, got this output:\n" + "\n".join(texts))
    return subprocess.CompletedProcess(command, code, *texts)


def _abort(process: subprocess.Popen) -> None:
    """Ends a process and its descendants, after they wrote their stacks; does nothing where it ended by itself."""
    if process.poll() is not None:
        return
    parent = psutil.Process(process.pid)
    tree = [*parent.children(recursive=True), parent]
    # All are stopped before any is told to abort: one that sees another go would go on, and not tell where it stood.
    for send in (signal.SIGSTOP, signal.SIGABRT):
        _send(tree, send)
    # One after the other, since they write into the same file.
    for each in tree:
        _send([each], signal.SIGCONT)
        latest = time.monotonic() + _SECONDS_FOR_STACKS
        while not _ended(each) and time.monotonic() < latest:
            time.sleep(0.01)
    alive = [each for each in tree if not _ended(each)]
    _send(alive, signal.SIGKILL)
    psutil.wait_procs(alive, timeout=_SECONDS_FOR_STACKS)
    process.wait()


def _ended(process: psutil.Process) -> bool:
    """Whether it runs no more; its parent, which is stopped, may not know of it yet."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _send(processes: list[psutil.Process], number: int) -> None:
    for process in processes:
        # It may have ended in the meantime, which is what is wanted.
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def through_loopback() -> dict[str, str]:
    """
    Variables by which processes talk through the loopback interface, since the address of the host's name may lie
    behind a network that drops what a machine sends to itself. Empty where the interface has another name.
    """
    name = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
    return {"GLOO_SOCKET_IFNAME": name} if name else {}


def run_on_two_processes(command: list[str], env: dict[str, str]) -> None:
    """
    Runs a script and its arguments under torchrun with two processes on the CPU, which talk through the loopback
    interface.

    Raises:
        AssertionError: If the script fails, or hangs; with its output.
    """
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "localhost"]
    done = run_command([*torchrun, "--nproc_per_node", "2", *command], env={**env, **through_loopback()})
    assert done.returncode == 0, done.stdout + done.stderr
