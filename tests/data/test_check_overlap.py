from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from querypose.data.duplicates import HASHES, _near_rows, find_overlap, hash_bytes, hash_gradients, hash_pixels
from tests.data.toy_dataset import toy_document, write_dataset
from tests.scripts import load_script


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """The script, which is in no package."""
    return load_script("datasets/check_overlap.py")


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Eight photos each. Shared: `same` byte for byte, `rewritten` with other metadata, `smaller` at 60%, as JPEG."""
    first, second = tmp_path / "first", tmp_path / "second"
    for number, folder in enumerate((first, second)):
        (folder / "sub").mkdir(parents=True)
        for index in range(5):
            _photo(100 * number + index).save(folder / f"own{index}.png")
    _photo(1000).save(first / "sub" / "same.png")
    shutil.copy(first / "sub" / "same.png", second / "renamed.png")
    _photo(1001).save(first / "rewritten.png")
    _photo(1001).save(second / "rewritten.png", compress_level=1)
    _photo(1002).save(first / "smaller.png")
    _photo(1002).resize((144, 108)).save(second / "smaller.jpg", quality=70)
    return first, second


def _photo(seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((240, 180), Image.Resampling.BICUBIC)


def test_each_way_of_matching_finds_what_it_should(folders: tuple[Path, Path]) -> None:
    found = {}
    for name, (image_hash, max_distance) in HASHES.items():
        overlap = find_overlap(*folders, image_hash, max_distance)
        assert (overlap.num_first, overlap.num_second, overlap.unreadable) == (8, 8, [])
        found[name] = {(pair.first, pair.second) for pair in overlap.pairs}
    assert found["bytes"] == {("sub/same.png", "renamed.png")}
    assert found["pixels"] == found["bytes"] | {("rewritten.png", "rewritten.png")}
    assert found["similar"] == found["pixels"] | {("smaller.png", "smaller.jpg")}


def test_pairs_do_not_depend_on_the_number_of_threads(folders: tuple[Path, Path]) -> None:
    assert find_overlap(*folders, num_threads=1) == find_overlap(*folders, num_threads=4)


def test_hashes_of_other_photos_differ_in_about_half_of_the_bits(tmp_path: Path) -> None:
    for seed in range(6):
        _photo(seed).save(tmp_path / f"{seed}.png")
    for image_hash in (hash_bytes, hash_pixels, hash_gradients):
        hashes = [image_hash(tmp_path / f"{seed}.png") for seed in range(6)]
        shares = [float((hashes[a] != hashes[b]).mean()) for a in range(6) for b in range(a)]
        assert 0.25 < min(shares) < max(shares) < 0.75


def test_every_pair_of_many_is_found_with_its_distance() -> None:
    # More images than are compared at a time.
    generator = np.random.default_rng(0)
    first, second = generator.integers(0, 2, (2, 600, 64)).astype(bool)
    second[:300] = first[300:]
    second[5, :3] ^= True
    wanted = sorted((300 + row, row, 3 if row == 5 else 0) for row in range(300))
    assert _near_rows(first, second, 3) == wanted


def test_tool_writes_the_list_and_annotations_without_the_images(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    json_file, images = write_dataset(tmp_path, toy_document())
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(images / "a.png", other / "000007.png")
    output, filtered = tmp_path / "out" / "overlap.json", tmp_path / "out" / "filtered.json"
    arguments = [str(images), str(other), "--output", str(output), "--filter", str(json_file), str(filtered)]
    assert tool.main(arguments) == 0
    assert json.loads(output.read_text())["pairs"] == [{"first": "a.png", "second": "000007.png", "distance": 0}]
    document = json.loads(filtered.read_text())
    assert [image["file_name"] for image in document["images"]] == ["b.png"]
    assert document["annotations"] == []
    assert document["categories"] == toy_document()["categories"]
    assert "1 of 2 images in" in capsys.readouterr().out


def test_unreadable_images_are_named_and_give_an_exit_code(
    tool: ModuleType, folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = folders
    (first / "broken.png").write_bytes(b"nothing")
    output = tmp_path / "overlap.json"
    assert tool.main([str(first), str(second), "--output", str(output), "--match", "pixels"]) == 1
    assert "broken.png" in capsys.readouterr().err
    (message,) = json.loads(output.read_text())["unreadable"]
    assert "download it again" in message


@pytest.mark.parametrize("problem", ["no folder", "no image", "no json"])
def test_user_errors_are_one_line(
    tool: ModuleType, folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], problem: str
) -> None:
    first, second = folders
    empty = tmp_path / "empty"
    empty.mkdir()
    wrong_json = tmp_path / "wrong.json"
    wrong_json.write_text("[]")
    arguments = {
        "no folder": [str(tmp_path / "gone"), str(second)],
        "no image": [str(empty), str(second)],
        "no json": [str(first), str(second), "--filter", str(wrong_json), str(tmp_path / "out.json")],
    }[problem]
    assert tool.main([*arguments, "--output", str(tmp_path / "overlap.json")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("check_overlap.py: error: ")
    assert {"no folder": "gone", "no image": "empty", "no json": "wrong.json"}[problem] in error


def test_max_distance_needs_similar(tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tool.main(["a", "b", "--output", "c.json", "--max-distance", "3"])
    assert "--match similar" in capsys.readouterr().err
