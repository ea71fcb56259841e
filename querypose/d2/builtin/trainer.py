"""`DefaultTrainer`: what a trainer over a config needs besides the loop."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from querypose.d2.builtin import comm
from querypose.d2.builtin.checkpoint import DetectionCheckpointer
from querypose.d2.builtin.config import CfgNode
from querypose.d2.builtin.evaluation import DatasetEvaluator, inference_on_dataset, print_csv_format, verify_results
from querypose.d2.builtin.modeling import build_model
from querypose.d2.builtin.schedule import build_lr_scheduler
from querypose.d2.builtin.train_loop import TrainerBase


class DefaultTrainer(TrainerBase):
    """Runs a training step in the loop, checks TEST.EXPECTED_RESULTS, and evaluates on DATASETS.TEST.

    Deviates: detectron2's has a constructor too, and builds data loaders, optimizer, evaluator, hooks and writers; here
    a subclass does. Its constructor sets the attributes below.

    Attributes:
        cfg: the config.
        scheduler: of the learning rate.
        checkpointer: saves the model and this trainer's state in OUTPUT_DIR.
        _trainer: the training step, with `model`, `data_loader`, `optimizer`, `iter`, `run_step` and a state.
    """

    cfg: CfgNode
    scheduler: Any
    checkpointer: DetectionCheckpointer
    _trainer: Any

    @property
    def model(self) -> nn.Module:
        model: nn.Module = self._trainer.model
        return model

    @property
    def data_loader(self) -> Iterable[Any]:
        data_loader: Iterable[Any] = self._trainer.data_loader
        return data_loader

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = self._trainer.optimizer
        return optimizer

    def train(self) -> Any:  # type: ignore[override]  # as detectron2: the iterations are this class's own
        """Trains.

        Returns:
            the metrics of the last evaluation, if TEST.EXPECTED_RESULTS checks them; else None.
        """
        super().train(self.start_iter, self.max_iter)
        if not self.cfg.TEST.EXPECTED_RESULTS or not comm.is_main_process():
            return None
        if not hasattr(self, "_last_eval_results"):
            raise AssertionError("TEST.EXPECTED_RESULTS is set, but nothing was evaluated.")
        verify_results(self.cfg, self._last_eval_results)
        return self._last_eval_results

    def state_dict(self) -> dict[str, Any]:
        """Also the training step's state, which has the optimizer's."""
        return {**super().state_dict(), "_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        model = build_model(cfg)
        logging.getLogger(__name__).info("Model:\n%s", model)
        return model

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Any:
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[Any]:
        raise NotImplementedError(f"{cls.__name__} must define build_test_loader to evaluate {dataset_name!r}.")

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        raise NotImplementedError(f"{cls.__name__} must define build_evaluator to evaluate {dataset_name!r}.")

    @classmethod
    def test(
        cls, cfg: CfgNode, model: nn.Module, evaluators: DatasetEvaluator | Sequence[DatasetEvaluator] | None = None
    ) -> dict[str, Any]:
        """Evaluates a model on every dataset of DATASETS.TEST.

        Args:
            cfg: the config.
            model: in evaluation mode, with its weights.
            evaluators: one per dataset; None: those of `build_evaluator`.

        Returns:
            {dataset: {task: {metric: value}}}; of a single dataset its metrics alone.
        """
        names = list(cfg.DATASETS.TEST)
        if isinstance(evaluators, DatasetEvaluator):
            evaluators = [evaluators]
        if evaluators is not None and len(evaluators) != len(names):
            raise AssertionError(
                f"There are {len(evaluators)} evaluators for {len(names)} datasets; give one for each."
            )
        results: dict[str, Any] = {}
        for index, name in enumerate(names):
            data_loader: Any = cls.build_test_loader(cfg, name)
            evaluator = cls.build_evaluator(cfg, name) if evaluators is None else evaluators[index]
            results[name] = inference_on_dataset(model, data_loader, evaluator)
            if comm.is_main_process():
                logging.getLogger(__name__).info("Evaluation results for %s in csv format:", name)
                print_csv_format(results[name])
        return next(iter(results.values())) if len(results) == 1 else results
