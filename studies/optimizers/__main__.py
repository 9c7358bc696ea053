"""Section 5.1 and appendix G: teleporting standard optimizers.

    python -m studies.optimizers {mnist,momentum,adagrad} --out OUT [--quick]

mnist: SGD, momentum, AdaGrad, RMSProp and Adam on real images, with controls (Figures 5 and 13).
momentum, adagrad: what becomes of an optimizer's buffers at a teleport, and AdaGrad's own norm as
the objective (Figure 12). Runs are kept in --out, so it goes on where it was killed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from metaopt.cli.common import guarded, set_threads
from metaopt.tasks.data import load
from studies.command import study_parser
from studies.optimizers.buffer_policies import STUDIES, buffer_study
from studies.optimizers.mnist import QUICK, ImageScale, mnist
from studies.optimizers.mnist_report import report


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study, and print its table."""
    parser = study_parser("optimizers", __doc__)
    parser.add_argument("study", choices=("mnist", *STUDIES))
    parser.add_argument(
        "--data-dir",
        type=str,
        default="",
        help="folder of MNIST's files (else $METAOPT_DATA/mnist)",
    )
    parser.add_switch("--download", "fetch MNIST if it is not there")
    values = parser.parse_args(arguments)
    set_threads(values.threads)
    out = Path(values.out)
    if values.study == "mnist":
        dataset = load("mnist", values.data_dir or None, values.download)
        print(report(out, mnist(out, dataset, QUICK if values.quick else ImageScale())))
    else:
        print(buffer_study(out, values.study, 2 if values.quick else 20))


if __name__ == "__main__":
    sys.exit(guarded(main)())
