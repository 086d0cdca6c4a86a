"""The dependency directions, read off the imports: types <- models <- adapters <- verbs; data and metrics stand apart."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

import vlsm_adapter

ROOT = Path(vlsm_adapter.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
FOUNDATIONS = {"errors", "files", "registry", "types"}
# What a package may import of ours beside itself. A name missing here is a verb: it may import anything.
MAY_IMPORT = {
    "errors": set(),
    "files": {"errors"},
    "registry": {"errors"},
    "types": set(),
    "models": FOUNDATIONS,
    "adapters": FOUNDATIONS | {"models"},
    "interop": FOUNDATIONS | {"models", "adapters"},
    "fonts": set(),
    "overlays": {"fonts"},  # drawing on arrays; the data check draws outlines as evaluation does
    "data": FOUNDATIONS | {"overlays", "metrics", "fonts"},
    # What is read and written around a prediction, and how its files are named.
    "imaging": FOUNDATIONS | {"data", "overlays", "output_names"},
    "output_names": set(),
    "metrics": FOUNDATIONS,
    "losses": FOUNDATIONS,
}
HEAVY = {"torch", "transformers", "peft", "scipy", "matplotlib", "numpy", "PIL", "lightning_fabric", "tensorboard"}
LIGHT = (
    "__init__.py",
    "errors.py",
    "files.py",
    "registry.py",
    "types.py",
    "models/__init__.py",
    "cli.py",
    "cli_data.py",
    "cli_export.py",
    "export/__init__.py",
    "cli_doctor.py",
    "cli_predict.py",
    "cli_report.py",
    "cli_serve.py",
    "cli_share.py",
    "cli_study.py",
)


def package_of(path: Path) -> str:
    """``models`` for src/vlsm_adapter/models/base.py, ``train`` for src/vlsm_adapter/train.py."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@functools.cache
def imports_of(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Dotted names of the modules that ``path`` imports; those for type checkers alone are left out at the top level."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree))
    if top_level_only:
        nodes = []
        for node in tree.body:
            for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            if not for_types and not isinstance(node, ast.FunctionDef | ast.ClassDef):
                nodes += ast.walk(node)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def ours_in(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imports_of(path) if name.startswith("vlsm_adapter.")}


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_imports_point_downwards() -> None:
    for path in FILES:
        package = package_of(path)
        if package in MAY_IMPORT:
            above = ours_in(path) - MAY_IMPORT[package] - {package}
            assert not above, f"{named(path)}: imports of a layer above or beside it"


def test_parts_do_not_see_the_run_configuration() -> None:
    for path in FILES:
        if package_of(path) in MAY_IMPORT:
            assert not {name for name in imports_of(path) if name.startswith("vlsm_adapter.config")}, named(path)


def test_peft_has_two_files() -> None:
    users = {named(path) for path in FILES if any(name.split(".")[0] == "peft" for name in imports_of(path))}
    assert users == {"adapters/peft_host.py", "adapters/peft_layers.py"}


def test_torchvision_is_not_used() -> None:
    for path in FILES:
        assert not {name for name in imports_of(path) if name.split(".")[0] == "torchvision"}, named(path)


@pytest.mark.parametrize("name", LIGHT)
def test_light_modules_import_nothing_heavy(name: str) -> None:
    if not (ROOT / name).is_file():
        pytest.skip(f"there is no {name}")
    assert not {module.split(".")[0] for module in imports_of(ROOT / name, top_level_only=True)} & HEAVY


def test_the_default_threshold_is_written_once() -> None:
    found = [
        named(path)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Assign) and any("DEFAULT_THRESHOLD" in ast.unparse(one) for one in node.targets)
    ]
    assert found == ["types.py"]


def test_the_rule_would_notice() -> None:
    """The reader of imports sees what it should: our own lazily imported layers among them."""
    assert "models" in ours_in(ROOT / "adapters" / "folder.py")
    assert "torch" in imports_of(ROOT / "models" / "__init__.py")
    assert "torch" not in imports_of(ROOT / "models" / "__init__.py", top_level_only=True)
    assert {path.name for path in FILES} >= {"tuner.py", "clipseg.py"}
