"""`tools.capabilities` counts modules, components, layers, dependencies of a folder, and the size of code."""

from __future__ import annotations

from pathlib import Path

from tools.capabilities import Size, Structure, measure, size


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
        folder="services/a", modules=6, widest=4, components=5, layers=3, dependencies=5, cyclic=2, upward=1
    )


def test_a_dependency_runs_up_where_the_order_of_components_cannot_help(tmp_path: Path) -> None:
    imports = {"a": "bc", "b": "c", "c": "d", "d": "ab"}  # d imports two of those that it is below
    for name, targets in imports.items():
        lines = [f"from services.x.{target} import y\n" for target in targets]
        (tmp_path / "services/x").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"services/x/{name}.py").write_text("".join(lines), "utf-8")
    assert measure(tmp_path, "services/x").upward == 1  # in the order d, a, b, c: c imports d


def test_the_size_leaves_out_empty_files_and_migrations(tmp_path: Path) -> None:
    (tmp_path / "migrations").mkdir()
    (tmp_path / "migrations/first.py").write_text("x = 1\n", "utf-8")
    (tmp_path / "__init__.py").write_text("", "utf-8")
    module = '"""Says\nwhat."""\n\nfrom a import (\n    b,\n    c,\n)\n\n\nclass D:\n    x: int\n    """Its unit."""\n'
    (tmp_path / "module.py").write_text(module, "utf-8")
    assert size(tmp_path) == Size(modules=1, lines=12, statements=3, docstring_lines=3, import_lines=4)
