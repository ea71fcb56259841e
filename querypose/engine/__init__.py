"""Training: the trainer over the host framework, its step, optimizer, averaged weights, progress line and launch."""

from __future__ import annotations

from querypose.engine import config as config
from querypose.engine.dataset_check import require_sound_datasets, validate_datasets
from querypose.engine.ema import ExponentialMovingAverage, load_evaluation_weights
from querypose.engine.errors import LostProcessError, NonFiniteError, report_user_errors
from querypose.engine.hooks import HOOK_REGISTRY
from querypose.engine.launch import add_timeout_argument, launch
from querypose.engine.model_preparation import prepare_model
from querypose.engine.optimizer import build_optimizer
from querypose.engine.predictor import PosePredictor
from querypose.engine.setup import setup
from querypose.engine.train_step import TrainStep
from querypose.engine.trainer import PoseTrainer

__all__ = [
    "HOOK_REGISTRY",
    "PosePredictor",
    "PoseTrainer",
    "TrainStep",
    "build_optimizer",
    "ExponentialMovingAverage",
    "load_evaluation_weights",
    "prepare_model",
    "setup",
    "report_user_errors",
    "LostProcessError",
    "NonFiniteError",
    "launch",
    "add_timeout_argument",
    "require_sound_datasets",
    "validate_datasets",
]
