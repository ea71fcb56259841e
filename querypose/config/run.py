"""Keys of a run as a whole."""

from __future__ import annotations

from querypose.config.keys import Allowed, ConfigError, Key, add_keys, at_least, between, list_of_names, one_of
from querypose.d2 import CfgNode


def _is_folder_name(value: str) -> bool:
    """TensorBoard writes into no folder whose name is not Unicode."""
    return value != "" and "\0" not in value and not any("\ud800" <= character <= "\udfff" for character in value)


def check_determinism(cfg: CfgNode) -> None:
    """Refuses what cannot be had together."""
    if cfg.DETERMINISTIC and cfg.CUDNN_BENCHMARK:
        raise ConfigError(
            "DETERMINISTIC and CUDNN_BENCHMARK are both True; allowed: one of them, because CUDNN_BENCHMARK chooses "
            "other algorithms from run to run."
        )


# fmt: off
add_keys((
    Key("IMPORTS", [],
        "modules of your own to import first, with their models, keys, …: dotted names, .py files, folders of packages",
        list_of_names()),
    Key("OUTPUT_DIR", "./output", "folder that receives config.yaml, log.txt, metrics.json, checkpoints, inference/",
        Allowed("a name in Unicode, not empty", _is_folder_name)),
    Key("SEED", -1, "seed of everything random; -1 draws one and logs it", between(-1, 2**32 - 1), fixed=True),
    Key("DETERMINISTIC", False,
        "bit-identical runs on a GPU too: deterministic algorithms alone; an operation that has none is an error"),
    Key("CUDNN_BENCHMARK", False, "let cuDNN time its algorithms; faster where input sizes repeat"),
    Key("TF32", "convolutions",
        "on a GPU: where float32 may be multiplied with 10 bits of mantissa, which is faster",
        one_of("none", "convolutions", "all")),
    Key("KEEP_FREED_MEMORY", True,
        "on a CPU: keep the memory of freed tensors for the next ones; faster, at the risk of a higher peak"),
    Key("LOG_PERIOD", 20, "iterations between two progress lines and two rows of metrics.json", at_least(1)),
), check_determinism)
# fmt: on
