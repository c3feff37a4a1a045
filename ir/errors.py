"""The errors that shave raises on purpose: each message names what is at fault and what to do."""


class ShaveError(Exception):
    """Base of every error that shave raises on purpose."""


class ReadError(ShaveError, ValueError):
    """A model file cannot be read: damaged, unsupported or unsafe."""


class SignatureError(ShaveError, ValueError):
    """An input has the wrong name, shape or dtype, or one is missing."""


class VerifyError(ShaveError):
    """A program breaks a rule of the intermediate representation."""


class UnsupportedError(ShaveError):
    """An operator, dtype or form is outside what this part of shave can do."""
