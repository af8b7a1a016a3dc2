"""Shapes of the code in services/: named arguments, exhaustive matches, metrics that only `__main__` creates."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.shapes import Code, Finding

ROOT = Path(__file__).parents[2]
ALLOWED: Mapping[tuple[str, str], str] = {}
"""Exceptions by file and check, each with its reason, such as a measured hot loop."""


def findings_in(root: Path) -> list[Finding]:
    return [finding for finding in Code(root).findings() if (finding.path, finding.check) not in ALLOWED]


def test_the_code_has_the_shapes() -> None:
    assert [f"{finding.path}:{finding.line}: {finding.text}" for finding in findings_in(ROOT)] == []


DOMAIN = """
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, assert_never

class Fix(NamedTuple):
    at_ms: int
    lat_e7: int
    lon_e7: int
    accuracy_mm: int

    @classmethod
    def at(cls, at_ms: int):
        return cls(at_ms, 0, 0, accuracy_mm=0)

@dataclass
class Tick:
    at_ms: int

class Leg(Enum):
    POLICE = 1
    WARNING = 2
"""
SEEDED = {
    "four positional arguments of a NamedTuple": (
        "from services.made_up.domain import Fix\nFix(1, 2, 3, 4)",
        ["arguments"],
    ),
    "four positional arguments by the module": (
        "from services.made_up import domain\ndomain.Fix(1, 2, 3, 4)",
        ["arguments"],
    ),
    "a positional splat": (
        "from services.made_up import domain\ndomain.Tick(*[1])",
        ["arguments"],
    ),
    "a positional splat within the class": (
        "class Own:\n    @classmethod\n    def of(cls, values):\n        return cls(*values)",
        ["arguments"],
    ),
    "a match over classes that falls through": (
        "from services.made_up.domain import Fix, Tick\nmatch entry:\n    case Fix():\n        pass\n    case Tick():\n        pass",
        ["match"],
    ),
    "a match over an enum that falls through": (
        "from services.made_up.domain import Leg\nmatch leg:\n    case Leg.POLICE:\n        pass\n    case _:\n        pass",
        ["match"],
    ),
    "a metric at import": (
        "from prometheus_client import Counter\nCounter('a', 'b')",
        ["metrics"],
    ),
    "a metric of a constructor outside of metrics.py": (
        "import prometheus_client\nclass Own:\n    def __init__(self):\n        self.a = prometheus_client.Gauge('a', 'b')",
        ["metrics"],
    ),
    "metrics that another module than __main__ creates": (
        "from services.made_up import metrics\nclass Own:\n    def __init__(self):\n        self.a = metrics.Metrics()",
        ["metrics"],
    ),
    "nothing": (
        "from collections import Counter\n"
        "from services.made_up.domain import Fix, Leg\n"
        "Counter('aab')\n"
        "Fix(1, 2, 3, accuracy_mm=4)\n"
        "Fix._make(row)\n"
        "print(*rows)\n"
        "match leg:\n    case Leg.POLICE:\n        pass\n    case _:\n        assert_never(leg)\n"
        "match name:\n    case 'a':\n        pass",
        [],
    ),
}


@pytest.mark.parametrize("what", SEEDED)
def test_a_seeded_violation_is_found(tmp_path: Path, what: str) -> None:
    source, expected = SEEDED[what]
    folder = tmp_path / "services" / "made_up"
    folder.mkdir(parents=True)
    (folder / "domain.py").write_text(DOMAIN)
    (folder / "metrics.py").write_text(
        "from prometheus_client import Counter\nclass Metrics:\n    def __init__(self):\n        self.a = Counter('a', 'b')"
    )
    (folder / "__main__.py").write_text("from services.made_up.metrics import Metrics\ndef main():\n    Metrics()")
    (folder / "seeded.py").write_text(source)
    assert [finding.check for finding in findings_in(tmp_path)] == expected


def test_a_service_that_connects_without_its_metrics_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "services" / "made_up"
    folder.mkdir(parents=True)
    connect = "from services.common.messaging import bus as buses\nbuses.connect(url, 'made-up'{})"
    (folder / "__main__.py").write_text(connect.format(", metrics=metrics"))
    assert findings_in(tmp_path) == []
    (folder / "__main__.py").write_text(connect.format(""))
    assert [finding.text for finding in findings_in(tmp_path)] == ["connects without the metrics of the process"]


def test_metrics_at_import_of_a_metrics_module_are_found(tmp_path: Path) -> None:
    folder = tmp_path / "services" / "made_up"
    folder.mkdir(parents=True)
    (folder / "metrics.py").write_text("from prometheus_client import Counter\nREPORTS = Counter('a', 'b')")
    assert [finding.text for finding in findings_in(tmp_path)] == ["creates a metric when it is imported"]
