"""The learned optimizer for ordinary networks, beside tuned baselines.

    python -m studies.minibatches --data-dir DIR --out runs/minibatches [--quick]

Trains its meta-seeds, and measures them on families of small networks and on MNIST: the
784-16-10-10 network of section 5.1 with biases, and a residual one. Adam, Adam with a cosine down
to 0 at the last step, RMSprop and SGD with momentum have the rate that is best on other problems,
and on other images and networks, than those reported: as for the learned one, by the mean log loss
over all marks that are reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from metaopt.cli.common import set_threads
from metaopt.cli.recipes import Recipe, load_recipe
from metaopt.evaluation.rollout import rollout
from metaopt.evaluation.sweep import lowest_rate
from metaopt.learned.checkpoint import load_meta_optimizer, read_checkpoint
from metaopt.learned.meta_optimizer import MetaOptimizer
from metaopt.learned.optimizer import LearnedOptimizer
from metaopt.randomness import same_randomness
from metaopt.tasks import MinibatchFamily, first_seeds
from metaopt.tasks.data import batches, load, standardized
from metaopt.training.distributions import MINIBATCH_VALIDATION
from metaopt.training.run import BEST
from metaopt.training.trainer import smoothed
from studies.command import add_jobs, study_parser
from studies.learned_teleportation.training_pool import seeded, train_all
from studies.optimizers.image_runs import BASES, Pair, epoch_of_steps
from studies.report import markdown, write_json, write_text

NAME = "lstm_layerwise_v1"
FAMILIES = MINIBATCH_VALIDATION | {
    "wide": MinibatchFamily(input=256, hidden=96, depth=3, minibatch=64),
    "deep": MinibatchFamily("regression", input=16, hidden=24, output=3, depth=7),
}
"""Families of tasks by name. The last two lie outside of what is trained on."""


@dataclass(frozen=True)
class Extent:
    """The sizes of the study."""

    meta_seeds: int = 5
    problems: int = 16
    marks: tuple[int, ...] = (100, 300, 1000)
    images: int = 50_000
    steps: int = 2000
    networks: int = 5
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2, 0.1)
    baselines: tuple[str, ...] = ("adam", "adam_cosine", "rmsprop", "momentum")


QUICK = Extent(1, 2, (5, 10), 400, 20, 1, (1e-3, 1e-2), ("adam",))


class CosineAdam(torch.optim.Adam):
    """Adam whose rate falls to 0 along half a cosine; it has to know when the end is."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, steps: int) -> None:
        super().__init__(parameters, lr)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self, steps)

    def step(self, closure: Any = None) -> Any:
        """One step, and the next rate."""
        loss = super().step(closure)
        self.schedule.step()
        return loss


class Residual(nn.Module):
    """784-24, two residual blocks of two layers each, 24-10, all with biases."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(784, 24), nn.Linear(24, 10)
        self.inner = nn.ModuleList(nn.Linear(24, 24) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = functional.relu(self.first(x))
        for one, two in zip(self.inner[::2], self.inner[1::2], strict=True):
            h = h + two(functional.relu(one(h)))
        logits: Tensor = self.last(h)
        return logits


def plain() -> nn.Module:
    """784-16-10-10 with biases, LeakyReLU between."""
    slope = nn.LeakyReLU(0.1)
    return nn.Sequential(nn.Linear(784, 16), slope, nn.Linear(16, 10), slope, nn.Linear(10, 10))


NETWORKS: dict[str, Callable[[], nn.Module]] = {"784-16-10-10": plain, "residual": Residual}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, measure, and print the tables."""
    parser = study_parser("minibatches", __doc__)
    parser.add_argument("--data-dir", type=str, default="", help="folder of MNIST's files")
    parser.add_switch("--download", "fetch MNIST if it is not there")
    add_jobs(parser)
    values = parser.parse_args(arguments)
    set_threads(values.threads)
    out = Path(values.out)
    dataset = load("mnist", values.data_dir or None, values.download)
    pixels = standardized(dataset.train).flatten(start_dim=1)
    extent = QUICK if values.quick else Extent()
    recipe = load_recipe(NAME)
    recipe = _short(recipe) if values.quick else recipe
    jobs = seeded(NAME, recipe, range(extent.meta_seeds), out / "runs")
    train_all(jobs, values.jobs)
    trained = [
        (folder.name, load_meta_optimizer(folder / BEST), _score(folder)) for _, folder in jobs
    ]
    facts = [
        {"seed": seed, "score": score, "folder": f"runs/{name}"}
        for seed, (name, _, score) in enumerate(trained)
    ]
    write_json(out / "runs.json", {NAME: facts})
    print(family_table(out, trained, extent))
    best = min(trained, key=lambda run: run[2])[1]
    held = max(len(pixels) * 5 // 6, len(pixels) - 10_000)
    pairs = [
        (pixels[part], dataset.train.labels[part])
        for part in (slice(min(extent.images, held)), slice(held, None))
    ]
    print(image_table(out, best, pairs[0], pairs[1], extent))


def _short(recipe: Recipe) -> Recipe:
    training = replace(
        recipe.training, trajectories=4, batch_size=2, steps=10, window=5, validation_every=2,
        validation_problems=1, validation_at=(5, 10),
    )  # fmt: skip
    return replace(recipe, training=training)


def _score(folder: Path) -> float:
    score: float = read_checkpoint(folder / BEST).facts["validation_score"]
    return score


def family_table(
    out: Path, trained: Sequence[tuple[str, MetaOptimizer, float]], extent: Extent
) -> str:
    """Make the table of smoothed losses on test tasks: geometric means at each mark."""
    rows = []
    for family_name, family in FAMILIES.items():

        def at_marks(
            build: Callable[[nn.Module], torch.optim.Optimizer],
            role: str,
            family: MinibatchFamily = family,
        ) -> list[float]:
            problem = family.sample(first_seeds(role, extent.problems))
            ran = rollout(problem, build(problem), extent.marks[-1], measure_invariance=False)
            means = smoothed(ran.losses, 0.1).log().mean(dim=1).exp()
            return [float(means[mark].nan_to_num(torch.inf)) for mark in extent.marks]

        last = extent.marks[-1]
        for baseline in extent.baselines:
            scores = {
                r: float(np.log(at_marks(_baseline(baseline, r, last), "validation")).mean())
                for r in extent.rates
            }
            rate = lowest_rate(baseline, scores)
            losses = at_marks(_baseline(baseline, rate, last), "test")
            rows.append([family_name, f"{baseline} at {rate:g}", *map(_number, losses), ""])
        for name, meta, score in trained:
            losses = at_marks(_learned(meta), "test")
            rows.append([family_name, name, *map(_number, losses), f"{score:.3f}"])
    headings = ["family", "optimizer", *(f"step {t}" for t in extent.marks), "validation score"]
    table = markdown(headings, rows)
    write_text(out / "tables" / "minibatch_families.md", table)
    return table


def _baseline(name: str, rate: float, steps: int) -> Callable[[nn.Module], torch.optim.Optimizer]:
    if name == "adam_cosine":
        return lambda model: CosineAdam(model.parameters(), rate, steps)
    return lambda model: BASES[name](list(model.parameters()), lr=rate)


def _learned(meta: MetaOptimizer) -> Callable[[nn.Module], torch.optim.Optimizer]:
    return lambda model: LearnedOptimizer(model, meta)


def image_table(out: Path, meta: MetaOptimizer, pair: Pair, others: Pair, extent: Extent) -> str:
    """Make the table of training losses on MNIST: means over the minibatches up to each mark.

    Args:
        out: the folder that the table goes to.
        meta: the learned optimizer.
        pair: images and classes that are trained on.
        others: those on which the rates are chosen.
        extent: the sizes of the study.
    """
    span = max(1, extent.steps // 20)
    marks = [span, extent.steps // 4, extent.steps // 2, extent.steps]
    rows, facts = [], {}

    def at_marks(curves: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.stack([curves[..., mark - span : mark].mean(axis=-1) for mark in marks])

    for network, make in NETWORKS.items():
        for name in (*extent.baselines, NAME):
            build = _learned(meta)
            label = name
            if name != NAME:
                scores = {}
                for r in extent.rates:
                    build = _baseline(name, r, extent.steps)
                    losses = at_marks(image_losses(make, build, others, 1000, extent.steps))
                    scores[r] = float(np.log(losses).mean())
                rate = lowest_rate(name, scores)
                build, label = _baseline(name, rate, extent.steps), f"{name} at {rate:g}"
            curves = np.stack(
                [
                    image_losses(make, build, pair, seed, extent.steps)
                    for seed in range(extent.networks)
                ]
            )
            facts[f"{network}, {label}"] = curves.tolist()
            at = at_marks(curves)
            spread = at[-1].std(ddof=1) if extent.networks > 1 else 0.0
            means = [f"{values.mean():.4f}" for values in at]
            rows.append([network, label, *means, f"{spread:.4f}", f"{curves.max():.2f}"])
    headings = ["network", "optimizer", *(f"to step {t}" for t in marks), "deviation", "highest"]
    table = markdown(headings, rows)
    write_text(out / "tables" / "minibatch_images.md", table)
    write_json(out / "minibatch_images.json", facts)
    return table


def image_losses(
    make: Callable[[], nn.Module],
    build: Callable[[nn.Module], torch.optim.Optimizer],
    pair: Pair,
    seed: int,
    steps: int,
    minibatch: int = 20,
) -> NDArray[np.float64]:
    """Return the loss of each minibatch before the step on it; infinite where it is not finite."""
    with same_randomness(seed):
        model = make()
    optimizer = build(model)
    generator = torch.Generator().manual_seed(seed)
    losses: list[float] = []
    while len(losses) < steps:
        drawn = islice(batches(pair, minibatch, generator, drop_last=True), steps - len(losses))
        losses += [loss.item() for loss in epoch_of_steps(model, optimizer, drawn)]
    curve: NDArray[np.float64] = np.nan_to_num(np.array(losses), nan=np.inf, posinf=np.inf)
    return curve


def _number(value: float) -> str:
    return f"{value:.4g}"
