"""Every command and every piece of Python in the README and in `docs/` runs."""

import contextlib
import importlib
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image
from skimage.data import chelsea
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from blobs import ROOT
from focusvit_hf.cli.__main__ import main as focusvit
from processes import run_command


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# `make` is what runs these tests, and what installs the package.
RUN_ELSEWHERE = ("make", "pip", "git", "source", "pre-commit")
# A page says so in a comment before a block that cannot run without a network.
NEEDS_NETWORK = "<!-- needs a network -->"
_BLOCK = re.compile(
    rf"^(?P<mark>{NEEDS_NETWORK}\n)?```(?P<language>bash|python)\n(?P<text>.*?)^```", re.DOTALL | re.MULTILINE
)


class Block(NamedTuple):
    """A fenced block of a page; `line` is the one of its first line of text."""

    language: str
    text: str
    line: int
    needs_network: bool


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(found["language"], found["text"], text[: found.start("text")].count("\n") + 1, found["mark"] is not None)
        for found in _BLOCK.finditer(text)
    ]


def commands(block: Block) -> list[list[str]]:
    split = [shlex.split(line, comments=True) for line in block.text.splitlines()]
    return [words for words in split if words]


PAGES_WITH_BLOCKS = [page for page in PAGES if blocks(page)]
# A command that stands on several pages is run on the last of them: a guide, which goes on from what it makes.
LAST_PAGE = {
    tuple(words): page
    for page in PAGES
    for block in blocks(page)
    if block.language == "bash"
    for words in commands(block)
}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, blob_dir: Path) -> Path:
    """A folder that looks like a checkout, with a photograph, folders of images, a data set and a ViT."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("configuration", "examples", "model_cards"):
        (folder / name).symlink_to(ROOT / name)
    Image.fromarray(chelsea()).save(folder / "cat.png")
    (folder / "data").mkdir()
    (folder / "data" / "blobs").symlink_to(blob_dir)
    labels = {"id2label": {0: "dark", 1: "light"}, "label2id": {"dark": 0, "light": 1}}
    shape = {"hidden_size": 32, "num_hidden_layers": 10, "num_attention_heads": 2, "intermediate_size": 64}
    ViTForImageClassification(ViTConfig(**shape, **labels)).save_pretrained(folder / "my-vit")
    ViTImageProcessorPil().save_pretrained(folder / "my-vit")
    # As the guide of teachers shows it, with a mean of one number.
    network = "Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1000))"
    code = f"from torch import nn\n\n\ndef teacher():\n    return nn.{network}, 0.5, 0.5, 224\n"
    (folder / "my_teacher.py").write_text(code)
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in ("light", "dark"):
            images = folder / "images" / split / label
            images.mkdir(parents=True)
            for number in range(2):
                values = generator.integers(0, 128, (32, 32, 3)) + 127 * (label == "light")
                Image.fromarray(values.astype(np.uint8)).save(images / f"{number}.png")
        scenes = folder / "scenes" / split
        for part, values in (("images", generator.integers(0, 256, (32, 32, 3))), ("masks", np.eye(32))):
            (scenes / part).mkdir(parents=True)
            for number in range(2):
                Image.fromarray(values.astype(np.uint8)).save(scenes / part / f"{number}.png")
        (scenes / "labels.json").write_text('["ground", "line"]')
    return folder


@pytest.fixture
def workplace(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the checkout to run the blocks of one page in."""
    folder = tmp_path / "checkout"
    shutil.copytree(checkout, folder, symlinks=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return folder


def run(words: list[str]) -> None:
    """Runs one command; scripts and `focusvit` in this process, which saves the seconds of importing the libraries."""
    program, *arguments = words
    if program == "focusvit":
        assert focusvit(arguments) == 0, words
    elif program == "python":
        script = Path(arguments[0])
        assert script.parent.name == "examples", words
        importlib.import_module(script.stem).main(arguments[1:])
    else:
        assert program == "accelerate", words
        done = run_command([sys.executable, "-m", "accelerate.commands.accelerate_cli", *arguments])
        assert done.returncode == 0, done.stdout + done.stderr
    for flag in ("--out", "--output_dir"):
        if flag in arguments:
            assert Path(arguments[arguments.index(flag) + 1]).exists(), words


@contextlib.contextmanager
def _named(page: Path, block: Block) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        error.add_note(f"in the block at {page.relative_to(ROOT)}:{block.line}")
        raise


# PEFT asks for it.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("page", PAGES_WITH_BLOCKS, ids=lambda page: page.stem)
def test_blocks_of_a_page_run_one_after_the_other(
    page: Path, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A later block may use what an earlier one made, as a reader would.
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page):
        with _named(page, block):
            code = compile(block.text, f"{page.name}:{block.line}", "exec") if block.language == "python" else None
            if block.needs_network:
                continue
            if code is not None:
                capsys.readouterr()
                exec(code, names)
                assert "print(" not in block.text or capsys.readouterr().out.strip()
                continue
            for words in commands(block):
                if words[0] not in RUN_ELSEWHERE and LAST_PAGE[tuple(words)] == page:
                    run(words)


@pytest.mark.parametrize("page", PAGES_WITH_BLOCKS, ids=lambda page: page.stem)
def test_targets_of_make_exist(page: Path) -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(" ".join(re.findall(r"^([a-z ]+):", text, re.MULTILINE)).split())
    used = {
        words[1]
        for block in blocks(page)
        if block.language == "bash"
        for words in commands(block)
        if words[0] == "make"
    }
    assert used <= targets
    if page.name == "README.md":
        assert used == {"demo", "test"}


def test_the_first_snippet_of_the_readme_runs_outside_of_the_clone(tmp_path: Path) -> None:
    """From an installed package, in an empty folder, as a stranger does after `pip install`."""
    source, installed, elsewhere = (tmp_path / name for name in ("source", "installed", "elsewhere"))
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    elsewhere.mkdir()
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--target", str(installed)]
    snippet = next(block for block in blocks(ROOT / "README.md") if block.language == "python").text
    environment = {**os.environ, "PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1"}
    for command in (["-m", "pip", "install", *options, str(source)], ["-c", snippet]):
        done = run_command([sys.executable, *command], cwd=elsewhere, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("torch.Size([1, 10])")
    assert Image.open(elsewhere / "superpixels.png").size == chelsea().shape[1::-1]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_experiments_that_a_page_names_exist(page: Path) -> None:
    for module in re.findall(r"python -m (experiments(?:\.\w+)+)", page.read_text(encoding="utf-8")):
        assert (ROOT / module.replace(".", "/")).with_suffix(".py").is_file(), module
