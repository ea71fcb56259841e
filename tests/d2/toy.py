"""A model, a dataset and a trainer that are as small as can be: y = 2x + 1 is to be learned.

Module-level, so that spawned processes can import it.
"""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from querypose import d2
from querypose.config import get_cfg
from querypose.d2 import CfgNode

DATASET = "toy_line"
NUM_ENTRIES = 12


def load() -> list[dict[str, Any]]:
    """Entries with `x` in [-1, 1), of which every third is a portrait."""
    return [
        {
            "file_name": f"{index}.jpg",
            "image_id": index,
            "width": 20 if index % 3 else 10,
            "height": 15,
            "x": index / NUM_ENTRIES * 2 - 1,
        }
        for index in range(NUM_ENTRIES)
    ]


def register() -> None:
    d2.DatasetCatalog.register(DATASET, load)
    d2.MetadataCatalog.get(DATASET).set(evaluator_type="toy")


def mapper(entry: dict[str, Any]) -> dict[str, Any]:
    return {**entry, "x": torch.tensor([entry["x"]]), "y": torch.tensor([2 * entry["x"] + 1])}


def config(output_dir: Path) -> CfgNode:
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(output_dir)
    cfg.SEED = 7
    cfg.MODEL.DEVICE = "cpu"
    cfg.DATASETS.TRAIN = [DATASET]
    cfg.DATASETS.TEST = [DATASET]
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 4
    cfg.SOLVER.BASE_LR = 0.2
    cfg.SOLVER.MAX_ITER = 40
    cfg.SOLVER.STEPS = [30]
    cfg.SOLVER.WARMUP_ITERS = 4
    return cfg


class ToyModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(1, 1)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, batch: list[dict[str, Any]]) -> Any:
        predicted = self.line(torch.stack([entry["x"] for entry in batch]))
        if not self.training:
            return [{"y": value} for value in predicted]
        error = predicted - torch.stack([entry["y"] for entry in batch])
        return {"loss_square": error.square().mean(), "loss_absolute": 0.1 * error.abs().mean()}


class ToyEvaluator(d2.DatasetEvaluator):
    """Mean absolute error over all processes."""

    def reset(self) -> None:
        self.errors: list[float] = []
        self.image_ids: list[int] = []

    def process(self, inputs: Any, outputs: Any) -> None:
        for entry, output in zip(inputs, outputs, strict=True):
            self.errors.append(float((entry["y"] - output["y"]).abs()))
            self.image_ids.append(entry["image_id"])

    def evaluate(self) -> dict[str, Any] | None:
        gathered = d2.comm.gather((self.errors, self.image_ids))
        if not d2.comm.is_main_process():
            return None
        errors = [error for errors, _ in gathered for error in errors]
        return {"line": {"error": sum(errors) / len(errors), "count": float(len(errors))}}


class ToyStep:
    """A training step as small as can be: loss, backward, update."""

    def __init__(self, model: nn.Module, data_loader: Any, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.data_loader, self.optimizer = model, data_loader, optimizer
        self.iter = 0

    def run_step(self) -> None:
        losses = self.model(self.data_loader[self.iter % len(self.data_loader)])
        self.optimizer.zero_grad()
        sum(losses.values()).backward()
        self.optimizer.step()
        d2.get_event_storage().put_scalars(**{name: loss.item() for name, loss in losses.items()})

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])


class ToyTrainer(d2.DefaultTrainer):
    """Its constructor is its own, as that of `PoseTrainer` is: what it leaves to the engine is what is tested."""

    def __init__(self, cfg: CfgNode) -> None:
        d2.TrainerBase.__init__(self)
        torch.manual_seed(cfg.SEED)
        model = ToyModel()
        optimizer = torch.optim.SGD(model.parameters(), lr=cfg.SOLVER.BASE_LR, momentum=0.5)
        entries: Any = [mapper(entry) for entry in load()]
        self._trainer = ToyStep(model, [entries[begin : begin + 4] for begin in range(0, NUM_ENTRIES, 4)], optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = d2.DetectionCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.start_iter, self.max_iter, self.cfg = 0, cfg.SOLVER.MAX_ITER, cfg
        writers = [d2.JSONWriter(str(Path(cfg.OUTPUT_DIR, "metrics.json")))]
        self.register_hooks(
            [
                d2.hooks.IterationTimer(),
                d2.hooks.LRScheduler(),
                d2.hooks.EvalHook(cfg.TEST.EVAL_PERIOD, self._evaluate),
                d2.hooks.PeriodicWriter(writers, period=20),
            ]
        )

    def run_step(self) -> None:
        self._trainer.iter = self.iter
        self._trainer.run_step()

    def _evaluate(self) -> dict[str, Any]:
        self.model.eval()
        self._last_eval_results = self.test(self.cfg, self.model)
        self.model.train()
        return self._last_eval_results

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        entries: Any = [mapper(entry) for entry in d2.DatasetCatalog.get(dataset_name)]
        return DataLoader(entries, batch_size=5, collate_fn=list)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> ToyEvaluator:
        return ToyEvaluator()


def weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the model's weights; of a wrapped model under its own names."""
    return {name.removeprefix("module."): value.clone() for name, value in model.state_dict().items()}
