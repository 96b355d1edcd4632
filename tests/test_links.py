"""Links between pages of the documentation resolve, and every page is listed."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[1]
_DOCS = _ROOT / "docs"
_PAGES = [
    _ROOT / "README.md",
    _ROOT / "CONTRIBUTING.md",
    *sorted(_DOCS.rglob("*.md")),
    *sorted((_ROOT / "conf").rglob("*.md")),
]
_FIRST = "SimCam/defaults"
_LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def _name(page: Path) -> str:
    return str(page.relative_to(_ROOT))


def _text(page: Path) -> str:
    return _FENCE.sub("", page.read_text())


def _anchors(page: Path) -> set[str]:
    """Return the anchors of the headings, named as GitHub names them."""
    headings = re.findall(r"^#+ (.+)$", _text(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", _PAGES, ids=_name)
def test_links_resolve(page: Path) -> None:
    for target, anchor in _LINK.findall(_text(page)):
        there = (page.parent / target).resolve() if target else page
        assert there.exists(), target
        assert not anchor or anchor in _anchors(there), f"{target}#{anchor}"


def test_index_links_every_page() -> None:
    linked = {target for target, _ in _LINK.findall((_DOCS / "index.md").read_text())}
    assert {page.name for page in _DOCS.glob("*.md")} - {"index.md"} - linked == set()


def test_index_of_records_links_every_record() -> None:
    linked = {target for target, _ in _LINK.findall((_DOCS / "adr" / "index.md").read_text())}
    assert {page.name for page in (_DOCS / "adr").glob("*.md")} - {"index.md"} == linked


def test_contents_name_every_page() -> None:
    contents = {
        page for pages in runpy.run_path(str(_DOCS / "conf.py"))["CONTENTS"].values() for page in pages
    }
    assert {page.stem for page in _DOCS.glob("*.md")} - {"index"} - contents == set()


@pytest.mark.parametrize(
    "page",
    [each for each in (_PAGES[0], *sorted((_ROOT / "conf").rglob("*.*"))) if _FIRST in each.read_text()],
    ids=lambda page: f"{page.parent.name}/{page.name}",
)
def test_commands_of_a_first_run_are_complete(page: Path) -> None:
    text = page.read_text()
    assert text.count("--register-dataset-types") >= text.count(_FIRST)
