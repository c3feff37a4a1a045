"""A failure in a folder: the program from before the failing pass, the pass, and what it was given."""

from __future__ import annotations

import json
import os
import platform
import shutil
import traceback
from collections.abc import Callable, Iterable
from importlib import metadata
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from shave.ir.errors import ReadError
from shave.ir.program import Program
from shave.ir.reader import read
from shave.passes.base import Context, Pass
from shave.passes.pipeline import parse, to_text
from shave.passes.probe import as_inputs
from shave.passes.problems import Oracle

FOLDER_VARIABLE = "SHAVE_REPRODUCERS"
"""Environment variable that names the folder in which reproducers are made."""

_MANIFEST = "reproducer.json"
_PROGRAM = "program.pt2"
_CALIBRATION = "calibration.safetensors"
_FORMAT = 1
_MAX_BATCHES = 8
_NOT_SAVED = ("evaluate", "target", "trainer", "oracle")
_PACKAGES = ("shave", "torch", "numpy", "onnx")


def write_reproducer(
    program: Program,
    instance: Pass,
    context: Context,
    error: Exception,
    *,
    verify: str | None = "cheap",
    parent: str | Path | None = None,
) -> Path:
    """Write a new folder ``shave-reproducer-PASS-N``; none is ever overwritten.

    Of the calibration data the first 8 batches are kept. The callables (evaluate, trainer, oracle) and the target
    cannot be; the manifest tells which there were.

    Args:
        program: From before the failing pass.
        instance: The failing pass.
        context: What it was given.
        error: How it failed.
        verify: The level of verification.
        parent: Where to make the folder; by default what ``SHAVE_REPRODUCERS`` names, else the current folder.

    Returns:
        The folder.

    Raises:
        OSError: It cannot be written; then nothing of it is left.
    """
    folder = _new_folder(Path(parent or os.environ.get(FOLDER_VARIABLE) or "."), instance.name)
    try:
        program.save(folder / _PROGRAM)
        if context.calibration is not None:
            _save_batches(program, context.calibration, folder / _CALIBRATION)
        manifest = {
            "format": _FORMAT,
            "pipeline": to_text([instance]),
            "seed": context.seed,
            "verify": verify,
            "error": f"{type(error).__name__}: {error}",
            "traceback": "".join(traceback.format_exception(error)),
            "not_saved": [what for what in _NOT_SAVED if getattr(context, what) is not None],
            "versions": {name: _version(name) for name in _PACKAGES} | {"python": platform.python_version()},
        }
        (folder / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def replay(
    folder: str | Path,
    *,
    passes: Iterable[type[Pass]] = (),
    evaluate: Callable[[Program], float] | None = None,
    target: Any = None,
    trainer: Callable[[Program], None] | None = None,
    oracle: Oracle | None = None,
) -> Program:
    """Run the failing pass again, on the same program, data and seed. Writes no reproducer of its own.

    Args:
        folder: What :func:`write_reproducer` made.
        passes: Classes of passes that are not in the registry.
        evaluate: As for ``PassManager.run``, where the manifest's ``not_saved`` names it; so are the next three.
        target: What the hardware can do.
        trainer: Trains a program's weights in place.
        oracle: Tells how long operators take on the target.

    Returns:
        The program behind the pass, if it no longer fails.

    Raises:
        ReadError: The folder is no reproducer.
        PassError: The pass fails; ``__cause__`` is its own error.
    """
    from shave.passes.manager import PassManager

    folder = Path(folder)
    manifest = _read_manifest(folder / _MANIFEST)
    program = read(folder / _PROGRAM)
    batches = _load_batches(folder / _CALIBRATION) if (folder / _CALIBRATION).exists() else None
    manager = PassManager(parse(manifest["pipeline"], passes), verify=manifest["verify"], reproduce=False)
    return manager.run(
        program,
        calibration=batches,
        evaluate=evaluate,
        target=target,
        trainer=trainer,
        seed=manifest["seed"],
        oracle=oracle,
    )


def _new_folder(parent: Path, name: str) -> Path:
    parent.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        folder = parent / f"shave-reproducer-{name}-{number}"
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise AssertionError("count() never ends")


def _save_batches(program: Program, calibration: Iterable[Any], path: Path) -> None:
    tensors = {
        f"{number}.{position}": tensor.contiguous().clone()
        for number, batch in enumerate(islice(calibration, _MAX_BATCHES))
        for position, tensor in enumerate(as_inputs(program, batch))
    }
    save_file(tensors, path)


def _load_batches(path: Path) -> list[tuple[torch.Tensor, ...]]:
    batches: dict[int, dict[int, torch.Tensor]] = {}
    try:
        for key, tensor in load_file(path).items():
            number, _, position = key.partition(".")
            batches.setdefault(int(number), {})[int(position)] = tensor
    except (SafetensorError, ValueError) as error:
        raise ReadError(f"{path}: not the calibration data of a reproducer: {error}") from error
    return [tuple(batch[position] for position in sorted(batch)) for _, batch in sorted(batches.items())]


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReadError(f"{path}: not the manifest of a reproducer: {error}") from error
    wanted = {"format": int, "pipeline": str, "seed": int}
    if not isinstance(manifest, dict) or any(not isinstance(manifest.get(key), kind) for key, kind in wanted.items()):
        raise ReadError(f"{path}: not the manifest of a reproducer: it lacks one of {', '.join(wanted)}")
    if manifest["format"] != _FORMAT:
        raise ReadError(f"{path}: has format {manifest['format']}, but this shave reads {_FORMAT}")
    if manifest.get("verify") not in ("cheap", "full", None):
        raise ReadError(f"{path}: verify is {manifest['verify']!r}, not cheap, full or null")
    return manifest


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
