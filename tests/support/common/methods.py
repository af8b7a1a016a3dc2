"""The list of all rpc methods in the protos."""

from __future__ import annotations

import importlib
import pkgutil

from google.protobuf.descriptor import MethodDescriptor

import tandem


def methods() -> list[MethodDescriptor]:
    """All rpc methods, in the order of their proto files."""
    found = []
    for module in pkgutil.walk_packages(tandem.__path__, "tandem."):
        if module.name.endswith("_pb2"):
            services = importlib.import_module(module.name).DESCRIPTOR.services_by_name.values()
            found += [method for service in services for method in service.methods]
    return found
