"""Shows what the answer for an image rests on."""

from .explain import Explanation, Prediction, explain, predict
from .segmentation import Segmentation, segment
from .sheet import draw_sheet


__all__ = ["Explanation", "Prediction", "Segmentation", "draw_sheet", "explain", "predict", "segment"]
