"""How a mutant changes a service: by replacing a function in the simulating process."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

Put = Callable[[], None]
"""Puts a defect into the services, for the rest of this process."""


async def nothing(*_: object, **__: object) -> None:
    """In the place of work that a mutant leaves out."""


replaced: list[str] = []
"""Modules in which an attribute was replaced."""


def replace(owner: type | ModuleType, name: str, value: object) -> None:
    """Replaces an attribute, which must exist."""
    getattr(owner, name)
    setattr(owner, name, value)
    replaced.append(owner.__name__ if isinstance(owner, ModuleType) else owner.__module__)


def defects_of(module: ModuleType) -> dict[str, Put]:
    """The mutants of a module by their names: its public functions."""
    found = vars(module).items()
    return {
        name: value
        for name, value in found
        if callable(value) and not name.startswith("_") and getattr(value, "__module__", "") == module.__name__
    }
