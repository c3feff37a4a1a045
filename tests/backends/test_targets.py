from __future__ import annotations

import pytest

from shave.backends import host, targets
from shave.backends.target import LLVM_FEATURES
from shave.backends.targets import list_targets, resolve
from shave.ir.errors import TargetError


@pytest.mark.parametrize(
    ("name", "cpu", "lanes", "registers", "dot"),
    [
        ("x86-64-v2", "x86-64-v2", 4, 16, "none"),
        ("x86-64-v3", "x86-64-v3", 8, 16, "none"),
        ("x86-64-v4", "x86-64-v4", 16, 32, "none"),
        ("x86-64-v4-vnni", "x86-64-v4", 16, 32, "vnni"),
        ("skylake-avx512", "skylake-avx512", 16, 32, "none"),
        ("cascadelake", "cascadelake", 16, 32, "vnni"),
        ("alderlake", "alderlake", 8, 16, "avx-vnni"),
        ("sapphirerapids", "sapphirerapids", 16, 32, "vnni"),
        ("zen3", "znver3", 8, 16, "none"),
        ("zen4", "znver4", 16, 32, "vnni"),
        ("cortex-a53", "cortex-a53", 4, 32, "none"),
        ("cortex-a72", "cortex-a72", 4, 32, "none"),
        ("cortex-a76", "cortex-a76", 4, 32, "sdot"),
        ("neoverse-n1", "neoverse-n1", 4, 32, "sdot"),
        ("neoverse-v1", "neoverse-v1", 4, 32, "i8mm"),
    ],
)
def test_abilities_of_known_processors(name: str, cpu: str, lanes: int, registers: int, dot: str) -> None:
    target = resolve(name)
    assert (target.name, target.cpu, target.lanes) == (name, cpu, lanes)
    assert (target.vector_registers, target.int8_dot) == (registers, dot)


@pytest.mark.parametrize("name", ["sm_75", "sm_80", "sm_90", "sm_100", "sm-90", "SM_90"])
def test_cuda_architectures_are_data(name: str) -> None:
    target = resolve(name)
    assert target.kind == "cuda"
    assert target.cpu.replace("_", "-") == name.lower().replace("_", "-")


@pytest.mark.parametrize(
    ("alias", "name"), [("x86_64_v3", "x86-64-v3"), ("znver4", "zen4"), ("icelake-client", "icelake")]
)
def test_other_spellings(alias: str, name: str) -> None:
    assert resolve(alias).name == name


def test_every_listed_target_resolves_to_itself() -> None:
    for target in list_targets():
        assert resolve(target.name) == target


@pytest.mark.parametrize(
    ("typo", "near"),
    [("cascadelak", "cascadelake"), ("sm_91", "sm_90"), ("neoverse-n9", "neoverse-n1"), ("cpuu", "cpu")],
)
def test_typo_is_answered_with_the_nearest_names(typo: str, near: str) -> None:
    with pytest.raises(TargetError, match=rf"no target is named '{typo}'.*{near}"):
        resolve(typo)


def test_name_like_no_other() -> None:
    with pytest.raises(TargetError, match="shave targets"):
        resolve("#")


def test_host_is_described_by_its_own_features() -> None:
    target = resolve("cpu")
    assert target.features <= host.features()
    assert target.features
    assert target.cores == host.usable_cores()


def test_hidden_features_narrow_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a hypervisor that hides AVX-512 the vectors shrink, whatever the model's name."""
    hidden = frozenset(f for f in resolve("x86-64-v3").features)
    monkeypatch.setattr(host, "features", lambda: hidden)
    monkeypatch.setattr(host, "architecture", lambda: "x86_64")
    targets._this_host.cache_clear()
    try:
        assert targets._this_host().lanes == 8
        assert targets._this_host().int8_dot == "none"
    finally:
        targets._this_host.cache_clear()


def test_unknown_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "architecture", lambda: "sparc64")
    targets._this_host.cache_clear()
    try:
        with pytest.raises(TargetError, match="sparc64"):
            resolve("cpu")
    finally:
        targets._this_host.cache_clear()


def test_llvm_knows_each_processor_and_feature() -> None:
    from shave.backends.tvm.adapter import tvm

    for target in list_targets():
        if target.kind == "cuda":
            continue
        assert tvm.target.codegen.llvm_is_valid_cpu(target.cpu, target.triple), target.name
        described = {"kind": "llvm", "mtriple": target.triple, "mcpu": target.cpu, "mattr": list(target.attributes)}
        enabled = set(tvm.target.codegen.llvm_get_cpu_features(tvm.target.Target(described)))
        assert {attribute[1:] for attribute in target.attributes} <= enabled, target.name


def test_each_features_of_archspec_exist() -> None:
    """A misspelt feature would never be found on any machine."""
    from archspec.cpu import TARGETS

    known = {feature for architecture in TARGETS.values() for feature in architecture.features}
    known |= {"avx512_fp16"}  # on real machines, but archspec gives it to no processor
    assert LLVM_FEATURES["x86"].keys() <= known
    assert LLVM_FEATURES["arm"].keys() <= known
