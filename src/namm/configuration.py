"""Configurations: frozen values of named and described fields, which files, commands and Python give alike.

A field's default and its description, the text below it, stand once; commands take their options from here.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo

from namm.errors import ConfigurationError, nearest

OWN = "own"


class Section(BaseModel):
    """Base of configurations and their parts: frozen, no key is ignored, and mistakes are `ConfigurationError`s."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_by_name=True,
        validate_by_alias=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )
    section: ClassVar[str] = ""

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _explained(error, type(self)) from error

    def replace(self, **values: Any) -> Self:
        """The same with other values."""
        return type(self)(**dict(self) | values)


def _explained(error: ValidationError, kind: type[Section]) -> ConfigurationError:
    """The first mistake that pydantic found, in this package's words."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in (kind.section, *first["loc"]) if part != "")
    if first["type"] == "extra_forbidden":
        known = [field.alias or name for name, field in kind.model_fields.items()]
        return ConfigurationError("the name of a setting", repr(where), nearest(str(first["loc"][-1]), known))
    if first["type"] == "missing":
        return ConfigurationError(f"a value for {where}", "none", "Give one.")
    expected = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    name = str(first["loc"][0]) if first["loc"] else ""
    described = [f.description for n, f in kind.model_fields.items() if name in (n, f.alias) and f.description]
    return ConfigurationError(f"{where}: {expected}", repr(first["input"]), described[0] if described else "")


def _share(said: object) -> object:
    try:
        share = said if said == OWN else float(said)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        share = 0.0
    if isinstance(share, float) and not 0 < share < 1:
        expected = f'a budget above 0 and below 1, or "{OWN}"'
        raise ConfigurationError(expected, repr(said), "0.25 is a quarter of the full cache.")
    return share


def _differing(values: tuple[Any, ...], info: ValidationInfo) -> tuple[Any, ...]:
    if len(set(values)) < len(values):
        raise ConfigurationError(f"{info.field_name} that differ", list(values), "Give each once.")
    return values


_Budget = Annotated[float | Literal["own"], BeforeValidator(_share)]
Names = Annotated[tuple[str, ...], Field(min_length=1)]
Budgets = Annotated[tuple[_Budget, ...], Field(min_length=1), AfterValidator(_differing)]
Lengths = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1), AfterValidator(_differing)]
"""Numbers of tokens."""
