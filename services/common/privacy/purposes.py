"""The purposes of a disclosure as the wire has them."""

from __future__ import annotations

from collections.abc import Mapping

from services.common.privacy.grounds import Purpose
from tandem.registry.v1 import disclosure_pb2

PURPOSES: Mapping[int, Purpose] = {
    value.number: Purpose(value.name.removeprefix("PURPOSE_"))
    for value in disclosure_pb2.DESCRIPTOR.enum_types_by_name["Purpose"].values
    if value.number
}
"""By number; one that isn't given, or that is unknown, has none."""
