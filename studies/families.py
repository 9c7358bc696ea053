"""Command: one learned optimizer on tasks unlike those it was trained on.

``python -m studies.families`` runs :mod:`studies.learned_teleportation.families`.
"""

from __future__ import annotations

import sys

from metaopt.cli.common import guarded
from studies.learned_teleportation.families import main

if __name__ == "__main__":
    sys.exit(guarded(main)())
