"""What the page and the card are made from: their templates, and the words for numbers in them."""

import json
import re
from functools import cache, partial
from pathlib import Path
from typing import Any

import jinja2

from ddpo.evaluation.evidence import GUARD_ALERT, Run, name_of, rows, score_text, signs


def render(template: str, run: Run, **values: Any) -> str:
    """The page or the card from the template of that name."""
    about = {"run": run, "config": run.config, "name": run.folder.resolve().name}
    found = {"rows": rows(run), "signs": signs(run), "alert": GUARD_ALERT}
    return environment().get_template(template).render(**about, **found, **values)


@cache
def environment() -> jinja2.Environment:
    """Templates of this folder and of pages/; those of pages escape what they are given.

    Made once, so that a page that is watched is not compiled at every look.
    """
    here = Path(__file__).parent
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader([here, here / "pages"]),
        keep_trailing_newline=True,
        autoescape=jinja2.select_autoescape(["html.j2"]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"typeset": _typeset, "score": score_text, "called": name_of}
    found.filters |= {"json": partial(json.dumps, indent=2), "json_line": json.dumps}
    return found


def _typeset(text: str) -> str:
    """A true minus sign before numbers, and an arrow."""
    return re.sub(r"(?<![\w-])-(?=\d)", "−", text).replace("->", "→")
