"""Runs an exported folder by ONNX Runtime, with the interface of transformers' pipeline."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..configuration_focusvit import FocusViTConfig
from ..image_processing_focusvit import FocusViTImageProcessor
from ..images import flat_images
from ..utils.files import read_json
from .folder import EXPORT_FILES


class OnnxImageClassifier:
    """
    A classifier that [`export_model`] wrote as ONNX. It is called as `pipeline("image-classification")` is, and is the
    quickest way to the class of a single image on a CPU: a session runs one graph where torch dispatches hundreds of
    operations.

    Args:
        folder (`str` or `Path`): The exported folder.
        threads (`int`, *optional*): How many threads an operation may use; by default as many as torch does.
        spinning (`bool`, *optional*, defaults to `True`):
            Whether threads keep their cores busy while they wait for work, as ONNX Runtime's own sessions do. With two
            threads it saves a quarter of the time of a single image. Where something else runs on these cores at the
            same time, such as torch in the same process, it slows that down: there, choose `False`.

    Raises:
        ValueError: when the folder holds no such graph, or one that was exported otherwise.
        ImportError: when ONNX Runtime is not installed.

    Example:

    ```python
    >>> from focusvit_hf.export import OnnxImageClassifier

    >>> classify = OnnxImageClassifier("exported")
    >>> classify("cat.png", top_k=1)
    [{'label': 'cat', 'score': 0.97}]
    ```"""

    def __init__(self, folder: str | Path, threads: int | None = None, spinning: bool = True):
        if find_spec("onnxruntime") is None:
            raise ImportError("ONNX Runtime is needed: pip install focusvit-hf[onnx]")
        folder = Path(folder)
        described = folder / "export.json"
        if not described.is_file():
            raise ValueError(f"expected a folder that `focusvit export` wrote, with export.json in it, got {folder}")
        description = read_json(described)
        file = str(description.get("file"))
        if file != EXPORT_FILES["onnx"]:
            raise ValueError(f"expected a graph in ONNX, {EXPORT_FILES['onnx']}, got {file} in {folder}")
        if not (folder / file).is_file():
            raise ValueError(f"expected {file} in {folder}, got a folder without it")
        self.config = FocusViTConfig.from_pretrained(folder)
        # A processor's call takes more options than the base class declares.
        self.image_processor: Any = FocusViTImageProcessor.from_pretrained(folder)
        self.inputs: tuple[str, ...] = tuple(description["inputs"])
        self.session = onnx_session(folder / file, threads, spinning)

    def __call__(self, images: Any, top_k: int = 5, batch_size: int = 1) -> list[Any]:
        """
        The most probable classes of images.

        Args:
            images: One image, or a list of them: whatever the image processor takes, such as the path of a file.
            top_k (`int`, *optional*, defaults to 5): How many classes of each image.
            batch_size (`int`, *optional*, defaults to 1): How many images go through the graph at once.

        Returns:
            `list[dict]`, best first, each with `"label"` and `"score"` in 0..1; of a list of images a list of these.

        Raises:
            ValueError: on images that cannot be used.
        """
        if top_k < 1 or batch_size < 1:
            raise ValueError(f"Expected top_k >= 1 and batch_size >= 1, got {top_k} and {batch_size}.")
        several = isinstance(images, (list, tuple)) or getattr(images, "ndim", 0) == 4
        given = list(flat_images(images))
        answers = []
        for start in range(0, len(given), batch_size):
            answers += [self._ranked(row, top_k) for row in self.probabilities(given[start : start + batch_size])]
        return answers if several else answers[0]

    def probabilities(self, images: Sequence[Any]) -> np.ndarray:
        """Of images that go through the graph together: `(batch_size, num_labels)` float32, rows sum to 1."""
        logits = torch.from_numpy(self.session.run(["logits"], self._prepared(images))[0])
        return logits.double().softmax(dim=1).float().numpy()

    def _prepared(self, images: Sequence[Any]) -> dict[str, np.ndarray]:
        if "images" in self.inputs:
            return {"images": np.stack(self.image_processor.to_levels(list(images)))}
        with_map = "superpixel_ids" in self.inputs
        batch = self.image_processor(list(images), return_tensors="np", do_superpixels=with_map)
        return {name: batch[name] for name in self.inputs}

    def _ranked(self, probabilities: np.ndarray, top_k: int) -> list[dict[str, Any]]:
        names: Any = self.config.id2label
        best = np.argsort(-probabilities, kind="stable")[:top_k]
        return [{"label": names[int(number)], "score": float(probabilities[number])} for number in best]


def onnx_session(file: Path, threads: int | None = None, spinning: bool = False) -> Any:
    """
    A session of ONNX Runtime on the CPU, with as many threads as torch unless told otherwise. By default they wait
    without taking a core: threads that spin take the cores from whatever else the process computes. On two cores the
    dense ViT in torch, 19 ms alone, took 63 ms between three such sessions and 25 ms between three that wait.
    """
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads() if threads is None else threads
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    return InferenceSession(file, options, providers=["CPUExecutionProvider"])


__all__ = ["OnnxImageClassifier"]
