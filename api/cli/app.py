"""The program ``shave``: its commands, and what a failure looks like."""

from __future__ import annotations

import functools
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import typer
from rich.text import Text

from shave.cli.console import diagnostics
from shave.ir.errors import PipelineError, ShaveError

FAILED, WRONG_CALL, INTERRUPTED = 1, 2, 130


def build() -> typer.Typer:
    """Put the commands together."""
    from shave.cli import (
        bench,
        bisect,
        compare,
        compile,
        explain,
        groups,
        inspect,
        passes,
        replay,
        run,
        sensitivity,
        targets,
        tune,
    )

    app = typer.Typer(
        name="shave",
        help="Make neural networks smaller and faster, prove each rewrite, compile the result.",
        no_args_is_help=True,
        rich_markup_mode="markdown",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_options)
    for module in (
        compile,
        tune,
        run,
        bench,
        inspect,
        passes,
        explain,
        groups,
        sensitivity,
        compare,
        bisect,
        replay,
        targets,
    ):
        name = module.__name__.rpartition(".")[2]
        app.command(name)(_reporting(getattr(module, name)))
    return app


def main() -> None:
    """Run the command line: exit 0 done, 1 the work failed, 2 the call is wrong, 130 interrupted."""
    warnings.showwarning = _show_warning  # type: ignore[assignment] # whose parameters have other names
    build()()


def _options(
    version: bool = typer.Option(False, "--version", help="Print the version and leave."),
) -> None:
    if version:
        import shave

        typer.echo(f"shave {shave.__version__}")
        raise typer.Exit


def _reporting(command: Callable[..., None]) -> Callable[..., None]:
    """Turn what a command raises into one line on stderr and an exit status."""

    @functools.wraps(command)
    def reported(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except PipelineError as error:
            _fail(str(error), WRONG_CALL)
        except ShaveError as error:
            _fail(str(error), FAILED)
        except BrokenPipeError:
            # Whoever read our output has gone; keep Python from complaining about it at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(FAILED) from None
        except OSError as error:
            _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error), FAILED)
        except KeyboardInterrupt:
            _fail("interrupted; no output was written", INTERRUPTED)

    return reported


def _fail(message: str, code: int) -> None:
    diagnostics.print(Text.assemble(("error: ", "bold red"), message))
    raise typer.Exit(code) from None


def _show_warning(message: Any, *_: Any) -> None:
    diagnostics.print(Text.assemble(("warning: ", "yellow"), str(message)))
