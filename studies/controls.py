"""Command: why learned teleportation wins, by trained optimizers with one thing changed.

``python -m studies.controls`` runs :mod:`studies.learned_teleportation.controls`.
"""

from __future__ import annotations

import sys

from metaopt.cli.common import guarded
from studies.learned_teleportation.controls import main

if __name__ == "__main__":
    sys.exit(guarded(main)())
