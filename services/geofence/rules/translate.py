"""Converts the settings of the decision between protobuf and the domain type."""

from __future__ import annotations

from services.common import fields
from services.geofence.domain.rules import Rules
from tandem.common.v1 import log_pb2


def check_rules(prefix: str, msg: log_pb2.Rules) -> None:
    """Raises InvalidField if a rule is outside the range that is safe for decisions. `prefix` precedes the field's name in the
    error."""
    fields.required_id(f"{prefix}rules_id", msg.rules_id)
    fields.number(f"{prefix}clear_margin_m", msg.clear_margin_m, 0, greatest=5_000)
    fields.number(f"{prefix}clear_after_s", msg.clear_after_s, 0, greatest=3_600)
    fields.number(f"{prefix}late_after_s", msg.late_after_s, 0, greatest=86_400)
    fields.number(f"{prefix}silent_notify_after_s", msg.silent_notify_after_s, 0, greatest=86_400)
    fields.number(f"{prefix}reach_mps", msg.reach_mps, 0, greatest=60)
    fields.number(f"{prefix}reach_most_s", msg.reach_most_s, 0, greatest=86_400)
    fields.number(f"{prefix}protected_lost_after_s", msg.protected_lost_after_s, 0, greatest=86_400)
    fields.number(f"{prefix}help_after_s", msg.help_after_s, 0, greatest=3_600)
    fields.number(f"{prefix}foot_mps", msg.foot_mps, 0, greatest=60)
    fields.number(f"{prefix}report_grace_s", msg.report_grace_s, 0, greatest=60)
    fields.number(f"{prefix}rest_s", msg.rest_s, 0, greatest=3_600)
    fields.number(f"{prefix}rest_respond_after_s", msg.rest_respond_after_s, 0, greatest=1_800)
    fields.number(f"{prefix}away_respond_after_s", msg.away_respond_after_s, 0, greatest=1_800)
    fields.number(f"{prefix}urgent_within_m", msg.urgent_within_m, 0, greatest=2_000)
    fields.number(f"{prefix}urgent_closing_mps", msg.urgent_closing_mps, 0, greatest=60)
    fields.number(f"{prefix}urgent_place_within_m", msg.urgent_place_within_m, 0, greatest=2_000)
    fields.number(
        f"{prefix}respond_p_pct", msg.respond_p_pct, 0, greatest=45
    )  # a higher limit would miss a wearer on the edge of a small ring


def rules_of(msg: log_pb2.Rules) -> Rules:
    """Parses rules; a field that is 0 takes its default."""
    default = Rules()
    return Rules(
        rules_id=msg.rules_id or default.rules_id,
        clear_margin_mm=msg.clear_margin_m * 1000 or default.clear_margin_mm,
        clear_after_ms=msg.clear_after_s * 1000 or default.clear_after_ms,
        late_after_ms=msg.late_after_s * 1000 or default.late_after_ms,
        silent_notify_after_ms=msg.silent_notify_after_s * 1000 or default.silent_notify_after_ms,
        reach_mps=msg.reach_mps or default.reach_mps,
        max_reach_ms=msg.reach_most_s * 1000 or default.max_reach_ms,
        protected_lost_after_ms=msg.protected_lost_after_s * 1000 or default.protected_lost_after_ms,
        help_after_ms=msg.help_after_s * 1000 or default.help_after_ms,
        foot_mps=msg.foot_mps or default.foot_mps,
        report_grace_ms=msg.report_grace_s * 1000 or default.report_grace_ms,
        rest_ms=msg.rest_s * 1000 or default.rest_ms,
        rest_respond_after_ms=msg.rest_respond_after_s * 1000 or default.rest_respond_after_ms,
        away_respond_after_ms=msg.away_respond_after_s * 1000 or default.away_respond_after_ms,
        respond_p_pct=msg.respond_p_pct or default.respond_p_pct,
        urgent_within_mm=msg.urgent_within_m * 1000 or default.urgent_within_mm,
        urgent_closing_mps=msg.urgent_closing_mps or default.urgent_closing_mps,
        urgent_place_within_mm=msg.urgent_place_within_m * 1000 or default.urgent_place_within_mm,
    )


def rules_entry(rules: Rules) -> log_pb2.LogEntry:
    """The log entry that sets these rules."""
    return log_pb2.LogEntry(
        rules=log_pb2.Rules(
            rules_id=rules.rules_id,
            clear_margin_m=rules.clear_margin_mm // 1000,
            clear_after_s=rules.clear_after_ms // 1000,
            late_after_s=rules.late_after_ms // 1000,
            silent_notify_after_s=rules.silent_notify_after_ms // 1000,
            reach_mps=rules.reach_mps,
            reach_most_s=rules.max_reach_ms // 1000,
            protected_lost_after_s=rules.protected_lost_after_ms // 1000,
            help_after_s=rules.help_after_ms // 1000,
            foot_mps=rules.foot_mps,
            report_grace_s=rules.report_grace_ms // 1000,
            rest_s=rules.rest_ms // 1000,
            rest_respond_after_s=rules.rest_respond_after_ms // 1000,
            away_respond_after_s=rules.away_respond_after_ms // 1000,
            respond_p_pct=rules.respond_p_pct,
            urgent_within_m=rules.urgent_within_mm // 1000,
            urgent_closing_mps=rules.urgent_closing_mps,
            urgent_place_within_m=rules.urgent_place_within_mm // 1000,
        )
    )
