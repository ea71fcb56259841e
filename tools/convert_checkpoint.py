#!/usr/bin/env python
"""Turns other people's weights into a checkpoint for MODEL.WEIGHTS.

The file is read without running any code in it. Every entry must fit the model of the config, or be known to do
nothing; if not, nothing is written and the entries are named. What differs between the authors' models and ours with
the same weights, and how to get their behavior, stands in docs/deviations.md.

    python tools/convert_checkpoint.py --from querypose-official \\
        --config-file configs/querypose/querypose_hrnet_w32_2x.yaml model_final.pth weights/querypose_hrnet_w32.pth
"""

from __future__ import annotations

import argparse

from querypose.checkpoint import KINDS, convert_state_dict, load_state_dict_file, save_model
from querypose.config import add_import_argument, add_row_argument, load_config
from querypose.engine import report_user_errors


def parse_arguments() -> argparse.Namespace:
    description, _, example = (__doc__ or "").partition("\n\n    ")
    kinds = "\n".join(f"  {name:20} {kind.meaning}" for name, kind in KINDS.items())
    parser = argparse.ArgumentParser(
        description=description,
        epilog=f"kinds of checkpoint:\n{kinds}\n\nexample:\n    {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--from", dest="kind", required=True, choices=list(KINDS), help="what IN is, see below")
    parser.add_argument("--config-file", required=True, metavar="F", help="YAML of the model that is to load OUT")
    add_import_argument(parser)
    add_row_argument(parser)
    parser.add_argument("input", metavar="IN", help="the foreign checkpoint")
    parser.add_argument("output", metavar="OUT", help="the checkpoint to write")
    parser.add_argument("opts", metavar="KEY VALUE", nargs="*", help="changes to the config")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    cfg = load_config(arguments.config_file, arguments.opts, arguments.imports, row=arguments.row)
    converted = convert_state_dict(arguments.kind, load_state_dict_file(arguments.input), cfg)
    save_model(converted, arguments.output)
    num_values = sum(value.numel() for value in converted.values())
    print(f"Wrote {len(converted)} entries, {num_values:,} values, to {arguments.output}.")


if __name__ == "__main__":
    with report_user_errors("convert_checkpoint.py"):
        main()
