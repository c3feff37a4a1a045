"""The errors that shave raises on purpose: each message names what is at fault and what to do."""

from __future__ import annotations

from pathlib import Path


class ShaveError(Exception):
    """Base of every error that shave raises on purpose."""


class ReadError(ShaveError, ValueError):
    """A model file cannot be read: damaged, unsupported or unsafe."""


class WriteError(ShaveError):
    """A file cannot be written: no space, no permission, no such folder. What stood in its place is unharmed."""


class SignatureError(ShaveError, ValueError):
    """An input has the wrong name, shape or dtype, or one is missing."""


class VerifyError(ShaveError):
    """A program breaks a rule of the intermediate representation."""


class UnsupportedError(ShaveError):
    """An operator, dtype or form is outside what this part of shave can do."""


class PipelineError(ShaveError, ValueError):
    """A pipeline, an option, a scope or what a pass was given does not fit: nothing is wrong with the pass itself."""


class PassError(ShaveError):
    """A pass failed, broke the program, or changed its outputs though it may not.

    Attributes:
        reproducer: Folder that holds the program from before the pass; ``shave replay`` runs it. None if not written.
    """

    def __init__(self, message: str, reproducer: Path | None = None) -> None:
        super().__init__(message)
        self.reproducer = reproducer


class TargetError(ShaveError, ValueError):
    """No target has the given name."""


class CompileError(ShaveError):
    """The code generator or the linker failed."""


class ArtifactError(ShaveError, ValueError):
    """A compiled artifact is damaged, of an unknown format, made for another machine, or cannot be written."""
