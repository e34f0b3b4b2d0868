"""`focusvit benchmark`: how fast models are on the whole path, and what they cost, beside each other."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ..benchmark.parts import PARTS
from ..benchmark.plots import draw_plots, require_matplotlib
from ..benchmark.report import compare, describe_failure, report
from ..benchmark.result import read_result
from ..benchmark.run import MODES, Plan, Setting, measure
from ..benchmark.subjects import find_subject, known_subjects, read_images, sample_images
from ..utils.files import check_file, check_folder, write_json
from ..utils.messages import printable_lines
from .arguments import count, device, new_command


DEFAULT_SUBJECTS = "ViT-Ti/16,ViT-Ti/32,LeViT-128S,focusvit-tiny-full,focusvit-tiny-latent"
DEFAULT_BASELINE = "ViT-Ti/16"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def add_benchmark_command(commands: argparse._SubParsersAction) -> None:
    """Adds `focusvit benchmark`."""
    command = new_command(
        commands,
        benchmark,
        help="measure time, memory and FLOPs of FocusViT beside other models",
        epilog=f"Subjects: {', '.join(known_subjects())}; the JSON file of a preset; the folder of a checkpoint.",
    )
    command.add_argument(
        "--subjects",
        type=_names,
        default=_names(DEFAULT_SUBJECTS),
        metavar="NAME,NAME",
        help=f"what to measure (default: {DEFAULT_SUBJECTS})",
    )
    command.add_argument(
        "--baseline",
        metavar="NAME",
        help=f"the subject that the others are compared with (default: {DEFAULT_BASELINE} or the first subject)",
    )
    command.add_argument(
        "--resolutions",
        type=_resolutions,
        default=_resolutions("224"),
        metavar="PX[:BATCH],...",
        help="resolutions in pixels, such as 224,448:8, where 448 has the batch size 8 of its own (default: 224)",
    )
    command.add_argument(
        "--batch-sizes", type=_counts, default=[1, 32], metavar="N,N", help="batch sizes (default: 1,32)"
    )
    command.add_argument(
        "--mode", choices=(*MODES, "both"), default="inference", help="what to time (default: inference)"
    )
    command.add_argument(
        "--training-resolutions",
        type=_resolutions,
        metavar="PX[:BATCH],...",
        help="resolutions of training steps (default: those of inference)",
    )
    command.add_argument(
        "--parts",
        type=_names,
        default=list(PARTS),
        metavar="PART,PART",
        help=f"parts of the path to time (default: {','.join(PARTS)})",
    )
    command.add_argument("--dtype", choices=DTYPES, default="float32", help="number format (default: float32)")
    command.add_argument("--compile", action="store_true", help="run every model through torch.compile")
    command.add_argument(
        "--device",
        type=device,
        default=device(None),
        help="where to run, such as cpu or cuda:1 (default: cuda if there is a GPU, else cpu)",
    )
    command.add_argument("--threads", type=count, help="CPU threads (default: PyTorch's own number)")
    command.add_argument("--repeats", type=count, default=7, help="how many rounds are timed (default: 7)")
    command.add_argument("--warmup", type=count, default=2, help="how many rounds run before them (default: 2)")
    command.add_argument(
        "--no-memory", dest="memory", action="store_false", help="do not measure memory, which takes a while on a CPU"
    )
    command.add_argument(
        "--images",
        type=Path,
        metavar="FOLDER",
        help="a folder of JPEG files to measure with (default: scikit-image's sample images)",
    )
    command.add_argument("--read", type=Path, metavar="FILE.json", help="show an earlier result instead of measuring")
    command.add_argument("--out", type=Path, metavar="FILE.json", help="write the result to this file")
    command.add_argument("--plots", type=Path, metavar="FOLDER", help="draw the result into this folder")
    command.add_argument(
        "--compare", type=Path, metavar="OLD.json", help="print how the result compares with an earlier one"
    )


def benchmark(arguments: argparse.Namespace) -> None:
    """
    Measures how long models take from the image file to the class, how much memory they need and how many FLOPs they
    cost, beside each other.

    Raises:
        ValueError: on unknown names and on what cannot be written or read, all before the first measurement; at the
            end, when everything else is printed and written, on subjects that failed.
    """
    old = None if arguments.compare is None else read_result(arguments.compare)
    if arguments.plots is not None:
        try:
            require_matplotlib()
        except ImportError as error:
            raise ValueError(str(error)) from error
        check_folder(arguments.plots)
    if arguments.out is not None:
        check_file(arguments.out, [path for path in (arguments.read, arguments.compare) if path is not None])
    if arguments.read is not None:
        result = read_result(arguments.read)
    else:
        plan = _plan(arguments)
        images = sample_images() if arguments.images is None else read_images(arguments.images)
        with _threads(arguments.threads):
            result = measure(plan, images)
    written = []
    # What was measured survives both a full disk and a closed pipe.
    try:
        if arguments.out is not None:
            write_json(arguments.out, result)
            written.append(arguments.out)
        if arguments.plots is not None:
            written += draw_plots(result, arguments.plots)
    finally:
        print(printable_lines(report(result)))
        for number, path in enumerate(written):
            print(printable_lines(f"wrote {path}" if number else f"\nwrote {path}"))
    if old is not None:
        print(f"\n{printable_lines(compare(result, old))}")
    if result["failures"] and arguments.read is None:
        first, *others = map(describe_failure, result["failures"])
        raise ValueError(f"could not measure {first}{f'; and {len(others)} more' if others else ''}")


def _plan(arguments: argparse.Namespace) -> Plan:
    resolutions = {"inference": arguments.resolutions, "training": arguments.training_resolutions}
    modes = MODES if arguments.mode == "both" else (arguments.mode,)
    settings = [
        Setting(mode, resolution, batch_size)
        for mode in modes
        for resolution, own in (resolutions[mode] or arguments.resolutions).items()
        for batch_size in ([own] if own is not None else arguments.batch_sizes)
    ]
    subjects = [find_subject(name) for name in arguments.subjects]
    names = [subject.name for subject in subjects]
    baseline = arguments.baseline or (DEFAULT_BASELINE if DEFAULT_BASELINE in names else names[0])
    return Plan(
        subjects=subjects,
        settings=settings,
        baseline=baseline if baseline in names else find_subject(baseline).name,
        parts=arguments.parts,
        device=arguments.device,
        dtype=DTYPES[arguments.dtype],
        compiled=arguments.compile,
        memory=arguments.memory,
        repeats=arguments.repeats,
        warmup=arguments.warmup,
    )


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"expected names between commas, got {text!r}")
    return names


def _counts(text: str) -> list[int]:
    return [count(number) for number in _names(text)]


def _resolutions(text: str) -> dict[int, int | None]:
    """Batch size, where there is one, by resolution."""
    pairs = [item.partition(":") for item in _names(text)]
    return {count(resolution): count(size) if colon else None for resolution, colon, size in pairs}
