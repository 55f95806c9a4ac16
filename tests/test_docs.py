"""The documentation names everything that there is, and its links lead somewhere."""

import inspect
import re
from pathlib import Path

import pytest
import yaml

from mtl_jax import balance, continual

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
METHODS = {**balance.METHODS, **continual.METHODS}
FIELDS = ("Formula", "Reference", "Cost", "Use")


def entries() -> dict[str, str]:
    """The text below each heading of a method in docs/methods.md, by its name."""
    text = (ROOT / "docs" / "methods.md").read_text()
    result = re.findall(r"^#### `(\w+)`\n(.*?)(?=^#|\Z)", text, flags=re.MULTILINE | re.DOTALL)
    assert len(result) == len(dict(result)), "a method is described twice"
    return dict(result)


def titles(documented: object) -> list[str]:
    """The titles under "References" in a docstring."""
    _, _, references = (inspect.getdoc(documented) or "").partition("References:")
    return [" ".join(title.split()) for title in re.findall(r'"([^"]+)",', references)]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_method_is_described_and_nothing_else() -> None:
    assert entries().keys() == METHODS.keys()


@pytest.mark.parametrize("name", METHODS)
def test_the_entry_of_a_method_has_every_field_and_cites_what_its_docstring_cites(name: str) -> None:
    entry = entries()[name]
    fields = dict(re.findall(r"^- \*\*(\w+)\.\*\* (.+)$", entry, flags=re.MULTILINE))
    assert tuple(fields) == FIELDS
    for title in titles(METHODS[name]):
        assert title in fields["Reference"]


def test_titles_are_found_in_docstrings() -> None:
    assert titles(balance.cagrad) == ["Conflict-Averse Gradient Descent for Multi-task Learning"]


def test_the_site_shows_every_page() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    shown = re.findall(r"[\w/]+\.md", str(site["nav"]))
    pages = [str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")]
    assert sorted(shown) == sorted(pages)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path) if path else page
        assert linked.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors(linked), f"{page.name} links to {target}"
