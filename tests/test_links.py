"""Links of the documentation lead to what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[1]
_PAGES = [_ROOT / "README.md", *sorted((_ROOT / "docs").glob("*.md"))]
_FIRST = "SimCam/defaults"
_LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")


def _anchors(page: Path) -> set[str]:
    """Name the headings as GitHub does."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in _LINK.findall(page.read_text()):
        there = (page.parent / target).resolve() if target else page
        assert there.exists(), target
        assert not anchor or anchor in _anchors(there), f"{target}#{anchor}"


def test_the_index_names_every_page() -> None:
    index = (_ROOT / "docs" / "index.md").read_text()
    pages = {page.name for page in _PAGES[1:]} - {"index.md"}
    unnamed = {name for name in pages if f"({name}" not in index}
    assert {name for name in unnamed if not name.endswith("-benchmark.md")} == set()


@pytest.mark.parametrize(
    "page",
    [each for each in (_PAGES[0], *sorted((_ROOT / "conf").rglob("*.*"))) if _FIRST in each.read_text()],
    ids=lambda page: f"{page.parent.name}/{page.name}",
)
def test_commands_of_a_first_run_are_complete(page: Path) -> None:
    text = page.read_text()
    assert text.count("--register-dataset-types") >= text.count(_FIRST)


def test_the_contents_name_every_page() -> None:
    contents = re.findall(
        r"^(?:.*\"\"\")?([\w-]+)(?:\"\"\",)?$", (_ROOT / "docs" / "conf.py").read_text(), re.MULTILINE
    )
    pages = {page.stem for page in _PAGES[1:]} - {"index"}
    assert {name for name in pages - set(contents) if not name.endswith("-benchmark")} == set()
