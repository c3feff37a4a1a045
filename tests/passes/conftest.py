"""Lets failed assertions in the machinery of these tests explain themselves, as those in test files do."""

import pytest

pytest.register_assert_rewrite("tests.passes.contract", "tests.passes.oracle")
