"""Real problems with all data in one batch: the learned optimizer beside tuned baselines.

    python -m studies.full_batch --out runs/full_batch --data-dir DIR [--quick]

Tables of scikit-learn (diabetes, linnerud), one digit of MNIST as a function of its coordinates,
ten samples of a sine, and physics-informed networks for the Poisson and Burgers equations, through
their loss alone and with their residuals as the output; and networks that are no chain of layers:
a residual one on diabetes, and a convolutional one, a transformer and a recurrent one on 200
digits. Adam, SOAP, L-BFGS and, on chains, K-FAC by hand have the setting that is best on other
seeds, by the mean log training loss at the steps that are reported. What is done is kept, so it
goes on where it was killed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from metaopt.cli.common import guarded, set_threads
from metaopt.extras import installed
from metaopt.tasks import Task
from metaopt.tasks.data import Images, load
from studies.command import study_parser
from studies.full_batch import report
from studies.full_batch.architectures import Attention, Digits, Recurrent, Residual, convolutional
from studies.full_batch.methods import LEARNED, Methods, methods
from studies.full_batch.physics import Burgers, GivenResiduals, Poisson
from studies.full_batch.problems import Image, Sinusoid, Table
from studies.full_batch.runs import QUICK, RESULTS, Extent, measure
from studies.report import write_text


def problems(images: Images) -> dict[str, Task]:
    """Return the problems by name.

    Args:
        images: the digits.
    """
    return {
        "diabetes": Table("diabetes"),
        "linnerud": Table("linnerud"),
        "image": Image(images),
        "sinusoid": Sinusoid(),
        "poisson": Poisson(),
        "burgers": Burgers(),
        "poisson_residuals": GivenResiduals(Poisson()),
        "burgers_residuals": GivenResiduals(Burgers()),
        "residual": Residual(),
        "convolutional": Digits(images, convolutional),
        "transformer": Digits(images, Attention),
        "recurrent": Digits(images, Recurrent),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the arguments, run what is left, and write the tables and the figure."""
    parser = study_parser("full_batch", __doc__)
    parser.add_argument("--data-dir", type=str, default="", help="folder of MNIST's files")
    parser.add_switch("--download", "fetch MNIST if it is not there")
    values = parser.parse_args(arguments)
    set_threads(values.threads)
    digits = load("mnist", values.data_dir or None, values.download).train
    extent = QUICK if values.quick else Extent()
    study(Path(values.out), problems(digits), methods(installed("pytorch_optimizer")), extent)


def study(out: Path, tasks: dict[str, Task], contenders: Methods, extent: Extent) -> None:
    """Run what is left, write the tables and the figure, and print the tables.

    Args:
        out: the folder of the study.
        tasks: the problems by name.
        contenders: the methods; the first of ``LEARNED`` is compared with the baselines.
        extent: the sizes of the study.
    """
    measured = report.grouped(measure(tasks, contenders, extent, out / RESULTS))
    learned, *others = LEARNED
    tables = {
        "full_batch": report.compared(measured, extent.marks, learned, others),
        "full_batch_methods": report.all_methods(measured, extent.marks),
    }
    for name, table in tables.items():
        write_text(out / "tables" / f"{name}.md", table)
        print(table)
    (out / "full_batch.png").write_bytes(report.figure(measured, learned))


if __name__ == "__main__":
    sys.exit(guarded(main)())
