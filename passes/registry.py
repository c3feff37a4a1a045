"""Every pass by name. A pass is imported when it is first asked for, so that listing names costs nothing."""

from __future__ import annotations

from functools import cache
from importlib import import_module, metadata

from shave.ir.errors import PipelineError
from shave.passes.base import Pass
from shave.passes.suggest import nearest

PASSES = {
    "codebook": "shave.passes.codebook.codebook:Codebook",
    "dead-code": "shave.passes.simplify.dead_code:DeadCode",
    "dedupe": "shave.passes.simplify.dedupe:Dedupe",
    "drop-identities": "shave.passes.simplify.drop_identities:DropIdentities",
    "factorize": "shave.passes.factorize.factorize:Factorize",
    "fold-batchnorm": "shave.passes.simplify.fold_batchnorm:FoldBatchNorm",
    "fold-constants": "shave.passes.simplify.fold_constants:FoldConstants",
    "pool-first": "shave.passes.simplify.pool_first:PoolFirst",
    "prune-channels": "shave.passes.prune.channels:PruneChannels",
    "winograd": "shave.passes.winograd.winograd:Winograd",
}
"""The passes that come with shave: name to ``module:Class``."""

PLUGINS = "shave.passes"
"""Entry point group under which other packages offer passes: ``my-pass = "my_package.my_pass:MyPass"``."""


def names() -> list[str]:
    """Names of all passes, those of plugins included, in alphabetical order."""
    return sorted(_locations())


def load(name: str) -> type[Pass]:
    """Import the class of a pass.

    Raises:
        PipelineError: No pass has that name; offers the nearest ones. Or a plugin offers something else.
    """
    locations = _locations()
    if name not in locations:
        raise PipelineError(f"there is no pass {name!r}{nearest(name, locations)}")
    module, _, attribute = locations[name].partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise PipelineError(f"pass {name} cannot be loaded from {locations[name]}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Pass) and found.name == name):
        raise PipelineError(f"{locations[name]} is registered as pass {name}, but is no Pass of that name")
    return found


@cache
def _locations() -> dict[str, str]:
    """Shave's own passes and those of plugins.

    Raises:
        PipelineError: Two passes have one name.
    """
    found = dict(PASSES)
    for entry in metadata.entry_points(group=PLUGINS):
        if entry.name in found:
            raise PipelineError(
                f"two passes are named {entry.name!r}: {found[entry.name]} and {entry.value}; uninstall one of them"
            )
        found[entry.name] = entry.value
    return found
