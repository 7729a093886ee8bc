"""From a trained run, or a model, and a new video to a prediction."""

from .recording import predict, predict_video
from .request import Request
from .result import PredictedInterval, Prediction

__all__ = ["PredictedInterval", "Prediction", "Request", "predict", "predict_video"]
