"""Names of all settings of all services, so that a name that none of them has is noticed: a misspelt setting has no effect.

A service can't know the settings classes of the others, yet `tandem up` gives each process the environment of the shell. A test
compares this list with the classes.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

PREFIX = "TANDEM_"
NAMES = frozenset(
    {
        "TANDEM_ACKNOWLEDGE_WITHIN_S",
        "TANDEM_ALLOW_ASYNC_STORE",
        "TANDEM_ANSWER_WITHIN_S",
        "TANDEM_ARRIVE_WITHIN_S",
        "TANDEM_BACKFILL_REPORTS_PER_S",
        "TANDEM_CHECKPOINT_EVERY",
        "TANDEM_CLOCK_ANCHOR_MS",
        "TANDEM_CLOCK_RATE",
        "TANDEM_CONSOLE_ROLE",
        "TANDEM_DATA_DIR",
        "TANDEM_DEPART_WITHIN_S",
        "TANDEM_DEVICE_REPORTS_BURST",
        "TANDEM_DEVICE_REPORTS_PER_S",
        "TANDEM_DEV_SECRET",
        "TANDEM_DISPATCH_POLICE",
        "TANDEM_DISPATCH_PROBATION",
        "TANDEM_DISPATCH_WARNING",
        "TANDEM_DISPATCH_WITHIN_S",
        "TANDEM_FIELD_PORT",
        "TANDEM_FIELD_URL",
        "TANDEM_GEOFENCE",
        "TANDEM_HEARTBEAT_FD",
        "TANDEM_HOST",
        "TANDEM_HTTP_PORT",
        "TANDEM_HTTP_TLS_CERT",
        "TANDEM_HTTP_TLS_KEY",
        "TANDEM_INGEST",
        "TANDEM_INGEST_PHONES",
        "TANDEM_LEDGER_KEY",
        "TANDEM_LINK_PORT",
        "TANDEM_LINK_URL",
        "TANDEM_MESH_FOLDER",
        "TANDEM_METRICS_PORT",
        "TANDEM_NATS_MONITOR_URL",
        "TANDEM_NATS_URL",
        "TANDEM_OIDC_CHECK_INTERVAL_S",
        "TANDEM_OFFER_WITHIN_S",
        "TANDEM_OIDC_CLIENT_ID",
        "TANDEM_OIDC_CLIENT_SECRET",
        "TANDEM_OIDC_ISSUER",
        "TANDEM_OIDC_NAME_CLAIM",
        "TANDEM_OIDC_ROLES",
        "TANDEM_OIDC_ROLES_CLAIM",
        "TANDEM_OSRM_URL",
        "TANDEM_OTHER_LEG_WITHIN_S",
        "TANDEM_PAGER_COMMAND",
        "TANDEM_PAGER_WEBHOOKS",
        "TANDEM_POLICE_DATABASE_URL",
        "TANDEM_POLICE_DESK_PHONE",
        "TANDEM_PORT",
        "TANDEM_PROBATION_DATABASE_URL",
        "TANDEM_PROBATION_DESK_PHONE",
        "TANDEM_PUBLIC_ORIGINS",
        "TANDEM_PUSH_CONTACT",
        "TANDEM_PUSH_SERVICES",
        "TANDEM_REACT_WITHIN_S",
        "TANDEM_RECEIVE_WITHIN_S",
        "TANDEM_REGISTRY",
        "TANDEM_REGISTRY_DATABASE_URL",
        "TANDEM_REGISTRY_KEY",
        "TANDEM_REPLICA",
        "TANDEM_REPLICAS",
        "TANDEM_SECRETS_DIR",
        "TANDEM_SERVICE_AREA",
        "TANDEM_SHARED_DATA",
        "TANDEM_SHARE_EVERY_S",
        "TANDEM_SHOTS",
        "TANDEM_STATE_KEY",
        "TANDEM_STREETS",
        "TANDEM_STREETS_ATTRIBUTION",
        "TANDEM_TICK_AFTER_S",
        "TANDEM_TILES",
        "TANDEM_TLS_CA",
        "TANDEM_TLS_CERT",
        "TANDEM_TLS_KEY",
        "TANDEM_WARNING_DATABASE_URL",
        "TANDEM_WARNING_GATEWAYS",
        "TANDEM_WARNING_KEY",
        "TANDEM_WARNING_PUBLIC_KEY",
        "TANDEM_WEBHOOKS",
        "TANDEM_WORD_WITHIN_S",
    }
)


def unknown(environment: Iterable[str]) -> dict[str, str]:
    """Variables with the prefix of settings that are no setting, each with the setting that is most like it, or an empty text."""
    names = sorted(name for name in environment if name.startswith(PREFIX) and name not in NAMES)
    return {name: next(iter(difflib.get_close_matches(name, NAMES, 1, 0.8)), "") for name in names}
