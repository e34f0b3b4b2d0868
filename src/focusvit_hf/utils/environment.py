"""What a result depends on beside the code: machine, versions, commit and command."""

import os
import platform
import re
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers


_ROOT = Path(__file__).resolve().parents[3]


_CPU_INFO = Path("/proc/cpuinfo")


def environment(device: torch.device, dtype: torch.dtype, seed: int | None = None) -> dict[str, Any]:
    """
    What a measurement depends on, for the JSON that it is written to.

    Args:
        device (`torch.device`): What ran it.
        dtype (`torch.dtype`): What it was computed in.
        seed (`int`, *optional*): The seed of what was random.

    Returns:
        `dict`: commit (`None` outside a checkout; ends in "-dirty" where files differ from it), versions, device, the
        processor's name (`None` where the system has none) and the instructions that torch uses of it, threads, dtype,
        seed, date (UTC) and the command, without absolute paths.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": f"{device.type} ({name})",
        "processor": _processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "dtype": str(dtype).removeprefix("torch."),
        "seed": seed,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join([*_program(), *map(_relative, sys.argv[1:])]),
    }


def _processor() -> str | None:
    """The model of the processor: of Linux, where it names one, else of Python, which on Linux often knows none."""
    text = _CPU_INFO.read_text(errors="replace") if _CPU_INFO.exists() else ""
    found = re.search(r"^model name\s*: *(.+)$", text, re.MULTILINE)
    return found[1] if found else platform.processor() or None


def _program() -> list[str]:
    """What runs, as it is called from the root of the source tree."""
    program = Path(sys.argv[0])
    spec = sys.modules["__main__"].__spec__
    if spec is not None and spec.origin == sys.argv[0]:
        return ["python", "-m", spec.name]
    if program.suffix != ".py":
        return [program.name]
    script = program.resolve()
    return ["python", script.relative_to(_ROOT).as_posix() if script.is_relative_to(_ROOT) else script.name]


def _relative(argument: str) -> str:
    """An argument, or a list or `--name=value`, with absolute paths made relative to the working directory."""
    pieces = re.split("([=,])", argument)
    return "".join(_relative_path(piece) if os.path.isabs(piece) else piece for piece in pieces)


def _relative_path(path: str) -> str:
    try:
        return os.path.relpath(path)
    except ValueError:
        # On another drive of Windows.
        return os.path.basename(path)


def _commit() -> str | None:
    # Installed as a wheel the package may lie in somebody else's checkout.
    if not (_ROOT / ".git").exists():
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
