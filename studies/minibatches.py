"""Command: the learned optimizer for ordinary networks, beside tuned baselines.

``python -m studies.minibatches`` runs :mod:`studies.learned_teleportation.minibatches`.
"""

from __future__ import annotations

import sys

from metaopt.cli.common import guarded
from studies.learned_teleportation.minibatches import main

if __name__ == "__main__":
    sys.exit(guarded(main)())
