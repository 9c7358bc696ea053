"""A sweep of learning rates names the best finite one, and says where there is none."""

import json
import math

import pytest

from metaopt import UserError
from metaopt.cli import sweep as command
from metaopt.cli.common import guarded
from metaopt.evaluation.sweep import RATES, Swept, best, lowest_rate


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_loss_that_is_not_finite_is_never_the_lowest(bad):
    assert lowest_rate("gd", {0.1: bad, 0.2: 3.0, 0.3: 2.0, 0.4: bad}) == 0.3
    with pytest.raises(UserError) as raised:
        lowest_rate("gd", {0.5: bad, 0.25: bad})
    assert str(raised.value) == (
        "expected a learning rate at which gd does not diverge, got a loss that is not finite at "
        "all 2 from 0.25 to 0.5: take lower rates, fewer steps or other tasks"
    )


def test_a_method_that_diverged_everywhere_has_no_best():
    swept = [Swept("a", 0.1, 1.0), Swept("b", 0.1, math.inf), Swept("b", 0.2, math.inf)]
    with pytest.raises(UserError, match="at which b does not diverge"):
        best(swept)


def test_the_command_prints_what_it_found_and_ends_with_a_line_for_what_it_did_not(
    monkeypatch, capsys
):
    def sweep(names, family, problems, steps):
        (name,) = names
        for rate in RATES:
            yield Swept(name, rate, abs(rate - 0.1) if name == "adam" else math.inf)

    monkeypatch.setattr(command, "sweep", sweep)
    arguments = ["--methods", "gd,adam,momentum,gd"]
    assert guarded(lambda _: command.main(arguments))() == 2
    printed = capsys.readouterr()
    (line,) = printed.out.splitlines()
    assert json.loads(line)["method"] == "adam"
    assert json.loads(line)["best"] == 0.1
    assert json.loads(line)["loss_at"]["0.1"] == 0.0
    (complaint,) = printed.err.splitlines()
    assert "at which gd, momentum does not diverge" in complaint
    assert "at all 42 from 1e-05 to 70" in complaint
    assert len(complaint) < 300


def test_a_sweep_of_nothing_is_refused(capsys):
    assert guarded(lambda _: command.main(["--methods", ","]))() == 2
    assert "name at least one" in capsys.readouterr().err
