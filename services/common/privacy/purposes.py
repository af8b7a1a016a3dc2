"""Mapping of the protobuf purposes of a disclosure to the domain's purposes."""

from __future__ import annotations

from collections.abc import Mapping

from services.common.privacy.grounds import Purpose
from tandem.registry.v1 import disclosure_pb2

PURPOSES: Mapping[int, Purpose] = {
    value.number: Purpose(value.name.removeprefix("PURPOSE_"))
    for value in disclosure_pb2.DESCRIPTOR.enum_types_by_name["Purpose"].values
    if value.number
}
"""Domain purposes by protobuf enum number. Unspecified and unknown purposes are missing."""
