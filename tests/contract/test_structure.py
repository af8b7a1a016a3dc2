"""Structure of the code: decisions are pure, no service imports another, and the flow table is consistent."""

from __future__ import annotations

import ast
import itertools
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from services.common.messaging import flow
from tools.capabilities import measure

ROOT = Path(__file__).parents[2]
SERVICES = ROOT / "services"
NAMES = sorted(folder.name for folder in SERVICES.iterdir() if (folder / "__init__.py").exists())
SERVERS = ("registry", "ingest", "geofence", "dispatch")
"""Packages whose processes serve gRPC and take part in the flow. The others are their clients, or what these stand on."""
MAY_IMPORT: Mapping[str, Collection[str]] = {
    "common": (),
    "client": ("common",),
    **dict.fromkeys(SERVERS, ("common", "client")),
    "court": ("common", "client"),
    "console": ("common", "client", "court"),
    "field": ("common", "client"),
    "local": ("common", "client"),
    "cli": NAMES,
}
"""Packages under services/ that each of them may import beside itself. Court also imports the pure domains of the services."""
STORED_TO_DOMAIN = ("services.geofence.translate",)
"""Translations of stored messages to the fold's domain, without I/O. Court folds a stored log by them, as the evaluators do."""

PURE_MODULES = {
    *("errors", "fields", "geometry", "ids", "percentiles", "times", "words"),
    *(
        "messaging.flow",
        "observability.lateness",
        "observability.spans",
        "privacy.grounds",
        "privacy.notices",
        "rpc.identity",
    ),
}
"""Modules of services/common that pure code may import."""
ALLOWED = {
    "services.common.times": {"google"},
    "services.common.fields": {"google"},
    "services.common.rpc.identity": {"tandem"},
}
"""Packages that single pure modules may import: the protobuf timestamp and the enum of roles."""
COMPUTES = {"numpy", "scipy", "shapely", "pyproj", "rapidfuzz"}
"""Packages of pure computation, which every pure module may import."""
PURE_PACKAGES = {"domain", "matching"}
"""Packages of a service that hold only decisions, so that pure modules may import them."""
IMPURE = {
    "time",
    "random",
    "uuid",
    "secrets",
    "os",
    "io",
    "socket",
    "asyncio",
    "threading",
    "subprocess",
    "pathlib",
    "logging",
}
IMPURE_CALLS = {"now", "utcnow", "today", "open", "print", "input", "getenv"}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def says_it_is_pure(path: Path) -> bool:
    return bool(re.search(r"\bPure\b", ast.get_docstring(ast.parse(path.read_text())) or ""))


@cache
def pure_files() -> list[Path]:
    """Files of domain code, and files whose docstring says that they are pure."""
    everything = SERVICES.rglob("*.py")
    return sorted(
        path
        for path in everything
        if path.name == "domain.py"
        or PURE_PACKAGES & {*path.relative_to(SERVICES).parent.parts}
        or says_it_is_pure(path)
    )


def imported(path: Path) -> Iterator[str]:
    """Full names of a file's imports, including those within functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def impurities(path: Path) -> list[str]:
    """Imports, calls and other code in a file that a pure file must not have."""
    own = module_name(path).split(".")[1]
    found = []
    for name in imported(path):
        top, *rest = name.split(".")
        if top == "services":
            inner = {".".join(rest[1:end]) for end in range(2, len(rest) + 1)}
            allowed = (
                bool(PURE_MODULES & inner)
                if rest[0] == "common"
                else rest[0] == own and bool(PURE_PACKAGES & {*rest[1:]})
            )
        elif top in ALLOWED.get(module_name(path), ()):
            allowed = True
        else:
            allowed = (top in sys.stdlib_module_names and top not in IMPURE) or top in COMPUTES
        if not allowed:
            found.append(f"imports {name}")
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in IMPURE_CALLS:
                found.append(f"calls {called}")
        elif isinstance(node, ast.AsyncFunctionDef | ast.Await):
            found.append("is asynchronous")
    return found


@pytest.mark.parametrize("path", pure_files(), ids=module_name)
def test_pure_code_reads_no_clock_does_no_io_and_knows_no_wire(path: Path) -> None:
    assert impurities(path) == []


def test_every_service_has_its_decisions_in_a_pure_file() -> None:
    with_domain = {
        pure_file.relative_to(SERVICES).parts[0] for pure_file in pure_files() if "domain" in module_name(pure_file)
    }
    assert set(SERVERS) <= with_domain


@pytest.mark.parametrize(
    "line",
    [
        "import time",
        "from datetime import datetime\ndatetime.now()",
        "import grpc.aio",
        "from tandem.common.v1 import log_pb2",
        "from services.common.messaging import bus",
        "from services.ingest import translate",
        "from services.geofence.domain import fold",
        "from services.registry.matching import names",
        "from services.ingest import store",
        "from uuid import uuid4",
    ],
)
def test_the_purity_check_finds_impure_imports_and_calls(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    path = tmp_path / "services" / "ingest" / "domain.py"
    path.parent.mkdir(parents=True)
    path.write_text(line)
    assert impurities(path)


@pytest.mark.parametrize("name", NAMES)
def test_a_package_imports_only_what_it_stands_on(name: str) -> None:
    others = {f"services.{other}" for other in NAMES if other != name and other not in MAY_IMPORT[name]}
    found = {
        f"{module_name(path)} imports {imported_name}"
        for path in (SERVICES / name).rglob("*.py")
        for imported_name in imported(path)
        if ".".join(imported_name.split(".")[:2]) in others
        and not (name == "court" and (is_pure(imported_name) or imported_name.startswith(STORED_TO_DOMAIN)))
    }
    assert found == set()


def test_nobody_imports_the_command() -> None:
    # The page of the command line is written from the command itself.
    found = {
        f"{module_name(path)} imports {name}"
        for top in ("bench", "tools")
        for path in (ROOT / top).rglob("*.py")
        for name in imported(path)
        if f"{name}.".startswith("services.cli.") and module_name(path) != "tools.reference.command_line"
    }
    assert found == set()


def is_pure(name: str) -> bool:
    """Whether an import is a pure module of a service, or a name in one."""
    files = {module_name(path) for path in pure_files()}
    return name in files or name.rpartition(".")[0] in files


@pytest.mark.parametrize("module", STORED_TO_DOMAIN)
def test_what_court_folds_a_stored_log_by_does_no_io(module: str) -> None:
    found = {
        name
        for name in imported(ROOT / f"{module.replace('.', '/')}.py")
        if not name.startswith(("services.geofence.", "services.common.", "tandem.", "google.protobuf."))
        and (name.split(".")[0] not in sys.stdlib_module_names or name.split(".")[0] in IMPURE)
    }
    assert found == set()


@pytest.mark.parametrize("service", SERVERS)
def test_siblings_have_the_same_file_names(service: str) -> None:
    at_the_top = {path.name for path in (SERVICES / service).iterdir()}
    assert {"__main__.py", "settings.py"} <= at_the_top
    assert at_the_top & {"domain.py", "domain"}
    assert {"api.py", "translate.py"} <= {path.name for path in (SERVICES / service).rglob("*.py")}


# ── folders ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def python_files() -> list[Path]:
    return [path for top in ("services", "tests", "bench", "tools") for path in (ROOT / top).rglob("*.py")]


@pytest.mark.parametrize("service", NAMES)
def test_a_package_says_what_each_of_its_folders_holds(service: str) -> None:
    said = ast.get_docstring(ast.parse((SERVICES / service / "__init__.py").read_text()), clean=False) or ""
    named = re.findall(r"^    ([a-z_]+)/ +\S", said, re.MULTILINE)
    assert sorted(named) == sorted(file.parent.name for file in (SERVICES / service).glob("*/__init__.py"))


def test_no_test_imports_a_test() -> None:
    found = {
        f"{module_name(path)} imports {name}"
        for path in (ROOT / "tests").rglob("*.py")
        for name in imported(path)
        if name.startswith("tests.") and any(part.startswith("test_") for part in name.split("."))
    }
    assert found == set()


MAX_VALUES = 2
"""Maximum number of values that one assignment pairs with names. In a longer one, a reader counts to find a name's value."""


def long_assignments(source: str) -> list[int]:
    """Lines of the assignments that pair more than MAX_VALUES values with names. A tuple that is unpacked pairs none."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple)
        for target in node.targets
        if isinstance(target, ast.Tuple) and len(target.elts) > MAX_VALUES
        if not any(isinstance(each, ast.Starred) for each in (*target.elts, *node.value.elts))
    ]


def test_an_assignment_pairs_at_most_two_values_with_names() -> None:
    assert long_assignments("a, b = 1, 2\na, b, c = f()\na, *b = (*c, 1, 2)\na, b, c = 1, 2, 3\n") == [4]
    found = {
        str(path.relative_to(ROOT)): lines for path in python_files() if (lines := long_assignments(path.read_text()))
    }
    assert found == {}


# ── circles of imports ───────────────────────────────────────────────────────────────────────────────────────────────

Uses = Mapping[str, Mapping[str, Collection[str]]]
"""The names that each module uses of each other module that it imports."""


def uses(paths: list[Path]) -> Uses:
    """What files use of each other. An import counts wherever it stands: a reader needs the other module even where Python doesn't."""
    files = {module_name(path): path for path in paths}
    return {module: used(path, files) for module, path in files.items()}


def used(path: Path, modules: Collection[str]) -> dict[str, set[str]]:
    """Names that a file uses of each of these modules that it imports."""
    found: dict[str, set[str]] = {}
    aliases: dict[str, str] = {}
    attributes: list[tuple[str, str]] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            attributes.append((node.value.id, node.attr))
        elif isinstance(node, ast.Import | ast.ImportFrom):
            package = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            for alias in node.names:
                if (name := package + alias.name) in modules:
                    found.setdefault(name, set())
                    aliases[alias.asname or alias.name] = name
                elif (module := package[:-1]) in modules:
                    found.setdefault(module, set()).add(alias.name)
    for alias_name, attribute in attributes:
        if alias_name in aliases:
            found[aliases[alias_name]].add(attribute)
    return found


def circles(imports: Uses) -> list[str]:
    """A text for each circle of imports, with the names that tie it."""
    left = {module: sorted(others) for module, others in sorted(imports.items())}
    found = []
    while True:
        try:
            TopologicalSorter(left).prepare()
        except CycleError as error:
            # In graphlib's list each module is imported by the next.
            ties = list(itertools.pairwise(reversed(error.args[1])))
            found.append(
                "\n".join(f"{a} uses of {b}: {', '.join(sorted(imports[a][b])) or 'no name'}" for a, b in ties)
            )
            left[ties[0][0]].remove(ties[0][1])
        else:
            return found


def test_no_modules_import_each_other_in_a_circle() -> None:
    # Nothing imports a test, so no test is in a circle.
    found = circles(uses([path for path in python_files() if not path.name.startswith("test_")]))
    assert not found, "move what both sides need into a module that imports neither:\n\n" + "\n\n".join(found)


@pytest.mark.parametrize("folder", [*(f"services/{name}" for name in NAMES), "services/geofence/domain"])
def test_no_rooms_of_a_package_import_each_other_in_a_circle(folder: str) -> None:
    """A room is a folder or a module of the package. A reader can begin with one that stands on no other, and go up from there."""
    found = measure(ROOT, folder)
    assert (found.cyclic, found.upward) == (0, 0), f"python -m tools.capabilities {folder} counts them"


@pytest.mark.parametrize(
    "line",
    [
        "from services.a import first\nfirst.begin()",
        "import services.a.first as x\nx.begin()",
        "from services.a.first import begin",
        "def late():\n    from services.a.first import begin",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from services.a.first import begin",
    ],
)
def test_a_circle_of_imports_is_found_with_its_names(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    texts = {"first": "from services.a.third import end", "second": line, "third": "from services.a import second"}
    for name, text in texts.items():
        path = tmp_path / "services" / "a" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (circle,) = circles(uses(python_files()))
    assert {*circle.splitlines()} == {
        "services.a.first uses of services.a.third: end",
        "services.a.third uses of services.a.second: no name",
        "services.a.second uses of services.a.first: begin",
    }


# ── the flow table ───────────────────────────────────────────────────────────────────────────────────────────────────


def covers(pattern: str, subject: str) -> bool:
    """Whether a subject of the flow table matches a stream's pattern, token by token. `>` matches one or more tokens."""
    for i, (want, token) in enumerate(itertools.zip_longest(pattern.split("."), subject.split("."))):
        if want == ">":
            return len(subject.split(".")) > i
        if want != token and want != "*":
            return False
    return True


def streams_of(subject: str) -> list[str]:
    return [stream.name for stream in flow.STREAMS if any(covers(pattern, subject) for pattern in stream.subjects)]


@pytest.mark.parametrize("row", flow.FLOWS, ids=lambda row: row.subject)
def test_a_subject_is_stored_only_by_its_stream(row: flow.Flow) -> None:
    assert streams_of(row.subject) == [row.stream]


def test_every_stream_has_a_flow_and_names_are_unique() -> None:
    assert {row.stream for row in flow.FLOWS} == {stream.name for stream in flow.STREAMS}
    assert len({row.subject for row in flow.FLOWS}) == len(flow.FLOWS)
    assert len({stream.name for stream in flow.STREAMS}) == len(flow.STREAMS)


def test_publishers_and_readers_are_users_of_the_server() -> None:
    for row in (*flow.FLOWS, flow.ROUTES):
        assert row.publishers and {*row.publishers, *row.readers} <= set(flow.USERS), row.subject
    services = {user.partition("-")[0] for user in flow.USERS}
    assert set(SERVERS) <= services


def test_all_subjects_of_a_stream_have_the_same_readers() -> None:
    # The server grants read permission by stream, so the table must not claim less.
    readers: dict[str, set[tuple[str, ...]]] = {}
    for row in flow.FLOWS:
        readers.setdefault(row.stream, set()).add(row.readers)
    assert {stream: len(reader_sets) for stream, reader_sets in readers.items()} == dict.fromkeys(readers, 1)


def test_only_disclosures_have_a_durable_consumer() -> None:
    # All other readers keep their positions in their own databases.
    assert {row.stream: row.durable for row in flow.FLOWS if row.durable} == {
        flow.DISCLOSURES.name: flow.DISCLOSURES_DURABLE
    }


def test_the_subject_functions_match_the_flow_table() -> None:
    subjects = {
        flow.LOG_META_SUBJECT: "log_meta",
        **{flow.log_subject(0, kind): f"log.{{p}}.{kind}" for kind in ("fold", "report", "case", "rules", "tick")},
        flow.alert_subject(0, "a"): "alert.{p}.{alert_id}",
        flow.measure_subject(0, "a"): "measure.{p}.{alert_id}",
        flow.incident_subject("police", "i"): "incident.{leg}.{incident_id}",
        flow.advice_subject("i"): "advice.{incident_id}",
        flow.dead_letter_subject("fold", "LOG_0", 7): "dead_letter.{by}.{reader}.{stream}.{sequence}",
        flow.digest_subject(0, 5, 7, replica=1): "digest.{p}.{sequence}.{stamp}.{replica}",
        flow.ledger_head_subject(5): "ledger.head.{sequence}",
        flow.disclosure_subject("police", "d"): "disclosure.{by}.{disclosure_id}",
        flow.sensing_subject(0, "s"): "sensing.{p}.{request_id}",
        flow.command_subject("ingest", "c"): "command.{by}.{command_id}",
        flow.command_step_subject("c", "SENT"): "command_step.{command_id}.{state}",
        flow.observed_subject("i"): "observed.{ingest}",
        flow.quarantine_subject("i"): "quarantine.{ingest}",
        flow.probe_subject("h"): "probe.{host}",
    }
    assert set(subjects.values()) == {row.subject for row in flow.FLOWS}
    for subject, row_subject in subjects.items():
        assert re.fullmatch(re.sub(r"\{\w+\}", "[^.]+", row_subject.replace(".", r"\.")), subject)


def test_a_leg_consumes_only_the_steps_of_other_legs() -> None:
    for leg in flow.LEGS:
        patterns = flow.peer_subjects(leg)
        consumed = {
            other
            for other in flow.LEGS
            if any(covers(pattern, flow.incident_subject(other, "i")) for pattern in patterns)
        }
        assert consumed == set(flow.LEGS) - {leg}
