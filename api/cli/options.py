"""Arguments and options that several commands take, so that they read the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="An .onnx file, or a .pt2 of torch.export.save.")]
Artifact = Annotated[Path, typer.Argument(metavar="FILE.shave", help="An artifact written by shave compile.")]
AnyModel = Annotated[Path, typer.Argument(metavar="FILE", help="An .onnx, .pt2 or .shave file.")]
Inputs = Annotated[
    list[str],
    typer.Option(
        "--input", metavar="NAME=SHAPE[:DTYPE]", help="Shape of an input (image=1x3x224x224, tokens=batch,128:int64)."
    ),
]
Data = Annotated[
    Path | None, typer.Option("--input", metavar="X.npz", help="Inputs by name (.npz), or the lone input (.npy).")
]
Pipeline = Annotated[
    str, typer.Option("--passes", "-p", metavar="PIPELINE", help="Passes, as `shave passes` lists them.")
]
Target = Annotated[str, typer.Option(help="What to compile for, as `shave targets` lists it.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of one call; by default all cores of this process.")]
Json = Annotated[bool, typer.Option("--json", help="Write the result as JSON.")]
