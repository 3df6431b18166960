"""Predictions for videos on disk: one form that is written, continued, read, checked and submitted."""

from vlkd.data.predictions.check import check_predictions
from vlkd.data.predictions.layout import FORMS
from vlkd.data.predictions.read import Predictions
from vlkd.data.predictions.store import PredictionWriter, VideoSink
from vlkd.data.predictions.submit import SUBMISSIONS, write_submission

__all__ = [
    "FORMS",
    "SUBMISSIONS",
    "PredictionWriter",
    "Predictions",
    "VideoSink",
    "check_predictions",
    "write_submission",
]
