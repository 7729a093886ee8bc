"""From a trained run, or a model, and a new video to a prediction."""

from .predict import Request, predict, predict_video
from .result import PredictedInterval, Prediction

__all__ = ["PredictedInterval", "Prediction", "Request", "predict", "predict_video"]
