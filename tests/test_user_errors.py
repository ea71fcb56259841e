"""Whatever a user may give that cannot be used: one line that names it, exit code 2, nothing half-written."""

from __future__ import annotations

import collections
import errno
import json
import os
import pickle
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from querypose.d2 import ENGINE
from tests.engine.toy_pose import ToyPose, toy_model, write_toy_config
from tests.loggers import restored_loggers
from tests.scripts import run_script

TRAIN, EVALUATE, REPLAY = "tools/train_net.py", "tools/evaluate_results.py", "tools/replay.py"
CONVERT, DEMO, LOOK = "tools/convert_checkpoint.py", "tools/demo.py", "tools/visualize_data.py"


class Case(NamedTuple):
    """What is given, and what the message must say.

    Attributes:
        name: of the case.
        message: all of these must stand in the message, in this order.
        arguments: of the tool, from the test's folder.
        tool: path of the script.
    """

    name: str
    message: tuple[str, ...]
    arguments: Callable[[Path], list[str]]
    tool: str = TRAIN


def config(name: str, text: str | bytes, *message: str) -> Case:
    """A config file of that content."""

    def arguments(folder: Path) -> list[str]:
        content = text if isinstance(text, bytes) else text.encode()
        (folder / "bad.yaml").write_bytes(content)
        return ["--config-file", str(folder / "bad.yaml")]

    return Case(f"config: {name}", message, arguments)


def override(name: str, given: list[str], *message: str) -> Case:
    """Keys on the command line."""
    return Case(f"key: {name}", message, lambda folder: ["--config-file", str(write_toy_config(folder)), *given])


def dataset(name: str, change: Callable[[dict[str, Any]], Any], *message: str) -> Case:
    """An annotation file, changed; a change that gives text is the file."""

    def arguments(folder: Path) -> list[str]:
        config_file = write_toy_config(folder)
        json_file = folder / "data" / "toy.json"
        document = json.loads(json_file.read_text())
        changed = change(document)
        json_file.write_text(changed if isinstance(changed, str) else json.dumps(document))
        return ["--config-file", str(config_file)]

    return Case(f"dataset: {name}", message, arguments)


def weights(
    name: str, write: Callable[[Path], Any], *message: str, evaluate: bool = True, extra: Sequence[str] = ()
) -> Case:
    """A file MODEL.WEIGHTS."""

    def arguments(folder: Path) -> list[str]:
        write(folder / "w.pth")
        mode = ["--eval-only"] if evaluate else []
        return ["--config-file", str(write_toy_config(folder)), *mode, "MODEL.WEIGHTS", str(folder / "w.pth"), *extra]

    return Case(f"weights: {name}", message, arguments)


def results(name: str, change: Callable[[list[dict[str, Any]]], Any], *message: str) -> Case:
    """A results file for the toy dataset, changed."""

    def arguments(folder: Path) -> list[str]:
        write_toy_config(folder)
        content = [
            {"image_id": index, "category_id": 1, "keypoints": [5.0, 5.0, 1.0] * 17, "score": 0.5} for index in (1, 2)
        ]
        changed = change(content)
        (folder / "res.json").write_text(changed if isinstance(changed, str) else json.dumps(content))
        annotations = str(folder / "data" / "toy.json")
        return ["--annotations", annotations, "--results", str(folder / "res.json"), "--skeleton", "coco"]

    return Case(f"results: {name}", message, arguments, EVALUATE)


def tool(name: str, path: str, arguments: Callable[[Path], list[str]], *message: str) -> Case:
    return Case(f"tool: {name}", message, arguments, path)


class RunsCode:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.witness}",)


def toy_weights(**changes: Tensor) -> dict[str, Any]:
    return {"model": {**toy_model(dtype=torch.float32).state_dict(), **changes}}


def _save_bias(bias: Tensor, path: Path) -> None:
    torch.save(toy_weights(**{"flow.bias": bias}), path)


def truncated(path: Path) -> None:
    torch.save(toy_weights(), path)
    path.write_bytes(path.read_bytes()[:-2000])


def flipped(path: Path) -> None:
    torch.save(toy_weights(), path)
    content = bytearray(path.read_bytes())
    content[100:140] = b"x" * 40
    path.write_bytes(content)


SKELETON = {"name": "s", "keypoints": ["a", "b"], "sigmas": [0.1, 0.1]}


def custom(**entry: Any) -> list[str]:
    return ["DATASETS.CUSTOM", repr([entry])]


def change_in(place: str, **changes: Any) -> Callable[[dict[str, Any]], None]:
    """Changes the first entry of a list of the annotation file; None removes a field."""

    def change(document: dict[str, Any]) -> None:
        for name, value in changes.items():
            if value is None:
                del document[place][0][name]
            else:
                document[place][0][name] = value

    return change


# fmt: off
CASES: tuple[Case, ...] = (
    # ---- config files -------------------------------------------------------------------------------------------
    config("misspelt key", "SOLVER: {MAX_ITERS: 5}", "bad.yaml", "SOLVER.MAX_ITERS", "Did you mean SOLVER.MAX_ITER"),
    config("unknown section", "OPTIMIZER: {LR: 5}", "bad.yaml", "OPTIMIZER"),
    config("key of the wrong section", "MODEL: {NUM_QUERIES: 5}", "Did you mean", "MODEL.QUERYPOSE.NUM_QUERIES"),
    config("text for a number", "SOLVER: {MAX_ITER: many}", "SOLVER.MAX_ITER is 'many'", "an integer"),
    config("fraction for an integer", "SOLVER: {MAX_ITER: 1.5}", "SOLVER.MAX_ITER is 1.5", "an integer"),
    config("truth for a number", "SOLVER: {MAX_ITER: true}", "SOLVER.MAX_ITER is True", "an integer"),
    config("number for text", "MODEL: {WEIGHTS: 3}", "MODEL.WEIGHTS is 3", "text"),
    config("value for a section", "SOLVER: 3", "SOLVER is 3", "a section of keys"),
    config("nothing for a section", "SOLVER:", "SOLVER is None", "a section of keys"),
    config("nothing for a value", "SOLVER: {MAX_ITER: }", "SOLVER.MAX_ITER is None", "an integer"),
    config("one name for a list", "DATASETS: {TRAIN: coco}", "DATASETS.TRAIN is 'coco'", "a list"),
    config("infinite", "SOLVER: {BASE_LR: .inf}", "SOLVER.BASE_LR is inf", "> 0"),
    config("not a number", "SOLVER: {BASE_LR: .nan}", "SOLVER.BASE_LR is nan", "> 0"),
    config("a list", "[1, 2]", "bad.yaml", "mapping of keys"),
    config("a number", "3", "bad.yaml", "mapping of keys"),
    config("empty", "", "bad.yaml", "empty"),
    config("no YAML", "SOLVER: {", "bad.yaml", "not valid YAML"),
    config("tabs", "SOLVER:\n\tMAX_ITER: 3", "bad.yaml", "not valid YAML"),
    config("binary", b"\x80\x04\x95\xff\xfe", "bad.yaml"),
    config("NUL", "OUTPUT_DIR: \0", "bad.yaml", "not valid YAML"),
    config("code", "SOLVER: !!python/object/apply:os.system ['echo hi']", "bad.yaml", "YAML", "python/object"),
    config("key that is a number", "1: 2", "bad.yaml", "there is no key 1"),
    config("key that is a list", "? [a]\n: b", "bad.yaml", "not valid YAML"),
    config("nested without end", "a: &a [*a]\nb: " + "[" * 3000, "bad.yaml"),
    config("base that is missing", "_BASE_: nowhere.yaml", "bad.yaml", "_BASE_", "nowhere.yaml", "does not exist"),
    config("base that leads back", "_BASE_: bad.yaml", "bad.yaml", "leads back to itself"),
    config("base that is a number", "_BASE_: 3", "bad.yaml", "_BASE_"),
    config("base with NUL", '_BASE_: "a\\0.yaml"', "bad.yaml", "_BASE_", "no name of a file"),
    config("section twice", "SOLVER: {BASE_LR: 1}\nSOLVER: {MAX_ITER: 5}", "bad.yaml", "SOLVER is in line 1 and again"),
    config("section twice, in quotes", "SOLVER: {BASE_LR: 1}\n'SOLVER': {MAX_ITER: 5}", "SOLVER is in line 1 and"),
    config("section that is merged and written", "<<: {SOLVER: {BASE_LR: 1}}\nSOLVER: {MAX_ITER: 5}", "SOLVER is in"),
    config("section in two merges", "<<: [{SOLVER: {BASE_LR: 1}}, {SOLVER: {MAX_ITER: 5}}]", "SOLVER is in line 1"),
    config("two merges", "<<: {SEED: 1}\n<<: {SEED: 2}", "<< is in line 1 and again in line 2"),
    config("aliases without end", "a0: &a0 [x]\n" + "".join(
        f"a{n + 1}: &a{n + 1} [" + ", ".join([f"*a{n}"] * 9) + "]\n" for n in range(9)), "its aliases unfold"),
    config("merges without end", "a0: &a0 {x0: 1}\n" + "".join(
        f"a{n + 1}: &a{n + 1} {{<<: *a{n}, y{n}: *a{n}, z{n}: *a{n}}}\n" for n in range(30)), "its aliases unfold"),
    config("later version", "VERSION: 3", "VERSION is 3", "allowed: 2"),
    tool("config that is missing", TRAIN, lambda folder: ["--config-file", "nowhere.yaml"], "nowhere.yaml"),
    tool("config that is a folder", LOOK, lambda folder: ["--config-file", str(folder), "--output", str(folder / "o")],
         "no config file"),
    # ---- keys ---------------------------------------------------------------------------------------------------
    override("without value", ["SOLVER.MAX_ITER"], "has no value"),
    override("misspelt", ["SOLVER.BASE_RL", "1"], "SOLVER.BASE_RL", "Did you mean SOLVER.BASE_LR"),
    override("inside a value", ["SOLVER.BASE_LR.X", "1"], "no key SOLVER.BASE_LR.X"),
    override("below its least", ["SOLVER.MAX_ITER", "0"], "SOLVER.MAX_ITER is 0", ">= 1"),
    override("not among the choices", ["SOLVER.NON_FINITE.ACTION", "ignore"], "is 'ignore'", "'stop', 'skip'"),
    override("seed too great", ["SEED", "99999999999"], "SEED is 99999999999", "4294967295"),
    override("empty output", ["OUTPUT_DIR", ""], "OUTPUT_DIR is ''", "not empty"),
    override("steps out of order", ["SOLVER.STEPS", "[20, 10]"], "SOLVER.STEPS", "increasing order"),
    override("no sizes", ["INPUT.MIN_SIZE_TRAIN", "[]"], "INPUT.MIN_SIZE_TRAIN is []", "not empty"),
    override("crop upside down", ["INPUT.CROP.SIZE", "[9, 3]"], "INPUT.CROP.SIZE", "[smallest, largest]"),
    override("meta-architecture", ["MODEL.META_ARCHITECTURE", "ToyPos"], "is 'ToyPos'", "ToyPose"),
    override("backbone", ["MODEL.BACKBONE.NAME", "resnet"], "is 'resnet'", "build_timm_fpn_backbone"),
    override("accumulation", ["SOLVER.ACCUMULATION_STEPS", "3"], "a divisor of SOLVER.IMS_PER_BATCH"),
    override("heads", ["MODEL.QUERYPOSE.NUM_HEADS", "7"], "multiples of MODEL.QUERYPOSE.NUM_HEADS"),
    override("gamma", ["MODEL.QUERYPOSE.LOSS.FOCAL_GAMMA", "0.5"], "FOCAL_GAMMA is 0.5", "0, or a number >= 1"),
    override("no device", ["MODEL.DEVICE", "gpu"], "MODEL.DEVICE is 'gpu'", "'cuda:N'"),
    override("device of another kind", ["MODEL.DEVICE", "meta"], "MODEL.DEVICE is 'meta'", "'cuda:N'"),
    override("GPU that is not there", ["MODEL.DEVICE", "cuda"], "MODEL.DEVICE is 'cuda'", "no GPU", "cpu or auto"),
    override("unknown dataset", ["DATASETS.TRAIN", "['nowhere']"], "'nowhere'"),
    override("two skeletons", ["DATASETS.TRAIN", "['toy', 'crowdpose_train']"], "skeleton"),
    override("custom dataset that lacks a field", custom(name="mine"), "DATASETS.CUSTOM", "'mine'", "json"),
    override("custom dataset of no skeleton", custom(name="mine", json="a", images="b", skeleton="fish"), "'fish'"),
    override("skeleton that contradicts itself", ["DATASETS.SKELETONS",
             "[{'name': 's', 'keypoints': ['a', 'b'], 'sigmas': [0.1]}]"], "sigmas"),
    override("expected results of two datasets", ["TEST.EXPECTED_RESULTS", "[['keypoints', 'AP', 1, 1]]",
             "DATASETS.TEST", "['toy', 'toy']"], "TEST.EXPECTED_RESULTS"),
    override("negative steps", ["SOLVER.STEPS", "[-5]"], "SOLVER.STEPS is [-5]", "integers > 0"),
    override("steps that are truths", ["SOLVER.STEPS", "[True]"], "SOLVER.STEPS is [True]", "integers > 0"),
    override("a factor that trains uphill", ["SOLVER.LR_FACTORS", "[['flow.', -1.0]]"], "SOLVER.LR_FACTORS",
             "factor >= 0"),
    override("a level that there is not", ["MODEL.META_ARCHITECTURE", "QueryPose", "MODEL.QUERYPOSE.BOX.IN_FEATURES",
             "['p9']"], "MODEL.QUERYPOSE.BOX.IN_FEATURES has ['p9']", "p2"),
    override("a crop that patches do not divide", ["MODEL.META_ARCHITECTURE", "SHaRPose", "INPUT.PIPELINE",
             "person_crops", "INPUT.PERSON_CROP.SIZE", "[100, 100]"], "not divided by patches of 16",
             "INPUT.PERSON_CROP.SIZE"),
    override("no score is above 1", ["TEST.SCORE_THRESHOLD", "1.0"], "TEST.SCORE_THRESHOLD is 1.0", "[0, 1)"),
    override("expected results of another shape", ["TEST.EXPECTED_RESULTS", "[['keypoints', 'AP', 1]]"],
             "TEST.EXPECTED_RESULTS has ['keypoints', 'AP', 1]", "[task, metric, value, tolerance]"),
    override("expected results that are a number", ["TEST.EXPECTED_RESULTS", "[7]"], "TEST.EXPECTED_RESULTS has 7"),
    override("probability above 1", ["INPUT.AUGMENTATIONS", "[{'name': 'RandomFlip', 'probability': 7}]"],
             "'probability' with 7", "a number in [0, 1]"),
    override("probability that is not a number", ["INPUT.AUGMENTATIONS",
             "[{'name': 'RandomFlip', 'probability': float('nan')}]"], "INPUT.AUGMENTATIONS"),
    override("bounds upside down", ["INPUT.AUGMENTATIONS",
             "[{'name': 'RandomScale', 'probability': 1, 'bounds': [2, 1]}]"], "[smallest, largest]"),
    override("no timeout", ["--timeout", "inf"], "--timeout", "inf"),
    override("a timeout of nothing", ["--timeout", "nan"], "--timeout", "nan"),
    override("a negative timeout", ["--timeout", "-1"], "--timeout", "-1"),
    override("a machine that there is not", ["--num-machines", "2", "--machine-rank", "2"], "--machine-rank 2"),
    override("more machines without a place to meet", ["--num-machines", "2", "--dist-url", "auto"], "--dist-url", "tcp://"),
    override("skeleton with an infinite sigma", ["DATASETS.SKELETONS",
             "[{'name': 's', 'keypoints': ['a'], 'sigmas': [1e999]}]"], "sigmas must be 1 numbers in [0.001, 1.0]"),
    *(
        override(f"skeleton whose {field} is {value!r}", ["DATASETS.SKELETONS", repr([{**SKELETON, field: value}])],
                 "DATASETS.SKELETONS", field, "allowed")
        for field, value in (
            ("name", 7), ("keypoints", "ab"), ("keypoints", [True, "b"]), ("sigmas", "0.1"), ("sigmas", ["a", "b"]),
            ("flip_pairs", 3), ("flip_pairs", [["a"]]), ("edges", [["a", 1]]), ("edges", {"a": "b"}),
            ("part_schemes", {"p": "ab"}), ("default_part_scheme", []), ("upper_body", "a"), ("head_segment", "ab"),
        )
    ),
    override("skeleton that is no mapping", ["DATASETS.SKELETONS", "['a']"], "DATASETS.SKELETONS", "mappings"),
    override("custom dataset with a number for a path", custom(name="mine", json=3, images="b", skeleton="coco"),
             "DATASETS.CUSTOM", "json", "3 is no name of a file"),
    override("custom dataset with a list for a skeleton", custom(name="mine", json="a", images="b", skeleton=["x"]),
             "DATASETS.CUSTOM", "skeleton"),
    override("custom dataset that leads out of the output", custom(name="../../x", json="a", images="b",
             skeleton="coco"), "DATASETS.CUSTOM", "'../../x' leads out of the folder"),
    override("nothing to evaluate", ["--eval-only"], "MODEL.WEIGHTS is ''", "--random-weights"),
    override("nothing to evaluate on", ["--eval-only", "--random-weights", "DATASETS.TEST", "[]"],
             "DATASETS.TEST is empty"),
    # ---- annotation files ---------------------------------------------------------------------------------------
    dataset("no json", lambda document: "{", "toy.json"),
    dataset("no images", lambda document: document.pop("images"), "toy.json", "images"),
    dataset("empty", lambda document: document.update(images=[], annotations=[]), "toy.json"),
    dataset("two images of one id", lambda document: document["images"].append(document["images"][0]), "toy.json", "1"),
    dataset("image without a name", change_in("images", file_name=None), "toy.json", "file_name"),
    dataset("image without a size", change_in("images", width=0), "toy.json", "width"),
    dataset("annotation of no image", change_in("annotations", image_id=99), "toy.json", "99"),
    dataset("other number of keypoints", change_in("annotations", keypoints=[1, 2, 2]), "toy.json", "keypoints"),
    dataset("visibility 3", change_in("annotations", keypoints=[1, 1, 3] * 17), "toy.json", "visib", "3"),
    dataset("NaN", change_in("annotations", bbox=[1.0, 1.0, float("nan"), 2.0]), "toy.json", "bbox"),
    dataset("other keypoints", change_in("categories", keypoints=["a", "b"]), "toy.json", "keypoints"),
    dataset("name out of the folder", change_in("images", file_name="../../etc/passwd"), "toy.json", "leads out of"),
    dataset("name from the root", change_in("images", file_name="/etc/passwd"), "toy.json", "leads out of"),
    dataset("name with NUL", change_in("images", file_name="a\0.png"), "toy.json", "no name of a file"),
    dataset("name with half a character", change_in("images", file_name="\ud800.png"), "toy.json", "in Unicode"),
    dataset("one name twice", lambda document: '{"images": [], "images": [1]}', "toy.json", "'images' is twice"),
    # ---- weights ------------------------------------------------------------------------------------------------
    weights("missing", lambda path: None, "MODEL.WEIGHTS", "w.pth"),
    weights("a folder", lambda path: path.mkdir(), "MODEL.WEIGHTS", "w.pth"),
    weights("cut off", truncated, "w.pth", "not a whole checkpoint"),
    weights("damaged", flipped, "w.pth"),
    weights("empty", lambda path: path.write_bytes(b""), "w.pth"),
    weights("text", lambda path: path.write_text("<html>404</html>"), "w.pth"),
    weights("code", lambda path: torch.save({"model": RunsCode(path.with_name("ran"))}, path), "w.pth",
            "without running code"),
    weights("code in a bare pickle", lambda path: path.write_bytes(
            pickle.dumps(RunsCode(path.with_name("ran")), protocol=2)), "w.pth", "without running code"),
    weights("a list", lambda path: torch.save([1, 2], path), "w.pth", "list"),
    weights("of another architecture", lambda path: torch.save({"model": {"encoder.weight": torch.zeros(2)}}, path),
            "encoder.weight" if ENGINE == "builtin" else "another model"),
    weights("of which a part is missing", lambda path: torch.save(
            {"model": {"hidden.weight": toy_weights()["model"]["hidden.weight"]}}, path), "another model",
            "Missing in the file", "config.yaml"),
    weights("of another skeleton", lambda path: torch.save(
            toy_weights(**{"flow.weight": torch.zeros(28, 16), "flow.bias": torch.zeros(28)}), path),
            "another model", "flow.weight (28, 16), not (34, 16)", "skeleton"),
    weights("with more than the model", lambda path: torch.save(toy_weights(extra=torch.zeros(1)), path),
            "another model", "extra"),
    weights("NaN in one head", lambda path: torch.save(
            toy_weights(**{"flow.bias": torch.full((34,), float("nan"))}), path), "'flow.bias'", "infinite or NaN"),
    weights("too great for the precision", lambda path: torch.save(
            toy_weights(**{"flow.bias": torch.full((34,), 1e300, dtype=torch.float64)}), path), "infinite or NaN"),
    weights("NaN, to train from", lambda path: torch.save(
            toy_weights(**{"flow.bias": torch.full((34,), float("nan"))}), path), "infinite or NaN", evaluate=False),
    *(
        weights(f"of {dtype}", partial(_save_bias, torch.zeros(34).to(dtype)), "'flow.bias'", str(dtype))
        for dtype in (torch.int64, torch.uint8, torch.bool, torch.complex64)
    ),
    weights("sparse", lambda path: torch.save(
            toy_weights(**{"flow.bias": torch.ones(34).to_sparse()}), path), "'flow.bias'", "sparse"),
    weights("numbers in place of tensors", lambda path: torch.save({"model": {"flow.bias": 7}}, path), "flow.bias"),
    weights("a number in place of weights", lambda path: torch.save({"model": 7}, path), "no weights", "7"),
    weights("averaged weights that are none", lambda path: torch.save(
            {**toy_weights(), "ema": 7}, path), "averaged weights", "damaged", extra=["SOLVER.EMA.ENABLED", "True"]),
    weights("cut off, to train from", truncated, "w.pth", "not a whole checkpoint", evaluate=False),
    tool("weights in pickle", TRAIN, lambda folder: [
        "--config-file", str(write_toy_config(folder)), "--eval-only", "MODEL.WEIGHTS",
        str(_written(folder / "w.pkl", pickle.dumps({"model": RunsCode(folder / "ran")})))], "w.pkl", "run code"),
    tool("averaged weights of another model", TRAIN, lambda folder: [
        "--config-file", str(write_toy_config(folder)), "--eval-only", "SOLVER.EMA.ENABLED", "True", "MODEL.WEIGHTS",
        _saved(folder / "w.pth", {**toy_weights(), "ema": {"num_updates": 1, "weights": {"x": torch.zeros(1)}}})],
        "averaged weights", "another model", "x"),
    tool("foreign weights of no known kind", CONVERT, lambda folder: [
        "--from", "swin", "--config-file", "configs/querypose/querypose_swin_t_fpn_2x.yaml",
        _saved(folder / "in.pth", {"model": {"head.weight": torch.zeros(2)}}), str(folder / "out.pth"),
        "MODEL.DEVICE", "cpu"], "checkpoint"),
    # ---- results files ------------------------------------------------------------------------------------------
    results("unknown image", lambda content: content[0].update(image_id=999), "res.json", "999"),
    results("no image", lambda content: content[0].pop("image_id"), "res.json", "image_id"),
    results("unknown category", lambda content: content[0].update(category_id=9), "res.json", "categor"),
    results("wrong number of keypoints", lambda content: content[0].update(keypoints=[1.0] * 6), "res.json", "6"),
    results("NaN score", lambda content: content[0].update(score=float("nan")), "res.json", "score"),
    results("text for a score", lambda content: content[0].update(score="high"), "res.json", "score"),
    results("no list", lambda content: '{"a": 1}', "res.json"),
    results("no json", lambda content: "[", "res.json"),
    tool("ground truth of nobody", EVALUATE, lambda folder: _nobody(folder), "toy.json", "nothing to measure"),
    tool("results that are missing", EVALUATE, lambda folder: [
        "--annotations", str(folder / "a.json"), "--results", "r.json", "--skeleton", "coco"], "a.json"),
    tool("skeleton that is unknown", EVALUATE, lambda folder: [
        "--annotations", "a", "--results", "r", "--skeleton", "fish"], "'fish'", "coco, crowdpose"),
    # ---- folders and dumps --------------------------------------------------------------------------------------
    tool("output that is a file", TRAIN, lambda folder: [
        "--config-file", str(write_toy_config(folder)), "OUTPUT_DIR", str(_written(folder / "taken", b""))],
        "taken", "file stands where a folder should be"),
    tool("output below a file", TRAIN, lambda folder: [
        "--config-file", str(write_toy_config(folder)), "OUTPUT_DIR", str(_written(folder / "taken", b"") / "in")],
        "taken", "file stands where a folder should be"),
    tool("output of too long a name", TRAIN, lambda folder: [
        "--config-file", str(write_toy_config(folder)), "OUTPUT_DIR", str(folder / ("x" * 300))], "shorter path"),
    tool("no dump", REPLAY, lambda folder: [str(folder)], "There is no dump"),
    tool("dump without content", REPLAY, lambda folder: [
        str(Path(_saved(folder / "rank_0.pth", {"a": 1})).parent)], "is not a dump"),
    tool("dump with code", REPLAY, lambda folder: [
        str(Path(_saved(folder / "rank_0.pth", {"a": RunsCode(folder / "ran")})).parent)], "without running code"),
    tool("demo without weights there", DEMO, lambda folder: [
        "--config-file", str(write_toy_config(folder)), "--input", str(folder / "data"), "--output", str(folder / "o"),
        "--opts", "MODEL.WEIGHTS", "nowhere.pth"], "MODEL.WEIGHTS is 'nowhere.pth'"),
    tool("demo without images", DEMO, lambda folder: [
        "--config-file", str(write_toy_config(folder)), "--input", str(folder / "none"), "--output", str(folder / "o")],
        "none"),
)
# fmt: on


def _nobody(folder: Path) -> list[str]:
    """A results file beside annotations of crowds alone."""
    write_toy_config(folder)
    json_file = folder / "data" / "toy.json"
    document = json.loads(json_file.read_text())
    for annotation in document["annotations"]:
        annotation["iscrowd"] = 1
    json_file.write_text(json.dumps(document))
    (folder / "res.json").write_text("[]")
    return ["--annotations", str(json_file), "--results", str(folder / "res.json"), "--skeleton", "coco"]


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _saved(path: Path, content: Any) -> str:
    torch.save(content, path)
    return str(path)


def assert_reported(
    exit_code: int, message: tuple[str, ...], folder: Path, capsys: pytest.CaptureFixture[str], program: str = TRAIN
) -> None:
    """One line of that content, exit code 2, no traceback, and no file that is half there."""
    stderr = capsys.readouterr().err
    assert exit_code == 2, stderr
    assert "Traceback" not in stderr
    reported = stderr[stderr.rindex(f"{Path(program).name}: error: ") :]
    position = 0
    for part in message:
        assert part in reported[position:], f"{part!r} is not in {reported!r}"
        position += reported[position:].index(part) + len(part)
    assert not [path for path in folder.rglob("*") if path.name.endswith(".tmp") or path.name == "ran"]
    assert not (folder / "out.pth").exists()


def test_there_are_enough_of_them_and_no_two_alike() -> None:
    assert len(CASES) >= 60
    assert max(collections.Counter(case.name for case in CASES).values()) == 1
    assert all(case.message for case in CASES)


@pytest.mark.filterwarnings("ignore:Validating sparse tensor:UserWarning")  # torch's, of weights that are sparse
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_is_told_in_one_line(case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = case.arguments(tmp_path)
    with restored_loggers():
        exit_code = run_script(case.tool, *arguments)
    assert_reported(exit_code, case.message, tmp_path, capsys, case.tool)


def run_toy(folder: Path, *overrides: str) -> int:
    with restored_loggers():
        return run_script(TRAIN, "--config-file", str(write_toy_config(folder)), *overrides)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.ENOSPC, "The disk is full"),
        (errno.EDQUOT, "The disk is full"),
        (errno.EROFS, "folder that you may write"),
        (errno.EACCES, "folder that you may write"),
    ],
)
def test_a_folder_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, code: int, message: str
) -> None:
    make = os.mkdir

    def refuse(path: Any, *arguments: Any, **settings: Any) -> None:
        if "output" in str(path):
            raise OSError(code, os.strerror(code), str(path))
        make(path, *arguments, **settings)

    monkeypatch.setattr(os, "mkdir", refuse)
    assert_reported(run_toy(tmp_path), (str(tmp_path / "output"), message), tmp_path, capsys)
    assert not (tmp_path / "output").exists()


@pytest.mark.skipif(ENGINE == "detectron2", reason="its checkpoints are not written atomically")
def test_a_disk_that_is_full_when_a_checkpoint_is_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint before stays the last one; torch hides the reason behind an error of its own."""
    sync, calls = os.fsync, []

    def fail_later(descriptor: int) -> None:
        if ".pth" in os.readlink(f"/proc/self/fd/{descriptor}"):
            calls.append(descriptor)
            if len(calls) == 2:
                try:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                finally:
                    raise RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 704 vs 598")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fail_later)
    exit_code = run_toy(tmp_path)
    assert_reported(exit_code, ("model_0000009.pth", "The disk is full", "--resume"), tmp_path, capsys)
    output = tmp_path / "output"
    assert sorted(path.name for path in output.glob("*.pth")) == ["model_0000004.pth"]
    assert (output / "last_checkpoint").read_text() == "model_0000004.pth"
    torch.load(output / "model_0000004.pth", weights_only=True)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "SOLVER.ACCUMULATION_STEPS"),
        (MemoryError(), "DATALOADER.NUM_WORKERS"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "IMS_PER_BATCH"),
    ],
)
def test_no_memory(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    message: str,
) -> None:
    def forward(self: ToyPose, *given: Any) -> Any:
        raise error

    monkeypatch.setattr(ToyPose, "forward", forward)
    assert_reported(run_toy(tmp_path), ("out of memory", message), tmp_path, capsys)


def test_a_loss_that_is_not_finite(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = ToyPose.losses
    monkeypatch.setattr(
        ToyPose, "losses", lambda *given: {name: loss * float("nan") for name, loss in losses(*given).items()}
    )
    message = (
        "The loss became infinite or NaN at iteration 0",
        "SOLVER.BASE_LR",
        "tools/replay.py",
        "iteration_0000000",
    )
    assert_reported(run_toy(tmp_path), message, tmp_path, capsys)
    assert not list((tmp_path / "output").glob("*.pth"))


def test_a_mistake_of_the_program_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: ToyPose, *given: Any) -> Any:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(ToyPose, "forward", forward)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        run_toy(tmp_path)


def test_an_integer_is_a_float(tmp_path: Path) -> None:
    assert run_toy(tmp_path, "SOLVER.BASE_LR", "1", "SOLVER.MAX_ITER", "1", "TEST.EVAL_PERIOD", "0") == 0
