"""Tables of what a benchmark has measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tabulate import tabulate

from querypose.analysis.benchmark_subjects import UNTIMED
from querypose.analysis.complexity import CONVENTION
from querypose.analysis.operation_meter import COSTS, OTHERS
from querypose.analysis.part_meter import BACKWARD, REST, UPDATE
from querypose.config import ConfigError, is_finite
from querypose.data.json_files import read_json

Results = Mapping[str, Any]
_UNTIMED = ("workload", *UNTIMED)
_COMPARED = ("images_per_second", "peak_memory")
# Columns of what only some subjects tell: its key, and how it is shown.
_FURTHER: Mapping[str, tuple[str, Callable[[float], str]]] = {
    "refined": ("refined", "{:.0%}".format),
    "file MB": ("bytes", lambda size: f"{size / 1e6:.2f}"),
    "AP": ("AP", "{:.2f}".format),
}
_LAST_PARTS = {REST: 1, BACKWARD: 2, UPDATE: 3}  # after those of the forward pass, in the order of the model


def format_benchmark(results: Results) -> str:
    """All tables for a screen: steps, their parts, parameters and GFLOPs, the machine."""
    sections = [_steps_table(results["variants"])]
    whats = dict.fromkeys(what for variant in results["variants"].values() for what in variant)
    sections += [_parts_table(results["variants"], what) for what in whats if what not in _UNTIMED]
    sections += [
        _operations_table(name, variant["operations"])
        for name, variant in results["variants"].items()
        if "operations" in variant
    ]
    sections.append(_complexity_table(results["variants"]))
    sections.append("\n".join(f"{name}: {value}" for name, value in results["machine"].items()))
    return "\n\n".join(section for section in sections if section)


def read_benchmark(file: str | Path) -> Results:
    """What `--output` of an earlier benchmark wrote, to compare with.

    Raises:
        JsonError, ConfigError: the file is missing or something else.
    """
    content = read_json(file)
    sections = [content.get(name) if isinstance(content, dict) else None for name in ("variants", "machine")]
    if not all(isinstance(section, dict) for section in sections):
        raise ConfigError(f"{file} is not what tools/benchmark.py --output writes; name such a file.")
    for name, variant in content["variants"].items():
        for what, measured in variant.items() if isinstance(variant, dict) else [("", None)]:
            if what in _UNTIMED:
                continue
            seconds = measured.get("seconds") if isinstance(measured, dict) else None
            numbers: list[Any] = [seconds.get("median") if isinstance(seconds, dict) else None]
            numbers += [measured.get(key) if isinstance(measured, dict) else None for key in _COMPARED]
            if not all(is_finite(number) and number > 0 for number in numbers):
                raise ConfigError(f"{file}: variant {name!r} has no times of {what!r}; measure it again.")
    return dict(content)


def format_comparison(results: Results, other: Results, other_name: str) -> str:
    """How many times as fast, and with what share of the memory, every measurement of `results` is as in `other`."""
    lines = []
    for name, what, measured in _timed(results["variants"]):
        before = other["variants"].get(name, {}).get(what)
        if before is None:
            continue
        speed = before["seconds"]["median"] / measured["seconds"]["median"]
        per_image = measured["images_per_second"] / before["images_per_second"]
        memory = measured["peak_memory"] / before["peak_memory"]
        lines.append([name, what, f"{speed:.2f}x", f"{per_image:.2f}x", f"{memory:.2f}x"])
    if not lines:
        return f"There is nothing to compare: {other_name} and this run have no measurement in common."
    table = tabulate(lines, ["variant", "what", "step faster", "img/s", "memory"], disable_numparse=True)
    warning = ""
    if any(other["machine"].get(part) != results["machine"][part] for part in ("cpu", "gpu")):
        warning = "\nThe machines differ."
    return f"Against {other_name}:\n\n{table}{warning}"


def _timed(variants: Results) -> list[tuple[str, str, Results]]:
    """(name of the variant, what, its result), one kind of measurement after the other."""
    whats = dict.fromkeys(what for variant in variants.values() for what in variant if what not in _UNTIMED)
    return [(name, what, variant[what]) for what in whats for name, variant in variants.items() if what in variant]


def _steps_table(variants: Results) -> str:
    first: dict[str, Results] = {}
    lines = []
    timed = _timed(variants)
    further = {head: column for head, column in _FURTHER.items() if any(column[0] in each for _, _, each in timed)}
    for name, what, measured in timed:
        seconds = measured["seconds"]
        reference = first.setdefault(what, measured)
        lines.append(
            [
                what,
                name,
                f"{seconds['median'] * 1e3:.1f}",
                f"{seconds['lower_quartile'] * 1e3:.1f} … {seconds['upper_quartile'] * 1e3:.1f}",
                f"{measured['images_per_step']}",
                f"{measured['images_per_second']:.2f}",
                f"{measured['peak_memory'] / 2**30:.2f}",
                f"{measured['images_per_second'] / reference['images_per_second']:.2f}x",
                *(shown(measured[key]) if key in measured else "-" for key, shown in further.values()),
            ]
        )
    if not lines:
        return ""
    heads = ["what", "variant", "ms/step", "quartiles", "images", "img/s", "peak GiB", "speed"]
    heads += further
    return tabulate(lines, heads, disable_numparse=True, colalign=["left", "left", *["right"] * (len(heads) - 2)])


def _parts_table(variants: Results, what: str) -> str:
    measured = {name: variant[what] for name, variant in variants.items() if variant.get(what, {}).get("parts")}
    parts = dict.fromkeys(part for result in measured.values() for part in result["parts"])
    if not parts:
        return ""
    lines = []
    for part in sorted(parts, key=lambda name: _LAST_PARTS.get(name, 0)):
        line = [part]
        for result in measured.values():
            median = result["parts"].get(part, {"median": 0.0})["median"]
            total = sum(other["median"] for other in result["parts"].values())
            line.append(f"{median * 1e3:.1f} ({100 * median / total:.0f} %)")
        lines.append(line)
    heads = [f"{what}, ms by part", *measured]
    return tabulate(lines, heads, disable_numparse=True, colalign=["left", *["right"] * len(measured)])


def _operations_table(name: str, measured: Results) -> str:
    work, best = measured["work"], measured["best_rates"]
    rows = [(part, kind, cost) for part, kinds in work.items() for kind, cost in kinds.items() if cost["seconds"]]
    seconds, flops, moved = (sum(cost[key] for *_, cost in rows) for key in COSTS)
    rows.append(("all", "", {"seconds": seconds, "flops": flops, "bytes": moved}))
    lines = []
    for part, kind, cost in rows:
        line = [part, kind, f"{cost['seconds'] * 1e3:.0f}", f"{cost['seconds'] / seconds:.0%}"]
        for key in COSTS[1:]:
            line += [f"{cost[key] / 1e9:.1f}", f"{cost[key] / cost['seconds'] / 1e9:.1f}"]
        lines.append(line)
    heads = [f"{name}:", "operations", "core ms", "share", "GFLOP", "GFLOP/s", "GB", "GB/s"]
    table = tabulate(lines, heads, disable_numparse=True, colalign=["left", "left", *["right"] * 6])
    others = sum(kinds[OTHERS]["bytes"] for kinds in work.values())
    arithmetic, traffic = flops / best["flops"], others / best["bytes"]
    return (
        f"{table}\n\nA core's best: {best['flops'] / 1e9:.0f} GFLOP/s in a large convolution or product, "
        f"{best['bytes'] / 1e9:.0f} GB/s in a copy.\nWith these the products and convolutions take "
        f"{arithmetic * 1e3:.0f} ms and all other bytes {traffic * 1e3:.0f} ms: "
        f"the step takes {seconds / (arithmetic + traffic):.2f} times that."
    )


def _complexity_table(variants: Results) -> str:
    measured = {name: variant["complexity"] for name, variant in variants.items() if "complexity" in variant}
    if not measured:
        return ""
    parts = dict.fromkeys(part for result in measured.values() for part in (*result["parameters"], *result["flops"]))
    lines = []
    for part in [*parts, "total"]:
        line = [part]
        for result in measured.values():
            if part == "total":
                parameters, flops = sum(result["parameters"].values()), sum(result["flops"].values())
            else:
                parameters, flops = result["parameters"].get(part, 0), result["flops"].get(part, 0)
            line += [f"{parameters / 1e6:.3f}", f"{flops / 1e9:.2f}"]
        lines.append(line)
    names = [f"{name}: " if len(measured) > 1 else "" for name in measured]
    heads = ["part", *(f"{name}{unit}" for name in names for unit in ("params (M)", "GFLOPs"))]
    table = tabulate(lines, heads, disable_numparse=True, colalign=["left", *["right"] * (len(heads) - 1)])
    height, width = next(iter(measured.values()))["image_size"]
    return f"{table}\n\nInference of one {height}x{width} image.\n{CONVENTION}."
