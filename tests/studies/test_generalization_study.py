"""Both studies of section 4, from generated images to tables, killed and gone on with."""

import contextlib
import io
import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from data_cases import make_dataset
from image_study_cases import dataset
from safetensors.torch import load_file
from scipy import stats
from torch.nn import functional

from metaopt import UserError
from metaopt.cli.common import guarded
from metaopt.measures import Sharpness, hessian, network_curvature, sharpness
from metaopt.measures.directions import unit_directions
from metaopt.measures.sharpness import DISPLACEMENTS
from metaopt.symmetry import PostActivationAction
from metaopt.symmetry.functional import NetworkLoss
from studies.generalization import __main__ as command
from studies.generalization import correlation as correlating
from studies.generalization import moves, training
from studies.generalization import predictors as predicting
from studies.generalization import teleports as teleporting
from studies.generalization.correlation import CorrelationScale, correlation, report
from studies.generalization.kept import keep, kept
from studies.generalization.moves import Effort, module_of
from studies.generalization.networks import initial_weights, single, train_epoch
from studies.generalization.predictors import (
    SCALES,
    Measured,
    predictors,
    sharpness_at,
)
from studies.generalization.setting import SETTINGS, rows_of
from studies.generalization.teleport_report import paired
from studies.generalization.teleports import VARIANTS, TeleportScale, teleports
from studies.generalization.training import trained

CORRELATION = CorrelationScale(
    models=4, images=100, tested=60, epochs=2, directions=4, curves=1, curved=20, share=30, few=20
)
TELEPORT = TeleportScale(
    seeds=2,
    images=100,
    tested=60,
    watched=50,
    at=1,
    epochs=3,
    effort=Effort(1, 30, phi_steps=2, guarded_steps=1, directions=3, curves=1),
)
SCALE = {"correlation": CORRELATION, "teleport": TELEPORT}
STUDIES = {"correlation": correlation, "teleport": teleports}
LEFT = {
    "correlation": {
        "mnist-networks.safetensors",
        "mnist-measures.json",
        "mnist-correlation.json",
        "correlation-mnist.png",
        "tables/correlation_mnist.md",
    },
    "teleport": {
        "mnist-before.safetensors",
        "moves/mnist-0.safetensors",
        "moves/mnist-1.safetensors",
        "mnist-after.safetensors",
        "mnist-teleport.json",
        "teleport-mnist.png",
        "tables/teleport_mnist.md",
    },
}
PNG = b"\x89PNG"
LOSSES = ("validation loss", "training loss")

each_study = pytest.mark.parametrize("study", STUDIES)


class KilledError(Exception):
    """As if by the user."""


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(folder, table) of a study by its command line, on images in files."""
    data = make_dataset(tmp_path_factory.mktemp("data"), "mnist", train=300, test=100)
    known = {}
    for study in ("correlation", "teleport"):  # before a test watches the streams or patches
        out = tmp_path_factory.mktemp(study)
        arguments = [study, "--dataset", "mnist", "--data-dir", str(data), "--quick"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(command, "CORRELATION_QUICK", CORRELATION)
            patch.setattr(command, "TELEPORT_QUICK", TELEPORT)
            known[study] = out, printed(*arguments, "--out", str(out))
    return known.__getitem__


def printed(*arguments):
    with contextlib.redirect_stdout(io.StringIO()) as stdout:
        assert guarded(lambda _: command.main(arguments))() == 0
    return stdout.getvalue().removesuffix("\n")


def files(folder):
    return {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}


def content(path):
    """Bytes; of networks all that is said of them, whose order is not always the same."""
    if path.suffix != ".safetensors":
        return path.read_bytes()
    header = path.read_bytes()
    length = int.from_bytes(header[:8], "little")
    tensors = {name: tensor.tolist() for name, tensor in load_file(path).items()}
    return tensors, json.loads(header[8 : 8 + length])


def cells(table):
    """Rows of a Markdown table, by heading."""
    headings, _, *rows = (line[2:-2].split(" | ") for line in table.splitlines())
    return [dict(zip(headings, row, strict=True)) for row in rows]


def raises(*_, **__):
    raise KilledError


def killed_after(calls, function):
    """The function, which raises from that call on."""
    left = iter(range(calls))

    def calling(*arguments, **options):
        if next(left, None) is None:
            raise KilledError
        return function(*arguments, **options)

    return calling


def sharpness_of(own, images, directions, share, scale=1.0):
    """phi of one network; each direction has the next images of a shuffled endless round."""
    x, y = images
    drawn = unit_directions(own, directions, torch.Generator().manual_seed(0))
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0)).repeat(99)
    t = scale * torch.tensor(DISPLACEMENTS)
    found = []
    for index, part in enumerate(order.split(share)[:directions]):
        model = module_of(own)
        names = [name for name, _ in model.named_parameters()]
        loss = NetworkLoss(model, names, functional.cross_entropy, x[part], y[part])
        objective = Sharpness(t, [d[index : index + 1] for d in drawn])
        with torch.no_grad():
            found.append(objective(own, loss).item())
    return np.mean(found)


# What is left.


@each_study
def test_a_study_leaves_its_files(finished, study):
    out, table = finished(study)
    assert files(out).keys() == LEFT[study]
    assert (out / "tables" / f"{study}_mnist.md").read_text() == table
    assert (out / f"{study}-mnist.png").read_bytes().startswith(PNG)


def test_the_table_of_correlations_shows_the_papers_beside_phi_and_psi(finished):
    rows = cells(finished("correlation")[1])
    shown = {row["predictor"]: row["the paper's"] for row in rows}
    assert shown["phi, 0.001 to 0.191"] == "0.704"
    assert shown["psi"] == "-0.050"
    assert sum(map(bool, shown.values())) == 2
    assert {row["data"] for row in rows} == {"mnist"}
    assert [name.split(",")[0] for name in shown if ":" not in name] == [
        *["phi"] * len(SCALES), "psi", "psi", "phi_2", "phi_1", "weight norm", "training loss"
    ]  # fmt: skip
    assert len(rows) == 12


def test_the_numbers_of_the_networks_are_theirs(finished, images):
    """Those that are kept with the networks, each of which is measured alone."""
    out, _ = finished("correlation")
    facts = json.loads((out / "mnist-measures.json").read_text())
    assert facts["plan"]["sizes"] == [784, 16, 10, 10]
    numbers = facts["numbers"]
    assert {len(column) for column in numbers.values()} == {CORRELATION.models}
    found = load_file(out / "mnist-networks.safetensors")
    train, test = rows_of(images, CORRELATION.images, CORRELATION.tested)
    for index, own in enumerate(single([found["0"], found["1"], found["2"]])):
        model = module_of(own)
        for name, (x, y) in zip(LOSSES, (test, train), strict=True):
            loss = functional.cross_entropy(model(x), y).item()
            assert numbers[name][index] == pytest.approx(loss, rel=1e-5)
        right = (model(test[0]).argmax(1) == test[1]).double().mean().item()
        assert numbers["validation accuracy"][index] == pytest.approx(right)
        phi = sharpness_of(own, train, CORRELATION.directions, CORRELATION.share)
        assert numbers["phi, 0.001 to 0.191"][index] == pytest.approx(phi, rel=1e-5)
        few = (side[: CORRELATION.few] for side in train)
        values = hessian(model, functional.cross_entropy, *few).largest(10)
        phi_2 = numbers["phi_2, 10 eigenvalues"][index]
        assert phi_2 == pytest.approx(np.log(values).sum(), abs=0.02)
    assert len(set(numbers["validation loss"])) == CORRELATION.models


def test_the_correlations_are_those_of_the_numbers(finished):
    out, table = finished("correlation")
    numbers = json.loads((out / "mnist-measures.json").read_text())["numbers"]
    found = json.loads((out / "mnist-correlation.json").read_text())
    loss = numbers["validation loss"]
    for row in cells(table):
        name = row["predictor"]
        if name not in numbers or len(set(numbers[name])) == 1:
            continue
        value, low, high = found[name]["pearson"]
        assert value == pytest.approx(stats.pearsonr(numbers[name], loss).statistic, abs=1e-7)
        shown = f"{value:.3f} [{low:.3f}, {high:.3f}]"
        assert row["Pearson with the validation loss"] == shown
        ranks = found[name]["spearman"][0]
        assert ranks == pytest.approx(stats.spearmanr(numbers[name], loss).statistic, abs=1e-12)
        beyond = found[name]["partial"]
        if name == "training loss":
            assert (beyond, row["Pearson, given the training loss"]) == (None, "–")
        else:
            left = (residual(column, numbers["training loss"]) for column in (numbers[name], loss))
            assert beyond[0] == pytest.approx(stats.pearsonr(*left).statistic, abs=1e-6)


def residual(a, b):
    line = stats.linregress(b, a)
    return a - line.intercept - line.slope * np.array(b)


def test_the_teleport_study_has_a_row_for_each_variant(finished):
    rows = cells(finished("teleport")[1])
    assert [row["variant"] for row in rows] == list(VARIANTS)
    assert len(VARIANTS) == 25
    for row in rows:
        is_teleport = row["variant"] != "no teleport" and ":" not in row["variant"]
        assert bool(row["less random g"]) == bool(row["less warm restart"]) == is_teleport
        assert bool(row["measure before → after"]) == is_teleport
        assert bool(row["less no teleport"]) == (row["variant"] != "no teleport")


def test_the_table_of_teleports_compares_each_with_its_own_controls(finished):
    out, table = finished("teleport")
    facts = json.loads((out / "mnist-teleport.json").read_text())
    last = np.array(facts["after"][-1]["test"]).reshape(TELEPORT.seeds, len(VARIANTS))
    loss = dict(zip(VARIANTS, last.T, strict=True))
    for row in cells(table):
        name = row["variant"]
        spread = f"{loss[name].mean():.4f} ± {loss[name].std(ddof=1):.4f}"
        assert row["test loss"] == spread
        others = {
            "less no teleport": "no teleport",
            "less random g": f"{name}: random g",
            "less warm restart": f"{name}: warm restart",
        }
        for heading, other in others.items():
            if row[heading]:
                mean = (loss[name] - loss[other]).mean()
                assert float(row[heading].split()[0]) == pytest.approx(mean, abs=5.1e-5)
        rise = np.mean([fact["rise"] for fact in facts["facts"][name]])
        assert float(row["rise in loss"]) == pytest.approx(rise, abs=5.1e-5)


def test_the_variants_go_on_from_one_network_and_differ(finished):
    out, _ = finished("teleport")
    before, moved = (
        load_file(out / name) for name in ("mnist-before.safetensors", "moves/mnist-1.safetensors")
    )
    ends = load_file(out / "mnist-after.safetensors")
    assert len(ends["0"]) == TELEPORT.seeds * len(VARIANTS)
    for layer in ("0", "1", "2"):
        stayed = moved[layer][VARIANTS.index("no teleport")]
        assert torch.equal(stayed, before[layer][1])
        teleported = moved[layer][VARIANTS.index("psi up")]
        assert not torch.equal(teleported, stayed)
    facts = json.loads((out / "mnist-teleport.json").read_text())["facts"]
    assert [fact["moved"] for fact in facts["no teleport"]] == [0, 0]
    for name in ("phi down", "psi down", "phi down, guarded", "psi up, guarded: random g"):
        assert min(fact["moved"] for fact in facts[name]) > 0


def test_the_losses_at_the_teleport_are_those_before_the_training_after_it(finished, images):
    out, _ = finished("teleport")
    facts = json.loads((out / "mnist-teleport.json").read_text())
    _, (x, y) = rows_of(images, TELEPORT.images, TELEPORT.tested)
    for seed in range(TELEPORT.seeds):
        found = load_file(out / "moves" / f"mnist-{seed}.safetensors")
        for index, own in enumerate(single([found["0"], found["1"], found["2"]])):
            loss = functional.cross_entropy(module_of(own)(x), y).item()
            at = facts["at"]["test"][seed * len(VARIANTS) + index]
            assert at == pytest.approx(loss, rel=1e-5)


def test_differences_over_seeds_have_students_interval():
    ours, theirs = np.random.default_rng(0).normal(size=(2, 5))
    wanted = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    mean, low, high = paired(ours, theirs).replace("[", "").replace("]", "").split()
    assert float(mean) == pytest.approx((ours - theirs).mean(), abs=5.1e-5)
    assert [float(low.rstrip(",")), float(high)] == pytest.approx(list(wanted), abs=5.1e-5)
    assert paired(ours[:1], theirs[:1]) == f"{ours[0] - theirs[0]:+.4f}"
    assert paired(ours, ours).replace("-", "+") == "+0.0000 [+0.0000, +0.0000]"
    assert paired(np.array([1.0, math.nan]), theirs[:2]) == "+nan"


@pytest.mark.parametrize("name", SETTINGS)
def test_the_papers_correlations_are_those_of_the_data_set(tmp_path, name):
    values = made_up()
    shown = {row["predictor"]: row["the paper's"] for row in cells(report(tmp_path, name, values))}
    wanted = {  # Table 1; the list of displacements is the released code's
        "mnist": ("phi, 0.001 to 0.191", "0.704", "-0.050"),
        "fashion-mnist": ("phi, 0.0001 to 0.0191", "0.790", "-0.232"),
        "cifar10": ("phi, 0.0001 to 0.0191", "0.899", "-0.167"),
    }
    predictor, phi, psi = wanted[name]
    assert {k: v for k, v in shown.items() if v} == {predictor: phi, "psi": psi}
    assert (tmp_path / "tables" / f"correlation_{name.replace('-', '_')}.md").exists()
    assert (tmp_path / f"correlation-{name}.png").read_bytes().startswith(PNG)


def made_up(count=20, **values):
    """Numbers of networks by predictor, drawn at random but for those that are given."""
    rng = np.random.default_rng(0)
    names = [*map(sharpness_at, SCALES), "psi", *LOSSES]
    return {name: values.get(name, rng.normal(size=count)) for name in names}


def test_the_list_chosen_on_one_half_is_reported_on_the_other(tmp_path):
    even = np.arange(20) % 2 == 0
    values = made_up()
    loss = values["validation loss"]
    best_on_even, best_on_odd = sharpness_at(10.0), sharpness_at(30.0)
    values[best_on_even] = np.where(even, loss, -loss)
    values[best_on_odd] = np.where(even, values["psi"], 2 * loss + 1)
    report(tmp_path, "mnist", values)
    found = json.loads((tmp_path / "mnist-correlation.json").read_text())
    chosen = {name: three for name, three in found.items() if ":" in name}
    first, second = chosen
    assert first == f"{best_on_even}: best on the even half, reported on the other"
    assert second == f"{best_on_odd}: best on the odd half, reported on the other"
    assert chosen[first]["pearson"][0] == pytest.approx(-1)
    wanted = stats.pearsonr(values["psi"][even], loss[even]).statistic
    assert chosen[second]["pearson"][0] == pytest.approx(wanted)


# Going on.


@each_study
def test_running_again_does_no_work_again(finished, images, tmp_path, monkeypatch, study):
    done, table = finished(study)
    out = shutil.copytree(done, tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    monkeypatch.setattr(training, "train_epoch", raises)
    monkeypatch.setattr(teleporting, "_of_one", raises)
    monkeypatch.setattr(correlating, "evaluate", raises)
    for measure in ("_sharpness", "_curvature", "_spectra", "_norms"):
        monkeypatch.setattr(predicting, measure, raises)
    assert STUDIES[study](out, images, SCALE[study]) == table
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")} == times


def test_correlations_go_on_where_they_were_killed(finished, images, tmp_path, monkeypatch):
    """Between epochs, and between measures."""
    whole, table = finished("correlation")
    for module, name, calls in (
        (training, "train_epoch", 1),
        (predicting, "_sharpness", 2),
        (predicting, "_spectra", 0),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, killed_after(calls, getattr(module, name)))
            with pytest.raises(KilledError):
                correlation(tmp_path, images, CORRELATION)
    measured = json.loads((tmp_path / "mnist-measures.json").read_text())["numbers"]
    assert len(measured) == len(SCALES) + 2
    monkeypatch.setattr(training, "train_epoch", raises)
    assert correlation(tmp_path, images, CORRELATION) == table
    assert files(tmp_path).keys() == files(whole).keys()
    for name, path in files(whole).items():
        assert content(tmp_path / name) == content(path), name


def test_teleports_go_on_where_they_were_killed(finished, images, tmp_path, monkeypatch):
    """Before any, between those of two networks, and between the epochs that follow."""
    whole, table = finished("teleport")
    for module, name, calls in (
        (training, "train_epoch", 0),
        (teleporting, "_of_one", 1),
        (training, "train_epoch", 1),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, killed_after(calls, getattr(module, name)))
            with pytest.raises(KilledError):
                teleports(tmp_path, images, TELEPORT)
    assert not (tmp_path / "tables").exists()
    monkeypatch.setattr(teleporting, "_of_one", raises)
    monkeypatch.setattr(training, "train_epoch", killed_after(1, train_epoch))
    assert teleports(tmp_path, images, TELEPORT) == table
    assert files(tmp_path).keys() == files(whole).keys()
    for name, path in files(whole).items():
        assert content(tmp_path / name) == content(path), name


@pytest.mark.parametrize(
    ("study", "change"),
    [
        ("correlation", {"models": 5}),
        ("correlation", {"images": 90}),
        ("teleport", {"seeds": 3}),
        ("teleport", {"at": 2}),
        ("teleport", {"effort": replace(TELEPORT.effort, rate=0.1)}),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_another_plan_in_the_same_folder_is_refused(finished, images, study, change):
    out, _ = finished(study)
    before = {path: path.read_bytes() for path in files(out).values()}
    with pytest.raises(UserError, match=r"^expected networks of the same plan in .*, got others: "):
        STUDIES[study](out, images, replace(SCALE[study], **change))
    assert {path: path.read_bytes() for path in files(out).values()} == before


def test_other_measures_of_the_same_networks_are_taken_anew(
    finished, images, tmp_path, monkeypatch
):
    monkeypatch.setattr(correlating, "report", lambda *_: "")
    monkeypatch.setattr(training, "train_epoch", raises)
    out, _ = finished("correlation")
    name = "mnist-networks.safetensors"
    (tmp_path / name).write_bytes((out / name).read_bytes())
    old = json.loads((out / "mnist-measures.json").read_text())
    (tmp_path / "mnist-measures.json").write_text(json.dumps(old))
    correlation(tmp_path, images, replace(CORRELATION, tested=40))
    new = json.loads((tmp_path / "mnist-measures.json").read_text())
    assert new["plan"] == {**old["plan"], "scale": {**old["plan"]["scale"], "tested": 40}}
    for key, numbers in new["numbers"].items():
        assert (numbers != old["numbers"][key]) == key.startswith("validation"), key


# The images, and networks that are kept.


def test_images_for_training_are_drawn_and_those_for_tests_are_the_first(images):
    (x, y), (tested, labels) = rows_of(images, 100, 60)
    again, _ = rows_of(images, 100, 60)
    assert (x.shape, y.shape) == ((100, 784), (100,))
    assert torch.equal(x, again[0])
    every = {(tuple(row), int(label)) for row, label in zip(*every_row(images.train), strict=True)}
    drawn = {(tuple(row), int(label)) for row, label in zip(x.tolist(), y, strict=True)}
    assert len(drawn) == 100
    assert drawn <= every
    assert torch.equal(labels, images.test.labels[:60])
    assert tested.tolist() == every_row(images.test)[0][:60]
    (x, y), (tested, _) = rows_of(images, 300, 10_000)
    assert (x.tolist(), len(tested)) == (every_row(images.train)[0], 100)
    assert torch.equal(y, images.train.labels)


def every_row(part):
    """(pixels as rows from 0 to 1, labels)."""
    return (part.pixels.flatten(1).float() / 255).tolist(), part.labels


def test_what_is_kept_comes_back(tmp_path):
    path, weights = tmp_path / "new" / "x.safetensors", [torch.rand(2, 3), torch.rand(1, 2)]
    assert kept(path, {"a": 1}) is None
    keep(path, weights, {"a": (1, 2)}, [{"rise": math.nan, "moved": 0.1}])
    found, (facts,) = kept(path, {"a": (1, 2)})
    assert all(map(torch.equal, found, weights))
    assert math.isnan(facts["rise"])
    assert facts["moved"] == 0.1
    assert list(files(tmp_path)) == ["new/x.safetensors"]


# The training.


def tiny():
    g = torch.Generator().manual_seed(0)
    return torch.rand(50, 6, generator=g), torch.randint(0, 3, (50,), generator=g)


def train_tiny(path, epochs, watch=None, plan=None, rate=0.1):
    def start():
        return initial_weights((0, 1), (6, 5, 4, 3))

    return trained(path, plan or {"of": "a test"}, start, tiny(), rate, epochs, watch)


def test_more_epochs_go_on_from_fewer_and_end_where_all_do(tmp_path):
    def watch(weights):
        return {"sum": weights[0].sum().item()}

    train_tiny(tmp_path / "some", range(2, 3), watch)
    weights, log = train_tiny(tmp_path / "some", range(2, 5), watch)
    at_once, whole = train_tiny(tmp_path / "all", range(2, 5), watch)
    assert log == whole
    assert len({fact["sum"] for fact in whole}) == 3
    for one, other in zip(weights, at_once, strict=True):
        assert torch.equal(one, other)


def test_fewer_epochs_are_not_answered_with_more(tmp_path):
    train_tiny(tmp_path / "x", range(3))
    wanted, _ = train_tiny(tmp_path / "y", range(1))
    with contextlib.suppress(UserError):  # to refuse them is as good
        found, log = train_tiny(tmp_path / "x", range(1))
        assert len(log) == 1
        for one, other in zip(found, wanted, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize(
    "change",
    [{"plan": {"of": "another"}}, {"rate": 0.2}, {"epochs": range(1, 2)}],
    ids=["plan", "rate", "first epoch"],
)
def test_networks_of_another_plan_are_refused(tmp_path, change):
    train_tiny(tmp_path / "x", range(1))
    with pytest.raises(UserError, match="expected networks of the same plan"):
        train_tiny(tmp_path / "x", **{"epochs": range(1), **change})


# The predictors.


@pytest.fixture(scope="module")
def measured():
    """(networks, images) of more parameters than the Hessian is made of as a whole."""
    g = torch.Generator().manual_seed(0)
    x, y = torch.rand(40, 30, generator=g), torch.randint(0, 4, (40,), generator=g)
    weights = initial_weights((5, 6, 7), (30, 9, 6, 4))
    for _ in range(3):
        train_epoch(weights, x, y, torch.arange(40), 5, 0.5)
    weights = [2 * weight for weight in weights]
    assert sum(w[0].numel() for w in weights) > 200
    return weights, Measured(images=(x, y), directions=5, share=16, few=30, curves=2, curved=x[:20])


@pytest.fixture(scope="module")
def numbers(measured):
    return {name: way() for name, way in predictors(*measured).items()}


@pytest.mark.parametrize("scale", SCALES)
def test_phi_is_the_sharpness_of_each_network_alone(measured, numbers, scale):
    """On 16 of the 40 images for each direction, so that the last ones begin a new round."""
    weights, on = measured
    alone = [
        sharpness_of(own, on.images, on.directions, on.share, scale) for own in single(weights)
    ]
    assert numbers[sharpness_at(scale)] == pytest.approx(alone, rel=1e-5)
    assert len(set(alone)) == 3


def test_phi_is_that_of_all_images_where_each_direction_has_all(measured):
    weights, on = measured
    numbers = predictors(weights, replace(on, share=1000))[sharpness_at(1.0)]()
    for own, phi in zip(single(weights), numbers, strict=True):
        generator = torch.Generator().manual_seed(0)
        options = (generator, DISPLACEMENTS, on.directions)
        wanted = sharpness(module_of(own), functional.cross_entropy, *on.images, *options)
        assert phi == pytest.approx(wanted, rel=1e-5)


def test_phi_is_named_by_its_displacements():
    names = [sharpness_at(scale) for scale in SCALES]
    assert (
        names[1] == f"phi, {DISPLACEMENTS[0]:g} to {DISPLACEMENTS[-1]:g}" == "phi, 0.001 to 0.191"
    )
    assert names[3] == "phi, 0.03 to 5.73"


@pytest.mark.parametrize(("name", "count"), [("psi", 20), ("psi, 9 images", 9)])
def test_psi_is_the_curvature_of_each_network_alone(measured, numbers, name, count):
    weights, on = measured
    action = PostActivationAction(max_defect=float("inf"))
    alone = [
        network_curvature(
            module_of(own), on.curved[:count], torch.Generator().manual_seed(0), on.curves, action
        )
        for own in single(weights)
    ]
    assert numbers[name] == pytest.approx(alone, rel=1e-6)
    assert len(set(alone)) == 3


def test_psi_does_not_depend_on_how_many_networks_are_measured_at_a_time(
    measured, numbers, monkeypatch
):
    monkeypatch.setattr(predicting, "MODELS_AT_A_TIME", 2)
    assert predictors(*measured)["psi"]() == pytest.approx(numbers["psi"], rel=1e-9)


def test_phi_1_and_phi_2_are_of_the_hessian_of_each_network_alone(measured, numbers):
    """In float64 and to convergence, which test_hessian.py holds against whole matrices."""
    weights, on = measured
    x, y = (side[: on.few] for side in on.images)
    (phi_1,) = (v for k, v in numbers.items() if k.startswith("phi_1, "))
    (phi_2,) = (v for k, v in numbers.items() if k.startswith("phi_2, 10 "))
    spectra = []
    for own in single(weights):
        of_one = hessian(module_of(own).double(), functional.cross_entropy, x.double(), y)
        spectra.append(of_one.largest(10, seed=1, tolerance=1e-10))
    assert phi_2 == pytest.approx(np.log(spectra).sum(axis=1), abs=0.02)
    threshold = np.median([values[4] for values in spectra])
    margins = sorted(abs(np.ravel(spectra) - threshold))
    assert margins[1] > 0.01 * threshold > margins[0]
    assert phi_1 == [(values > threshold).sum() for values in spectra]
    assert len(set(phi_1)) > 1
    assert len(set(phi_2)) == 3


def test_the_weight_norm_is_that_of_all_weights(measured, numbers):
    weights, _ = measured
    for index, own in enumerate(single(weights)):
        norm = torch.cat([weight.flatten() for weight in own]).double().norm().item()
        assert numbers["weight norm"][index] == pytest.approx(norm, rel=1e-9)


# The command line.


@pytest.fixture
def call(tmp_path, monkeypatch):
    """The command line, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        return guarded(lambda _: command.main(arguments))()

    return run


@pytest.fixture
def complaint(call, capsys):
    """Runs a command line that must fail; its one line of complaint."""

    def run(*arguments):
        assert call(*arguments) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        (line,) = captured.err.splitlines()
        assert line.startswith("error: ")
        return line

    return run


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("", "study"),
        ("sharpness --dataset mnist", "'sharpness'"),
        ("correlation", "dataset"),
        ("correlation --dataset imagenet", "'imagenet'"),
        ("correlation --dataset mnist --models 2", "--models of 3 or more, got 2"),
        ("correlation --dataset mnist --models -1", "got -1"),
        ("correlation --dataset mnist --models few", "models"),
        ("teleport --dataset mnist --threads -1", "threads"),
        ("teleport --dataset mnist stray", "stray"),
        ("teleport --dataset mnist --colour 3", "--colour"),
        ("correlation --dataset mnist --quick often", "quick"),
        ("correlation --dataset mnist", "METAOPT_DATA"),
        ("teleport --dataset cifar10 --data-dir gone", "'gone'"),
    ],
    ids=lambda text: text or "nothing",
)
def test_a_bad_command_line_is_one_line_of_complaint(complaint, tmp_path, line, named):
    assert named in complaint(*line.split())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["empty", "text", "cut"])
@pytest.mark.parametrize(
    ("study", "name"),
    [("correlation", "mnist-networks"), ("teleport", "mnist-before"),
     ("teleport", "moves/mnist-1"), ("teleport", "mnist-after")],
)  # fmt: skip
def test_networks_that_are_damaged_are_one_line_of_complaint(
    complaint, finished, tmp_path, monkeypatch, study, name, damage
):
    monkeypatch.setattr(command, "CORRELATION_QUICK", CORRELATION)
    monkeypatch.setattr(command, "TELEPORT_QUICK", TELEPORT)
    monkeypatch.setattr(training, "tqdm", lambda left, **_: left)
    monkeypatch.setattr(teleporting, "tqdm", lambda left, **_: left)
    make_dataset(tmp_path / "images", "mnist", train=300, test=100)
    done, _ = finished(study)
    for file, path in files(done).items():
        if path.suffix == ".safetensors":
            (tmp_path / "out" / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "out" / file).write_bytes(path.read_bytes())
    path = tmp_path / "out" / f"{name}.safetensors"
    path.write_bytes({"empty": b"", "text": b"hello", "cut": path.read_bytes()[:-1]}[damage])
    arguments = (study, "--dataset", "mnist", "--data-dir", "images", "--out", "out", "--quick")
    assert f"{name}.safetensors" in complaint(*arguments)


def test_another_plan_is_one_line_of_complaint(complaint, finished, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "CORRELATION_QUICK", CORRELATION)
    make_dataset(tmp_path / "images", "mnist", train=300, test=100)
    out, _ = finished("correlation")
    arguments = ("--data-dir", "images", "--out", str(out), "--quick", "--models", "7")
    line = complaint("correlation", "--dataset", "mnist", *arguments)
    assert "expected networks of the same plan" in line


def test_the_scale_is_full_unless_it_has_to_be_quick(call, tmp_path, monkeypatch):
    asked = []
    for name in ("correlation", "teleports"):
        monkeypatch.setattr(command, name, lambda *arguments: asked.append(arguments))
    make_dataset(tmp_path / "images", "fashion-mnist", train=20, test=10)
    for line in ("correlation", "correlation --quick --models 6", "teleport", "teleport --quick"):
        arguments = ("--dataset", "fashion-mnist", "--data-dir", "images", "--out", "here")
        assert call(*line.split(), *arguments) == 0
    assert [scale for _, _, scale in asked] == [
        CorrelationScale(),
        replace(correlating.QUICK, models=6),
        TeleportScale(),
        teleporting.QUICK,
    ]
    assert {str(out) for out, _, _ in asked} == {"here"}
    assert {data.name for _, data, _ in asked} == {"fashion-mnist"}


def test_images_of_cifar_have_colours_and_networks_of_their_own(tmp_path):
    data = make_dataset(tmp_path / "images", "cifar10", train=40, test=20)
    scale = replace(TELEPORT, seeds=1, images=30, tested=20, at=1, epochs=2)
    effort = replace(TELEPORT.effort, samples=8, phi_steps=1, directions=1)
    arguments = ("teleport", "--dataset", "cifar10", "--data-dir", str(data), "--quick")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "TELEPORT_QUICK", replace(scale, effort=effort))
        patch.setattr(moves, "HALVINGS", 2)
        table = printed(*arguments, "--out", str(tmp_path / "out"))
    assert len(cells(table)) == len(VARIANTS)
    found = load_file(tmp_path / "out" / "cifar10-after.safetensors")
    assert [tuple(found[layer].shape) for layer in "012"] == [
        (25, 32, 3072), (25, 10, 32), (25, 10, 10),
    ]  # fmt: skip
