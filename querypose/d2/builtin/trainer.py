"""`DefaultTrainer`: everything that a config says about training, put together."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from querypose.d2.builtin import comm, hooks
from querypose.d2.builtin.checkpoint import DetectionCheckpointer
from querypose.d2.builtin.config import CfgNode
from querypose.d2.builtin.defaults import create_ddp_model, default_writers
from querypose.d2.builtin.evaluation import DatasetEvaluator, inference_on_dataset, print_csv_format, verify_results
from querypose.d2.builtin.loader import build_detection_test_loader, build_detection_train_loader
from querypose.d2.builtin.logger import setup_logger
from querypose.d2.builtin.modeling import build_model
from querypose.d2.builtin.schedule import build_lr_scheduler
from querypose.d2.builtin.train_loop import AMPTrainer, HookBase, SimpleTrainer, TrainerBase
from querypose.d2.builtin.writers import EventWriter

_WRITER_PERIOD = 20


class DefaultTrainer(TrainerBase):
    """Builds model, optimizer, loader, schedule and hooks from a config, and trains.

    Each is built by a classmethod or method that a subclass may override.

    Attributes:
        cfg: the config.
        scheduler: of the learning rate.
        checkpointer: saves the model and this trainer's state in OUTPUT_DIR.
    """

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        if not logging.getLogger("querypose").isEnabledFor(logging.INFO):
            setup_logger()  # a training without default_setup still says what it does
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        model = create_ddp_model(model, broadcast_buffers=False)
        self._trainer: SimpleTrainer
        if cfg.SOLVER.AMP.ENABLED:
            precision = getattr(torch, cfg.SOLVER.AMP.PRECISION)
            self._trainer = AMPTrainer(model, data_loader, optimizer, precision=precision)
        else:
            self._trainer = SimpleTrainer(model, data_loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = DetectionCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    @property
    def model(self) -> nn.Module:
        """The model in training; wrapped, if there are several processes."""
        return self._trainer.model

    @model.setter
    def model(self, model: nn.Module) -> None:
        self._trainer.model = model

    @property
    def data_loader(self) -> Iterable[Any]:
        """Gives the training batches."""
        return self._trainer.data_loader

    @data_loader.setter
    def data_loader(self, data_loader: Iterable[Any]) -> None:
        self._trainer.data_loader = data_loader

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The model's optimizer."""
        return self._trainer.optimizer

    @optimizer.setter
    def optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        self._trainer.optimizer = optimizer

    def resume_or_load(self, resume: bool = True) -> None:
        """Goes on from the last checkpoint in OUTPUT_DIR, if `resume` and there is one; else loads MODEL.WEIGHTS.

        Going on takes up everything: model, optimizer, schedule, hooks, iteration. MODEL.WEIGHTS gives the model alone.
        """
        self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        if resume and self.checkpointer.has_checkpoint():
            self.start_iter = self.iter + 1  # the checkpoint names the iteration that had just ended

    def build_hooks(self) -> list[HookBase | None]:
        """Timing, schedule, checkpoints, evaluation and writers, in this order."""
        built: list[HookBase | None] = [hooks.IterationTimer(), hooks.LRScheduler()]
        if comm.is_main_process():
            built.append(hooks.PeriodicCheckpointer(self.checkpointer, self.cfg.SOLVER.CHECKPOINT_PERIOD))

        def test_and_save_results() -> Any:
            self._last_eval_results = self.test(self.cfg, self.model)
            return self._last_eval_results

        # After the checkpoint, which is there even if evaluating fails; before the writers, which write the figures.
        built.append(hooks.EvalHook(self.cfg.TEST.EVAL_PERIOD, test_and_save_results))
        if comm.is_main_process():
            built.append(hooks.PeriodicWriter(self.build_writers(), period=_WRITER_PERIOD))
        return built

    def build_writers(self) -> list[EventWriter]:
        """Progress line, metrics.json, TensorBoard."""
        return default_writers(self.cfg.OUTPUT_DIR, self.max_iter)

    def train(self) -> Any:  # type: ignore[override]  # as detectron2: the iterations are this class's own
        """Trains.

        Returns:
            the figures of the last evaluation, if TEST.EXPECTED_RESULTS checks them; else None.
        """
        super().train(self.start_iter, self.max_iter)
        if not self.cfg.TEST.EXPECTED_RESULTS or not comm.is_main_process():
            return None
        if not hasattr(self, "_last_eval_results"):
            raise AssertionError("TEST.EXPECTED_RESULTS is set, but nothing was evaluated.")
        verify_results(self.cfg, self._last_eval_results)
        return self._last_eval_results

    def run_step(self) -> None:
        """One iteration, by the inner trainer."""
        self._trainer.iter = self.iter
        self._trainer.run_step()

    def state_dict(self) -> dict[str, Any]:
        """Also the inner trainer's state, which has the optimizer's."""
        return {**super().state_dict(), "_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Also the inner trainer's state."""
        super().load_state_dict(state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """The model of MODEL.META_ARCHITECTURE."""
        model = build_model(cfg)
        logging.getLogger(__name__).info("Model:\n%s", model)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """AdamW over the trainable parameters.

        Deviates: detectron2's is SGD with momentum, whose keys this project does not have.
        """
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        solver = cfg.SOLVER
        return torch.optim.AdamW(
            parameters, lr=solver.BASE_LR, betas=tuple(solver.BETAS), weight_decay=solver.WEIGHT_DECAY
        )

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Any:
        """The schedule that SOLVER states."""
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[Any]:
        """Batches of DATASETS.TRAIN. A subclass gives it a mapper."""
        return build_detection_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[Any]:
        """Batches of one of DATASETS.TEST. A subclass gives it a mapper."""
        return build_detection_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """The evaluator of a dataset. A subclass must define it to be evaluated while training."""
        raise NotImplementedError(f"{cls.__name__} must define build_evaluator to evaluate {dataset_name!r}.")

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        evaluators: DatasetEvaluator | Sequence[DatasetEvaluator] | None = None,
    ) -> dict[str, Any]:
        """Evaluates a model on every dataset of DATASETS.TEST.

        Args:
            cfg: the config.
            model: with its weights.
            evaluators: one per dataset; None: those of `build_evaluator`. Without one a dataset is left out.

        Returns:
            {dataset: {task: {metric: value}}}; of a single dataset its figures alone.
        """
        logger = logging.getLogger(__name__)
        names = list(cfg.DATASETS.TEST)
        if isinstance(evaluators, DatasetEvaluator):
            evaluators = [evaluators]
        if evaluators is not None and len(evaluators) != len(names):
            raise AssertionError(f"{len(evaluators)} evaluators for {len(names)} datasets.")
        results: dict[str, Any] = {}
        for index, name in enumerate(names):
            data_loader = cls.build_test_loader(cfg, name)
            try:
                evaluator = cls.build_evaluator(cfg, name) if evaluators is None else evaluators[index]
            except NotImplementedError as error:
                logger.warning("%s is not evaluated: %s", name, error)
                results[name] = {}
                continue
            results[name] = inference_on_dataset(model, data_loader, evaluator)
            if comm.is_main_process():
                logger.info("Evaluation results for %s in csv format:", name)
                print_csv_format(results[name])
        return next(iter(results.values())) if len(results) == 1 else results
