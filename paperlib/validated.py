"""What all settings have in common: they cannot be changed, and what is not valid is refused."""

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from paperlib.profile_files import SettingsError

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(gt=0, lt=1)]


class Settings(BaseModel):
    """Base of all settings: immutable, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def model_copy(self, *, update: Mapping | None = None, deep: bool = False) -> Self:
        """A copy with some values changed, which are checked like all others.

        Raises :class:`SettingsError` for what is not valid.
        """
        own = {name: getattr(self, name) for name in type(self).model_fields}
        try:
            return type(self).model_validate(own | dict(update or {}))
        except ValidationError as error:
            raise SettingsError(f"{type(self).__name__}: {first_fault(error)}") from None


def first_fault(error: ValidationError) -> str:
    """Where the first of pydantic's complaints is, and what it says."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    says = first["msg"].removeprefix("Value error, ")
    return f"{where}: {says}" if where else says
