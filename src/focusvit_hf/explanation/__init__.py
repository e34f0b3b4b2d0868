"""Shows what the answer for an image rests on."""

from .explain import Explanation, Prediction, explain, predict
from .sheet import draw_sheet


__all__ = ["Explanation", "Prediction", "draw_sheet", "explain", "predict"]
