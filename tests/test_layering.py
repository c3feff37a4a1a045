"""The rule of the house: ir <- passes <- backends <- api. Each layer knows only those before it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ("ir", "passes", "backends", "api")
FILES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))


def imported(source: str) -> Iterator[str]:
    """Every module that a source imports, at whatever depth; what only type checkers see counts as well."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer_of(module: str) -> str | None:
    """The layer of a module of ours; None for others."""
    first, *rest = module.split(".")
    if first != "shave":
        return None
    return rest[0] if rest and rest[0] in LAYERS else "api"


def violations(layer: str, source: str) -> list[str]:
    allowed = LAYERS[: LAYERS.index(layer) + 1]
    return [name for name in imported(source) if (found := layer_of(name)) is not None and found not in allowed]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_layer_knows_only_those_before_it(path: Path) -> None:
    assert violations(path.relative_to(ROOT).parts[0], path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("layer", "source"),
    [
        ("ir", "from shave.passes.base import Pass"),
        ("ir", "import shave.passes"),
        ("passes", "def f():\n    from shave.backends import target"),
        ("passes", "import shave"),
        ("backends", "from shave import cli"),
        ("ir", "if TYPE_CHECKING:\n    from shave import passes"),
    ],
)
def test_the_rule_catches_what_breaks_it(layer: str, source: str) -> None:
    assert violations(layer, source)


def test_every_file_of_the_api_has_its_link_for_type_checkers() -> None:
    links = ROOT / ".typing" / "shave"
    for path in sorted((ROOT / "api").iterdir()):
        if path.suffix == ".py" or path.name == "py.typed" or (path / "__init__.py").exists():
            assert (links / path.name).resolve() == path, f"run: ln -s ../../api/{path.name} .typing/shave/"
    for layer in ("ir", "passes", "backends"):
        assert (links / layer).resolve() == ROOT / layer
    assert all(link.exists() for link in links.iterdir()), "a link points nowhere"
