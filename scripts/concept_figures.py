"""Draw the pictures of docs/concepts.md, and print the numbers that its text quotes.

    python scripts/concept_figures.py --out docs/figures/concepts [--page docs/concepts.md]

A number of the page stands before a comment with its name, as in `2.5<!--level_set.loss-->`;
with `--page` all of them are written anew.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from metaopt.evaluation.rollout import rollout
from metaopt.evaluation.styles import LIGHT, STYLES
from metaopt.learned.checkpoint import load_meta_optimizer
from metaopt.learned.optimizer import LearnedOptimizer
from metaopt.storage import write_atomically
from metaopt.symmetry import (
    LayerInput,
    Teleportation,
    chain_orbit,
    gradient_norm,
    make_action,
)
from metaopt.symmetry.functional import call_with
from metaopt.symmetry.slope import EvaluatedSlope
from metaopt.symmetry.teleportation import ChainOutputs
from metaopt.tasks import RegressionFamily, TaskBatch
from metaopt.training.spec import TrainingSpec

sys.path.insert(0, str(Path(__file__).parents[1]))  # studies/ is not installed

from studies.functions.families_2d import Ellipses
from studies.functions.scalar_network import ScalarNetwork

BLUE, RED, GREEN, _, BLACK = LIGHT[:5]
GREY = "#8a8a8a"
QUOTED = re.compile(r"[-+\d.e]+<!--([\w.]+)-->")

Drawn = tuple[Figure, dict[str, float]]  # with the numbers that belong to it


def panels(rows: int = 1, columns: int = 2, height: float = 3.4) -> tuple[Figure, list[Axes]]:
    """A white figure with panels."""
    figure = Figure(figsize=(9, height), layout="constrained", facecolor="white")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def even(low: float, high: float, count: int) -> Tensor:
    """Evenly spaced, float64."""
    return torch.linspace(low, high, count, dtype=torch.float64)


def weights(problem: TaskBatch) -> list[Tensor]:
    """Detached."""
    return [parameter.detach() for parameter in problem.parameters()]


def level_set() -> Drawn:
    """A gradient step before and after a teleport to the steepest point of the level set."""
    problem, start = Ellipses.drawn([13])
    rate, steps = float(0.7 / problem.eigenvalues.max()), 20
    figure, (plane, curve) = panels()
    x, y = torch.meshgrid(even(-2.4, 5.4, 161), even(-2.2, 3.7, 121), indexing="xy")
    at = torch.stack((x, y), -1)
    heights = problem.loss(at.unsqueeze(-2))[..., 0] / problem.loss(start)
    grid = (t.numpy() for t in (x, y, heights))
    plane.contour(*grid, levels=[0.04, 0.2, 0.5, 2, 4, 8], colors="0.75", linewidths=0.8)
    circle = problem.rotate(start.expand(200, 1, 2), even(0, 2 * math.pi, 200)[:, None])[:, 0]
    plane.plot(*circle.mT, color=BLACK, linewidth=1.6, label="level set of w: its orbit")
    numbers = {"rate": rate, "loss": float(problem.loss(start)), "steps": steps}
    steepest = problem.steepest(start)
    for key, mark, colour, w in (("w", "o", BLUE, start), ("g.w", "s", RED, steepest)):
        points = [w]
        for _ in range(steps):
            points.append(points[-1] - rate * problem.gradient(points[-1]))
        losses = [float(problem.loss(point)) for point in points]
        plane.plot(*w[0], mark, color=colour, markersize=8, label=f"{key} and steps from it")
        plane.plot(*torch.cat(points).mT, f"-{mark}", color=colour, markersize=3)
        curve.semilogy(losses, f"-{mark}", color=colour, label=f"from {key}", markersize=4)
        numbers[f"{key}.norm"] = float(problem.steepness(w).sqrt())
        numbers |= {f"{key}.stepped": losses[1], f"{key}.last": losses[-1]}
    plane.set(xlabel="first weight", ylabel="second weight", aspect="equal")
    curve.set(xlabel="step of gradient descent", ylabel="loss", xticks=range(0, steps + 1, 5))
    return figure, numbers


def orbit() -> Drawn:
    """Gradient norm and loss along two curves exp(t M)·w of a two-layer network."""
    problem = RegressionFamily.square(6, dtype="float64").sample([0])
    names = [name for name, _ in problem.named_parameters()]
    at = weights(problem)

    def loss(values: list[Tensor]) -> Tensor:
        result: Tensor = call_with(problem, names, values, (), own_buffers=True)
        return result

    action = make_action("post_activation")
    reach = chain_orbit(problem.chain, at, LayerInput(problem.x), action)
    slope = EvaluatedSlope(reach, gradient_norm, loss)
    start = slope.at(at)
    steepest = slope.directions(start)[0].values
    drawn = torch.randn(steepest.shape, generator=torch.Generator().manual_seed(0)).double()
    times = even(-1.5, 1.5, 61)
    figure, (norms, change) = panels()
    numbers: dict[str, float] = {"change": 0.0}
    for key, line, colour, m in (("steepest", "-", BLUE, steepest), ("random", "--", RED, drawn)):
        m = m / torch.linalg.matrix_norm(m)
        points = [reach.move(at, reach.elements(at, [t * m])).parameters for t in times]
        squares = torch.cat([slope.at(p).value for p in points])
        ratios = (squares / start.value).sqrt()
        changes = torch.cat([loss(p).detach() / loss(at).detach() - 1 for p in points]).abs()
        norms.plot(times, ratios, line, color=colour, label=f"M: {key}")
        change.semilogy(times, changes.clamp(min=1e-17), line, color=colour)
        numbers |= {f"{key}.least": float(ratios.min()), f"{key}.most": float(ratios.max())}
        numbers["change"] = max(numbers["change"], float(changes.max()))
    norms.set(xlabel="t, in exp(tM)·w", ylabel="gradient norm over that at t = 0")
    change.set(xlabel="t, in exp(tM)·w", ylabel="|L(exp(tM)·w) / L(w) − 1|", ylim=(1e-17, 1))
    return figure, numbers


def arrow(axes: Axes, start: list[float], end: list[float], **style: object) -> None:
    """From one place to another."""
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": BLACK, **style})


def inner_loop() -> Drawn:
    """One step w <- g (w + f), and below it windows, meta-steps and truncation."""
    spec, hold = TrainingSpec(), load_meta_optimizer("lstm_update_tele_v1").spec.hold
    figure, (top, bottom) = panels(2, 1, 5)
    for x, y, colour, words in (
        (0.6, 2, BLACK, "weights\n$w_t$"), (2.7, 2, BLACK, "gradients, weights,\nhidden features"),
        (5.1, 3.1, BLUE, "m1, an LSTM shared\nby all weights"),
        (5.1, 0.9, RED, "m2, an LSTM shared\nby all directions"),
        (7.6, 3.1, BLUE, "$w_t + f_t$\nan update"),
        (7.6, 0.9, RED, "$g_t = \\exp(T_t)$\na group element"),
        (9.9, 2, BLACK, "$w_{t+1} = g_t\\cdot(w_t + f_t)$\na teleportation"),
    ):  # fmt: skip
        frame = {"boxstyle": "round,pad=0.45", "facecolor": "white", "edgecolor": colour}
        top.text(x, y, words, ha="center", va="center", fontsize=9, bbox=frame)
    for *start, x, y in (
        (1, 2, 1.8, 2), (3.6, 2.3, 4.2, 2.9), (3.6, 1.7, 4.2, 1.1), (6, 3.1, 6.95, 3.1),
        (6, 0.9, 6.75, 0.9), (8.25, 2.9, 9.2, 2.5), (8.4, 1.1, 9.2, 1.5),
    ):  # fmt: skip
        arrow(top, start, [x, y])
    back = {"connectionstyle": "bar,fraction=-0.12", "linestyle": "--"}
    arrow(top, [9.9, 1.4], [0.6, 1.4], **back)
    top.text(5.1, -0.4, "next step", ha="center", va="top", fontsize=9)
    top.set(xlim=(0, 11.2), ylim=(-0.9, 3.8))
    places = [0.6 + 0.5 * i for i in range(3 * spec.window + 1)]
    bottom.plot(places, [1.0] * len(places), "-o", color=BLACK, markersize=5)
    for first in range(0, 3 * spec.window, spec.window):
        left, right = places[first], places[first + spec.window]
        bottom.axvspan(left + 0.03, right - 0.03, 0.1, 0.62, color="0.92")
        arrow(bottom, [right - 0.05, 0.7], [left + 0.08, 0.7], color=RED)
        arrow(bottom, [right, 1.1], [right, 1.9], color=BLUE)
        words = ((0, 2, "meta-step"), (-1.5, 0.4, "meta-gradient"), (-1.5, 1.2, "window"))
        for x, y, word in words:
            bottom.text(right + x, y, word, ha="center", fontsize=9)
    bottom.text(9.85, 1, "… a trajectory\nfrom $w_0$ on", va="center", fontsize=9)
    bottom.set(xlim=(0, 11.2), ylim=(0.1, 2.3))
    for axes in (top, bottom):
        axes.set_axis_off()
    sizes = {name: getattr(spec, name) for name in ("window", "steps", "trajectories")}
    return figure, sizes | {"hold_percent": 100 * hold}


def spectrum(problem: TaskBatch) -> Tensor:
    """Eigenvalues of h hᵀ of the hidden features over their mean, rising."""
    layers = problem.chain.layers([w.double() for w in weights(problem)])
    h = problem.chain.inputs(layers, problem.x.double())[1]
    values = torch.linalg.eigvalsh(h @ h.mT)[0]
    return values / values.mean()


def whitening() -> Drawn:
    """The features' eigenvalues over a rollout of the shipped optimizer, and its loss."""
    problem = RegressionFamily().sample([0])
    optimizer = LearnedOptimizer(problem, "lstm_update_tele_v1")
    values, runs = [], []
    for step in range(31):
        values.append(spectrum(problem))
        runs.append(rollout(problem, optimizer, 1, first_step=step))
    losses = [float(run.losses[0]) for run in runs]
    errors = [float(run.invariance_errors[1]) for run in runs]
    first_reverted = [math.isnan(error) for error in errors].index(True)
    figure, (eigenvalues, loss) = panels()
    rows = torch.stack(values).numpy()
    eigenvalues.semilogy(rows, color=GREY, linewidth=0.8)
    eigenvalues.semilogy(rows[:, -1], "-", color=BLACK, linewidth=1.8, label="the largest")
    eigenvalues.semilogy(rows[:, 0], "--", color=BLACK, linewidth=1.8, label="the smallest")
    eigenvalues.set(xlabel="step", ylabel="eigenvalue over their mean")
    loss.semilogy(losses, **STYLES["lstm_update_tele_v1"].line, markersize=3)
    loss.axvspan(first_reverted, 30, color="0.9", label="teleports reverted")
    loss.set(xlabel="step", ylabel="loss")
    numbers = {"reverted_from": first_reverted, "error": max(errors[:first_reverted])}
    numbers |= {f"condition.{t}": float(values[t][-1] / values[t][0]) for t in (0, 5, 10)}
    return figure, numbers | {f"loss.{t}": losses[t] for t in (0, 5, 10, 30)}


def median_error(action: str, family: RegressionFamily, size: float) -> float:
    """Over 16 networks, of random elements of norm ``size``; nothing is rejected."""
    problem, acting = family.sample(range(16)), make_action(action, max_defect=math.inf)
    at = weights(problem)
    reach = chain_orbit(problem.chain, at, LayerInput(problem.x), acting)
    shape = reach.identity(at)[0].values.shape
    element = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    norm = element.flatten(1).norm(dim=1).reshape(-1, *[1] * (element.dim() - 1))
    end = reach.move(at, reach.elements(at, [size * element / norm]))
    outputs = ChainOutputs(problem.chain, problem.x)
    move = Teleportation(outputs, at, end.parameters, end.rejected)
    return float(move.invariance_error().median())


def invariance_error() -> Drawn:
    """By action and dtype against the element's size, and against the number of samples."""
    figure, (size, count) = panels()
    sizes = [10 ** (k / 3) for k in range(-9, 4)]
    samples = [*range(2, 12, 3), *range(11, 24), 26, 30, 35, 40]
    numbers = {"allowed_percent": 100 * make_action("post_activation").max_defect}
    for action, name, mark, colour in (
        ("post_activation", "eq. 78", "o", BLUE),
        ("pre_activation", "eq. 79", "s", GREEN),
        ("rescaling", "rescaling", "^", RED),
    ):
        key, look = name.replace(". ", ""), {"marker": mark, "color": colour, "markersize": 4}
        for dtype, line in (("float32", "-"), ("float64", "--")):
            family = RegressionFamily(distribution="normal", dtype=dtype)
            values = [median_error(action, family, s) for s in sizes]
            size.loglog(sizes, values, line, label=f"{name}, {dtype}", **look)
            numbers[f"{key}.{dtype}"] = values[sizes.index(1.0)]
        narrow = {"hidden": 12, "output": 5, "distribution": "normal", "dtype": "float64"}
        values = [median_error(action, RegressionFamily(n, **narrow), 0.3) for n in samples]
        count.semilogy(samples, values, "-", label=name, **look)
        numbers[f"{key}.forty"] = values[-1]
    for at, word in ((12, "hidden units"), (20, "inputs")):
        count.axvline(at, linestyle=":", color=GREY)
        count.text(at - 0.4, 1e-8, f"{at} {word}", rotation=90, ha="right", fontsize=8)
    size.set(xlabel="‖T‖, 20 samples, 20 hidden units", ylabel="invariance error", ylim=(1e-17, 1))
    count.set(xlabel="samples, ‖T‖ = 0.3, float64", ylabel="invariance error", ylim=(1e-17, 1))
    return figure, numbers


def sharpness() -> Drawn:
    """The loss of v σ(u x), whose minima are a curve with sharp, flat, bent and straight parts."""
    network = ScalarNetwork.fitted(torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64), 1.0)
    figure, (plane, along) = panels()
    u, v = torch.meshgrid(even(0.02, 3.6, 181), even(0.02, 3.6, 181), indexing="xy")
    heights = (t.numpy() for t in (u, v, network(torch.stack((u, v), -1))))
    plane.contour(*heights, levels=[0.1, 0.3, 1, 3, 9], colors="0.7")
    scales = even(0.3, 3.33, 200)
    curve = [network.minimizer(float(g)) for g in scales]
    plane.plot(*torch.stack(curve).mT, color=BLACK, linewidth=1.6, label="minima: one orbit")
    numbers = {"radius": 0.3}
    turn = even(0, 2 * math.pi, 65)
    for key, g, mark, colour in (("flat", 1.0, "o", BLUE), ("sharp", 3.0, "s", RED)):
        w = network.minimizer(g)
        ring = w + 0.3 * torch.stack((turn.cos(), turn.sin()), -1)
        plane.plot(*w, mark, color=colour, label=f"u = {g:g}")
        plane.plot(*ring.mT, color=colour, linewidth=0.9)
        numbers[f"{key}.rise"] = float(network(ring[:-1]).mean())
        numbers[f"{key}.sharpness"] = network.sharpness(w)
        numbers[f"{key}.curvature"] = network.curvature(w)
    for name, line, colour in (("sharpness", "-", RED), ("curvature", "--", BLUE)):
        values = [getattr(network, name)(w) for w in curve]
        along.loglog(scales, values, line, color=colour, label=name)
    along.set_xticks([0.3, 1, 3], ["0.3", "1", "3"])
    along.minorticks_off()
    along.set(xlabel="u, at the minimum with v = 1/u", ylabel="sharpness λ, curvature κ")
    plane.set(xlabel="u", ylabel="v", xlim=(0, 3.6), ylim=(0, 3.6), aspect="equal")
    return figure, numbers


FIGURES = (level_set, orbit, inner_loop, whitening, invariance_error, sharpness)


def written(value: float) -> str:
    """Three digits; one where it is rounding."""
    text = f"{value:.0e}" if 0 < value < 1e-6 else f"{value:.3g}"
    return text.replace("e-0", "e-").replace("e+0", "e")


def draw_all(out: Path) -> dict[str, float]:
    """All pictures into a folder; the numbers by name."""
    numbers = {}
    for draw in FIGURES:
        figure, own = draw()
        for axes in figure.axes:
            if axes.get_legend_handles_labels()[0]:
                axes.legend(fontsize=8)
        figure.savefig(out / f"{draw.__name__}.png", dpi=105, metadata={"Software": None})
        numbers |= {f"{draw.__name__}.{key}": value for key, value in own.items()}
    return numbers


def main() -> None:
    """Draw, and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the pictures")
    parser.add_argument("--page", type=Path, help="put the numbers into this page")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    numbers = draw_all(options.out)
    print("\n".join(f"{name:30} {value:.6g}" for name, value in numbers.items()))
    if options.page:
        text = options.page.read_text()
        text = QUOTED.sub(lambda m: f"{written(numbers[m[1]])}<!--{m[1]}-->", text)
        write_atomically(options.page, text.encode())


if __name__ == "__main__":
    main()
