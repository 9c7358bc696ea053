"""The ten tasks of the suite by name, and which kinds of them may be trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from metaopt.errors import UserError, unknown
from metaopt.tasks.suite.autoencoder import Autoencoder
from metaopt.tasks.suite.base import SuiteTask
from metaopt.tasks.suite.characters import AttentionCharacters
from metaopt.tasks.suite.depthwise import DepthwiseNet
from metaopt.tasks.suite.lora import LoraCharacters
from metaopt.tasks.suite.lstm_characters import LstmCharacters
from metaopt.tasks.suite.mlp import FashionMlp, MnistMlp
from metaopt.tasks.suite.residual import ResidualNet
from metaopt.tasks.suite.tabular import Tabular
from metaopt.tasks.suite.vision_transformer import Vision

Files = dict[str, str | Path | None]
"""Where data is: "data_dir" of the images, "pretrained" of the weights that LoRA tunes."""


@dataclass(frozen=True)
class Entry:
    """A task of the suite.

    Attributes:
        kind: its class.
        held_out: whether nothing of its kind is ever trained on, chosen by or tuned to.
        needs: the argument that says where its data is; "" for data that Python brings along.
    """

    kind: type[SuiteTask]
    held_out: bool
    needs: str = ""

    def task(self, files: Files) -> SuiteTask:
        """Return the task.

        Args:
            files: where data is.
        """
        return self.kind(**{name: files.get(name) for name in (self.needs,) if name})


SUITE: dict[str, Entry] = {
    "mnist_mlp": Entry(MnistMlp, held_out=False, needs="data_dir"),
    "fashion_mlp": Entry(FashionMlp, held_out=False, needs="data_dir"),
    "autoencoder": Entry(Autoencoder, held_out=False, needs="data_dir"),
    "residual": Entry(ResidualNet, held_out=False, needs="data_dir"),
    "lstm_characters": Entry(LstmCharacters, held_out=False),
    "depthwise": Entry(DepthwiseNet, held_out=True, needs="data_dir"),
    "vision_transformer": Entry(Vision, held_out=True, needs="data_dir"),
    "attention_characters": Entry(AttentionCharacters, held_out=True),
    "lora": Entry(LoraCharacters, held_out=True, needs="pretrained"),
    "tabular": Entry(Tabular, held_out=True),
}
"""The tasks by name: five of kinds that may be trained on, then five that are held out."""


def suite_task(
    name: str,
    data_dir: str | Path | None = None,
    pretrained: str | Path | None = None,
) -> SuiteTask:
    """Return a task of the suite by its name.

    Args:
        name: a key of ``SUITE``.
        data_dir: the folder that has ``mnist`` and ``fashion-mnist``; by default ``$METAOPT_DATA``.
        pretrained: the file of the weights that LoRA tunes.

    Raises:
        UserError: for an unknown name.
    """
    if name not in SUITE:
        raise UserError(unknown("a task of the suite", name, SUITE, "name one"))
    return SUITE[name].task({"data_dir": data_dir, "pretrained": pretrained})
