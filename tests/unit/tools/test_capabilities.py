"""`tools.capabilities` counts modules, components, layers, dependencies and cyclic dependencies of a folder."""

from __future__ import annotations

from pathlib import Path

from tools.capabilities import Structure, measure


def test_a_folder_is_counted_by_its_imports(tmp_path: Path) -> None:
    files = {
        "services/a/__init__.py": "",
        "services/a/api.py": "from services.a import store\nfrom services.a.leg import rows\n",
        "services/a/store.py": "import json\nfrom services.a.leg.rows import Row\n",
        "services/a/leg/rows.py": "from services.b import other\n",
        "services/a/leg/view.py": "from services.a.leg.rows import Row\n",
        "services/a/first.py": "from services.a.second import x\n",
        "services/a/second.py": "from services.a.first import y\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    assert measure(tmp_path, "services/a") == Structure(
        folder="services/a", modules=6, widest=4, components=5, layers=3, dependencies=5, cyclic=2
    )
