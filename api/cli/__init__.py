"""The command line: ``shave compile``, ``run``, ``bench`` and their kin."""

from shave.cli.app import main

__all__ = ["main"]
