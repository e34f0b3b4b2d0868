"""Hostile checkpoint and ViT folders, made from a seed, and what the commands make of them.

Each try spoils a copy of a small folder in one to three ways and runs a command on it in this process. A command has
to end with status 0, or with status 2 and one line on stderr, whatever the folder holds; no planted pickle may run.
From the root of the repository:

    PYTHONPATH=src:tests/support python -m tests.fuzz.folders --tries 1000 --seed 0
"""

import argparse
import contextlib
import io
import json
import os
import pickle
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load, save_file
from transformers import ViTImageProcessor
from transformers.utils import logging

from focusvit_hf import FocusViTConfig, FocusViTForImageClassification, FocusViTImageProcessor
from focusvit_hf.cli.__main__ import main
from focusvit_hf.hub import save_for_hub
from pickles import PICKLE_NAMES, Planted
from vits import make_vit


SIZES = {"image_size": 16, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
SOURCES = {
    "vit": ("ViTForImageClassification", {"patch_size": 4}),
    "deit": ("DeiTForImageClassificationWithTeacher", {"patch_size": 4}),
    "dinov2": ("Dinov2Model", {"patch_size": 4}),
    "registers": ("Dinov2WithRegistersForImageClassification", {"patch_size": 4}),
}
JSON_FILES = ("config.json", "preprocessor_config.json")
# What a hostile or an old folder may carry beside what was written: fields of the libraries, properties of the class.
STRANGE_KEYS = (
    "_attn_implementation",
    "_name_or_path",
    "add_pooling_layer",
    "attn_implementation",
    "auto_map",
    "backbone_config",
    "base_model_tp_plan",
    "cell_size",
    "crop_size",
    "data_format",
    "device",
    "do_center_crop",
    "dtype",
    "id2label",
    "image_processor_type",
    "label2id",
    "name_or_path",
    "num_labels",
    "num_prefix_tokens",
    "num_superpixel",
    "num_tokens",
    "output_attentions",
    "per_layer_config",
    "problem_type",
    "processor_class",
    "quantization_config",
    "resample",
    "return_dict",
    "size",
    "sub_configs",
    "superpixel_count",
    "text_config",
    "tie_word_embeddings",
    "to_dict",
    "torch_dtype",
    "transformers_version",
    "transformers_weights",
    "use_return_dict",
    "vision_config",
    "__class__",
    "",
)
NUMBERS = (
    *(-1, 0, 1, 2, 3, 5, 7, 8, 17, 4096, 2**16, 2**20, 2**20 + 1, 2**31, 2**63, 2**64, 10**40, -(2**63)),
    *(0.0, -0.0, 0.5, 1e-320, 1e-160, 1e300, float("nan"), float("inf"), -float("inf")),
)
TEXTS = (
    "",
    "bogus",
    "float16",
    "float32",
    "complex64",
    "auto",
    "cuda:7",
    "../../x",
    "evil/repo--a.B",
    "a.B",
    "\x1b[2J",
    "\0",
)
TEXTS = (
    *TEXTS,
    "eager",
    "flash_attention_2",
    "kernels-community/none",
    "pytorch_model.bin",
    "vit",
    "😀" * 3,
    "x" * 100_000,
)


class Hangs(BaseException):
    """A command took too long; no handler of errors may catch it."""


def value(chance: random.Random, depth: int = 0) -> Any:
    """Any value of JSON."""
    kind = chance.randrange(8 if depth < 3 else 4)
    if kind == 0:
        return chance.choice((None, True, False))
    if kind in (1, 2):
        return chance.choice(NUMBERS)
    if kind == 3:
        return chance.choice(TEXTS)
    if kind in (4, 5):
        return [value(chance, depth + 1) for _ in range(chance.choice((0, 1, 2, 3, 50)))]
    if kind == 6 and depth == 0:
        nested: Any = value(chance, 2)
        for _ in range(chance.choice((10, 400, 900))):
            nested = [nested] if chance.random() < 0.5 else {"a": nested}
        return nested
    keys = (
        "0",
        "1",
        "-1",
        "2",
        "height",
        "width",
        "shortest_edge",
        "a",
        "",
        "AutoModel",
        "quant_method",
        "load_in_8bit",
    )
    return {chance.choice(keys): value(chance, depth + 1) for _ in range(chance.choice((0, 1, 2, 4)))}


def held(path: Path) -> bytes:
    """What a file holds; FileNotFoundError for what is no file any more, such as a pipe, which would never end."""
    if not path.is_file():
        raise FileNotFoundError(path)
    return path.read_bytes()


def spoil_value(folder: Path, chance: random.Random) -> str:
    path = folder / chance.choice(JSON_FILES)
    content = json.loads(held(path))
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        key = chance.choice(sorted(content) + list(STRANGE_KEYS))
        if chance.random() < 0.15:
            content.pop(key, None)
        else:
            content[key] = value(chance)
    path.write_text(json.dumps(content))
    return f"value in {path.name}"


def bytes_instead(chance: random.Random, old: bytes) -> bytes:
    choice = chance.randrange(10)
    if choice == 0:
        return old[: chance.randrange(len(old) + 1)]
    if choice == 1:
        return chance.choice((b"", b"null", b"[]", b"{}", b'"text"', b"1", b"true", b"NaN", b"{\n", b"\xef\xbb\xbf{}"))
    if choice == 2:
        return chance.randbytes(chance.choice((1, 8, 100, 5000)))
    if choice == 3:
        return b"[" * chance.choice((100, 10_000, 100_000))
    if choice == 4:
        return b'{"a":' * 5000 + b"1" + b"}" * 5000
    if choice == 5:
        return b'{"hidden_size": ' + b"9" * 10_000 + b"}"
    changed = bytearray(old)
    for _ in range(chance.choice((1, 3, 20))):
        if changed:
            changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed)


def spoil_bytes(folder: Path, chance: random.Random) -> str:
    path = folder / chance.choice(sorted(path.name for path in folder.iterdir() if path.is_file()))
    path.write_bytes(bytes_instead(chance, path.read_bytes()))
    return f"bytes of {path.name}"


def spoil_header(folder: Path, chance: random.Random) -> str:
    """The header of the safetensors: its length, or what it says of a tensor."""
    path = folder / "model.safetensors"
    raw = held(path)
    (length,) = struct.unpack("<Q", raw[:8])
    if chance.random() < 0.3:
        path.write_bytes(struct.pack("<Q", chance.choice((0, 1, length - 1, length + 8, 2**32, 2**64 - 1))) + raw[8:])
        return "length of the header"
    header = json.loads(raw[8 : 8 + length])
    key = chance.choice(sorted(header))
    if chance.random() < 0.2:
        header[key] = value(chance)
    elif isinstance(header[key], dict):
        field_name = chance.choice(("dtype", "shape", "data_offsets"))
        header[key][field_name] = chance.choice(("F64", "I8", "BOOL", [2**40], [], [0, 2**62], [8, 2], value(chance)))
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])
    return "header"


def spoil_tensors(folder: Path, chance: random.Random) -> str:
    path = folder / "model.safetensors"
    tensors = load(held(path))
    for _ in range(chance.choice((1, 1, 4))):
        name = chance.choice(sorted(tensors))
        tensor, choice = tensors.pop(name), chance.randrange(9)
        if choice == 1:
            tensors[f"{name}.x"] = tensor
        elif choice == 2:
            tensors[name] = torch.full_like(tensor, chance.choice((float("nan"), float("inf"))), dtype=torch.float32)
        elif choice == 3:
            tensors[name] = tensor.flatten()[:-1].clone()
        elif choice == 4:
            tensors[name] = tensor[None].clone()
        elif choice == 5:
            tensors[name] = tensor.to(
                chance.choice((torch.int64, torch.bool, torch.float64, torch.bfloat16, torch.uint8))
            )
        elif choice == 6:
            tensors[name] = torch.zeros(0)
        elif choice == 7:
            tensors["x" * 10_000] = tensor
        elif choice == 8:
            tensors[name] = torch.zeros(())
        if not tensors:
            break
    save_file(tensors, path, chance.choice(({"format": "pt"}, None, {"format": "tf"}, {"format": "bogus"})))
    return "tensors"


def spoil_place(folder: Path, chance: random.Random) -> str:
    """Another thing than a file under a file's name, or none."""
    names = ["config.json", "preprocessor_config.json", "model.safetensors", "README.md", "training_log.json"]
    path = folder / chance.choice(names)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    choice = chance.randrange(8)
    if choice == 1:
        path.mkdir()
    elif choice == 2:
        path.symlink_to("nowhere")
    elif choice == 3:
        path.symlink_to(path.name)
    elif choice == 4:
        os.mkfifo(path)
    elif choice == 5:
        path.symlink_to(chance.choice(("/dev/null", "/dev/zero", "/etc/hostname", "/", ".", "..")))
    elif choice == 6:
        path.write_bytes(b"{}")
        path.chmod(0)
    elif choice == 7:
        (path / "config.json" / "a").mkdir(parents=True)
    return f"place of {path.name}"


def spoil_more(folder: Path, chance: random.Random) -> str:
    """Files beside those that were written, which the libraries look for."""
    beside = ("adapter_config.json", "processor_config.json", "generation_config.json", "model.safetensors.index.json")
    beside = (*beside, "chat_template.json", "video_preprocessor_config.json", "README.md", "training_log.json")
    name = chance.choice(beside)
    path = folder / name
    if path.exists() or path.is_symlink():
        return spoil_value(folder, chance)
    if name.endswith(".index.json"):
        parts = chance.choice((["a.bin"], ["../x.safetensors"], ["model.safetensors"], [""], [3]))
        (folder / "model.safetensors").unlink(missing_ok=True)
        path.write_text(json.dumps({"weight_map": {"a": chance.choice((*parts, None))}, "metadata": value(chance)}))
    elif name == "README.md":
        parts = (
            "license: [mit",
            "- mit",
            "license: {a: 1}",
            "license: !!python/object/apply:os.system ['x']",
            "\x00",
            "a: &a [*a]",
        )
        path.write_text(f"---\n{chance.choice(parts)}\n---\ntext\n")
    elif chance.random() < 0.5:
        path.write_text(
            json.dumps({"image_processor": value(chance), "figures": value(chance), "arguments": value(chance)})
        )
    else:
        path.write_bytes(bytes_instead(chance, b'{"base_model_name_or_path": "a/b", "peft_type": "LORA"}'))
    return f"beside: {name}"


SPOILERS: tuple[Callable[[Path, random.Random], str], ...] = (
    spoil_value,
    spoil_value,
    spoil_value,
    spoil_bytes,
    spoil_header,
    spoil_tensors,
    spoil_place,
    spoil_more,
)


def spoil(folder: Path, chance: random.Random) -> list[str]:
    """Spoils a folder in one to three ways, and says which."""
    done = []
    for _ in range(chance.choice((1, 1, 2, 3))):
        spoiler = chance.choice(SPOILERS)
        try:
            done.append(spoiler(folder, chance))
        except Exception as error:
            # Spoilt before in a way that this one cannot read any more.
            done.append(f"{spoiler.__name__} not possible after that: {type(error).__name__}")
    return done


def write_bases(folder: Path) -> dict[str, Path]:
    """The folders that are spoilt, by name: a checkpoint, one with its code, and a ViT of each kind."""
    torch.manual_seed(0)
    sizes = {**SIZES, "patch_size": 4, "stem_channels": 4, "num_superpixels": 4, "num_latents": 2, "num_labels": 3}
    model = FocusViTForImageClassification(FocusViTConfig(**sizes)).eval()
    processor = FocusViTImageProcessor.from_model_config(model.config)
    bases = {name: folder / name for name in ("checkpoint", "folder", *SOURCES)}
    model.save_pretrained(bases["checkpoint"])
    processor.save_pretrained(bases["checkpoint"])
    save_for_hub(model, processor, bases["folder"], training_log={"figures": {"test_accuracy": 0.5}})
    for name, (kind, options) in SOURCES.items():
        sizes = {key: size for key, size in SIZES.items() if "inov2" not in kind or key != "intermediate_size"}
        make_vit((kind, {**sizes, **options, "num_labels": 3}), perturbed=False).save_pretrained(bases[name])
        ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(bases[name])
    for base in bases.values():
        for name in PICKLE_NAMES:
            (base / name).write_bytes(pickle.dumps(Planted(folder / "mark")))
    Image.new("RGB", (20, 20), (200, 30, 30)).save(folder / "image.png")
    return bases


def commands(name: str, folder: Path, image: Path, chance: random.Random) -> list[str]:
    """A command that reads the folder."""
    if name in SOURCES:
        more = chance.choice(([], ["--latent-layers", "1"], ["--patch-pooling", "none"], ["--num-superpixels", "4"]))
        return ["convert", str(folder), str(folder.with_name("target")), *more]
    if name == "folder" or chance.random() < 0.3:
        return ["push", str(folder), "me/mine", "--dry-run"]
    return ["classify", str(image), "--model", str(folder)]


@dataclass
class Figures:
    """What came out of all tries."""

    tries: int = 0
    statuses: Counter = field(default_factory=Counter)
    failures: list[dict[str, Any]] = field(default_factory=list)
    longest_seconds: float = 0.0
    longest: str = ""
    pickles_run: int = 0


@contextlib.contextmanager
def at_most(seconds: int) -> Iterator[None]:
    def hangs(*args: Any) -> None:
        raise Hangs(f"longer than {seconds} s")

    signal.signal(signal.SIGALRM, hangs)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def complaint(argv: list[str], seconds: int) -> tuple[int | None, str | None]:
    """The status of a command, and what is wrong with how it ended, if anything."""
    out, errors = io.StringIO(), io.StringIO()
    try:
        with at_most(seconds), contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            status = main(argv)
    except (Exception, Hangs):
        return None, traceback.format_exc()
    said = errors.getvalue()
    if status == 0:
        return status, None
    line = said.startswith("focusvit: error: ") and said.count("\n") == 1 and said.rstrip("\n").isprintable()
    if status not in (1, 2) or not line or len(said) > 3000:
        return status, f"status {status}, stderr {said!r}"
    return status, None


def run(
    tries: int, seed: int, seconds: int = 30, told: Callable[[str], None] | None = None, first: int = 0
) -> Figures:
    """Runs as many tries from a seed; each follows from the seed and its own number, so that `first` repeats one."""
    figures = Figures()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as parent:
        root = Path(parent)
        bases = write_bases(root / "bases")
        mark = root / "bases" / "mark"
        for number in range(first, first + tries):
            chance = random.Random(f"{seed} {number}")
            name = chance.choice(("checkpoint", "checkpoint", "checkpoint", "folder", *SOURCES))
            folder = root / "try" / "spoilt"
            shutil.copytree(bases[name], folder)
            done = spoil(folder, chance)
            begun = time.perf_counter()
            argv = commands(name, folder, root / "bases" / "image.png", chance)
            status, wrong = complaint(argv, seconds)
            took = time.perf_counter() - begun
            if took > figures.longest_seconds:
                figures.longest_seconds, figures.longest = took, f"{number} {name} {done}"
            figures.tries += 1
            figures.statuses[status] += 1
            if mark.exists():
                figures.pickles_run += 1
                mark.unlink()
                wrong = f"a pickle was run\n{wrong or ''}"
            if status == 2 and (root / "try" / "target").exists():
                wrong = f"a target was left behind\n{wrong or ''}"
            if wrong:
                figures.failures.append(
                    {"number": number, "base": name, "spoilt": done, "argv": argv[0], "wrong": wrong}
                )
                if told:
                    told(f"{number} {name} {done}: {wrong}")
            shutil.rmtree(root / "try")
    return figures


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first try, to repeat one")
    parser.add_argument("--seconds", type=int, default=30, help="how long a command may take")
    return parser.parse_args(argv)


if __name__ == "__main__":
    arguments = parse()
    # A folder that asks for more gets an error instead of the machine.
    resource.setrlimit(resource.RLIMIT_AS, (16 * 2**30, 16 * 2**30))
    torch.set_num_threads(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = run(
        arguments.tries,
        arguments.seed,
        arguments.seconds,
        told=lambda text: print(text, file=sys.stderr),
        first=arguments.first,
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ends = f"{dict(found.statuses)}, {len(found.failures)} failures, {found.pickles_run} pickles run"
    memory = f"memory {before / 1024:.0f} MB before and {peak / 1024:.0f} MB at most"
    print(f"{found.tries} tries: {ends}, longest {found.longest_seconds:.1f} s ({found.longest}), {memory}")
    sys.exit(bool(found.failures))
