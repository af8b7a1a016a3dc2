"""Reference of the contracts: each rpc with what it does, its messages, and the roles that may call it."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator

from google.protobuf.descriptor import FileDescriptor, MethodDescriptor, ServiceDescriptor

import tandem
from tandem.common.v1 import access_pb2
from tools.reference.markdown import MAX_LINE, code, page, table
from tools.reference.sources import ROOT

_PROTOS = ROOT / "protos"


def files() -> list[FileDescriptor]:
    """All proto files with services, by name."""
    modules = [
        module.name for module in pkgutil.walk_packages(tandem.__path__, "tandem.") if module.name.endswith("_pb2")
    ]
    found: list[FileDescriptor] = [importlib.import_module(name).DESCRIPTOR for name in modules]
    return sorted((file for file in found if file.services_by_name), key=lambda file: file.name)


def roles_of(method: MethodDescriptor) -> list[str]:
    """Names of the roles that may call a method."""
    allowed = method.GetOptions().Extensions[access_pb2.allowed_roles]
    return [access_pb2.Role.Name(role).removeprefix("ROLE_").lower() for role in allowed]


def comments_of(file: FileDescriptor) -> dict[str, str]:
    """The comment above each service and rpc, in one line, by its name."""
    comments: dict[str, str] = {}
    above: list[str] = []
    for line in (_PROTOS / file.name).read_text("utf-8").splitlines():
        stripped = line.strip()
        named = re.match(r"(?:service|rpc) (\w+)", stripped)
        if stripped.startswith("//"):
            above.append(stripped.removeprefix("//").strip())
            continue
        if named:
            comments[named[1]] = " ".join(above)
        above = []
    return comments


def _call(method: MethodDescriptor) -> str:
    request = ("stream " if method.client_streaming else "") + method.input_type.name
    answer = ("stream " if method.server_streaming else "") + method.output_type.name
    return f"{request} → {answer}"


def _short(text: str, available: int) -> str:
    """The whole sentences of a text that fit into so many characters; the proto file has the rest."""
    kept = ""
    for sentence in re.split(r"(?<=\.) ", text):
        if kept and len(kept) + len(sentence) + 1 > available:
            return f"{kept} …"
        kept = f"{kept} {sentence}".strip()
    return kept


def _sections() -> Iterator[str]:
    for file in files():
        comments = comments_of(file)
        services: list[ServiceDescriptor] = list(file.services_by_name.values())
        for service in services:
            rows = []
            for method in service.methods:
                cells = code(method.name), code(_call(method)), ", ".join(roles_of(method)) or "nobody"
                available = MAX_LINE - sum(map(len, cells)) - 20
                rows.append((*cells, _short(comments[method.name], available)))
            intro = f"[{file.name}](../../protos/{file.name}). {comments[service.name]}"
            yield f"## {service.full_name}\n\n{_wrapped(intro)}\n\n" + table(
                ("method", "messages", "roles", "what"), rows
            )


def _wrapped(text: str) -> str:
    """Text as lines of whole words, none longer than a line of a document."""
    lines: list[str] = []
    line = ""
    for word in text.split(" "):
        if len(line) + len(word) > 160:
            lines, line = [*lines, line], ""
        line = f"{line} {word}".strip()
    return "\n".join([*lines, line])


def render() -> str:
    """The page."""
    introduction = (
        "A caller has one role, from the SPIFFE id in its certificate ([who you are](partners.md#who-you-are)). A method that names no "
        "role can't be called.\nHealth and reflection are open to every proven caller. `…` marks a text that goes on in the proto "
        "file, which documents each field."
    )
    return page("Contracts", introduction, *_sections())
