"""What the documentation names exists: links, files, keys, commands with their options."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from querypose.config import get_cfg
from querypose.d2 import CfgNode
from tests.scripts import ROOT, run_script

FOLDERS = ("configs", "docs", "examples", "querypose", "tests", "tools")
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/**/*.md", "configs/**/*.md", "datasets/*.md", "examples/**/*.md", "tests/**/*.md")
    for page in ROOT.glob(pattern)
)
SECTIONS = "DATALOADER|DATASETS|INPUT|MODEL|SOLVER|TEST"


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


every_page = pytest.mark.parametrize("page", PAGES, ids=page_id)


def prose(page: Path) -> str:
    """Without blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def anchors(page: Path) -> set[str]:
    """Those that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not re.match(r"https?:|mailto:", target):
            file, _, anchor = target.partition("#")
            linked = (page.parent / file).resolve() if file else page
            assert linked.exists(), target
            assert not anchor or anchor in anchors(linked), target


def alternatives(path: str) -> list[str]:
    """`a_{1x,2x}` as a shell expands it."""
    choice = re.search(r"{([^{}]*)}", path)
    if choice is None:
        return [path]
    return [p for part in choice[1].split(",") for p in alternatives(path.replace(choice[0], part, 1))]


@every_page
def test_paths_exist(page: Path) -> None:
    """Those in backquotes that begin with a folder of the repository, from its root or from the page."""
    for code in re.findall(r"`([^`\n]+)`", prose(page)):
        for pattern in re.findall(rf"(?<![\w./-])(?:{'|'.join(FOLDERS)})/[\w./*{{}},-]+", code):
            for path in alternatives(pattern.rstrip("./,")):
                assert any(list(folder.glob(path)) for folder in (ROOT, page.parent)), path


@every_page
def test_tests_exist(page: Path) -> None:
    """Those named as `file::test`; the name may be cut by an ellipsis."""
    for file, name, cut in re.findall(r"`(tests/[\w/]+\.py)::(\w+)(…?)`", prose(page)):
        assert re.search(
            rf"^def {name}{'' if cut else '[(]'}", (ROOT / file).read_text(encoding="utf-8"), flags=re.M
        ), name


@every_page
def test_keys_exist(page: Path) -> None:
    cfg = get_cfg()
    for key in set(re.findall(rf"\b(?:{SECTIONS})(?:\.[A-Z][A-Z0-9_]*)+\b(?![.*<{{]?[A-Z*<{{])", prose(page))):
        node = cfg
        for part in key.split("."):
            assert isinstance(node, CfgNode), key
            assert part in node, key
            node = node[part]


def commands(page: Path) -> list[list[str]]:
    """The command lines of our tools in blocks of code, one a list."""
    lines = []
    for block in re.findall(r"^```(?:bash|sh)\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            tool = next(
                (index for index, word in enumerate(words) if re.match(r"(tools|datasets)/\w+\.py$", word)), None
            )
            if tool is not None:
                lines.append(words[tool:])
    return lines


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=page_id)
def test_commands_can_be_typed(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The tool exists, its options too, and so do the configs that they name."""
    for tool, *arguments in commands(page):
        assert (ROOT / tool).is_file(), tool
        assert run_script(tool, "--help") == 0
        options = set(re.findall(r"(?<![\w-])--?[\w-]+", capsys.readouterr().out))
        for argument in arguments:
            if argument.startswith("--"):
                assert argument.partition("=")[0] in options, f"{tool} {argument}"
            elif argument.startswith(("configs/", "examples/")):
                assert (ROOT / argument).exists(), argument
