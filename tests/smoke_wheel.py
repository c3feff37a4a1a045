"""Install the built wheel into an empty folder and use it there: is anything missing from it?

Run by ``make wheel`` as ``python tests/smoke_wheel.py DIST``.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

SCRIPT = """
import sys
import torch
import shave

assert shave.__file__.startswith(sys.argv[1]), shave.__file__
module = torch.nn.Sequential(torch.nn.Conv2d(3, 20, 3), torch.nn.BatchNorm2d(20), torch.nn.ReLU()).eval()
x = torch.randn(2, 3, 9, 7)
shave.compile(shave.trace(module, (x,))).save("smoke.shave")
difference = abs(shave.load("smoke.shave")(x.numpy()) - module(x).detach().numpy()).max()
assert difference < 1e-5, difference
for command in (["passes"], ["inspect", "smoke.shave"]):
    from shave.cli.app import build
    build()(command, standalone_mode=False)
sys.stdout.write("the wheel works\\n")
"""


def main() -> None:
    """Fail, by exit status, if the wheel lacks something."""
    (wheel,) = Path(sys.argv[1]).glob("shave-*.whl")
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder).resolve() / "site"
        install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--target"]
        subprocess.run([sys.executable, *install, str(site), str(wheel)], check=True)
        # PYTHONPATH comes before the editable install of this environment.
        environment = os.environ | {"PYTHONPATH": str(site)}
        subprocess.run([sys.executable, "-c", SCRIPT, str(site)], check=True, cwd=folder, env=environment)


if __name__ == "__main__":
    main()
