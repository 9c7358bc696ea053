"""Small faults that may be put into a source file, one at a time.

The operators are mutmut's, those that leave code which runs, and a few that fit tensors: a method
left out of a chain, a transpose left out, a minimum for a maximum. Messages of errors, type
annotations, decorators, ``strict=`` of a zip and devices are left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import libcst as cst
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.file_mutation import deep_replace
from mutmut.mutation.mutators import (
    operator_arg_removal,
    operator_augmented_assignment,
    operator_if_exp,
    operator_keywords,
    operator_name,
    operator_number,
    operator_remove_unary_ops,
    operator_string,
    operator_swap_op,
)

LEFT_ALONE = (cst.Annotation, cst.Decorator, cst.Import, cst.ImportFrom, cst.Raise, cst.Assert)
SWAPS = {"maximum": "minimum", "minimum": "maximum", "amax": "amin", "max": "min", "min": "max"}
NO_OWNERS = {"torch", "math", "nn", "F", "json", "hashlib", "copy", "higher", "weakref", "inspect",
             "resources", "self", "cls", "super", "dataclasses"}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One fault."""

    number: int  # in its file
    line: int
    before: str
    after: str
    lines: tuple[int, int]  # of the statement that it is in
    on_import: bool  # run when the module is imported, not when a function is called
    source: Callable[[], str]  # of the whole file


def mutants_of(path: Path) -> list[Mutant]:
    """All faults of a file, in the order of its lines."""
    wrapper = MetadataWrapper(cst.parse_module(path.read_text()))
    visitor = _Visitor()
    wrapper.visit(visitor)
    module = wrapper.module
    found = []
    for number, (old, new, line, lines, on_import) in enumerate(visitor.found):
        before, after = (" ".join(module.code_for_node(node).split()) for node in (old, new))
        source = partial(_source, module, old, new)
        found.append(Mutant(number, line, before, after, lines, on_import, source))
    return found


def _source(module: cst.Module, old: cst.CSTNode, new: cst.CSTNode) -> str:
    changed = deep_replace(module, old, new)
    assert isinstance(changed, cst.Module)
    return changed.code


class _Visitor(cst.CSTVisitor):
    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[cst.CSTNode, cst.CSTNode, int, tuple[int, int], bool]] = []
        self.statements: list[tuple[int, int]] = []
        self.depth = 0  # of functions

    def on_visit(self, node: cst.CSTNode) -> bool:
        if isinstance(node, LEFT_ALONE) or _is_left_alone(node):
            return False
        if isinstance(node, cst.SimpleStatementLine | cst.BaseCompoundStatement):
            where = self.get_metadata(PositionProvider, node)
            end = where.end.line
            if isinstance(node, cst.BaseCompoundStatement):
                body = self.get_metadata(PositionProvider, node.body)
                end = max(where.start.line, body.start.line - 1)
            self.statements.append((where.start.line, end))
        self.depth += isinstance(node, cst.FunctionDef | cst.Lambda)
        self.depth -= isinstance(node, cst.Parameters)  # defaults are there on import
        if isinstance(node, cst.If | cst.While):
            self._add(node.test, _negated(node.test))
        elif self.statements:
            for new in _mutated(node):
                self._add(node, new)
        return True

    def _add(self, old: cst.CSTNode, new: cst.CSTNode) -> None:
        where = self.get_metadata(PositionProvider, old, None)
        line = self.statements[-1][0] if where is None else where.start.line
        self.found.append((old, new, line, self.statements[-1], self.depth == 0))

    def on_leave(self, original_node: cst.CSTNode) -> None:
        if isinstance(original_node, LEFT_ALONE) or _is_left_alone(original_node):
            return
        if isinstance(original_node, cst.SimpleStatementLine | cst.BaseCompoundStatement):
            self.statements.pop()
        self.depth -= isinstance(original_node, cst.FunctionDef | cst.Lambda)
        self.depth += isinstance(original_node, cst.Parameters)


def _is_left_alone(node: cst.CSTNode) -> bool:
    if isinstance(node, cst.Arg) and node.keyword is not None:
        return node.keyword.value in ("strict", "device")
    if isinstance(node, cst.SimpleStatementLine) and isinstance(node.body[0], cst.Expr):
        return isinstance(node.body[0].value, cst.SimpleString)  # documentation
    return isinstance(node, cst.Call) and _name(node.func) in ("isinstance", "TypeVar")


def _mutated(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    if isinstance(node, cst.Integer | cst.Float):
        yield from operator_number(node)
    elif isinstance(node, cst.SimpleString):
        yield from list(operator_string(node))[:1]  # the others change upper and lower case
    elif isinstance(node, cst.Name):
        yield from operator_name(node)
    elif isinstance(node, cst.AugAssign):
        yield from operator_augmented_assignment(node)
        yield from operator_swap_op(node)
    elif isinstance(node, cst.UnaryOperation | cst.BinaryOperation | cst.BooleanOperation):
        if isinstance(node, cst.UnaryOperation):
            yield from operator_remove_unary_ops(node)
        yield from operator_swap_op(node)
    elif isinstance(node, cst.ComparisonTarget):
        yield from operator_swap_op(node)
    elif isinstance(node, cst.IfExp):
        yield from operator_if_exp(node)
    elif isinstance(node, cst.Call):
        yield from _calls(node)
    elif isinstance(node, cst.Attribute) and node.attr.value == "mT":
        yield node.value
    else:
        yield from operator_keywords(node)


def _calls(node: cst.Call) -> Iterator[cst.CSTNode]:
    """A keyword argument less, the function exchanged, or the method left out."""
    name = _name(node.func)
    kept = {id(arg) for arg in node.args if arg.keyword is None or _is_left_alone(arg)}
    for changed in operator_arg_removal(node):
        if len(changed.args) < len(node.args) and kept <= {id(arg) for arg in changed.args}:
            yield changed
    if len(node.args) == 1 and node.args[0].keyword is not None and id(node.args[0]) not in kept:
        yield node.with_changes(args=())
    if isinstance(node.func, cst.Name) and name in SWAPS:
        yield node.with_changes(func=cst.Name(SWAPS[name]))
    if not isinstance(node.func, cst.Attribute):
        return
    if name in SWAPS:
        yield node.with_changes(func=node.func.with_changes(attr=cst.Name(SWAPS[name])))
    owner = node.func.value
    devices = [arg for arg in node.args if _name(arg.value) == "device"]
    if not devices and _root(owner) not in NO_OWNERS:
        yield owner


def _negated(test: cst.BaseExpression) -> cst.BaseExpression:
    if isinstance(test, cst.UnaryOperation) and isinstance(test.operator, cst.Not):
        return test.expression
    inner = test.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
    return cst.UnaryOperation(cst.Not(), inner)


def _name(node: cst.CSTNode) -> str:
    if isinstance(node, cst.Attribute):
        return node.attr.value
    return node.value if isinstance(node, cst.Name) else ""


def _root(node: cst.CSTNode) -> str:
    """The name that a chain of attributes starts with; of `self.x`, and of a call, none."""
    if isinstance(node, cst.Attribute):
        root = _root(node.value)
        return "" if root in ("self", "cls") else root
    if isinstance(node, cst.Call):
        return "super" if _name(node.func) == "super" else ""
    return _name(node)
