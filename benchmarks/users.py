"""
Time where users are: data types, single images, runtimes, the pipeline, files, high resolutions.

    python benchmarks/users.py --exports graphs --out benchmarks/results/users-cpu.json
    python benchmarks/users.py --exports graphs --out benchmarks/results/users-cpu.json --rows pipeline jpeg
    python benchmarks/users.py --out benchmarks/results/users-cpu.json --table

Each row is measured in a process of its own, so that the threads of one runtime never wait beside those of another,
and in each process the subjects take turns. Models have random weights. `--rows` measures these rows anew and leaves
the others of the file as they are; each carries the environment that it was measured in. The graphs for ONNX Runtime
stay in the folder `--exports`.

Beside a row stands its floor: for a model the time of its matrix products at the rate of a large product on this
machine, or that of reading its weights and pixels once, whichever is longer; for a file the decoder alone at an
eighth of the size; for the pipeline the image processor and the model called on the list. A time below its floor, or
far longer in turn with the others than alone, is refused.
"""

import argparse
import io
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import ViTImageProcessorPil, pipeline

from focusvit_hf.benchmark.floor import check_plausible, measure_machine, model_floor, shortest
from focusvit_hf.benchmark.runtimes import one_session_at_a_time, write_graph
from focusvit_hf.benchmark.subjects import batch_of, find_subject, sample_images
from focusvit_hf.benchmark.timing import interleaved, summary
from focusvit_hf.benchmark.user_rows import BATCH, FULL, LATENT, LEVIT, SUBJECTS, TITLES, VIT, Row, table
from focusvit_hf.utils.environment import environment
from focusvit_hf.utils.files import read_json, write_json


# Of one image many rounds cost little.
SHORT, ROUNDS_OF_SHORT = 0.1, 31
CPU = torch.device("cpu")
# Of a phone: twelve megapixels.
PHOTOGRAPH = (4032, 3024)
Calls = dict[str, Callable[[], Any]]


def built(name: str, resolution: int, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """Model and image processor of a subject."""
    torch.manual_seed(0)
    model, processor = find_subject(name).build(resolution)
    return model.eval().to(dtype), processor


def timed(calls: Calls, images: int, repeats: int, floors: dict[str, Row] | None = None) -> dict[str, Any]:
    """Milliseconds an image of each subject, taking turns; refused as [`check_plausible`] says."""
    alone = {name: interleaved({name: call}, 3, 2)[name] for name, call in calls.items()}
    longest = max(min(values) for values in alone.values())
    seconds = interleaved(calls, max(repeats, ROUNDS_OF_SHORT if longest < SHORT else 0), 1)
    least = {name: floor["floor_ms"] * images / 1000 for name, floor in (floors or {}).items()}
    check_plausible(seconds, alone, least)
    return {name: summary(values, images) for name, values in seconds.items()}


def stages(model: Any, pixels: torch.Tensor) -> dict[str, float]:
    """Where the time of a FocusViT goes, in milliseconds an image: superpixels, stem with pooling, and the rest."""
    body = model.focusvit
    ids = body.compute_superpixel_ids(pixels)
    calls: Calls = {
        "superpixels": lambda: body.compute_superpixel_ids(pixels),
        "stem and pooling": lambda: body.embeddings(pixels, ids),
        "layers": lambda: model(pixels, superpixel_ids=ids),
    }
    seconds = interleaved(calls, 15, 2)
    milliseconds = {name: summary(values, len(pixels))["median_ms"] for name, values in seconds.items()}
    milliseconds["layers"] -= milliseconds["stem and pooling"]
    return milliseconds


def pixels_to_logits(
    names: tuple[str, ...], resolution: int, batch: int, dtype: torch.dtype, repeats: int, compiled: bool = False
) -> Row:
    """Normalised pixels to logits, superpixels counted."""
    pixels = torch.randn(batch, 3, resolution, resolution).clamp(-1, 1)
    models = {name: built(name, resolution, dtype)[0] for name in names}
    machine = measure_machine(CPU, dtype)
    floors = {name: model_floor(model, pixels.to(dtype), machine) for name, model in models.items()}
    called = {name: torch.compile(model, dynamic=False) if compiled else model for name, model in models.items()}
    # FocusViT casts the pixels itself, after it has computed superpixels in float32, where they come in float32.
    calls: Calls = {name: partial(call, pixels.to(dtype)) for name, call in called.items()}
    times = timed(calls, batch, repeats, floors)
    found = {name: stages(models[name], pixels.to(dtype)) for name in (LATENT, FULL) if name in models}
    return {"times": times, "floors": floors, "stages": {} if compiled else found, "machine": asdict(machine)}


def runtime(batch: int, repeats: int, exports: Path, alone: bool = False) -> Row:
    """
    ONNX Runtime, images in uint8 to logits; torch only prepares what it is given. Sessions take turns, and their
    threads wait without taking a core, or each is alone as [`one_session_at_a_time`] says.
    """
    from focusvit_hf.export.runtime import onnx_session

    images = np.random.default_rng(0).integers(0, 256, (batch, 3, 224, 224), dtype=np.uint8)
    machine = measure_machine(CPU, torch.float32)
    pixels = torch.zeros(batch, 3, 224, 224)
    floors = {name: model_floor(built(name, 224)[0], pixels, machine) for name in SUBJECTS}
    row: Row = {"floors": floors, "stages": {}, "machine": asdict(machine)}
    if alone:
        seconds = one_session_at_a_time(graph_files(exports), images, "logits", repeats)
        check_plausible(seconds, seconds, {name: floor["floor_ms"] * batch / 1000 for name, floor in floors.items()})
        return {**row, "times": {name: summary(values, batch) for name, values in seconds.items()}}
    sessions = {name: onnx_session(file) for name, file in graph_files(exports).items()}
    calls: Calls = {name: partial(session.run, ["logits"], {"images": images}) for name, session in sessions.items()}
    for name in (VIT, LEVIT):
        output = sessions[name].get_outputs()[0].name
        calls[name] = partial(sessions[name].run, [output], {"images": images})
    return {**row, "times": timed(calls, batch, repeats, floors)}


def graph_files(exports: Path) -> dict[str, Path]:
    """The graphs by subject."""
    files = {VIT: exports / "vit.onnx", LEVIT: exports / "levit.onnx"}
    names = (LATENT, f"{LATENT} int8", FULL, f"{FULL} int8")
    return files | {name: exports / name.replace(" ", "-") / "model.onnx" for name in names}


def write_graphs(exports: Path) -> None:
    """Exports the graphs that are not in the folder."""
    from focusvit_hf.export import export_model

    for name, file in graph_files(exports).items():
        if file.exists():
            continue
        model, processor = built(name.removesuffix(" int8"), 224)
        # Of a new model all biases and norms are alike, and what is computed twice from them would be computed once.
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter), alpha=0.01)
        if name in (VIT, LEVIT):
            write_graph(model, file, 224)
        else:
            export_model(model, processor, file.parent, quantization="int8" if name.endswith("int8") else None)


def answers(model: Any, processor: Any, images: list[Any]) -> torch.Tensor:
    """The classes of a list of images, by the image processor and the model."""
    logits: torch.Tensor = model(**processor(images, return_tensors="pt")).logits
    return logits.argmax(-1)


def pipelines(batch: int, repeats: int) -> Row:
    """Transformers' pipeline from decoded images, beside the image processor and the model called on the list."""
    images = [Image.open(io.BytesIO(data)).convert("RGB") for data in batch_of(sample_images(), batch)]
    calls: Calls = {}
    for name in SUBJECTS:
        model, processor = built(name, 224)
        # From a folder, as users make it.
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
            classify = pipeline("image-classification", model=folder)
        given = images if batch > 1 else images[0]
        calls[name] = partial(classify, given, batch_size=batch)
        calls[f"{name}, list"] = partial(answers, model, processor, images)
    times = timed(calls, batch, repeats)
    floors = {name: {"floor_ms": times[f"{name}, list"]["median_ms"]} for name in SUBJECTS}
    return {"times": times, "floors": floors, "stages": {}}


def files_to_classes(files: list[bytes], repeats: int) -> Row:
    """Files to classes: decoding, resizing, superpixels, model. Of ViT also with transformers' own image processor."""
    pairs = {name: built(name, 224) for name in SUBJECTS}
    calls: Calls = {name: partial(answers, *pair, files) for name, pair in pairs.items()}
    theirs = ViTImageProcessorPil()

    def as_without_this_package() -> torch.Tensor:
        images = [Image.open(io.BytesIO(data)).convert("RGB") for data in files]
        return answers(pairs[VIT][0], theirs, images)

    calls[f"{VIT}, transformers' processor"] = as_without_this_package
    times = timed(calls, len(files), repeats)

    def decode(whole: bool) -> None:
        for data in files:
            image = Image.open(io.BytesIO(data))
            if not whole:
                image.draft(None, (1, 1))
            image.load()

    smallest, whole = (1000 * shortest(partial(decode, whole)) / len(files) for whole in (False, True))
    processor = pairs[LATENT][1]
    prepared = 1000 * shortest(lambda: processor(files, return_tensors="pt", do_superpixels=False)) / len(files)
    found = {"decode every pixel": whole, "decode, resize and normalise": prepared}
    found["superpixels and model"] = times[LATENT]["median_ms"] - prepared
    floors = {name: {"floor_ms": smallest} for name in SUBJECTS}
    return {"times": times, "floors": floors, "stages": {LATENT: found}}


def photograph() -> bytes:
    """A JPEG file of twelve megapixels, with the grain of a small sensor."""
    sample = Image.open(io.BytesIO(sample_images()[0])).resize(PHOTOGRAPH, Image.Resampling.BICUBIC)
    grain = np.random.default_rng(0).normal(0, 4, (PHOTOGRAPH[1], PHOTOGRAPH[0], 1))
    buffer = io.BytesIO()
    noisy = (np.asarray(sample) + grain).clip(0, 255).astype(np.uint8)
    Image.fromarray(noisy).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def of_a_phone(options: argparse.Namespace) -> Row:
    """One thread, as a server gives each request."""
    torch.set_num_threads(1)
    return files_to_classes([photograph()], options.repeats)


def first_steps(options: argparse.Namespace) -> Row:
    """The first training step under torch.compile, compilation included, once, with an empty cache."""
    from focusvit_hf.benchmark.parts import training_step

    # Seconds here: in the table they stand in the place of milliseconds.
    times = {}
    for name, subject in {VIT: VIT, LATENT: "focusvit-nano-latent", FULL: "focusvit-nano-full"}.items():
        model, processor = find_subject(subject).build(64)
        torch.compiler.reset()
        step = training_step(model, processor, torch.zeros(8, 3, 64, 64), compiled=True)
        times[name] = summary(interleaved({"": step}, 1, 0)[""], 1000)
    return {"times": times, "floors": {}, "stages": {}}


FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
# How each row of the table is measured.
ROWS: dict[str, Callable[[argparse.Namespace], Row]] = {
    "float32": lambda options: pixels_to_logits(SUBJECTS, 224, BATCH, FLOAT32, options.repeats),
    "bfloat16": lambda options: pixels_to_logits(SUBJECTS, 224, BATCH, BFLOAT16, options.repeats),
    "single": lambda options: pixels_to_logits(SUBJECTS, 224, 1, FLOAT32, options.repeats),
    "onnx-single": lambda options: runtime(1, options.repeats, options.exports),
    "onnx-alone": lambda options: runtime(1, options.repeats, options.exports, alone=True),
    "onnx": lambda options: runtime(BATCH, options.repeats, options.exports),
    "compiled": lambda options: pixels_to_logits(SUBJECTS, 224, 1, FLOAT32, options.repeats, compiled=True),
    "pipeline": lambda options: pipelines(BATCH, options.repeats),
    "pipeline-single": lambda options: pipelines(1, options.repeats),
    "jpeg": lambda options: files_to_classes(batch_of(sample_images(), BATCH), options.repeats),
    "photograph": of_a_phone,
    "448": lambda options: pixels_to_logits(SUBJECTS, 448, 4, FLOAT32, options.repeats),
    "896": lambda options: pixels_to_logits(SUBJECTS, 896, 1, FLOAT32, options.repeats),
    "first-step": first_steps,
}


def main() -> None:
    """Measures each row in a process of its own and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--exports", type=Path, default=Path("graphs"), help="folder for the graphs; used again")
    parser.add_argument("--rows", nargs="+", choices=TITLES, default=list(TITLES), help="by default all")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--table", action="store_true", help="only print the table of the file")
    parser.add_argument("--before", type=Path, help="an earlier file, whose times stand beside the new ones")
    parser.add_argument("--alone", choices=TITLES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        torch.set_grad_enabled(options.alone == "first-step")
        write_json(options.out, ROWS[options.alone](options))
        return
    rows: dict[str, Row] = read_json(options.out)["rows"] if options.out.exists() else {}
    if not options.table:
        if any(name.startswith("onnx") for name in options.rows):
            write_graphs(options.exports)
        for name in options.rows:
            rows[name] = measured(name, options)
            settings = environment(CPU, BFLOAT16 if name == "bfloat16" else FLOAT32, seed=0)
            rows[name]["environment"] = {**settings, "repeats": options.repeats}
            write_json(options.out, {"rows": rows})
    print(table(rows, read_json(options.before)["rows"] if options.before else None))


def measured(name: str, options: argparse.Namespace) -> Row:
    """A row, from a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "row.json"
        command = [sys.executable, __file__, "--alone", name, "--out", str(file), "--exports", str(options.exports)]
        if subprocess.run([*command, "--repeats", str(options.repeats)], check=False).returncode:
            raise SystemExit(f"expected the row {name} to be measured, got an error: it is not written")
        return dict(read_json(file))


if __name__ == "__main__":
    main()
