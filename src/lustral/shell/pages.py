"""The findings' own pages, which come with the package, as HTML for the report."""

import re
from functools import cache
from importlib import resources

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

HOME = "lustral.evaluate.findings"


@cache
def page(name: str) -> Markup | None:
    """What the page of a check says below its title; None for a check that has none, such as one of the user's own."""
    place = resources.files(HOME) / "pages" / f"{name}.md"
    if not re.fullmatch(r"[\w-]+", name) or not place.is_file():
        return None
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = markdown.parse(place.read_text(encoding="utf-8"))
    body = next((i + 1 for i, token in enumerate(tokens) if token.type == "heading_close"), 0)
    for token in tokens:
        token.children = token.children and [_unlinked(child) for child in token.children]
    return Markup(markdown.renderer.render(tokens[body:], markdown.options, {}))


def _unlinked(token: Token) -> Token:
    """Links lead to files that a report is sent without; what they name is emphasised instead."""
    kind, _, end = token.type.partition("_")
    return Token(f"em_{end}", "em", token.nesting, markup="_") if kind == "link" else token
