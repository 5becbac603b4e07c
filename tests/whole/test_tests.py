"""The tests themselves: each one can fail."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1]
CHECKS = {"raises", "warns", "fail"}


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    return (one for one in ast.walk(tree) if isinstance(one, ast.FunctionDef))


def called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def checks(function: ast.FunctionDef, helpers: set[str]) -> bool:
    """Whether a function asserts something, itself or through a function that does."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assert):
            return True
        if isinstance(node, ast.Call):
            name = called(node)
            if name in CHECKS | helpers or name.startswith(("assert_", "wait_for_")):
                return True
    return False


@cache
def checkers() -> set[str]:
    """Names of helpers that assert something."""
    trees = [ast.parse(one.read_text("utf-8")) for one in FOLDER.rglob("*.py")]
    helpers = [f for tree in trees for f in functions(tree) if not f.name.startswith("test_")]
    found: set[str] = set()
    while more := {f.name for f in helpers if checks(f, found)} - found:
        found |= more
    return found


TESTS = sorted(FOLDER.rglob("test_*.py"))


@pytest.mark.parametrize("path", TESTS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_test_asserts_something(path):
    tests = [f for f in functions(ast.parse(path.read_text("utf-8"))) if f.name.startswith("test_")]
    assert tests, f"{path.name} has no test"
    idle = [f"{path.name}:{f.lineno} {f.name}" for f in tests if not checks(f, checkers())]
    assert idle == []
