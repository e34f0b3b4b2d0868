"""Runs an exported folder by ONNX Runtime, with the interfaces of transformers' pipelines."""

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.modeling_outputs import SemanticSegmenterOutput

from ..configuration_focusvit import FocusViTConfig
from ..explanation.segmentation import Segmentation, class_names, require_upsampling, whole_image
from ..image_processing_focusvit import FocusViTImageProcessor
from ..images import flat_images
from ..utils.files import read_json
from .folder import EXPORT_FILES


class _OnnxModel:
    """The graph, the settings and the processor of an exported folder; `task` is what its model does."""

    task: str

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
        task = "segmentation" if "label_map" in description["outputs"] else "classification"
        if task != self.task:
            raise ValueError(f"expected a model of image {self.task}, got one of {task} in {folder}")
        self.config = FocusViTConfig.from_pretrained(folder)
        # A processor's call takes more options than the base class declares.
        self.image_processor: Any = FocusViTImageProcessor.from_pretrained(folder)
        self.inputs: tuple[str, ...] = tuple(description["inputs"])
        self.session = onnx_session(folder / file, threads, spinning)

    def logits(self, images: Sequence[Any]) -> torch.Tensor:
        """Of images that go through the graph together: `(batch_size, num_labels)`, or of each cell behind them."""
        return torch.from_numpy(self.session.run(["logits"], self._prepared(images))[0])

    def _prepared(self, images: Sequence[Any]) -> dict[str, np.ndarray]:
        if "images" in self.inputs:
            return {"images": np.stack(self.image_processor.to_levels(list(images)))}
        with_map = "superpixel_ids" in self.inputs
        batch = self.image_processor(list(images), return_tensors="np", do_superpixels=with_map)
        return {name: batch[name] for name in self.inputs}


def _batches(images: Any, batch_size: int) -> Iterator[list[Any]]:
    """What may be given, one image or a list of them, in parts."""
    if batch_size < 1:
        raise ValueError(f"Expected batch_size >= 1, got {batch_size}.")
    given = list(flat_images(images))
    for start in range(0, len(given), batch_size):
        yield given[start : start + batch_size]


def _as_given(images: Any, answers: list[Any]) -> Any:
    """A list of answers to a list of images, one answer to one image."""
    return answers if isinstance(images, (list, tuple)) or getattr(images, "ndim", 0) == 4 else answers[0]


class OnnxImageClassifier(_OnnxModel):
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
        ValueError: when the folder holds no such graph, one that was exported otherwise, or one of another task.
        ImportError: when ONNX Runtime is not installed.

    Example:

    ```python
    >>> from focusvit_hf.export import OnnxImageClassifier

    >>> classify = OnnxImageClassifier("exported")
    >>> classify("cat.png", top_k=1)
    [{'label': 'cat', 'score': 0.97}]
    ```"""

    task = "classification"

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
        if top_k < 1:
            raise ValueError(f"Expected top_k >= 1, got {top_k}.")
        parts = _batches(images, batch_size)
        return _as_given(images, [self._ranked(row, top_k) for part in parts for row in self.probabilities(part)])

    def probabilities(self, images: Sequence[Any]) -> np.ndarray:
        """Of images that go through the graph together: `(batch_size, num_labels)` float32, rows sum to 1."""
        return self.logits(images).double().softmax(dim=1).float().numpy()

    def _ranked(self, probabilities: np.ndarray, top_k: int) -> list[dict[str, Any]]:
        names: Any = self.config.id2label
        best = np.argsort(-probabilities, kind="stable")[:top_k]
        return [{"label": names[int(number)], "score": float(probabilities[number])} for number in best]


class OnnxImageSegmenter(_OnnxModel):
    """
    A segmenter that [`export_model`] wrote as ONNX. It is called as `pipeline("image-segmentation")` is; [`segment`]
    gives what [`~explanation.segment`] gives of a model in torch, borders at the image's own resolution and cut-outs.
    Of a single image on a CPU it takes a third of torch's time.

    Args:
        folder (`str` or `Path`): The exported folder.
        threads (`int`, *optional*), spinning (`bool`, *optional*, defaults to `True`): See [`OnnxImageClassifier`].

    Raises:
        ValueError: when the folder holds no such graph, one that was exported otherwise, or one of another task.
        ImportError: when ONNX Runtime is not installed.

    Example:

    ```python
    >>> from focusvit_hf.export import OnnxImageSegmenter

    >>> find = OnnxImageSegmenter("exported")
    >>> [part["label"] for part in find("cat.png")]
    ['ground', 'figure']
    >>> find.segment("cat.png").cutout().save("cutout.png")
    ```"""

    task = "segmentation"

    def __call__(self, images: Any, batch_size: int = 1) -> list[Any]:
        """
        The classes of images and where they are, interpolated between cells as the pipeline does it.

        Args:
            images: One image, or a list of them: whatever the image processor takes, such as the path of a file.
            batch_size (`int`, *optional*, defaults to 1): How many images go through the graph at once.

        Returns:
            `list[dict]`: `"label"`, `"mask"` (a PIL image in mode L of the image's size, 255 where the class is) and
            `"score"` (None) of each class that occurs; of a list of images a list of these.

        Raises:
            ValueError: on images that cannot be used, and a processor that crops them.
        """
        answers: list[Any] = []
        for part in _batches(images, batch_size):
            shown = [whole_image(self.image_processor, image) for image in part]
            sizes = [(image.height, image.width) for image in shown]
            outputs = SemanticSegmenterOutput(logits=self.logits(shown))
            maps = self.image_processor.post_process_semantic_segmentation(outputs, sizes)
            answers += [self._parts(labels.numpy()) for labels in maps]
        return _as_given(images, answers)

    def segment(self, image: Any, upsampling: str = "guided") -> Segmentation:
        """What the model says about the pixels of one image: see [`~explanation.segment`]."""
        require_upsampling(upsampling)
        shown = whole_image(self.image_processor, image)
        return Segmentation(shown, self.logits([shown])[0], class_names(self.config), upsampling)

    def _parts(self, labels: np.ndarray) -> list[dict[str, Any]]:
        names = class_names(self.config)
        masks = {
            int(number): Image.fromarray(255 * (labels == number).astype(np.uint8)) for number in np.unique(labels)
        }
        return [{"score": None, "label": names[number], "mask": mask} for number, mask in masks.items()]


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


__all__ = ["OnnxImageClassifier", "OnnxImageSegmenter"]
