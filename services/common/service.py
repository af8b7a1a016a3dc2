"""Runs a service from its settings to its end. What doesn't allow it to run is one line of its log, and the exit code CANNOT_RUN."""

from __future__ import annotations

import errno
import os
import ssl
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import uvloop
from pydantic import ValidationError

from services.common import settings
from services.common.errors import CannotBind, FailedPrecondition, OutdatedFold
from services.common.observability import health, telemetry
from services.common.observability.telemetry import logger
from services.common.settings import CommonSettings
from services.common.storage import stored_files

S = TypeVar("S", bound=CommonSettings)
CANNOT_RUN = 2
"""Exit code of a process whose settings, files or mesh don't allow it to run."""
_ADVICE = {
    errno.ENOENT: "create it, or correct the setting",
    errno.EACCES: f"give the user {os.getuid()} the right to it",
    errno.EPERM: f"give the user {os.getuid()} the right to it",
    errno.ENOSPC: "free space on it",
    errno.EROFS: "choose a folder that can be written",
    errno.EEXIST: "name a folder",
    errno.ENOTDIR: "correct the setting",
}
_CERTIFICATES = (("tls_cert", "tls_key"), ("http_tls_cert", "http_tls_key"))
_AUTHORITIES = ("tls_ca",)


def run_service(
    name: str,
    read: Callable[[], S],
    run: Callable[[S], Coroutine[Any, Any, None]],
    *,
    name_of: Callable[[S], str] | None = None,
) -> None:
    """Reads the settings of a service and runs it until it is stopped. `name` is the process's name in the log; `name_of` gives a more
    exact one, once there are settings.

    Exits with CANNOT_RUN if a setting, a file or the mesh doesn't allow it to run. Any other error is a defect, and is raised.
    """
    health.start()
    telemetry.configure(name)
    settings: S | None = None
    try:
        settings = read()
        if name_of:
            telemetry.configure(name_of(settings))
        _log_unknown()
        _check_certificates(settings)
        uvloop.run(run(settings))
    except Exception as error:
        reason = why_not(error, settings)
        if reason is None:
            raise
        if settings is None:
            _log_unknown()
        logger().error("cannot_run", reason=reason)
        sys.exit(CANNOT_RUN)


def _log_unknown() -> None:
    """Names variables that no service reads. They have no effect, so they keep nothing from running."""
    for setting, similar in settings.unknown(os.environ).items():
        logger().error("setting_unknown", setting=setting, similar=similar)


def why_not(error: BaseException, settings: CommonSettings | None) -> str | None:
    """Why a process can't run, with the setting and what to do. None if the error is a defect. `settings` are None while they are
    read."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    if isinstance(error, ValidationError):
        return "; ".join(_of_setting(wrong["loc"], wrong["msg"]) for wrong in error.errors(include_input=False))
    if isinstance(error, ValueError) and settings is None:
        return str(error)
    cause = error.__cause__ if isinstance(error, FailedPrecondition) else error
    if settings and isinstance(cause, OSError):
        reason = _of_file(cause, settings)
        if reason:
            return reason
    if settings and isinstance(error, CannotBind):
        return f"{_name_of_port(settings, error.port)}: {error.reason}"
    if not isinstance(error, FailedPrecondition | OutdatedFold):
        return None
    named = _named_paths(settings) if settings else {}
    setting = next((name for path, name in named.items() if str(path) in error.reason and name not in error.reason), "")
    return f"{setting}: {error.reason}" if setting else error.reason


def _of_setting(location: tuple[int | str, ...], message: str) -> str:
    message = message.removeprefix("Value error, ")
    name = _variable(str(location[0])) if location else ""
    return message if not name or name in message else f"{name}: {message}"


def _of_file(error: OSError, settings: CommonSettings) -> str | None:
    """The line for an error about a file of a setting, or in a folder of one. None for other files."""
    if not isinstance(error.filename, str | bytes | os.PathLike):
        return None
    path = Path(os.fsdecode(error.filename)).absolute()
    setting = _setting_of(path, settings)
    if setting is None:
        return None
    advice = _ADVICE.get(error.errno or 0, "")
    return f"{setting}: {path}: {stored_files.reason_of(error)}{f': {advice}' if advice else ''}"


def _setting_of(path: Path, settings: CommonSettings) -> str | None:
    """The setting that names a path: the path itself, or else the nearest folder above it."""
    named = _named_paths(settings)
    for folder in (path, *path.parents):
        if folder in named:
            return named[folder]
    # A folder that can't be made because of a file above it.
    return next((setting for value, setting in named.items() if path in value.parents), None)


def _named_paths(settings: CommonSettings) -> dict[Path, str]:
    """The setting of each absolute path, the longest paths first."""
    paths = {
        value.absolute(): _variable(field)
        for field in type(settings).model_fields
        if isinstance(value := getattr(settings, field), Path)
    }
    return {path: paths[path] for path in sorted(paths, key=lambda path: len(path.parts), reverse=True)}


def _name_of_port(settings: CommonSettings, port: int) -> str:
    fields = [
        field for field in type(settings).model_fields if field.endswith("port") and getattr(settings, field) == port
    ]
    return " or ".join(map(_variable, fields)) or "port"


def _variable(field: str) -> str:
    return f"{settings.PREFIX}{field.upper()}"


def _check_certificates(settings: CommonSettings) -> None:
    """Reads the certificate files, whose later errors name no file. Raises OSError and FailedPrecondition."""
    for certificate, key in _CERTIFICATES:
        cert_file, key_file = getattr(settings, certificate, None), getattr(settings, key, None)
        if not cert_file or not key_file:
            continue
        for file in (cert_file, key_file):
            file.open("rb").close()
        try:
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(cert_file, key_file)
        except ssl.SSLError as error:
            raise FailedPrecondition(
                f"{_variable(certificate)}, {_variable(key)}: {cert_file} and {key_file} aren't a certificate in PEM and its key: "
                f"{error.reason or error}"
            ) from None
    for authority in _AUTHORITIES:
        file = getattr(settings, authority, None)
        if not file:
            continue
        file.open("rb").close()
        try:
            ssl.create_default_context(cafile=file)
        except ssl.SSLError as error:
            raise FailedPrecondition(
                f"{_variable(authority)}: {file} has no certificate in PEM: {error.reason or error}"
            ) from None
