from __future__ import annotations

import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

# The scripts import their neighbours by bare name, as Python lets them when it is told to run one.
sys.path.insert(0, str(EXAMPLES))
