"""What the tests share: photographs, the folder of real data, tiny models, one thread and a fixed seed."""

import importlib.util
import logging
import os
from pathlib import Path


# Before the libraries are imported, which read it then: no test may depend on a network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import datasets
import numpy as np
import pytest
import skimage.data
import torch
from hypothesis import settings
from PIL import Image

from blobs import ROOT, write_blobs
from focusvit_hf import FocusViTConfig, FocusViTForImageClassification
from focusvit_hf.superpixels import slic


# The same examples on every run: a failure is a change of the code, never of luck.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")
torch.set_num_threads(1)

# 16 x 16 cells of 2 pixels, 4 x 4 patches and as many superpixels. Large weights make every path matter.
TINY = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "stem_channels": 8,
    "num_superpixels": 16,
    "num_latents": 4,
    "num_labels": 5,
    "initializer_range": 0.2,
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
    np.random.seed(0)


class _RefuseDeprecated(logging.Handler):
    """For the deprecations that Transformers logs (`logger.warning_once`), which no filter of warnings sees."""

    def emit(self, record):
        message = record.getMessage()
        assert "deprecated" not in message.lower(), message


@pytest.fixture(autouse=True)
def nothing_deprecated_is_called():
    logger, handler = logging.getLogger("transformers"), _RefuseDeprecated()
    level = logger.level
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)
    # Scripts set it for the whole process.
    logger.setLevel(level)


@pytest.fixture(scope="module")
def benchmark_script():
    """A function from the name of a script in `benchmarks/` to its module, new for each file of tests."""

    def load(name):
        spec = importlib.util.spec_from_file_location(f"{name}_script", ROOT / "benchmarks" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def deterministic():
    """Only deterministic kernels, and `torch.empty` filled with NaN, so that nothing reads what nobody wrote."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def data_dir():
    """The folder of real data sets; FOCUSVIT_DATA names another one than `shared/data` beside the repository."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("FOCUSVIT_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no data sets in {folder}; FOCUSVIT_DATA can name the folder")
    return folder


@pytest.fixture(scope="session")
def cifar10_test(data_dir):
    """A function from a number to so many test images of CIFAR-10, (number, 3, 32, 32) uint8, and their classes."""

    def read(number):
        rows = datasets.load_dataset("parquet", data_files=str(data_dir / "cifar10" / "test-*.parquet"), split="train")
        rows = rows.select(range(number))
        images = np.stack([np.asarray(image.convert("RGB")) for image in rows["image"]])
        return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.tensor(rows["label"])

    return read


@pytest.fixture(scope="session")
def photographs():
    """(4, 3, 224, 224) uint8: scikit-image's cat, astronaut, cup and rocket."""
    images = [getattr(skimage.data, name)() for name in ("chelsea", "astronaut", "coffee", "rocket")]
    resized = [np.asarray(Image.fromarray(image).resize((224, 224))) for image in images]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).contiguous()


@pytest.fixture
def small_photographs(photographs):
    """(4, 3, 32, 32) uint8."""
    return torch.nn.functional.avg_pool2d(photographs.float(), 7).round().to(torch.uint8)


@pytest.fixture
def pixels(small_photographs):
    """`small_photographs`, normalised to -1..1."""
    return small_photographs.float() / 127.5 - 1


@pytest.fixture
def ids(small_photographs):
    """16 superpixels of each of `small_photographs`."""
    return slic(small_photographs, 16, cell_size=2)


@pytest.fixture(scope="session")
def blob_dir(tmp_path_factory):
    """A folder of images to run the training scripts on."""
    return write_blobs(tmp_path_factory.mktemp("blobs"))


@pytest.fixture(scope="session")
def tiny_config():
    """A function from overrides to a tiny configuration."""
    return lambda **overrides: FocusViTConfig(**{**TINY, **overrides})


@pytest.fixture(scope="session")
def tiny_model(tiny_config):
    """A function from overrides of a tiny configuration to a classifier in evaluation mode, always the same."""

    def make(**overrides):
        torch.manual_seed(0)
        return FocusViTForImageClassification(tiny_config(**overrides)).eval()

    return make
