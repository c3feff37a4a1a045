"""Compute the package list, so that no subpackage can be missing from the wheel.

The folders at the top (`ir/ passes/ backends/ api/`) are imported as `shave.*`; pyproject.toml holds the mapping.
"""

from setuptools import find_packages, setup

FOLDERS = ("ir", "passes", "backends")
found = find_packages(include=[pattern for folder in FOLDERS for pattern in (folder, f"{folder}.*")])
setup(packages=["shave", *(f"shave.{package}" for package in [*find_packages("api"), *found])])
