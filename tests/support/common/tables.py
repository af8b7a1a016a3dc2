"""Imports all tables of a service, so that its metadata is whole whatever else a test imports."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType


def import_tables(service: ModuleType) -> None:
    """Imports each module `tables` of a service."""
    for module in pkgutil.walk_packages(service.__path__, f"{service.__name__}."):
        if module.name.endswith(".tables"):
            importlib.import_module(module.name)
