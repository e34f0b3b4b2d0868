"""
Training: the Trainer with its parts, and the application behind `focusvit train` and the scripts in `examples/`.

Its names are loaded when they are first asked for: Trainer alone takes seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .augmentation import AugmentationConfig
    from .averaging import ExponentialMovingAverage
    from .data_collator import FocusViTDataCollator
    from .distillation import Distillation
    from .elastic import ElasticKeepRatio, ElasticSuperpixels
    from .segmentation import SegmentationTrainer
    from .segmentation_collator import SegmentationDataCollator
    from .segmentation_metrics import SegmentationMetrics
    from .trainer import FocusViTTrainer

_FILES = {
    "AugmentationConfig": "augmentation",
    "Distillation": "distillation",
    "ElasticKeepRatio": "elastic",
    "ElasticSuperpixels": "elastic",
    "ExponentialMovingAverage": "averaging",
    "FocusViTDataCollator": "data_collator",
    "FocusViTTrainer": "trainer",
    "SegmentationDataCollator": "segmentation_collator",
    "SegmentationMetrics": "segmentation_metrics",
    "SegmentationTrainer": "segmentation",
}

__all__ = [
    "AugmentationConfig",
    "Distillation",
    "ElasticKeepRatio",
    "ElasticSuperpixels",
    "ExponentialMovingAverage",
    "FocusViTDataCollator",
    "FocusViTTrainer",
    "SegmentationDataCollator",
    "SegmentationMetrics",
    "SegmentationTrainer",
]


def __getattr__(name: str) -> Any:
    """Loads the file of a public name, when it is first asked for."""
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_FILES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
