"""Where data, results, figures and notebooks are; each can be moved by an environment variable."""

import os
from pathlib import Path

ROOT = Path(os.environ.get("REFINECAM_ROOT", Path(__file__).resolve().parent.parent))
DATA = Path(os.environ.get("REFINECAM_DATA", ROOT / "data"))
CHECKPOINTS = Path(os.environ.get("REFINECAM_CHECKPOINTS", DATA / "checkpoints"))
RESULTS = Path(os.environ.get("REFINECAM_RESULTS", DATA / "results"))
FIGURES = Path(os.environ.get("REFINECAM_FIGURES", ROOT / "figures"))
NOTEBOOKS = Path(os.environ.get("REFINECAM_NOTEBOOKS", ROOT / "notebooks"))
PAPER = DATA / "reference"
"""The paper's printed numbers, as csv."""
REFERENCE = FIGURES / "reference"
"""The committed results of this project, one folder a profile."""
