"""A check that no infinity and no NaN enters a matrix product or a BLAS or LAPACK call of `maury`.

Whether 0 x inf is seen depends on the processor: its kernels multiply lanes that they do not use.
So operands are looked at, not results. `install` must come before the modules are imported:
``a @ b`` of every module of `maury` is compiled as a call that looks at both operands, and the
functions of numpy and scipy that lead to BLAS or LAPACK are wrapped. As a plugin of pytest
(``-p builders.finite_products``) it fails any test in which such an operand is found.
"""

import ast
import builtins
import functools
import importlib.machinery
import sys
from collections.abc import Callable
from types import CodeType
from typing import Any

import numpy as np
import scipy.linalg

_CALLS = {
    np: ("dot", "matmul", "tensordot", "inner", "vdot", "cov", "corrcoef"),
    np.linalg: ("solve", "cholesky", "lstsq", "inv", "eigh", "svd", "pinv", "det", "slogdet", "qr"),
    scipy.linalg: (
        *("solve", "cholesky", "cholesky_banded", "cho_solve", "cho_solve_banded", "cho_factor"),
        *("solve_banded", "solveh_banded", "solve_triangular", "eigh", "svd", "lstsq", "inv"),
    ),
}
Found = Callable[[str, int, str], None]


def _kind(operand: Any) -> str:
    if isinstance(operand, tuple | list):
        return next((kind for one in operand if (kind := _kind(one))), "")
    data = getattr(operand, "data", None) if type(operand).__module__[:5] == "scipy" else operand
    if not isinstance(data, np.ndarray) or data.dtype.kind not in "fc":
        return ""
    if np.isinf(data).any():
        return "inf"
    return "nan" if np.isnan(data).any() else ""


def _look(operands: Any, found: Found, depth: int) -> None:
    frame = sys._getframe(depth)
    while frame.f_back is not None and not frame.f_globals.get("__name__", "").startswith("maury"):
        frame = frame.f_back
    if frame.f_globals.get("__name__", "").startswith("maury") and (kind := _kind(operands)):
        found(frame.f_globals["__name__"], frame.f_lineno, kind)


class _Products(ast.NodeTransformer):
    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        if not isinstance(node.op, ast.MatMult):
            return node
        call = ast.Call(ast.Name("__product__", ast.Load()), [node.left, node.right], [])
        return ast.copy_location(call, node)


def install(found: Found) -> None:
    """Report operands that are not finite as ``found(module, line, "inf" or "nan")``."""

    def product(left: Any, right: Any) -> Any:
        _look((left, right), found, 2)
        return left @ right

    builtins.__product__ = product  # type: ignore[attr-defined]

    class Loader(importlib.machinery.SourceFileLoader):
        def get_code(self, fullname: str) -> CodeType:
            tree = _Products().visit(ast.parse(self.get_data(self.path), self.path))
            return compile(ast.fix_missing_locations(tree), self.path, "exec", dont_inherit=True)

    class Finder:
        @staticmethod
        def find_spec(name: str, path: Any = None, target: Any = None) -> Any:
            if not name.startswith("maury"):
                return None
            spec = importlib.machinery.PathFinder.find_spec(name, path, target)
            if spec is not None and type(spec.loader) is importlib.machinery.SourceFileLoader:
                spec.loader = Loader(spec.loader.name, spec.loader.path)
            return spec

    sys.meta_path.insert(0, Finder)
    for module, names in _CALLS.items():
        for name in names:
            setattr(module, name, _wrapped(getattr(module, name), found))


def _wrapped(function: Callable[..., Any], found: Found) -> Callable[..., Any]:
    @functools.wraps(function)
    def checked(*operands: Any, **settings: Any) -> Any:
        _look(operands, found, 2)
        return function(*operands, **settings)

    return checked


def pytest_configure() -> None:
    """Watch all products of this run."""

    def found(module: str, line: int, kind: str) -> None:
        raise AssertionError(f"{kind} in a matrix product at {module}:{line}")

    install(found)
