"""Options that are fields of a configuration: default and description come from there."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from namm.configuration import Section

Memories = Annotated[
    list[str] | None, typer.Option("--memory", help="Memory to compare besides: folder, hub id, builtin:NAME.")
]
Model = Annotated[str, typer.Option(help="Model to read with: known name, folder, GGUF file or hub id.")]
Memory = Annotated[str, typer.Option(help="Memory to read with: folder, hub id, builtin:NAME, or a policy.")]


def add_command(
    app: typer.Typer, name: str, function: Callable[..., None], settings: Callable[[], list[inspect.Parameter]]
) -> None:
    """Add a command with the options of `function` and, for its `**` parameter, those of `settings()`.

    These are asked for when the command is, so that `namm --help` need not wait for any configuration.
    """

    class Command(TyperCommand):
        @cached_property
        def _whole(self) -> Any:
            alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
            alone.command(name)(_with_options(function, settings()))
            return typer.main.get_command(alone)

        def get_params(self, ctx: Any) -> list[Any]:
            return self._whole.get_params(ctx)

        def invoke(self, ctx: Any) -> Any:
            return self._whole.invoke(ctx)

    def nothing_yet() -> None: ...

    app.command(name, help=inspect.getdoc(function), cls=Command)(nothing_yet)


def options_of(kind: type[Section], flags: Mapping[str, str] | None = None) -> list[inspect.Parameter]:
    """An option for each field of a configuration, called like the field.

    Args:
        flags: field -> what the option is called instead.
    """
    return [option(name, kind, name, (flags or {}).get(name)) for name in kind.model_fields]


def option(
    name: str, kind: type[Section], field: str, flag: str | None = None, preset: bool = True
) -> inspect.Parameter:
    """An option for a field; without `preset` None stands for what was not given."""
    found = kind.model_fields[field]
    outer, inner = found.annotation, found.annotation
    many = get_origin(outer) is tuple
    if many:
        inner = get_args(outer)[0]
    if get_origin(inner) is Annotated:
        inner = get_args(inner)[0]
    said: Any = inner if inner in (int, float) else str  # what else there is, the configuration reads from text
    default = None if not preset else inspect.Parameter.empty if found.is_required() else found.default
    if many and isinstance(default, tuple):
        default = [said(value) for value in default]
    flags = () if flag is None else (f"--{flag}",)
    help_ = " ".join((found.description or "").split()) + " Several times." * many
    said = list[said] if many else said
    annotation: Any = Annotated[said | None if default is None else said, typer.Option(*flags, help=help_)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _with_options(function: Callable[..., None], options: list[inspect.Parameter]) -> Callable[..., None]:
    signature = inspect.signature(function, eval_str=True)
    own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*own, *options)]

    def command(**values: Any) -> None:
        function(**values)

    command.__doc__ = function.__doc__
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command
