"""Command lines and configs: what is meant is what is read, and what is mistyped is named."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

import metaopt
from metaopt import UserError
from metaopt.cli import evaluate, sweep, train
from metaopt.cli.common import parse
from metaopt.cli.configs import read_config
from metaopt.cli.recipes import load_recipe


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    home = tmp_path / "home"
    home.mkdir()
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(home))


def values(*arguments: str, command=train):
    return parse(command.build_parser, arguments)


def refusal(*arguments: str, command=train) -> str:
    with pytest.raises(UserError) as caught:
        values(*arguments, command=command)
    message = str(caught.value)
    assert len(message) < 300
    return message


@pytest.mark.parametrize(
    "text", ["seed: 3", "{seed: 3}", '{"seed": 3}', "--- {seed: 3}", "seed: 3\n"]
)
@pytest.mark.parametrize("way", ["a file", "a file with a mark", "inline", "stdin", "home"])
def test_a_config_is_read_whichever_way_it_is_given(text, way, monkeypatch):
    source = {"inline": text, "stdin": "-", "home": "~/c.yaml"}.get(way, "c.yaml")
    encoding = "utf-8-sig" if way == "a file with a mark" else "utf-8"
    path = Path("home/c.yaml" if way == "home" else "c.yaml")
    path.write_text(text, encoding=encoding)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert read_config(source)[0] == {"seed": 3}
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert values("--seed", "1", "--config", source).seed == 3
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert values(f"--config={source}", "--seed", "1").seed == 1


@pytest.mark.parametrize(
    "text",
    ["", "# nothing\n", "{}", "---\n", "widths: [4]\nclip: 1e-3\nout: '010'\nschedule: cosine"],
)
def test_what_a_config_says_is_what_is_read(text):
    Path("c.yaml").write_text(text)
    found = values("--config", "c.yaml")
    expected = (0.001, [4], "010") if text.startswith("w") else (0.02, None, "runs/train")
    assert (found.clip, found.out) == (expected[0], expected[2])
    assert expected[1] in (None, list(found.widths))


SURPRISES = {
    "seed: 1\nhidden: 2\nseed: 1": "'seed' 2 times",
    "{seed: 1, 'seed': 2}": "'seed' 2 times",
    "- {seed: 1, seed: 2}": "'seed' 2 times",
    "seed: 010": "'010' in line 1",
    "hidden: 3\nseed: -07": "'-07' in line 2",
    "widths: [8, 016]": "'016'",
    "seed: 00": "'00'",
    "seed: !!int '010'": "'010'",
    "seed: 1:30": "base 60",
    "seed: +1:30:59": "base 60",
    "clip: 1:30.5": "base 60",
    "resume: yes": "'yes'",
    "resume: Off": "'Off'",
    "methods: [gd, no]": "'no'",
    "on: 3": "'on'",
    "<<: {seed: 1}\nhidden: 2": "'<<'",
    "seed: &a 1\nhidden: *a": "aliases",
    "seed: 1\n---\nseed: 2": "single document",
    "seed: !!python/object/apply:os.getpid []": "constructor",
    "[1, 2]": "[1, 2]",
    "1: 2": "{1: 2}",
    "seed: [1": "YAML",
    "[" * 3000: "YAML",
}


@pytest.mark.parametrize("text", SURPRISES, ids=range(len(SURPRISES)))
@pytest.mark.parametrize("command", [train, evaluate])
def test_a_line_that_is_not_what_it_looks_like_is_refused(text, command):
    Path("c.yaml").write_text(text)
    message = refusal("--config", "c.yaml", command=command)
    assert SURPRISES[text] in message
    assert "c.yaml" in message


@pytest.mark.parametrize("text", ["seed: 0", "seed: 10", "clip: 0.5", "seed: 1_000", "out: 'yes'"])
def test_a_plain_line_is_no_surprise(text):
    values("--config", text)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("--batch-size=4", "--batch_size"),
        ("-batch_size 4", "--batch_size"),
        ("--trajectorie 4", "--trajectories"),
        ("--traj 4", "--trajectories"),
        ("--hiden 4", "--hidden"),
        ("--Hidden 4", "--hidden"),
        ("--no-resume", ""),
        ("--qqqq", ""),
    ],
)
def test_a_flag_that_is_not_there_is_named_with_the_one_that_is_meant(given, meant):
    message = refusal(*given.split())
    assert repr(given.replace("=", " ").split()[0]) in message
    assert message.endswith(f"did you mean {meant}?") == bool(meant)


@pytest.mark.parametrize(
    ("config", "meant"),
    [("batch-size: 4", "batch_size"), ("hiden: 4", "hidden"), ("see: 1", "seed"), ("qq: 1", "")],
)
def test_a_key_that_is_not_there_is_named_with_the_one_that_is_meant(config, meant):
    message = refusal("--config", config)
    assert message.endswith(f": did you mean {meant}?") == bool(meant)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--hidden", "many"], "a whole number as hidden, got many"),
        (["--config", "hidden: many"], "a whole number as hidden, got many"),
        (["--clip", "z" * 600], "a number as clip, got zzz"),
        (["--resume", "maybe"], "true or false as resume, got maybe"),
        (["--config", "seed: null\nhidden: 3"], "a value of seed"),
        (["--config", "gone.yaml"], "'gone.yaml', which does not exist"),
        (["--config", "home"], "Is a directory"),
        (["--config", "x" * 5000], "does not exist"),
        (["--config"], "expected one argument"),
        (["--config", "--seed", "3"], "expected one argument"),
        (["--import"], "expected one argument"),
        (["--import", "z" * 600], "importable"),
        (["--config", "import: 3"], "got 3"),
        (["--config", "import: [math, null]"], "got None"),
        (["stray"], "stray"),
    ],
)
def test_what_is_wrong_with_a_value_is_said_in_a_line(arguments, named):
    assert named in refusal(*arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--import", "mine_a", "--import", "mine_b"],
        ["--import=mine_a", "--import+", "mine_b"],
        ["--import+=mine_a", "--config", "import: mine_b"],
        ["--config", "{import: [mine_a, mine_b]}"],
        ["--config", "import: mine_a\nseed: 3", "--config", '{"import": "mine_b"}'],
    ],
)
def test_all_modules_that_are_named_are_imported_and_kept(arguments, capsys):
    for name in ("mine_a", "mine_b"):
        Path(f"{name}.py").write_text("")
        sys.modules.pop(name, None)
    try:
        assert sorted(values(*arguments)["import"]) == ["mine_a", "mine_b"]
        assert {"mine_a", "mine_b"} <= set(sys.modules)
        with pytest.raises(SystemExit):
            values(*arguments, "--print_config")
        printed = capsys.readouterr().out
        assert sorted(read_config(printed)[0]["import"]) == ["mine_a", "mine_b"]
        again, before = values("--config", printed), values(*arguments)
        assert {**again.as_dict(), "config": 0} == {**before.as_dict(), "config": 0}
    finally:
        for name in ("mine_a", "mine_b"):
            sys.modules.pop(name, None)


def test_a_printed_config_of_before_names_no_module():
    assert values("--config", "import: ''")["import"] == []


@pytest.mark.parametrize("arguments", [["--out=~/k"], ["--out", "~/k"], ["--config", "out: ~/k"]])
@pytest.mark.parametrize("command", [train, evaluate])
def test_a_tilde_is_the_home_folder_in_flags_and_in_configs(arguments, command, tmp_path):
    assert values(*arguments, command=command).out == str(tmp_path / "home/k")


def test_a_recipe_may_be_in_the_home_folder():
    Path("home/mine.yaml").write_text("hidden: 7")
    assert load_recipe("~/mine.yaml").networks.hidden == 7
    with pytest.raises(UserError, match="did you mean lstm_update_tele"):
        load_recipe("lstm_update_tel")


@pytest.mark.parametrize("command", [train, evaluate, sweep])
def test_every_command_says_its_version(command, capsys):
    with pytest.raises(SystemExit) as end:
        command.main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out.split()[-1] == metaopt.__version__
