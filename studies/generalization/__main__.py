"""Section 4: sharpness and curvature against generalization (Table 1, Figures 4, 10 and 11).

    python -m studies.generalization {correlation,teleport} --dataset mnist --out OUT

correlation: of networks that differ in their initial weights, which measure tells the validation
loss? teleport: does it help to teleport to a flatter or a less curved point? Both on real images;
each prints a table and leaves it in --out, with a picture and the numbers as JSON. What was done is
kept there too, so that it goes on where it was killed; give --quick a folder of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from metaopt.cli.common import guarded, set_threads
from metaopt.errors import UserError
from metaopt.tasks.data import load
from studies.command import study_parser
from studies.generalization.correlation import QUICK as CORRELATION_QUICK
from studies.generalization.correlation import CorrelationScale, correlation
from studies.generalization.setting import SETTINGS
from studies.generalization.teleports import QUICK as TELEPORT_QUICK
from studies.generalization.teleports import TeleportScale, teleports


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study, and print its table."""
    parser = study_parser("generalization", __doc__)
    parser.add_argument("study", choices=("correlation", "teleport"))
    parser.add_argument("--dataset", choices=tuple(SETTINGS), required=True)
    parser.add_argument(
        "--data-dir", type=str, default="", help="folder of its files (else $METAOPT_DATA/DATASET)"
    )
    parser.add_switch("--download", "fetch the files if they are not there")
    parser.add_argument(
        "--models", type=int, default=0, help="networks, of correlation alone (default: 100)"
    )
    values = parser.parse_args(arguments)
    set_threads(values.threads)
    out = Path(values.out)
    if values.models and values.models < 3:
        raise UserError(
            f"expected --models of 3 or more, got {values.models}: fewer have no correlation"
        )
    if values.models and values.study == "teleport":
        raise UserError(
            f"expected --models with the correlation study alone, got {values.models} for "
            f"teleport: leave it out"
        )
    dataset = load(values.dataset, values.data_dir or None, values.download)
    if values.study == "teleport":
        print(teleports(out, dataset, TELEPORT_QUICK if values.quick else TeleportScale()))
        return
    scale = CORRELATION_QUICK if values.quick else CorrelationScale()
    print(correlation(out, dataset, replace(scale, models=values.models or scale.models)))


if __name__ == "__main__":
    sys.exit(guarded(main)())
