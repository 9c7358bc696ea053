"""The suite: ten ordinary networks to judge an optimizer by, and families of five kinds of them."""

from metaopt.tasks.suite.autoencoder import Autoencoder
from metaopt.tasks.suite.base import SuiteTask
from metaopt.tasks.suite.characters import AttentionCharacters
from metaopt.tasks.suite.depthwise import DepthwiseNet
from metaopt.tasks.suite.families import (
    AutoencoderFamily,
    LstmFamily,
    MlpFamily,
    ResidualFamily,
    SuiteFamily,
)
from metaopt.tasks.suite.lora import LoraCharacters
from metaopt.tasks.suite.lstm_characters import LstmCharacters
from metaopt.tasks.suite.mlp import FashionMlp, MnistMlp
from metaopt.tasks.suite.residual import ResidualNet
from metaopt.tasks.suite.table import SUITE, suite_task
from metaopt.tasks.suite.tabular import Tabular
from metaopt.tasks.suite.text import text_digest
from metaopt.tasks.suite.vision_transformer import Vision

__all__ = [
    "SUITE",
    "AttentionCharacters",
    "Autoencoder",
    "AutoencoderFamily",
    "DepthwiseNet",
    "FashionMlp",
    "LoraCharacters",
    "LstmCharacters",
    "LstmFamily",
    "MlpFamily",
    "MnistMlp",
    "ResidualFamily",
    "ResidualNet",
    "SuiteFamily",
    "SuiteTask",
    "Tabular",
    "Vision",
    "suite_task",
    "text_digest",
]
