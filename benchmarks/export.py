"""
What export brings: ONNX Runtime against eager torch, and the accuracy that 8 bits keep.

    python benchmarks/export.py --exports graphs --cifar10 ../shared/data/cifar10 \\
        --out benchmarks/results/export-cpu.json

The graphs stay in the folder `--exports` for a further run, which may measure one part only (`--part`), with a record
of the commit and the versions that made them: others refuse them.

Speed: images in uint8 to logits, superpixels counted, in one interleaved run with the same number of threads:
focusvit-tiny at 224 px (random weights, on which time does not depend) beside the dense ViT-Ti/16 of transformers, and
the shipped checkpoint at its 32 px. torch is eager, as ONNX Runtime's graph is not compiled for the machine either.

Accuracy: the shipped checkpoint on the 10,000 test images of CIFAR-10, in float32 by torch and by ONNX Runtime, in
8 bits by ONNX Runtime and by torchao. The superpixels of every image are compared with the processor's.
"""

import argparse
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import numpy as np
import onnxruntime
import torch
from torch import nn
from transformers import PreTrainedModel, ViTConfig, ViTForImageClassification

from focusvit_hf import FocusViTConfig, FocusViTForImageClassification, FocusViTImageProcessor
from focusvit_hf.benchmark.floor import check_plausible
from focusvit_hf.benchmark.runtimes import ImagesToLogits, write_graph
from focusvit_hf.benchmark.timing import interleaved, summary
from focusvit_hf.export import export_model
from focusvit_hf.export.runtime import onnx_session
from focusvit_hf.hub.checkpoints import load_checkpoint
from focusvit_hf.utils.environment import environment
from focusvit_hf.utils.files import read_json, write_json


NANO = Path(__file__).resolve().parents[1] / "model_cards" / "focusvit-nano-cifar10"
BATCH_SIZES = (1, 32)
NUMBERS = ("float32", "int8")
TEST_BATCH = 250
RECORD = "made_with.json"
PACKAGES = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime")
Subject: TypeAlias = nn.Module | onnxruntime.InferenceSession


def speed(subjects: dict[str, Subject], size: int, repeats: int) -> dict[str, Any]:
    """Milliseconds an image of `size` pixels, and how many times faster than the first subject each is."""
    result = {}
    for batch_size in BATCH_SIZES:
        images = torch.randint(0, 256, (batch_size, 3, size, size), dtype=torch.uint8)
        calls: dict[str, Callable[[], Any]] = {}
        for name, subject in subjects.items():
            if isinstance(subject, nn.Module):
                calls[name] = partial(subject, images)
            else:
                calls[name] = partial(subject.run, [subject.get_outputs()[0].name], {"images": images.numpy()})
        with torch.inference_mode():
            alone = {name: interleaved({name: call}, 3)[name] for name, call in calls.items()}
            seconds = interleaved(calls, repeats)
        check_plausible(seconds, alone)
        times = {name: summary(values, batch_size) for name, values in seconds.items()}
        first = times[next(iter(subjects))]["median_ms"]
        faster = {name: first / values["median_ms"] for name, values in times.items()}
        result[f"batch {batch_size}"] = {"milliseconds_per_image": times, "times_faster": faster}
    return result


def accuracy(
    model: FocusViTForImageClassification, processor: FocusViTImageProcessor, graphs: dict[str, Path], data: Path
) -> dict[str, Any]:
    """By subject: accuracy, how many answers are those of torch in float32, whether the superpixels are the same."""
    # Only here, since it talks whenever it is imported.
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_

    rows = datasets.load_dataset("parquet", data_files=str(data / "test-*.parquet"), split="train")
    classes = np.asarray(rows["label"])
    images = np.stack([np.asarray(image.convert("RGB")).transpose(2, 0, 1) for image in rows["image"]])
    inputs = processor(list(images), return_tensors="pt")
    ids = inputs["superpixel_ids"].numpy()
    parts = range(0, len(images), TEST_BATCH)

    @torch.inference_mode()
    def by_torch(subject: nn.Module) -> np.ndarray:
        logits = [
            subject(**{name: value[start : start + TEST_BATCH] for name, value in inputs.items()}).logits
            for start in parts
        ]
        return torch.cat(logits).numpy()

    logits = {"torch float32": by_torch(model)}
    same_ids: dict[str, bool] = {}
    for name, file in graphs.items():
        session = onnx_session(file)
        found = [session.run(None, {"images": images[start : start + TEST_BATCH]}) for start in parts]
        logits[f"ONNX Runtime {name}"] = np.concatenate([part[0] for part in found])
        same_ids[f"ONNX Runtime {name}"] = bool((np.concatenate([part[1] for part in found]) == ids).all())
    for name, scheme in (
        ("weights only", Int8WeightOnlyConfig()),
        ("dynamic", Int8DynamicActivationInt8WeightConfig()),
    ):
        quantized = deepcopy(model)
        quantize_(quantized, scheme)
        logits[f"torchao int8, {name}"] = by_torch(quantized)
    reference = logits["torch float32"]
    return {
        name: {
            "accuracy": float((values.argmax(axis=1) == classes).mean()),
            "same_answer": float((values.argmax(axis=1) == reference.argmax(axis=1)).mean()),
            "largest_difference_of_logits": float(np.abs(values - reference).max()),
            **({"same_superpixels": same_ids[name]} if name in same_ids else {}),
        }
        for name, values in logits.items()
    }


def makers() -> dict[str, str | None]:
    """What the exported graphs depend on."""
    commit = environment(torch.device("cpu"), torch.float32)["commit"]
    return {"commit": commit, **{name: version(name) for name in PACKAGES}}


def check_exports(exports: Path) -> None:
    """
    Records in an empty or a new folder what will make the graphs.

    Raises:
        ValueError: when there are graphs in the folder already that something else made, or might have.
    """
    own, record = makers(), exports / RECORD
    if not exports.exists() or not any(exports.iterdir()):
        write_json(record, own)
        return
    found = read_json(record) if record.exists() else {}
    if found != own:
        differing = {name: found.get(name) for name in own if found.get(name) != own[name]}
        expected = ", ".join(f"{name} {own[name]}" for name in differing)
        got = ", ".join(f"{name} {value}" for name, value in differing.items()) if found else "nobody knows what"
        raise ValueError(
            f"Expected graphs made with {expected} in {exports}, got some made with {got}; choose an empty folder."
        )
    if own["commit"] is None or own["commit"].endswith("-dirty"):
        raise ValueError(
            f"Expected a commit without changes to use the graphs in {exports} again, got {own['commit']}; choose an "
            "empty folder."
        )


def systems(exports: Path) -> dict[str, tuple[Any, Any]]:
    """The models with their processors (None for the dense ViT); graphs that `exports` lacks are written there."""
    torch.manual_seed(0)
    labels: dict[str, Any] = {"num_labels": 1000}
    config = FocusViTConfig(**labels)
    shape = ViTConfig(hidden_size=192, num_attention_heads=3, intermediate_size=768, **labels)
    vit = ViTForImageClassification(shape).eval()
    tiny = FocusViTForImageClassification(config).eval()
    models = {
        "focusvit-tiny": (tiny, FocusViTImageProcessor.from_model_config(config)),
        "focusvit-nano": load_checkpoint(str(NANO)),
    }
    for name, pair in models.items():
        for number, quantization in (("float32", None), ("int8", "int8")):
            if not (exports / f"{name}-{number}").exists():
                export_model(*pair, exports / f"{name}-{number}", quantization=quantization)
    if not (exports / "vit.onnx").exists():
        write_graph(vit, exports / "vit.onnx", 224)
    return {"ViT-Ti/16": (vit, None), **models}


def subjects_of(name: str, model: PreTrainedModel, exports: Path) -> dict[str, Subject]:
    """A model in eager torch and its graphs."""
    files = {"ONNX Runtime": exports / f"{name}-float32" / "model.onnx"}
    files["ONNX Runtime int8"] = exports / f"{name}-int8" / "model.onnx"
    if name.startswith("ViT"):
        files = {"ONNX Runtime": exports / "vit.onnx"}
    sessions = {f"{name}, {runtime}": onnx_session(file) for runtime, file in files.items()}
    return {f"{name}, torch": ImagesToLogits(model).eval(), **sessions}


def main() -> None:
    """Runs the measurement and writes the JSON; of a JSON that is there the other part stays."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--exports", type=Path, required=True, help="folder for the graphs; those in it are used again"
    )
    parser.add_argument("--cifar10", type=Path, help="folder of the parquet files, for the accuracy")
    parser.add_argument("--part", choices=("speed", "accuracy"), help="by default both")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.part != "speed" and arguments.cifar10 is None:
        parser.error("expected --cifar10")
    try:
        check_exports(arguments.exports)
    except ValueError as error:
        parser.error(str(error))
    models = systems(arguments.exports)
    result = read_json(arguments.out) if arguments.out.exists() else {}
    settings = environment(torch.device("cpu"), torch.float32, seed=0)
    settings["onnxruntime"] = onnxruntime.__version__
    nano, processor = models["focusvit-nano"]
    if arguments.part != "accuracy":
        subjects = {name: subjects_of(name, model, arguments.exports) for name, (model, _) in models.items()}
        at_32 = subjects.pop("focusvit-nano")
        at_224 = {name: subject for group in subjects.values() for name, subject in group.items()}
        try:
            at_sizes = {"224px": speed(at_224, 224, arguments.repeats), "32px": speed(at_32, 32, arguments.repeats)}
        except ValueError as error:
            parser.error(str(error))
        result["speed"] = {"environment": settings, **at_sizes}
    if arguments.part != "speed":
        graphs = {number: arguments.exports / f"focusvit-nano-{number}" / "model.onnx" for number in NUMBERS}
        result["accuracy"] = {
            "environment": settings,
            "bytes": {number: file.stat().st_size for number, file in graphs.items()},
            "cifar10": accuracy(nano, processor, graphs, arguments.cifar10),
        }
    write_json(arguments.out, result)
    print(arguments.out.read_text())


if __name__ == "__main__":
    main()
