"""Reference of the settings, from the settings classes of the services."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

from pydantic_core import PydanticUndefined

from services.common.settings import CommonSettings
from services.console.settings import ConsoleSettings
from services.dispatch.domain.leg import Leg
from services.dispatch.settings import DispatchSettings
from services.field.settings import FieldSettings
from services.geofence.settings import GeofenceSettings
from services.ingest.settings import IngestSettings
from services.registry.settings import RegistrySettings
from tools.reference.markdown import code, page, table
from tools.reference.sources import attribute_docstrings

SECTIONS: tuple[tuple[str, type[CommonSettings], str], ...] = (
    ("Every service", CommonSettings, "The console connects to no NATS server, so those of NATS don't concern it."),
    ("Registry", RegistrySettings, ""),
    ("Ingest", IngestSettings, ""),
    ("Geofence, each evaluator", GeofenceSettings, ""),
    ("Dispatch, each leg", DispatchSettings, "Three values are those of probation, police and warning."),
    ("Console", ConsoleSettings, "[The console](console.md#settings) says more."),
    (
        "Field",
        FieldSettings,
        "[Her app](her-app.md) says more. Field connects to no NATS server, so those of NATS don't concern it.",
    ),
)
INTRODUCTION = """Each process reads its settings once, at its start, from environment variables, or from the files of the folder
`TANDEM_SECRETS_DIR`, each named like a setting. A wrong value is named in one line (`cannot_run`),
and the process ends with exit code 2; a name that no service has is named, too (`setting_unknown`). A process under `tandem up`
gets those of the shell, except the ones that `tandem up` sets itself: addresses, ports, folders, NATS, certificates, the clock and the
development secret.
"""
OTHERS = (
    (
        "`TANDEM_SECRETS_DIR`",
        "every service",
        "folder of files, each named like a setting and with its value. Other processes can see variables, so use files for secrets. "
        "A variable wins over a file",
    ),
    (
        "`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`",
        "registry",
        "where spans of incidents go; without one nowhere. The others of OpenTelemetry's standard hold too "
        "([traces lag](../how-to/respond/traces-lag.md))",
    ),
    ("`OTEL_SDK_DISABLED`", "all", "`true`: no contexts are accepted and no traces kept"),
    (
        "`SSL_CERT_FILE`",
        "console, each service that calls by https",
        "authorities that are trusted beside those of the system, PEM",
    ),
    ("`TANDEM_NATS_URL`, `TANDEM_NATS_MONITOR_URL`", "`tandem up`, `tandem streams`", "a server that runs already"),
    (
        "`TANDEM_SERVICE_AREA`, `TANDEM_CONSOLE_ROLE` with `TANDEM_OIDC_ISSUER`",
        "`tandem up`",
        "passed on to registry and console",
    ),
    (
        "`TANDEM_PAGER_COMMAND`, `TANDEM_PAGER_WEBHOOKS`",
        "`tandem watch`, `tandem up`",
        "[how the person on duty is paged](../how-to/operate/watch.md)",
    ),
    ("`NATS_SERVER_BIN`", "`tandem up`, tests", "another nats-server than the pinned one"),
    ("`TANDEM_SHARED_DATA`", "tests, benchmarks", "folder of GeoLife's tracks"),
)
"""Variables that no settings class declares: name, reader, meaning."""


def own_fields(settings: type[CommonSettings]) -> list[str]:
    """Names of the fields that a class has beyond those of every service, and of those that differ within the class, as the port of
    a leg does; `leg` is an argument, never a setting."""
    inherited = () if settings is CommonSettings else CommonSettings.model_fields
    own = [
        *(name for name in inherited if settings.model_fields[name].is_required()),
        *settings.__annotations__,
        *(name for name in settings.model_fields if name not in inherited),
    ]
    return [name for name in dict.fromkeys(own) if name in settings.model_fields and name != "leg"]


def _docs(settings: type[CommonSettings]) -> dict[str, str]:
    """The docstring of each field, from the class that declares it last."""
    docs: dict[str, str] = {}
    for kind in reversed(settings.__mro__):
        if issubclass(kind, CommonSettings):
            tree = ast.parse(Path(inspect.getfile(kind)).read_text("utf-8"))
            docs |= attribute_docstrings(tree, kind.__name__)
    return docs


def _default(settings: type[CommonSettings], name: str) -> str:
    value: Any = settings.model_fields[name].default
    if value is PydanticUndefined:
        # Legs differ by it; of CommonSettings each service gives its own.
        if settings is not DispatchSettings:
            return "of each service"
        return ", ".join(code(_shown(getattr(DispatchSettings.model_validate({"leg": leg}), name))) for leg in Leg)
    if hasattr(value, "get_secret_value"):
        value = value.get_secret_value()
    return code(_shown(value))


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) and value < 1_000_000 else str(value)


def _meaning(text: str, names: set[str]) -> str:
    """The docstring, with the fields that it names written as variables."""
    return re.sub(r"`([a-z_]+)`", lambda found: code(variable(found[1])) if found[1] in names else found[0], text)


def variable(name: str) -> str:
    """The environment variable of a field."""
    return f"TANDEM_{name.upper()}"


def render() -> str:
    """The page. Raises KeyError for a setting without a docstring."""
    parts = [INTRODUCTION]
    for title, settings, note in SECTIONS:
        docs = _docs(settings)
        names = set(settings.model_fields)
        rows = [
            (code(variable(name)), _default(settings, name), _meaning(docs[name], names))
            for name in own_fields(settings)
        ]
        parts += [f"## {title}\n", *([f"{note}\n"] if note else []), table(("setting", "unless given", "what"), rows)]
    return page("Settings", *parts, "## Read by others\n", table(("setting", "read by", "what"), OTHERS))
