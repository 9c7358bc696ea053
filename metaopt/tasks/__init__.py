"""Tasks that optimizers are trained and tested on, families that draw them, and their seeds."""

from metaopt.tasks.batch import TaskBatch, TaskSampler
from metaopt.tasks.layers import LayerPass, LayerRecorder
from metaopt.tasks.minibatches import MinibatchFamily, MinibatchTasks
from metaopt.tasks.module_tasks import SingleTask, check_task
from metaopt.tasks.named import FAMILIES
from metaopt.tasks.networks import NetworkFamily, Networks
from metaopt.tasks.regression import Regression, RegressionFamily
from metaopt.tasks.seeds import PAPER_TEST_SEEDS, check_seeds, first_seeds
from metaopt.tasks.stacked import StackedTasks, stacked
from metaopt.tasks.task import SPLITS, Task, TaskFamily

__all__ = [
    "FAMILIES",
    "PAPER_TEST_SEEDS",
    "SPLITS",
    "LayerPass",
    "LayerRecorder",
    "MinibatchFamily",
    "MinibatchTasks",
    "NetworkFamily",
    "Networks",
    "Regression",
    "RegressionFamily",
    "SingleTask",
    "StackedTasks",
    "Task",
    "TaskBatch",
    "TaskFamily",
    "TaskSampler",
    "check_seeds",
    "check_task",
    "first_seeds",
    "stacked",
]
