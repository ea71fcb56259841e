"""Every YAML key: its default, its meaning, what it allows; and how files and the command line go into a config.

`add_keys` declares a key beside the code that reads it, for example in `modeling/query_pose/config.py`; this package
has the machinery, and the keys of the run and the solver. `get_cfg()` is a config of all keys. `load_config` merges a
YAML file and the command line into it, and refuses what is misspelled or impossible: the message names the key, its
value and what is allowed.

A key that detectron2 has too keeps detectron2's name and meaning; the default may differ (QueryPose Sec. 4.1).
"""

from querypose.config import run as run
from querypose.config import solver as solver
from querypose.config.imports import add_import_argument, import_modules
from querypose.config.keys import (
    KEYS,
    ORDERED,
    Allowed,
    ConfigError,
    Key,
    above,
    add_keys,
    at_least,
    below,
    between,
    is_finite,
    is_integer,
    list_of_names,
    lookup,
    one_of,
    registered,
    require_one_unit,
    sequence_of,
)
from querypose.config.loading import add_querypose_config, config_of_mapping, get_cfg, load_config
from querypose.config.parts import build_part, part_list
from querypose.config.solver import length_of_training
from querypose.config.tables import add_row_argument, flatten, read_table

__all__ = [
    "KEYS",
    "ORDERED",
    "Allowed",
    "ConfigError",
    "Key",
    "above",
    "add_import_argument",
    "add_keys",
    "add_querypose_config",
    "add_row_argument",
    "at_least",
    "below",
    "between",
    "build_part",
    "config_of_mapping",
    "flatten",
    "get_cfg",
    "import_modules",
    "is_finite",
    "is_integer",
    "length_of_training",
    "list_of_names",
    "load_config",
    "lookup",
    "one_of",
    "part_list",
    "read_table",
    "registered",
    "require_one_unit",
    "sequence_of",
]
