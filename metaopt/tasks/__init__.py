"""What is optimised, and which problem seeds are for what."""

from metaopt.tasks.minibatches import MinibatchFamily, MinibatchProblem
from metaopt.tasks.named import FAMILIES
from metaopt.tasks.problem import Family, Problem
from metaopt.tasks.regression import Regression, RegressionFamily
from metaopt.tasks.seeds import PAPER_TEST_SEEDS, check_seeds, first_seeds

__all__ = [
    "FAMILIES",
    "PAPER_TEST_SEEDS",
    "Family",
    "MinibatchFamily",
    "MinibatchProblem",
    "Problem",
    "Regression",
    "RegressionFamily",
    "check_seeds",
    "first_seeds",
]
