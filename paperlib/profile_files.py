"""Profiles as files: where they lie, and what a profile that is based on another comes to.

Such a profile names the other as ``based_on`` and has only what differs.
"""

import tomllib
from pathlib import Path

from paperlib import paths

BASED_ON = "based_on"


class SettingsError(ValueError):
    """A profile is unknown or not valid; the message is one sentence for the user."""


def names() -> list[str]:
    """Names of the profiles there are."""
    return sorted(path.stem for path in paths.PROFILES.glob("*.toml"))


def files(name: str) -> list[Path]:
    """What the profile is read from: its own file, that of the one it is based on, and so on.

    ``name`` is that of a profile, or the path of a file ending in ``.toml``. Raises
    :class:`SettingsError` where there is no such file, or it cannot be read.
    """
    found: list[Path] = []
    while name:
        path = Path(name) if name.endswith(".toml") else paths.PROFILES / f"{name}.toml"
        where = f"{found[-1].name}: {BASED_ON}: " if found else ""
        if not path.is_file():
            choices = ", ".join(names())
            raise SettingsError(f"{where}there is no profile {name!r}; choose one of {choices}")
        if path in found:
            raise SettingsError(f"{where}{name!r} is itself based on {found[-1].stem!r}")
        found.append(path)
        name = _read(path).get(BASED_ON, "")
        if not isinstance(name, str):
            raise SettingsError(f"{path.name}: {BASED_ON}: {name!r} is no name of a profile")
    return found


def values(name: str) -> dict:
    """What stands in the profile's files: tables are merged; everything else, lists too, takes the
    place of what it was. Raises what :func:`files` does."""
    merged: dict = {}
    read = files(name)
    for path in reversed(read):
        merged = _merged(merged, _read(path))
    merged.pop(BASED_ON, None)
    if "name" in merged:
        raise SettingsError(f"{read[0].name}: name: a profile is named by its file; leave this out")
    return merged | {"name": read[0].stem}


def _read(path: Path) -> dict:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path.name} is no UTF-8 at byte {error.start}") from None
    except OSError as error:
        raise SettingsError(f"{path.name} cannot be read: {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path.name} is not valid TOML: {error}") from None


def _merged(base: dict, changes: dict) -> dict:
    merged = base | changes
    for key in base.keys() & changes.keys():
        if isinstance(base[key], dict) and isinstance(changes[key], dict):
            merged[key] = _merged(base[key], changes[key])
    return merged
