"""Every command and every piece of Python in the README runs."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.data import chelsea
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil


ROOT = Path(__file__).parents[1]
PROGRAMS = {
    "python": [sys.executable],
    "focusvit": [sys.executable, "-c", "import sys; from focusvit_hf.cli.__main__ import main; sys.exit(main())"],
    "accelerate": [sys.executable, "-m", "accelerate.commands.accelerate_cli"],
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)


COMMANDS = [line for block in blocks("bash") for line in block.splitlines() if line]
RUN_BY_CI = ("make demo", "make test")


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A folder that looks like a checkout, with a photograph, folders of pictures and a ViT, to run commands in."""
    for name in ("configuration", "examples", "model_cards"):
        (tmp_path / name).symlink_to(ROOT / name)
    Image.fromarray(chelsea()).save(tmp_path / "cat.png")
    labels = {"id2label": {0: "dark", 1: "light"}, "label2id": {"dark": 0, "light": 1}}
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    ViTForImageClassification(ViTConfig(**shape, **labels)).save_pretrained(tmp_path / "my-vit")
    ViTImageProcessorPil().save_pretrained(tmp_path / "my-vit")
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in ("light", "dark"):
            folder = tmp_path / "pictures" / split / label
            folder.mkdir(parents=True)
            for number in range(2):
                values = generator.integers(0, 128, (32, 32, 3)) + 127 * (label == "light")
                Image.fromarray(values.astype(np.uint8)).save(folder / f"{number}.png")
    return tmp_path


def run(command: list[str], folder: Path) -> str:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HOME": str(folder / "cache")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_two_commands_are_targets_of_the_makefile() -> None:
    targets = re.findall(r"^([a-z ]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for command in RUN_BY_CI:
        assert command in COMMANDS
        assert command.removeprefix("make ") in " ".join(targets).split()


@pytest.mark.parametrize("block", [block for block in blocks("bash") if block.strip() not in RUN_BY_CI])
def test_commands(block: str, workplace: Path) -> None:
    # A later command of a block may build on an earlier one.
    for command in block.splitlines():
        program, *arguments = shlex.split(command)
        run([*PROGRAMS[program], *arguments], workplace)
        for flag in ("--out", "--output_dir"):
            if flag in arguments:
                assert (workplace / arguments[arguments.index(flag) + 1]).exists()


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python(number: int, workplace: Path) -> None:
    printed = run([sys.executable, "-c", blocks("python")[number]], workplace)
    if "print(" in blocks("python")[number]:
        assert "score" in printed
