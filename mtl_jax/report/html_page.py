"""HTML of a report: style sheet, tables, figures. Every function escapes the texts it is given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from mtl_jax.evaluation.contract_table import NOT_PASSED

STYLE = """
:root {
  color-scheme: light dark;
  --text: #1c2024; --quiet: #60656c; --page: #fff; --card: #f6f7f8; --rule: #dfe2e5;
  --good: #18794e; --bad: #c62a2f;
}
@media (prefers-color-scheme: dark) {
  :root {
    --text: #e6e8ea; --quiet: #9ba1a6; --page: #16181a; --card: #1f2224; --rule: #34383c;
    --good: #4cc38a; --bad: #ff7b7b;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 68rem; padding: 1.5rem 1rem 4rem; color: var(--text); background: var(--page);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
}
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .6rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; padding-top: .8rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
p { margin: .3rem 0 .8rem; max-width: 46rem; }
.quiet { color: var(--quiet); font-size: .9rem; }
.badge {
  display: inline-block; padding: .1rem .6rem; border: 1.5px solid currentColor; border-radius: 99px;
  font-size: .95rem; font-weight: 600; vertical-align: .1em; white-space: nowrap;
}
.good { color: var(--good); }
.bad { color: var(--bad); }
.none { color: var(--quiet); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .3rem 0 1.2rem; }
th, td { padding: .35rem 1.2rem .35rem 0; text-align: left; vertical-align: top; }
th, td { border-bottom: 1px solid var(--rule); }
th { font-weight: 600; color: var(--quiet); font-size: .85rem; }
th.number, td.number { text-align: right; white-space: nowrap; }
th:last-child, td:last-child { padding-right: 0; }
table.heat td, table.heat th { padding: .45rem .9rem; border: 2px solid var(--page); white-space: nowrap; }
table.heat td, table.heat th { text-align: right; min-width: 6rem; }
table.heat th:first-child { text-align: left; padding-left: 0; }
table.heat small { display: block; opacity: .8; font-weight: 400; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr)); gap: 1rem; }
.panels figure { background: var(--card); border-radius: 8px; padding: .6rem; }
.panels figure { margin: 0; break-inside: avoid; }
.panels svg { display: block; width: 100%; height: auto; font-family: inherit; }
.panels svg text { font-family: inherit !important; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(26rem, 100%), 1fr)); gap: 1rem; }
.singles { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(13rem, 45%), 1fr)); gap: 1rem; }
.pair, .single, .pair figure, .single figure { margin: 0; break-inside: avoid; }
.pair > div { display: grid; grid-template-columns: 1fr 1fr; gap: .4rem; align-items: start; }
.pair img, .single img { display: block; width: 100%; height: auto; border-radius: 4px; }
.pair figcaption, .single figcaption { font-size: .85rem; line-height: 1.4; margin-top: .2rem; }
.pair figcaption span { display: inline-block; margin-right: .7rem; }
.pair figcaption i { display: inline-block; width: .7rem; height: .7rem; margin-right: .3rem; border-radius: 2px; }
.pair p, .single p { color: var(--quiet); font-size: .85rem; margin: .2rem 0 0; }
.verdict { padding-left: 1.2rem; margin: .4rem 0 1rem; max-width: 52rem; }
.verdict li { margin: .25rem 0; }
.drawing svg { display: block; width: 100%; max-width: 34rem; height: auto; font-family: inherit; margin: .6rem 0; }
table.confusion td, table.confusion th { padding: .2rem .3rem; font-size: .78rem; border: 1px solid var(--page); }
table.confusion td { text-align: right; min-width: 1.9rem; }
table.confusion th:first-child { text-align: right; white-space: nowrap; }
table.confusion thead th { vertical-align: bottom; }
table.confusion thead span { writing-mode: vertical-rl; transform: rotate(180deg); white-space: nowrap; }
.bar { display: flex; height: 1.4rem; max-width: 46rem; gap: 2px; }
.bar span { background: var(--quiet); opacity: .55; }
.bar span:first-child { background: var(--good); opacity: .9; }
details { margin: .6rem 0; }
summary { cursor: pointer; color: var(--quiet); }
pre { overflow-x: auto; background: var(--card); border-radius: 8px; padding: .8rem; }
pre { font-size: .8rem; line-height: 1.4; }
code { font-size: .88em; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.2rem; margin: .4rem 0; }
dt { color: var(--quiet); }
dd { margin: 0; }
@media (max-width: 34rem) {
  .pair > div { grid-template-columns: 1fr; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .5rem; }
  th, td { padding-right: .6rem; font-size: .85rem; }
  table.heat td, table.heat th { min-width: 0; padding: .4rem .6rem; }
}
@media print {
  body { font-size: 11px; padding: 0; }
  h2, h3 { break-after: avoid; }
  table.heat td { print-color-adjust: exact; }
  .wide, pre { overflow: visible; }
  pre { white-space: pre-wrap; }
}
"""


def page(title: str, body: str) -> str:
    """A whole document; `body` is HTML, `title` text."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def section(title: str, body: str, *, lead: str = "") -> str:
    """A titled part of the page; `body` is HTML, the rest text."""
    return f"<section>\n<h2>{escape(title)}</h2>\n{paragraph(lead) if lead else ''}{body}\n</section>"


def paragraph(text: str) -> str:
    """A quiet paragraph."""
    return f'<p class="quiet">{escape(text)}</p>\n'


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Sequence[int] = ()) -> str:
    """A table of texts; the last column of a row is coloured where it is a verdict.

    Args:
        columns: headings.
        rows: as many texts each.
        numbers: the columns aligned to the right.
    """

    def cell(tag: str, column: int, text: str) -> str:
        classes = ["number"] if column in numbers else []
        if tag == "td" and column == len(columns) - 1:
            classes += verdict_class(text)
        attribute = f' class="{" ".join(classes)}"' if classes else ""
        return f"<{tag}{attribute}>{escape(text)}</{tag}>"

    head = "".join(cell("th", column, text) for column, text in enumerate(columns))
    body = "\n".join(
        "<tr>" + "".join(cell("td", column, text) for column, text in enumerate(row)) + "</tr>" for row in rows
    )
    head = f"<thead><tr>{head}</tr></thead>"
    return f'<div class="wide"><table>\n{head}\n<tbody>\n{body}\n</tbody></table></div>\n'


def verdict_class(text: str) -> list[str]:
    """The colour class of a verdict's text; none for any other text."""
    if text.lower().startswith("passed"):
        return ["good"]
    return ["bad"] if text.startswith(NOT_PASSED) else []


def definitions(pairs: Iterable[tuple[str, str]]) -> str:
    """Names with their values."""
    items = "".join(f"<dt>{escape(name)}</dt><dd><code>{escape(value)}</code></dd>\n" for name, value in pairs)
    return f"<dl>\n{items}</dl>\n"


def bar(counts: Mapping[str, int]) -> str:
    """One bar of parts as long as their numbers, the first in another colour, and what each is."""
    total = sum(counts.values())
    shares = {name: 100 * count / total for name, count in counts.items()}
    blocks = "".join(
        f'<span style="flex: {share:.3f}" title="{escape(name)}: {counts[name]:,}"></span>'
        for name, share in shares.items()
    )
    pairs = [(name, f"{counts[name]:,} ({share:.1f} %)") for name, share in shares.items()]
    return f'<div class="bar">{blocks}</div>\n{definitions(pairs)}'


def panels(figures: Iterable[str]) -> str:
    """SVG figures side by side, or below each other where there is no room."""
    return '<div class="panels">\n' + "\n".join(f"<figure>{figure}</figure>" for figure in figures) + "\n</div>\n"


def folded(summary: str, body: str) -> str:
    """A part that opens on a click; `body` is HTML."""
    return f"<details><summary>{escape(summary)}</summary>\n{body}</details>\n"
