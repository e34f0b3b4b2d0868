"""
Images and benchmark results spoilt by chance, and what the commands make of them. From the root of the repository:

    PYTHONPATH=src python -m tests.fuzz.files --tries 2000 --seed 0

A spoilt file may be refused, in one line that a person can read, or taken, where it still says something that makes
sense. Everything else is a failure: an exception of another kind (a traceback), an error of several lines or without
words, a figure that is not finite, and a try that takes longer than `LONGEST` seconds. The same seed spoils the same
files in the same way. Checkpoints and the ViTs that `focusvit convert` reads are spoilt by `tests/fuzz/folders.py`.
"""

import argparse
import contextlib
import copy
import io
import json
import random
import re
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from skimage.data import chelsea

from focusvit_hf.cli.__main__ import main as focusvit
from focusvit_hf.cli.images import read_image
from focusvit_hf.utils.messages import one_line


RESULT = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "cpu.json"
# Seconds. A refusal takes milliseconds; this allows for a machine that is busy.
LONGEST = 20.0
IMAGE_FORMATS = (
    *("AVIF", "BLP", "BMP", "DDS", "DIB", "GIF", "ICNS", "ICO", "JPEG", "JPEG2000", "MPO", "MSP", "PCX"),
    *("PNG", "PPM", "QOI", "SGI", "TGA", "TIFF", "WEBP", "XBM"),
)
# What some formats can hold.
_MODES = {"MSP": "1", "XBM": "1", "BLP": "P"}
_NOT_A_NUMBER = re.compile(r"\b(nan|inf)\b", re.IGNORECASE)


class Outcome(NamedTuple):
    """What became of one spoilt file: `"refused"`, `"taken"`, or why that is a failure; and the seconds it took."""

    verdict: str
    seconds: float
    details: str = ""


def deep(levels: int) -> list[Any]:
    nested: list[Any] = []
    for _ in range(levels):
        nested = [nested]
    return nested


HOSTILE_VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        -1,
        0,
        1,
        2,
        3,
        7,
        2**31,
        2**63,
        10**30,
        0.5,
        -0.5,
        1e-320,
        1e308,
        float("nan"),
        float("inf"),
    ),
    *("", "bogus", "superpixel", "full_attention", "\x1b[2J", "../../etc/passwd", "1e5", "é\u202e", "x" * 5000),
    *([], {}, [[]], [None], [1, "a"], [0.5] * 3, [1e308] * 3, {"height": 0, "width": -1}, {"shortest_edge": 2**20}),
    *({"height": 65536, "width": 65536}, {"0": "a", "-1": "b"}, {"a": 1}, deep(200), [0] * 10_000, "torch.float64"),
)
# Zero, the largest and the smallest numbers, and the infinity of a float32.
_EXTREMES = (b"\x00" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\x80\x00\x00\x00", b"\x00\x00\x80\x7f")
# Names of what a configuration computes, which a file may try to set.
HOSTILE_KEYS = ("num_tokens", "num_labels", "cell_size", "__class__", "_name_or_path", "auto_map", "dtype", "", "é")


def _hostile(chance: random.Random) -> Any:
    # A copy: the next change may hit what this one put in.
    return copy.deepcopy(chance.choice(HOSTILE_VALUES))


def spoilt_json(content: Any, chance: random.Random) -> Any:
    """A copy of a JSON value with one to three places changed: replaced, removed, renamed, doubled or added to."""
    content = json.loads(json.dumps(content))
    for _ in range(chance.randint(1, 3)):
        places = list(_places(content))
        if not places:
            return _hostile(chance)
        holder, key = chance.choice(places)
        what = chance.random()
        if what < 0.65:
            holder[key] = _hostile(chance)
        elif what < 0.8:
            del holder[key]
        elif isinstance(holder, dict):
            name = chance.choice((*HOSTILE_KEYS, f"{key}x", str(key)[:-1]))
            holder[name] = holder.pop(key) if what < 0.9 else _hostile(chance)
        else:
            holder.append(_hostile(chance))
    return content


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(content, (dict, list)):
        items = content.items() if isinstance(content, dict) else enumerate(content)
        for key, value in list(items):
            yield content, key
            yield from _places(value)


def spoilt_bytes(content: bytes, chance: random.Random, head: int = 256) -> bytes:
    """
    A copy with one to eight places changed; half of the changes hit the first `head` bytes, where formats say most.
    One copy in two keeps its length, since many formats look at that first.
    """
    spoilt = bytearray(content)
    kinds = 2 if chance.random() < 0.5 else 5
    for _ in range(chance.randint(1, 8)):
        reach = len(spoilt) if chance.random() < 0.5 else min(len(spoilt), head)
        place = chance.randrange(max(1, reach))
        what = chance.randrange(kinds)
        if what == 0:
            spoilt[place : place + 1] = bytes([chance.randrange(256)])
        elif what == 1:
            spoilt[place : place + 4] = chance.choice(
                (b"\x00" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\x80\x00\x00\x00")
            )
        elif what == 2:
            del spoilt[place : place + chance.randint(1, 64)]
        elif what == 3:
            spoilt[place:place] = spoilt[place : place + chance.randint(1, 64)]
        else:
            del spoilt[place + 1 :]
    return bytes(spoilt)


def outcome(work: Callable[[], int]) -> Outcome:
    """Runs a command, or something that returns its exit status, and judges it."""
    started = time.perf_counter()
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = work()
    except Exception:
        return Outcome("traceback", time.perf_counter() - started, traceback.format_exc())
    seconds = time.perf_counter() - started
    lines = [line for line in err.getvalue().splitlines() if line.startswith("focusvit: error: ")]
    if seconds > LONGEST:
        return Outcome("too long", seconds, err.getvalue())
    if status == 0:
        verdict = "not finite" if _NOT_A_NUMBER.search(out.getvalue()) else "taken"
        return Outcome(verdict, seconds, out.getvalue())
    if (
        len(lines) != 1
        or len(err.getvalue().splitlines()) != 1
        or len(lines[0].split(":", 2)[2].split()) < 3
        or not lines[0].isprintable()
    ):
        return Outcome("no clear line", seconds, err.getvalue())
    return Outcome("refused", seconds, lines[0])


class Bench:
    """Unspoilt files, and a method for each kind that spoils one and tries it."""

    def __init__(self, folder: Path):
        self.folder = folder
        photograph = Image.fromarray(chelsea()).resize((40, 30))
        self.images = []
        Image.init()
        # An older Pillow writes fewer.
        for kind in (kind for kind in IMAGE_FORMATS if kind in Image.SAVE):
            file = io.BytesIO()
            photograph.convert(_MODES.get(kind, "RGB")).save(file, kind)
            self.images.append((kind, file.getvalue()))

    def image(self, chance: random.Random) -> Outcome:
        """Opens an image as every command does."""
        kind, content = chance.choice(self.images)
        path = self.folder / f"spoilt.{kind.lower()}"
        path.write_bytes(spoilt_bytes(content, chance))

        def work() -> int:
            try:
                read_image(path)
            except ValueError as error:
                print(f"focusvit: error: {one_line(error)}", file=sys.stderr)
                return 2
            return 0

        return outcome(work)

    def result(self, chance: random.Random) -> Outcome:
        """Shows a benchmark's result, or compares another one with it."""
        path = self.folder / "result.json"
        content = RESULT.read_bytes()
        if chance.random() < 0.8:
            path.write_text(json.dumps(spoilt_json(json.loads(content), chance)))
        else:
            path.write_bytes(spoilt_bytes(content, chance))
        option = chance.choice(("--read", "--compare"))
        whole = [] if option == "--read" else ["--read", str(RESULT)]
        return outcome(lambda: focusvit(["benchmark", option, str(path), *whole]))


KINDS = ("image", "result")


def fuzz(kinds: tuple[str, ...], tries: int, seed: int, folder: Path) -> dict[str, dict[str, Any]]:
    """
    Tries spoilt files of each kind.

    Returns:
        By kind: `tries`, `refused`, `taken`, `failures` (a list of seed, verdict and details), `longest_s`, and
        `largest_growth_mb`, by how much the largest memory of the process grew meanwhile.
    """
    bench = Bench(folder)
    report = {}
    for kind in kinds:
        counts: dict[str, Any] = {"tries": tries, "refused": 0, "taken": 0, "failures": [], "longest_s": 0.0}
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(tries):
            # A seed of its own, so that a failure is repeated without the tries before it.
            own = f"{kind} {seed} {number}"
            found = getattr(bench, kind)(random.Random(own))
            counts["longest_s"] = max(counts["longest_s"], round(found.seconds, 3))
            if found.verdict in ("refused", "taken"):
                counts[found.verdict] += 1
            else:
                counts["failures"].append({"seed": own, "verdict": found.verdict, "details": found.details})
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        counts["largest_growth_mb"] = round(grown / 1024)
        report[kind] = counts
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description="Spoils files and looks at what the commands make of them.")
    parser.add_argument("--tries", type=int, default=300, help="how many files of each kind (default: 300)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write the report to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = fuzz(tuple(arguments.kinds), arguments.tries, arguments.seed, Path(folder))
    if arguments.out is not None:
        arguments.out.write_text(f"{json.dumps(report, indent=2)}\n")
    for kind, counts in report.items():
        failed = len(counts["failures"])
        print(
            f"{kind:<10} {counts['tries']} tries: {counts['refused']} refused, {counts['taken']} taken, "
            f"{failed} failures; longest {counts['longest_s']} s, memory grew by {counts['largest_growth_mb']} MB"
        )
        for failure in counts["failures"][:5]:
            print(f"  {failure['seed']}: {failure['verdict']}\n    {failure['details'].strip().splitlines()[-1:]}")
    return 1 if any(counts["failures"] for counts in report.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
