"""Pages: templates of this package, each filled in as one HTML file that asks for nothing else."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

_FILES = files("namm.report") / "templates"


def fill(template: str, values: dict[str, Any], filters: dict[str, Any] | None = None) -> str:
    """The page that a template makes; whatever is filled in is escaped, but for style and scripts of our own.

    Args:
        template: its file, in `templates/`.
        values: what the template calls by name.
        filters: functions that it pipes values through.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("namm.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":")}
    environment.filters |= filters or {}
    environment.globals["asset"] = lambda name: Markup((_FILES / name).read_text(encoding="utf-8"))
    return environment.get_template(template).render(values)
