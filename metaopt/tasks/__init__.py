"""What is optimised, and which problem seeds are for what."""

from metaopt.problems.families import FAMILIES
from metaopt.problems.minibatches import MinibatchFamily, MinibatchProblem
from metaopt.problems.problem import Family, Problem
from metaopt.problems.regression import Regression, RegressionFamily
from metaopt.problems.seeds import PAPER_TEST_SEEDS, check_seeds, first_seeds

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
