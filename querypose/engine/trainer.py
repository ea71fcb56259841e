"""`PoseTrainer`: detectron2's DefaultTrainer with this project's data, optimizer, step, averaging and progress line."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import os
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from querypose.config import ConfigError
from querypose.d2 import (
    CfgNode,
    DatasetEvaluator,
    DefaultTrainer,
    EventWriter,
    HookBase,
    JSONWriter,
    LRMultiplier,
    PathManager,
    TensorboardXWriter,
    TrainerBase,
    comm,
    hooks,
    setup_logger,
    verify_results,
)
from querypose.data import (
    StoppedWaitingError,
    build_test_loader,
    build_train_loader,
    explain_loader_failures,
    waiting_stops_if,
)
from querypose.engine.checkpointer import RunCheckpointer
from querypose.engine.dataset_check import require_sound_datasets
from querypose.engine.dumps import DumpWriter
from querypose.engine.ema import ExponentialMovingAverage, load_evaluation_weights, require_weights
from querypose.engine.hooks import (
    BestCheckpointer,
    EarlyStopping,
    EMAHook,
    PeriodicCheckpointer,
    PeriodicWriter,
    build_hooks,
)
from querypose.engine.inference import InferenceModel
from querypose.engine.model_preparation import prepare_model
from querypose.engine.optimizer import build_optimizer
from querypose.engine.progress import ProgressLine
from querypose.engine.resuming import check_resumable, restoring
from querypose.engine.run_lock import own_output_dir
from querypose.engine.run_state import RunState, untouched_random_states
from querypose.engine.schedule import ENDLESS, EndableLoop, TimeLimit, iterations_per_epoch, with_iterations
from querypose.engine.trackers import build_trackers
from querypose.engine.train_step import TrainStep
from querypose.evaluation import PoseEvaluator
from querypose.layers.precision import PRECISIONS
from querypose.lost_output import losses_said_again
from querypose.progress import logs_above_bars, progress


class PoseTrainer(DefaultTrainer, EndableLoop):
    """Trains and evaluates what a config describes, on either engine.

    The loop, the hooks' protocol, the schedule and the checkpoints are those of the engine's DefaultTrainer. The
    constructor is not: detectron2's has no place for another training step, nor for what must happen to a model before
    it is distributed.

    Attributes:
        ema: the averaged weights, or None.
        epoch: iterations of one; None where the data loader does not say.
        time_limit: where minutes end the training, or None.
        continues: whether this training goes on with an earlier one, which may have had no checkpoint yet.
    """

    _trainer: TrainStep
    checkpointer: RunCheckpointer

    def __init__(self, cfg: CfgNode) -> None:
        TrainerBase.__init__(self)
        if not logging.getLogger("querypose").isEnabledFor(logging.INFO):
            # Without `setup` too, as in a notebook, a training says what it does. detectron2 has a logger of its own.
            setup_logger()
            setup_logger(name="querypose")
        if "REFERENCE_WORLD_SIZE" in cfg.SOLVER:
            # The key and the function are detectron2's alone.
            cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())  # type: ignore[attr-defined]
        _check_batch_size(cfg)
        require_sound_datasets(cfg)
        data_loader = self.build_train_loader(cfg)
        self.epoch = iterations_per_epoch(data_loader, cfg.SOLVER.IMS_PER_BATCH)
        cfg = with_iterations(cfg, self.epoch)
        self._require_metrics(cfg)
        model = self.build_model(cfg)
        if cfg.MODEL.SYNC_BATCH_NORM:
            model = synchronize_batch_norm(model, torch.device(cfg.MODEL.DEVICE))
        optimizer = self.build_optimizer(cfg, model)
        self._trainer = self.build_train_step(cfg, distribute(model), data_loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        # After `distribute`, which gives every process the weights of the first.
        self.ema = ExponentialMovingAverage(model, cfg.SOLVER.EMA.DECAY) if cfg.SOLVER.EMA.ENABLED else None
        self.checkpointer = RunCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        if self.ema is not None:
            self.checkpointer.add_checkpointable("ema", self.ema)
        self.start_iter = 0
        minutes = cfg.SOLVER.MAX_MINUTES
        self.max_iter = ENDLESS if minutes else cfg.SOLVER.MAX_ITER
        self.time_limit = TimeLimit(minutes, cfg.SOLVER.MAX_ITER) if minutes else None
        self.cfg = cfg
        self.continues = False
        self._run_state = RunState(weakref.proxy(self))
        self.register_hooks(self.build_hooks())

    @property
    def step(self) -> TrainStep:
        return self._trainer

    def resume_or_load(self, resume: bool = True) -> None:
        """Restores the whole run from the last intact checkpoint of OUTPUT_DIR, or loads the weights of MODEL.WEIGHTS.

        Raises:
            ConfigError: MODEL.WEIGHTS is to be loaded and is not there, or a key cannot change while a run goes on.
            CheckpointError: the file is damaged or of another model, or no checkpoint of OUTPUT_DIR is intact.
        """
        self.continues = resume
        if path := self.checkpointer.get_checkpoint_file() if resume else "":
            self._resume(path)
        else:
            if resume:
                logging.getLogger(__name__).info(f"{self.cfg.OUTPUT_DIR} has no checkpoint: nothing to resume yet.")
            require_weights(self.cfg.MODEL.WEIGHTS)
            self.checkpointer.load(self.cfg.MODEL.WEIGHTS, checkpointables=[])
        if self.ema is not None and self.ema.num_updates == 0:
            self.ema.reset()

    def _resume(self, path: str) -> None:
        base_lrs = self.scheduler.base_lrs
        check = functools.partial(
            check_resumable,
            path=path,
            cfg=self.cfg,
            model=self.checkpointer.model,
            optimizer=self.optimizer,
        )
        with restoring(path):
            checkpoint = self.checkpointer.resume(path, check)
            self.start_iter = self.iter + 1  # the checkpoint names the iteration that had just ended
            if self.start_iter > self.max_iter:
                raise ConfigError(
                    f"The training ends after {self.max_iter} iterations (SOLVER.MAX_ITER or MAX_EPOCHS), but {path} "
                    f"has {self.start_iter} behind it. Choose a greater number, or write the name of an earlier "
                    "checkpoint into last_checkpoint."
                )
            rates = self.scheduler.get_last_lr()
            if isinstance(self.scheduler, LRMultiplier):
                # It brings the rates of the checkpoint; those of the config count.
                self.scheduler.base_lrs = base_lrs
                if self.time_limit is None:
                    self.scheduler.last_epoch = self.start_iter  # also where minutes had decided until then
                rates = self.scheduler.get_lr()
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
            self._run_state.resume(checkpoint)
        if self.time_limit is not None and self.time_limit.share == 1:
            self.max_iter = self.start_iter

    def train(self) -> Any:  # type: ignore[override]  # as DefaultTrainer: the iterations are the config's
        """As DefaultTrainer's.

        Raises:
            ConfigError: another run writes to OUTPUT_DIR.
            LoaderError: a process of the data loader died.
        """
        own_output_dir(self.cfg.OUTPUT_DIR)
        [self._saver] = [hook for hook in self._hooks if isinstance(hook, PeriodicCheckpointer)]
        with losses_said_again(), explain_loader_failures(), waiting_stops_if(self._saver.is_overdue):
            try:
                return super().train()
            finally:
                self.step.stop_loading()

    def before_train(self) -> None:
        super().before_train()
        self._run_state.finish_iteration()

    def run_step(self) -> None:
        """One iteration; the last one reports its scalars even where LOG_PERIOD does not."""
        self._trainer.iter = self.iter
        limit = self.time_limit
        self._trainer.pose_model.progress = self.iter / self.max_iter if limit is None else limit.share
        try:
            self._trainer.run_step(self.after_backward)
        except StoppedWaitingError:
            self.iter = self._trainer.iter = self.iter - 1  # this iteration has changed nothing
            self._saver.stop_waiting(hooks_done=True)
        if self.iter == self.max_iter - 1:
            self._trainer.write_scalars()

    def build_hooks(self) -> list[HookBase | None]:
        cfg = self.cfg
        period, keep = cfg.SOLVER.CHECKPOINT_PERIOD, cfg.SOLVER.CHECKPOINTS_TO_KEEP
        result: list[HookBase | None] = [hooks.IterationTimer(), self.time_limit, hooks.LRScheduler()]
        if self.ema is not None:
            result.append(EMAHook(self.ema))
        result += build_hooks(cfg, weakref.proxy(self))
        early = cfg.TEST.EARLY_STOPPING
        if early.PATIENCE:
            result.append(EarlyStopping(_name_of_metric(cfg, early.METRIC), cfg.TEST.EVAL_PERIOD, early.PATIENCE))
        result.append(PeriodicCheckpointer(self.checkpointer, period, keep, self._run_state.entries))
        # After the checkpoint, which then is there should the evaluation fail.
        result.append(hooks.EvalHook(cfg.TEST.EVAL_PERIOD, self._evaluate))
        if cfg.TEST.BEST_METRIC and cfg.TEST.EVAL_PERIOD > 0:
            result.append(
                BestCheckpointer(self.checkpointer, _name_of_metric(cfg, cfg.TEST.BEST_METRIC), cfg.TEST.EVAL_PERIOD)
            )
        # Last, so that the evaluation's metrics are written.
        trainer, metrics_file = weakref.proxy(self), Path(cfg.OUTPUT_DIR, "metrics.json")
        result.append(PeriodicWriter(lambda: trainer.build_writers(), cfg.LOG_PERIOD, metrics_file))
        return result

    def build_writers(self) -> list[EventWriter]:
        cfg = self.cfg
        PathManager.mkdirs(cfg.OUTPUT_DIR)
        return [
            ProgressLine(
                self.max_iter, cfg.SOLVER.IMS_PER_BATCH, cfg.LOG_PERIOD, epoch=self.epoch, time_limit=self.time_limit
            ),
            JSONWriter(os.path.join(cfg.OUTPUT_DIR, "metrics.json")),
            # Before TensorBoard, which takes the pictures away.
            *build_trackers(cfg, continues=self.start_iter > 0),
            # What a stopped run had written after its last checkpoint is not shown.
            TensorboardXWriter(cfg.OUTPUT_DIR, purge_step=self.start_iter or None),
        ]

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        return prepare_model(
            super().build_model(cfg),
            channels_last=cfg.MODEL.CHANNELS_LAST,
            compiled=cfg.MODEL.COMPILE,
            recomputed=cfg.MODEL.RECOMPUTE,
        )

    @classmethod
    def build_train_step(
        cls, cfg: CfgNode, model: nn.Module, data_loader: Iterable[Any], optimizer: torch.optim.Optimizer
    ) -> TrainStep:
        clip = cfg.SOLVER.CLIP_GRADIENTS
        return TrainStep(
            model,
            data_loader,
            optimizer,
            precision=PRECISIONS[cfg.SOLVER.AMP.PRECISION] if cfg.SOLVER.AMP.ENABLED else None,
            num_micro_batches=cfg.SOLVER.ACCUMULATION_STEPS,
            clip_norm=clip.CLIP_VALUE if clip.ENABLED else None,
            clip_norm_type=clip.NORM_TYPE,
            log_period=cfg.LOG_PERIOD,
            guard={
                "skip": cfg.SOLVER.NON_FINITE.ACTION == "skip",
                "max_consecutive": cfg.SOLVER.NON_FINITE.MAX_CONSECUTIVE,
                "dumps": DumpWriter(Path(cfg.OUTPUT_DIR) / "dumps", cfg.dump(), cfg.SOLVER.NON_FINITE.MAX_DUMPS),
            },
        )

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        solver = cfg.SOLVER
        return build_optimizer(
            model,
            base_lr=solver.BASE_LR,
            lr_factors=[(part, factor) for part, factor in solver.LR_FACTORS],
            weight_decay=solver.WEIGHT_DECAY,
            weight_decay_norm=solver.WEIGHT_DECAY_NORM,
            weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
            betas=tuple(solver.BETAS),
            shard=solver.SHARD_OPTIMIZER,
        )

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[Any]:
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[Any]:
        loader = build_test_loader(cfg, dataset_name)
        return progress(loader, f"evaluating on {dataset_name}", unit="batch", shown=comm.is_main_process())

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluator:
        return PoseEvaluator(cfg, dataset_name, output_folder)

    @classmethod
    def evaluate_weights(cls, cfg: CfgNode, resume: bool = False, random_weights: bool = False) -> dict[str, Any]:
        """--eval-only: evaluates MODEL.WEIGHTS on DATASETS.TEST and verifies TEST.EXPECTED_RESULTS.

        Args:
            cfg: with SOLVER.EMA.ENABLED the averaged weights are used.
            resume: evaluate the last checkpoint of OUTPUT_DIR, if there is one, in place of MODEL.WEIGHTS.
            random_weights: evaluate the model as it is initialized where there is neither of the two.

        Returns:
            metrics by task, by dataset first where there are several.

        Raises:
            ConfigError: there are no weights, or no datasets.
            DatasetError: a dataset has errors, see DATASETS.CHECK.
            CheckpointError: the weights are not those of the model, or cannot be used.
        """
        if not cfg.DATASETS.TEST:
            raise ConfigError("DATASETS.TEST is empty, so there is nothing to evaluate on. Name a dataset there.")
        require_sound_datasets(cfg, with_training=False)
        model = cls.build_model(cfg)
        use_average = cfg.SOLVER.EMA.ENABLED
        load_evaluation_weights(
            model, cfg.MODEL.WEIGHTS, use_average=use_average, output_dir=cfg.OUTPUT_DIR, resume=resume,
            random_weights=random_weights,
        )  # fmt: skip
        with losses_said_again():
            results = cls.test(cfg, InferenceModel(cfg, model, in_place=True))
        if comm.is_main_process():
            verify_results(cfg, results)
        return results

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        evaluators: DatasetEvaluator | Sequence[DatasetEvaluator] | None = None,
    ) -> dict[str, Any]:
        """Evaluates a model on every dataset of DATASETS.TEST: a copy of it, made ready for inference as TEST says.

        An `InferenceModel` is ready, and evaluated itself.

        Args and result are those of the engine's DefaultTrainer. Raises LoaderError where a loader process died.
        """
        ready = model if isinstance(model, InferenceModel) else InferenceModel(cfg, model)
        with explain_loader_failures(), logs_above_bars("querypose", "detectron2"):
            results: dict[str, Any] = super().test(cfg, ready, evaluators)
        return results

    @classmethod
    def _require_metrics(cls, cfg: CfgNode) -> None:
        """Refuses metrics to choose or to stop by that no evaluation will give.

        Raises:
            ConfigError: names them all.
        """
        chosen = {}
        if cfg.TEST.BEST_METRIC and cfg.TEST.EVAL_PERIOD > 0:
            chosen["TEST.BEST_METRIC"] = cfg.TEST.BEST_METRIC
        if cfg.TEST.EARLY_STOPPING.PATIENCE:
            chosen["TEST.EARLY_STOPPING.METRIC"] = cfg.TEST.EARLY_STOPPING.METRIC
        datasets = cfg.DATASETS.TEST if chosen else ()
        names = {}
        for dataset in datasets:
            evaluator = cls.build_evaluator(cfg, dataset)
            if not isinstance(evaluator, PoseEvaluator):
                return  # a user's own evaluator says nothing before it evaluates
            names[dataset] = evaluator.metric_names
        known = [name if len(names) == 1 else f"{dataset}/{name}" for dataset in names for name in names[dataset]]
        for key, metric in chosen.items():
            name = _name_of_metric(cfg, metric)
            allowed = {*known, *(name.rpartition("/")[0] for name in known)} if key == "TEST.BEST_METRIC" else known
            if known and name not in allowed:
                raise ConfigError(f"{key} is {metric!r}; the evaluation gives {', '.join(known)}. Choose one of them.")

    def _evaluate(self) -> dict[str, Any]:
        # Not through DistributedDataParallel: processes may have different numbers of batches.
        model = self.model.module if isinstance(self.model, DistributedDataParallel) else self.model
        try:
            # A training does not depend on how often, and with how many loader processes, it is evaluated.
            with untouched_random_states(), self.ema.in_model() if self.ema is not None else contextlib.nullcontext():
                share_buffers(model)
                self._last_eval_results = self.test(self.cfg, model)
        except StoppedWaitingError:
            self._saver.stop_waiting(hooks_done=False)
        return self._last_eval_results


def distribute(model: nn.Module) -> nn.Module:
    """`model` in DistributedDataParallel where there are several processes.

    Each process keeps its own BatchNorm statistics; those of the first one are saved. Every trainable parameter must
    take part in every loss, with a zero gradient if need be: a search for unused ones would slow every step down.
    """
    if comm.get_world_size() == 1:
        return model
    device = next(model.parameters()).device
    # Newer versions of torch warn of the old name.
    arguments: dict[str, Any] = {"gradient_as_bucket_view": True}
    has_new_name = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    arguments["forward_sync_buffers" if has_new_name else "broadcast_buffers"] = False
    return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None, **arguments)


@torch.no_grad()
def share_buffers(model: nn.Module) -> None:
    """Gives every process the first one's buffers, so that all evaluate the model that a checkpoint holds.

    BatchNorm statistics drift apart, since each process sees its own images; detectron2 evaluates them so.
    """
    if comm.get_world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def synchronize_batch_norm(model: nn.Module, device: torch.device) -> nn.Module:
    """`model` with every BatchNorm, timm's with activation too, sharing its statistics over the processes.

    Raises:
        ConfigError: on the CPU, for which torch has no such layer.
    """
    if device.type != "cuda":
        raise ConfigError(
            f"MODEL.SYNC_BATCH_NORM is True with MODEL.DEVICE {str(device)!r}; torch synchronizes BatchNorm on GPUs "
            "only. Set it to False, or use MODEL.BACKBONE.NORM FrozenBN."
        )
    # timm's version keeps the activation that its BatchNormAct2d holds; torch's drops it.
    from timm.layers import convert_sync_batchnorm

    return convert_sync_batchnorm(model)


def _name_of_metric(cfg: CfgNode, metric: str) -> str:
    """A metric as the evaluation names it: behind the first dataset's name, where there are several."""
    datasets = cfg.DATASETS.TEST
    is_complete = len(datasets) < 2 or any(metric.startswith(f"{name}/") for name in datasets)
    return metric if is_complete else f"{datasets[0]}/{metric}"


def _check_batch_size(cfg: CfgNode) -> None:
    images, processes, steps = cfg.SOLVER.IMS_PER_BATCH, comm.get_world_size(), cfg.SOLVER.ACCUMULATION_STEPS
    if images % processes:
        raise ConfigError(f"SOLVER.IMS_PER_BATCH is {images}; allowed: multiples of the {processes} processes.")
    if images // processes < steps:
        raise ConfigError(
            f"SOLVER.ACCUMULATION_STEPS is {steps}; allowed: at most the {images // processes} images that each "
            f"of {processes} processes has of SOLVER.IMS_PER_BATCH ({images})."
        )
