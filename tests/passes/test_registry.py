from collections.abc import Iterator
from importlib import metadata

import pytest

from shave.ir.errors import PipelineError
from shave.passes import registry
from shave.passes.base import Exactness
from shave.passes.options import options_of
from shave.passes.pipeline import parse
from shave.passes.presets import PRESETS


@pytest.mark.parametrize("name", registry.PASSES)
def test_name_is_path(name: str) -> None:
    *_, folder, file = registry.PASSES[name].partition(":")[0].split(".")
    assert name.replace("-", "_") in (file, f"{folder}_{file}")


@pytest.mark.parametrize("name", registry.PASSES)
def test_every_row_is_a_documented_pass(name: str) -> None:
    kind = registry.load(name)
    assert kind.name == name
    assert kind.exactness in Exactness
    assert kind.__dict__["__dataclass_params__"].frozen
    assert kind.__doc__
    assert not kind.__doc__.startswith(f"{kind.__name__}("), "the docstring is the one that dataclasses make up"
    for option in options_of(kind).values():
        assert option.help, f"option {option.name} has no help text"


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_passes(preset: str) -> None:
    assert parse(PRESETS[preset])
    assert preset not in registry.names()


def test_the_exact_preset_is_exact() -> None:
    assert all(instance.exactness is Exactness.EXACT for instance in parse("exact"))


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(PipelineError, match="no pass 'ded-code'; did you mean 'dead-code'"):
        registry.load("ded-code")


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[metadata.EntryPoint]]:
    entries: list[metadata.EntryPoint] = []
    monkeypatch.setattr(metadata, "entry_points", lambda group: [entry for entry in entries if entry.group == group])
    registry._locations.cache_clear()
    yield entries
    registry._locations.cache_clear()


def plugin(name: str, value: str) -> metadata.EntryPoint:
    return metadata.EntryPoint(name, value, "shave.passes")


def test_plugins_are_found_by_entry_point(plugins: list[metadata.EntryPoint]) -> None:
    plugins.append(plugin("idle", "tests.passes.examples:Idle"))
    assert "idle" in registry.names()
    assert [instance.name for instance in parse("idle, dead-code")] == ["idle", "dead-code"]


def test_duplicates_are_refused(plugins: list[metadata.EntryPoint]) -> None:
    plugins.append(plugin("dead-code", "somewhere.else:DeadCode"))
    with pytest.raises(PipelineError, match=r"two passes are named 'dead-code'.*somewhere\.else:DeadCode"):
        registry.names()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("no_such_module:X", "cannot be loaded from no_such_module:X"),
        ("tests.passes.examples:Missing", "cannot be loaded"),
        ("tests.passes.examples:Fail", "is no Pass of that name"),
        ("tests.passes.examples:Net", "is no Pass of that name"),
    ],
)
def test_bad_plugins_are_named(plugins: list[metadata.EntryPoint], value: str, message: str) -> None:
    plugins.append(plugin("bad", value))
    with pytest.raises(PipelineError, match=message):
        registry.load("bad")
