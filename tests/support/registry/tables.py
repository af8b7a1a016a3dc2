"""Imports all tables of the registry, so that its metadata is whole whatever else a test imports."""

from __future__ import annotations

import importlib
import pkgutil

from services import registry


def import_tables() -> None:
    """Imports each module `tables` of the registry."""
    for module in pkgutil.walk_packages(registry.__path__, f"{registry.__name__}."):
        if module.name.endswith(".tables"):
            importlib.import_module(module.name)
