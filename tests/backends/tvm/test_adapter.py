import pytest

from shave.backends.targets import resolve
from shave.backends.tvm.adapter import check_versions, default_threads, tvm_target


def test_tested_pair_is_accepted():
    check_versions("0.27.0.post1", "0.1.14.post1")


def test_newer_interface_is_refused_with_what_to_install():
    with pytest.raises(
        ImportError, match=r"apache-tvm-ffi 0\.1\.15\.post2 .*: install apache-tvm-ffi==0\.1\.14\.post1"
    ):
        check_versions("0.27.0.post1", "0.1.15.post2")


def test_other_tvm_is_refused():
    with pytest.raises(ImportError, match=r"apache-tvm 0\.28\.0 is not supported: install apache-tvm==0\.27\.0\.post1"):
        check_versions("0.28.0", "0.1.14.post1")


@pytest.mark.parametrize(
    ("environment", "threads"),
    [
        ({"TVM_NUM_THREADS": "3", "OMP_NUM_THREADS": "5"}, "3"),
        ({"OMP_NUM_THREADS": "5"}, "5"),
    ],
)
def test_threads_that_the_user_asked_for(environment, threads):
    assert default_threads(environment) == threads


@pytest.mark.parametrize("nonsense", ["0", "many", ""])
def test_threads_default_to_all_usable_processors(nonsense):
    assert int(default_threads({"TVM_NUM_THREADS": nonsense})) == int(default_threads({})) >= 1


def test_target_carries_the_features():
    target = resolve("x86-64-v3")
    made = tvm_target(target)
    assert made.attrs["mcpu"] == target.cpu
    assert sorted(made.attrs["mattr"]) == sorted(target.attributes)
    assert made.attrs["num-cores"] == target.cores
