"""Registries: what they refuse, and that an extension that fails leaves nothing behind."""

import importlib
import sys
from dataclasses import dataclass

import pytest

from metaopt import UserError
from metaopt.extensions import load_extensions
from metaopt.extras import MissingExtra, extra, installed
from metaopt.learned.spec import MetaOptimizerSpec
from metaopt.learned.update import UPDATE_RULES, UpdateConfig
from metaopt.registry import Registry, all_or_nothing, built, merged


@pytest.fixture
def colours():
    registry = Registry("colour")
    registry.add("red", print)
    return registry


@pytest.mark.parametrize("name", ["red", "a b", "", 3, None, "9a", "z" * 600])
def test_a_name_that_is_taken_or_no_name_is_refused_by_every_way_in(colours, name):
    if name == "z" * 600:
        colours.add(name, print)
    ways = [colours.add, colours.__setitem__, lambda n, e: colours.update({n: e})]
    ways += [lambda n, e: colours.register(n)(e), lambda n, e: colours.__ior__({n: e})]
    before = dict(colours)
    for way in ways:
        with pytest.raises(UserError) as caught:
            way(name, len)
        assert len(str(caught.value)) < 300
    assert dict(colours) == before


@pytest.mark.parametrize("entry", [None, 3, "red", []])
def test_what_is_no_component_is_refused(colours, entry):
    for way in (colours.add, colours.__setitem__, colours.setdefault):
        with pytest.raises(UserError, match="component for the colour 'blue'"):
            way("blue", entry)
    assert list(colours) == ["red"]


def test_a_name_that_was_deleted_is_free(colours):
    del colours["red"]
    colours |= {"red": len}
    assert colours["red"] is colours.pop("red") is len
    assert colours.get("red") is None


def test_what_was_registered_before_an_error_is_forgotten(colours):
    def interrupted():
        colours.add("blue", print)
        del colours["red"]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), all_or_nothing():
        interrupted()
    assert list(colours) == ["red"]


def fails():
    raise RuntimeError("out of\norder " + "z" * 600)


@pytest.mark.parametrize(
    ("make", "named"), [(fails, "RuntimeError"), (lambda: None, "None"), (lambda: int, "int")]
)
def test_what_an_extension_builds_is_checked(make, named):
    with pytest.raises(UserError, match="the rule 'mine'") as caught:
        built("the rule 'mine'", int, make)
    message = str(caught.value)
    assert named in message
    assert "\n" not in message
    assert len(message) < 300


def test_a_users_error_of_an_extension_stays_as_it_is():
    def refuse():
        raise UserError("expected this")

    with pytest.raises(UserError, match=r"^expected this$"):
        built("the rule 'mine'", int, refuse)


@dataclass(frozen=True)
class Whole:
    bound: int = 1


@dataclass(frozen=True)
class Real:
    bound: float = 1.0


def test_fields_of_one_name_have_one_type():
    for pair in ((Whole, Real), (Real, Whole)):
        with pytest.raises(UserError, match=r"type (int|float) of the shared field 'bound'"):
            merged(pair)
    assert merged((Real, Real)) == {"bound": 1.0}


def test_a_type_that_cannot_be_found_is_named():
    unknown = dataclass(frozen=True)(
        type("Unknown", (), {"__annotations__": {"a": "Nowhere"}, "a": 1})
    )
    with pytest.raises(UserError, match=r"Unknown.*Nowhere"):
        merged([unknown])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder; what is imported from it does not stay."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]
    importlib.invalidate_caches()


MINE = """
from dataclasses import dataclass
from metaopt.learned.update import UPDATE_RULES, UpdateConfig

@UPDATE_RULES.register("mine")
@dataclass(frozen=True)
class Mine(UpdateConfig):
    def build(self, generator):
        return None
"""


def test_an_extension_that_fails_half_way_leaves_no_name_and_can_be_tried_again(folder):
    (folder / "mine_package").mkdir()
    (folder / "mine_package/__init__.py").write_text("from . import rules\nraise RuntimeError('x')")
    (folder / "mine_package/rules.py").write_text(MINE)
    with pytest.raises(UserError, match="mine_package"):
        load_extensions(["mine_package"])
    assert "mine" not in UPDATE_RULES
    (folder / "mine_package/__init__.py").write_text("from . import rules  # mended")
    importlib.invalidate_caches()
    load_extensions(["mine_package"])
    assert issubclass(UPDATE_RULES.pop("mine"), UpdateConfig)


def test_a_file_of_the_folder_is_no_package_of_metaopt(folder):
    (folder / "pooch_of_mine.py").write_text("")
    (folder / "mine_too.py").write_text("def late():\n    import pooch_of_mine")
    load_extensions(["mine_too"])
    assert not installed("pooch_of_mine")
    with pytest.raises(MissingExtra, match="no package pooch_of_mine"), extra("studies"):
        importlib.import_module("pooch_of_mine")
    sys.modules["mine_too"].late()  # which an extension finds, at any time


def test_a_rule_whose_config_fails_is_named():
    @dataclass(frozen=True)
    class Broken(UpdateConfig):
        def __post_init__(self):
            raise TypeError("no such thing")

        def build(self, generator):
            return None

    UPDATE_RULES.add("broken", Broken)
    try:
        with pytest.raises(UserError, match=r"the update 'broken', got TypeError: no such thing"):
            MetaOptimizerSpec(update="broken", element="none")
    finally:
        del UPDATE_RULES["broken"]
