"""What is optimised, and which problem seeds are for what."""

from metaopt.problems.families import FAMILIES
from metaopt.problems.regression import Regression, RegressionFamily
from metaopt.problems.seeds import PAPER_TEST_SEEDS, check_seeds, first_seeds

__all__ = [
    "FAMILIES",
    "PAPER_TEST_SEEDS",
    "Regression",
    "RegressionFamily",
    "check_seeds",
    "first_seeds",
]
