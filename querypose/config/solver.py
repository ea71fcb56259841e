"""Keys of the optimizer, its schedule and the training step."""

from __future__ import annotations

from querypose.config.keys import (
    ConfigError,
    Key,
    above,
    add_keys,
    at_least,
    between,
    is_finite,
    is_integer,
    one_of,
    registered,
    sequence_of,
)
from querypose.d2 import LR_SCHEDULES, CfgNode
from querypose.layers.precision import PRECISIONS

_LR_FACTORS = sequence_of(
    "[part of a parameter's name, factor >= 0] pairs",
    lambda pair: (
        isinstance(pair, list | tuple)
        and len(pair) == 2
        and isinstance(pair[0], str)
        and is_finite(pair[1])
        and pair[1] >= 0
    ),
)


def check_solver(cfg: CfgNode) -> None:
    """Refuses a training without an end, steps out of order, and a batch not to be cut into ACCUMULATION_STEPS."""
    solver = cfg.SOLVER
    for name, epochs in (("MAX_ITER", "MAX_EPOCHS"), ("CHECKPOINT_PERIOD", "CHECKPOINT_EPOCHS")):
        if not solver[name] and not solver[epochs]:
            raise ConfigError(
                f"SOLVER.{name} is 0, and so is SOLVER.{epochs}; allowed: one of the two, a number >= 1 of iterations "
                "or a number > 0 of epochs."
            )
    for name, unit in (("STEPS", "iterations"), ("STEP_EPOCHS", "epochs")):
        if list(solver[name]) != sorted(solver[name]):
            raise ConfigError(f"SOLVER.{name} is {solver[name]}; allowed: {unit} in increasing order.")
    if solver.IMS_PER_BATCH % solver.ACCUMULATION_STEPS:
        raise ConfigError(
            f"SOLVER.ACCUMULATION_STEPS is {solver.ACCUMULATION_STEPS}; allowed: a divisor of SOLVER.IMS_PER_BATCH "
            f"({solver.IMS_PER_BATCH})."
        )


def length_of_training(cfg: CfgNode) -> str:
    """How long a training lasts, in words."""
    solver = cfg.SOLVER
    if solver.MAX_MINUTES:
        return f"{solver.MAX_MINUTES:g} minutes"
    return f"{solver.MAX_EPOCHS:g} epochs" if solver.MAX_EPOCHS else f"{solver.MAX_ITER} iterations"


# fmt: off
add_keys((
    Key("SOLVER.IMS_PER_BATCH", 16, "images per iteration over all processes, accumulation included", at_least(1)),
    Key("SOLVER.BASE_LR", 2.5e-5, "learning rate after the warm-up", above(0)),
    Key("SOLVER.LR_FACTORS", [["criterion.flow.", 10.0]],
        "[part of a parameter's name, factor of its learning rate]; the first that fits counts", _LR_FACTORS),
    Key("SOLVER.WEIGHT_DECAY", 1e-4, "decoupled weight decay of AdamW", at_least(0)),
    Key("SOLVER.WEIGHT_DECAY_NORM", 1e-4, "the same for normalization layers", at_least(0)),
    Key("SOLVER.WEIGHT_DECAY_BIAS", 1e-4, "the same for biases", at_least(0)),
    Key("SOLVER.BETAS", [0.9, 0.999], "of AdamW",
        sequence_of("numbers in [0, 1)", lambda value: is_finite(value) and 0 <= value < 1, length=2)),
    Key("SOLVER.MAX_ITER", 140000, "iterations in all", at_least(0)),
    Key("SOLVER.MAX_EPOCHS", 0.0, "epochs in all, in place of MAX_ITER; one has every image, or person's crop, once",
        at_least(0), instead_of="SOLVER.MAX_ITER"),
    Key("SOLVER.MAX_MINUTES", 0.0,
        "minutes of the clock in which the whole schedule is run through, however many iterations they allow; the last "
        "checkpoint and evaluation come after them; 0: it ends after MAX_ITER or MAX_EPOCHS", at_least(0)),
    Key("SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR", "shape of the schedule after the warm-up",
        registered(LR_SCHEDULES)),
    Key("SOLVER.STEPS", [110000, 130000], "iterations at which the rate is multiplied by GAMMA",
        sequence_of("integers > 0", lambda value: is_integer(value) and value > 0)),
    Key("SOLVER.STEP_EPOCHS", [], "epochs after which it is, in place of STEPS",
        sequence_of("numbers > 0", lambda value: is_finite(value) and value > 0), instead_of="SOLVER.STEPS"),
    Key("SOLVER.GAMMA", 0.1, "factor at each of STEPS", above(0)),
    Key("SOLVER.WARMUP_ITERS", 1000, "iterations of warm-up", at_least(0)),
    Key("SOLVER.WARMUP_FACTOR", 0.01, "share of the rate at which the warm-up begins", between(0, 1)),
    Key("SOLVER.WARMUP_METHOD", "linear", "shape of the warm-up", one_of("linear", "constant")),
    Key("SOLVER.CHECKPOINT_PERIOD", 5000, "iterations between two checkpoints", at_least(0)),
    Key("SOLVER.CHECKPOINT_EPOCHS", 0.0, "epochs between two checkpoints, in place of CHECKPOINT_PERIOD", at_least(0),
        instead_of="SOLVER.CHECKPOINT_PERIOD"),
    Key("SOLVER.CHECKPOINTS_TO_KEEP", 0, "periodic checkpoints that stay, the newest; 0 keeps all", at_least(0)),
    Key("SOLVER.CLIP_GRADIENTS.ENABLED", True, "clip the norm of the whole model's gradient"),
    Key("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 1.0, "the greatest norm", above(0)),
    Key("SOLVER.CLIP_GRADIENTS.NORM_TYPE", 2.0, "p of the norm", above(0)),
    Key("SOLVER.NON_FINITE.ACTION", "stop",
        "an iteration with an infinite or NaN loss or gradient ends the run, or is skipped; it never changes weights",
        one_of("stop", "skip")),
    Key("SOLVER.NON_FINITE.MAX_CONSECUTIVE", 10, "iterations skipped in a row before the run ends", at_least(0)),
    Key("SOLVER.NON_FINITE.MAX_DUMPS", 3,
        "such iterations written to OUTPUT_DIR/dumps for tools/replay.py, at most; each holds the model's weights",
        at_least(0)),
    Key("SOLVER.AMP.ENABLED", False, "mixed precision; geometry, flow and losses stay float32"),
    Key("SOLVER.AMP.PRECISION", "bfloat16", "the lower precision; float16 scales the loss",
        registered(PRECISIONS, without=("float32",))),
    Key("SOLVER.ACCUMULATION_STEPS", 1, "micro-batches into which an iteration's batch is cut", at_least(1)),
    Key("SOLVER.SHARD_OPTIMIZER", False,
        "of several processes each keeps AdamW's moments of some parameters alone (ZeRO stage 1): equal updates, less "
        "memory, one exchange of weights more an iteration"),
    Key("SOLVER.EMA.ENABLED", False, "keep an exponential moving average of the weights and evaluate that"),
    Key("SOLVER.EMA.DECAY", 0.9998, "share of the average that an iteration keeps; n/(n+9) at update n if that is less",
        between(0, 1)),
), check_solver)
# fmt: on
