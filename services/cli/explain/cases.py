"""The case that an alert rests on as a JSON object, without its geometry."""

from __future__ import annotations

from typing import Any

from services.common import times
from services.geofence.domain.entries import Case, TagDuty


def case_json(case: Case) -> dict[str, Any]:
    """The JSON object of a case, without its geometry."""
    return {
        "case_id": case.case_id,
        "version": case.version,
        "order_id": case.order_id,
        "wearer_id": case.wearer_id,
        "tags": list(case.tag_device_ids),
        "persons": {target.target_id: list(target.device_ids) for target in case.targets if target.is_person},
        "places": [target.target_id for target in case.targets if not target.is_person],
        "named_places": [target.target_id for target in case.targets if target.is_named],
        "rings": [{"radius_m": ring.radius_mm / 1000, "action": ring.action.name} for ring in case.rings],
        "notice_ground": case.notice_ground.value if case.notice_ground else None,
        "police_must_check": case.police_must_check,
        "valid_from": times.to_rfc3339(case.valid_from_ms),
        "valid_until": None if case.valid_until_ms is None else times.to_rfc3339(case.valid_until_ms),
        "tag_duty": _tag_duty_json(case.tag_duty) if case.tag_duty else None,
        "removals": [
            {
                "removal_id": removal.removal_id,
                "device_id": removal.device_id,
                "from": times.to_rfc3339(removal.from_ms),
                "until": times.to_rfc3339(removal.until_ms),
            }
            for removal in case.removals
        ],
    }


def _tag_duty_json(duty: TagDuty) -> dict[str, Any]:
    return {
        "fit_by": times.to_rfc3339(duty.fit_by_ms),
        "refused": None if duty.refused_ms is None else times.to_rfc3339(duty.refused_ms),
        "good_causes": [
            {
                "cause_id": cause.cause_id,
                "from": times.to_rfc3339(cause.from_ms),
                "until": times.to_rfc3339(cause.until_ms),
            }
            for cause in duty.good_causes
        ],
    }
