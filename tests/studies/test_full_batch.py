"""Real full-batch problems: their data and equations, runs that go on, and the report."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from metaopt.errors import UserError
from metaopt.tasks.data import Images
from studies.full_batch import __main__ as command
from studies.full_batch import report
from studies.full_batch.methods import LEARNED, methods
from studies.full_batch.physics import Burgers, Points, Poisson
from studies.full_batch.problems import Image, Sinusoid, Table
from studies.full_batch.runs import QUICK, RESULTS, Extent, measure, read, run
from studies.steps import step_on

IMAGES = Images(torch.arange(2 * 3 * 5, dtype=torch.uint8).reshape(2, 1, 3, 5), torch.zeros(2))


class Function(nn.Module):
    """A known function in the place of a network."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def only(task, seed=0, split="train"):
    (batch,) = task.batches(seed, split)
    return batch


@pytest.mark.parametrize(
    ("name", "rows", "sizes"), [("diabetes", (331, 111), (10, 1)), ("linnerud", (15, 5), (3, 3))]
)
def test_a_table_is_divided_into_rows_to_step_on_and_others(name, rows, sizes):
    task = Table(name)
    parts = [only(task, 4, split) for split in ("train", "test")]
    assert tuple(len(x) for x, _ in parts) == rows
    assert {(x.shape[1], y.shape[1]) for x, y in parts} == {sizes}
    x, y = (torch.cat(side) for side in zip(*parts, strict=True))
    for side in (x, y):
        torch.testing.assert_close(side.mean(dim=0), torch.zeros(side.shape[1]), rtol=0, atol=1e-5)
        ones = torch.ones(side.shape[1])
        torch.testing.assert_close(side.std(dim=0, unbiased=False), ones, rtol=1e-5, atol=0)
    assert torch.equal(only(task, 4)[0], parts[0][0])
    assert not torch.equal(only(task, 5)[0], parts[0][0])
    assert task.model(4)(x).shape == y.shape


def test_an_image_is_its_grey_by_place():
    task = Image(IMAGES)
    seen = set()
    for seed in range(6):
        parts = [only(task, seed, split) for split in ("train", "test")]
        assert [len(x) for x, _ in parts] == [11, 4]
        places, grey = (torch.cat(side) for side in zip(*parts, strict=True))
        row, column = (places[:, 0] + 1).round(), ((places[:, 1] + 1) * 2).round()
        values = 255 * grey[:, 0] - (5 * row + column)
        first = values[0].round().item()
        torch.testing.assert_close(values, torch.full((15,), first), rtol=0, atol=1e-3)
        seen.add(first)
    assert seen == {0.0, 15.0}


def test_a_sinusoid_is_one_sine_at_ten_points_and_at_a_hundred_others():
    (x, y), (others, held_out) = (only(Sinusoid(), 3, split) for split in ("train", "test"))
    assert (len(x), len(others)) == (10, 100)

    def waves(at):
        return torch.cat((at.sin(), at.cos()), dim=1)

    both = torch.linalg.lstsq(waves(x), y).solution
    assert both.norm() > 0.1
    torch.testing.assert_close(waves(others) @ both, held_out, rtol=1e-3, atol=1e-4)


def test_the_solution_of_poissons_equation_has_no_loss_and_another_function_has():
    task, points = Poisson(), only(Poisson())
    points = Points(*(part.double() for part in points))
    exact = Function(lambda x: torch.sin(2 * math.pi * x))
    assert task.loss(exact, points) < 1e-20
    assert task.metrics(exact, points)["error"] == 0
    shifted = Function(lambda x: torch.sin(2 * math.pi * x) + 0.5)
    torch.testing.assert_close(task.loss(shifted, points).item(), 25.0)  # 100 x 0.5^2
    assert task.metrics(shifted, points)["error"] == pytest.approx(0.25)
    bent = Function(lambda x: torch.sin(2 * math.pi * x) + x * (1 - x))
    torch.testing.assert_close(task.loss(bent, points).item(), 4.0)  # its second derivative is -2


def test_the_solution_of_burgers_equation_solves_it():
    task = Burgers()
    generator = torch.Generator().manual_seed(0)
    z = torch.rand(40, 2, generator=generator, dtype=torch.float64) * 0.8 + 0.1
    z[:, 0] = 2 * z[:, 0] - 1
    h = 1e-4
    x, t = h * torch.eye(2, dtype=torch.float64)

    def u(at):
        return task.solution(at)

    u_t, u_x = ((u(z + d) - u(z - d)) / (2 * h) for d in (t, x))
    u_xx = (u(z + x) - 2 * u(z) + u(z - x)) / h**2
    scale = (u(z) * u_x).abs().max()
    assert (u_t + u(z) * u_x - 0.1 / math.pi * u_xx).abs().max() < 1e-4 * scale
    points = only(task)
    torch.testing.assert_close(u(points.known), points.values, rtol=0, atol=1e-5)


def test_the_residual_of_burgers_equation_is_that_of_a_known_function():
    z = torch.rand(7, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x, t = z[:, :1], z[:, 1:]
    points = Points(z, z[:3], z[:3, :1] ** 2 * z[:3, 1:])
    square = Function(lambda at: at[:, :1] ** 2 * at[:, 1:])  # x^2 t
    expected = x**2 + x**2 * t * 2 * x * t - 0.1 / math.pi * 2 * t
    torch.testing.assert_close(Burgers().loss(square, points), expected.square().mean())


def test_the_gradient_of_an_equations_loss_is_that_of_finite_differences():
    task = Burgers()
    model = task.model(0).double()
    points = Points(*(part.double()[:9] for part in only(task)))
    task.loss(model, points).backward()
    weight = model[0].weight
    for place in ((0, 0), (3, 1)):
        values = []
        for step in (1e-5, -1e-5):
            weight.data[place] += step
            values.append(task.loss(model, points).item())
            weight.data[place] -= step
        assert (values[0] - values[1]) / 2e-5 == pytest.approx(weight.grad[place].item(), rel=1e-5)


def test_a_step_returns_the_loss_before_it_with_a_closure_or_without():
    ended = []
    for again in (True, False):
        weight = nn.Parameter(torch.tensor([3.0, -2.0]))
        optimizer = torch.optim.SGD([weight], 0.25)
        losses = [
            step_on(optimizer, lambda w=weight: w.square().sum(), again).item() for _ in range(2)
        ]
        assert losses == [13.0, 13.0 / 4]
        ended.append(weight.detach())
    assert torch.equal(*ended)
    weight = nn.Parameter(torch.tensor([3.0]))
    optimizer = torch.optim.LBFGS([weight], max_iter=5, line_search_fn="strong_wolfe")
    assert step_on(optimizer, lambda: (weight - 1).pow(4).sum()).item() == 16.0
    assert weight.item() != 3.0


def sgd(rate):
    return lambda model: torch.optim.SGD(model.parameters(), rate)


def test_a_run_keeps_the_loss_of_each_step_and_ends_where_it_is_not_finite():
    task = Table("linnerud")
    before = torch.random.get_rng_state()
    own = run(task, sgd(0.1), 2, (0, 2, 4))
    assert torch.equal(torch.random.get_rng_state(), before)
    model, rows = task.model(2), only(task, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    expected = []
    for _ in range(5):
        loss = (model(rows[0]) - rows[1]).square().mean()
        expected.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert own["train"] == pytest.approx(expected, rel=1e-4)
    assert list(own["test"]) == ["0", "2", "4"]
    assert len(own["seconds"]) == 5
    assert own["seconds"] == sorted(own["seconds"])
    wild = run(task, sgd(1e30), 2, (0, 5, 20))
    assert wild["train"][-1] is None
    assert len(wild["train"]) < 20
    assert "20" not in wild["test"]


def test_settings_are_chosen_on_validation_seeds_and_what_is_done_is_kept(tmp_path):
    path = tmp_path / RESULTS
    tasks = {"linnerud": Table("linnerud")}
    contenders = {"sgd": {"1e+30": sgd(1e30), "0.01": sgd(0.01), "0.1": sgd(0.1)}}
    extent = Extent((0, 3, 9), validation=2, test=2)
    reported = measure(tasks, contenders, extent, path)
    assert [(own["setting"], own["seed"]) for own in reported] == [("0.1", 0), ("0.1", 1)]
    seeds = [own["seed"] for own in read(path)]
    assert seeds == [10**6, 10**6 + 1] * 3 + [0, 1]
    whole = path.read_bytes()
    assert measure(tasks, contenders, extent, path) == reported
    assert path.read_bytes() == whole
    path.write_bytes(whole[:-7])  # as a killed run leaves it
    measure(tasks, contenders, extent, path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 8
    assert lines[-1] | {"seconds": 0} == reported[-1] | {"seconds": 0}


@pytest.mark.parametrize("line", ["{", "[]", '{"problem": "image"}'])
def test_a_damaged_file_of_results_is_refused(tmp_path, line):
    (tmp_path / RESULTS).write_text(line + "\n")
    with pytest.raises(UserError, match="expected runs of this study in"):
        read(tmp_path / RESULTS)


def made(problem, method, losses, test):
    return {
        "problem": problem, "method": method, "setting": "0.1", "train": losses,
        "test": {"0": 1.0, "1": test, "2": test}, "seconds": [0.0, 0.1, 0.3],
    }  # fmt: skip


def test_the_report_begins_with_what_is_lost():
    ours, other = LEARNED[0], LEARNED[1]
    measured = report.grouped(
        [
            made("won", ours, [1.0, 0.1, 1e-4], 2.0), made("won", ours, [1.0, 0.1, 1e-6], 8.0),
            made("won", other, [1.0, 0.0, 0.0], 0.0), made("won", "adam", [1.0, 0.2, 0.1], 1.0),
            made("lost", ours, [1.0, 0.5, 0.4], 1.0), made("lost", "adam", [1.0, 0.2, 0.1], 1.0),
            made("lost", "soap", [1.0, 0.6, None], 1.0),
        ]
    )  # fmt: skip
    _, _, first, second = report.compared(measured, (0, 1, 2), ours, [other]).splitlines()
    assert first == (
        "| lost | 5.0e-01 / 2.0e-01 (adam) | 4.0e-01 / 1.0e-01 (adam) | 1.0e+00 / 1.0e+00 (adam) |"
    )
    assert second.startswith("| won | 1.0e-01 / 2.0e-01 (adam) | 1.0e-05 / 1.0e-01 (adam) | 4.0e+")
    lines = report.all_methods(measured, (0, 1, 2)).splitlines()
    assert "| 1.0e-05 ×/÷ 26 |" in lines[2]  # exp of the deviation of log 1e-4 and log 1e-6
    assert "not finite in 1" in lines[-1]
    assert report.figure(measured, ours).startswith(b"\x89PNG")


def test_the_command_runs_and_goes_on(tmp_path, monkeypatch, capsys):
    names = ("linnerud", "poisson")
    every = command.problems(IMAGES)
    assert list(every)[:6] == ["diabetes", "linnerud", "image", "sinusoid", "poisson", "burgers"]
    assert list(every)[6:] == [
        "poisson_residuals", "burgers_residuals", "residual", "convolutional", "transformer",
        "recurrent",
    ]  # fmt: skip
    monkeypatch.setattr(command, "load", lambda *_: SimpleNamespace(train=IMAGES))
    monkeypatch.setattr(command, "problems", lambda images: {name: every[name] for name in names})
    monkeypatch.setattr(command, "installed", lambda package: False)
    command.main(["--out", str(tmp_path), "--quick"])
    printed = capsys.readouterr().out
    for table in ("full_batch", "full_batch_methods"):
        assert (tmp_path / "tables" / f"{table}.md").read_text() in printed
    assert (tmp_path / "full_batch.png").read_bytes().startswith(b"\x89PNG")
    runs = read(tmp_path / RESULTS)
    assert {own["method"] for own in runs} == set(methods(soap=False))
    assert all(len(own["train"]) == QUICK.marks[-1] + 1 for own in runs)
    before = (tmp_path / RESULTS).read_bytes()
    command.main(["--out", str(tmp_path), "--quick"])
    assert (tmp_path / RESULTS).read_bytes() == before
    assert capsys.readouterr().out == printed


def test_every_method_builds_an_optimizer_of_a_network():
    pytest.importorskip("pytorch_optimizer")
    contenders = methods(soap=True)
    assert {name: len(own) for name, own in contenders.items()} == {
        **dict.fromkeys(LEARNED, 1), "adam": 5, "lbfgs_wolfe": 3, "kfac": 3, "soap": 3,
    }  # fmt: skip
    model = Poisson().model(0)
    for settings in contenders.values():
        build = next(iter(settings.values()))
        assert isinstance(build(model), torch.optim.Optimizer)
