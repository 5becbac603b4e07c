"""The house: few packages, one direction of imports, short functions, numbers with a reason."""

import ast
import importlib
import io
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "maury"
PACKAGES = sorted(path.parent for path in SOURCE.rglob("__init__.py"))
ROOMS = [path for path in PACKAGES if path.parent == SOURCE]
MODULES = sorted(SOURCE.rglob("*.py"))
MOST_ENTRIES = 14
MOST_LINES_OF_INIT = 40
MOST_LINES_OF_FUNCTION = 40
LEAST_SHARE_SHORT = 0.985


def name_of(path: Path) -> str:
    """Name of a module or package, as one imports it."""
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def test_the_top_level_is_seen_at_a_glance():
    entries = {path.stem for path in SOURCE.iterdir() if path.suffix in ("", ".py")}
    entries = {name for name in entries if not name.startswith("__")}
    assert len(entries) <= MOST_ENTRIES, sorted(entries)


@pytest.mark.parametrize("package", PACKAGES, ids=name_of)
def test_a_package_says_what_it_is_on_one_page(package):
    file = package / "__init__.py"
    assert len(file.read_text("utf-8").splitlines()) <= MOST_LINES_OF_INIT
    text = ast.get_docstring(parsed(file)) or ""
    assert text.split("\n")[0].endswith(".")
    if package in ROOMS:
        assert len(" ".join(text.split())) > 150, "a paragraph: what is in it, what goes into it"


@pytest.mark.parametrize("package", PACKAGES, ids=name_of)
def test_public_names_of_a_package_exist(package):
    module = importlib.import_module(name_of(package))
    for name in getattr(module, "__all__", ()):
        assert getattr(module, name) is not None, name


def test_packages_load_nothing_heavy_until_a_name_is_used():
    names = [name_of(package) for package in [SOURCE, *ROOMS] if package.name != "cli"]
    code = (
        f"import sys, {', '.join(names)}\n"
        "heavy = {'torch', 'astropy', 'matplotlib', 'scipy', 'pyarrow', 'zarr', 'dask'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Line and module of each import of maury in a module; those for type checkers do not count."""
    tree = parsed(path)
    only_types = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in only_types:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, one.name) for one in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from ((node.lineno, f"{node.module}.{one.name}") for one in node.names)


def test_imports_go_down_the_layers_also_those_within_functions():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]
    contracts = settings["importlinter"]["contracts"]
    layers = next(one for one in contracts if one["type"] == "layers")["layers"]
    height = {name: -number for number, row in enumerate(layers) for name in row.split(" | ")}
    assert len(layers) <= 12
    wrong = []
    for path in MODULES:
        own = path.relative_to(SOURCE).with_suffix("").parts[0]
        for line, module in imports_of(path):
            head, _, rest = module.partition(".")
            if head != "maury" or own in ("__init__", "__main__"):
                continue
            other = rest.split(".")[0]
            # `import maury`, or a name of its front page, leads to the top of the house.
            if other not in height or (other != own and height[other] >= height[own]):
                wrong.append(f"{path.relative_to(SOURCE)}:{line} imports {module}")
    assert wrong == []


def lines_of_code(path: Path) -> list[tuple[int, str]]:
    """Lines of code of each function of a module, and where it is; no comments, no docstrings."""
    lines, tree = path.read_text("utf-8").split("\n"), parsed(path)
    texts = {
        number
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
        for number in range(node.lineno, node.end_lineno + 1)
    }
    code = {
        number
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.strip().startswith("#") and number not in texts
    }
    return [
        (
            sum(n in code for n in range(node.lineno, node.end_lineno + 1)),
            f"{path.name}:{node.name}",
        )
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def test_functions_are_short():
    found = sorted((one for path in MODULES for one in lines_of_code(path)), reverse=True)
    short = sum(lines <= MOST_LINES_OF_FUNCTION for lines, _ in found)
    assert short >= LEAST_SHARE_SHORT * len(found), found[:20]


def is_number(node: ast.expr) -> bool:
    """Whether an expression is made of numbers alone."""
    match node:
        case ast.Constant(value=value):
            return isinstance(value, int | float) and not isinstance(value, bool)
        case ast.UnaryOp(operand=operand):
            return is_number(operand)
        case ast.BinOp(left=left, right=right):
            return is_number(left) and is_number(right)
        case ast.Tuple(elts=parts) | ast.List(elts=parts) | ast.Dict(values=parts):
            return bool(parts) and all(map(is_number, parts))
    return False


def without_a_why(path: Path) -> Iterator[str]:
    """Numeric constants of a module with neither a comment nor a docstring of theirs."""
    text, body = path.read_text("utf-8"), parsed(path).body
    comments = {
        token.start[0]
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT
    }
    for node, after in zip(body, [*body[1:], None], strict=True):
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        if not (isinstance(target, ast.Name) and target.id.isupper() and is_number(node.value)):
            continue
        said = comments & set(range(node.lineno - 1, node.end_lineno + 1))
        docstring = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        if not said and not docstring:
            yield f"{path.relative_to(SOURCE)}:{node.lineno} {target.id}"


@pytest.mark.parametrize("room", ROOMS, ids=name_of)
def test_every_numeric_constant_says_why(room):
    assert [one for path in sorted(room.rglob("*.py")) for one in without_a_why(path)] == []


def test_the_check_of_constants_finds_what_says_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "SOURCE", tmp_path)
    file = tmp_path / "some.py"
    file.write_text(
        'WHY = 3  # a triangle\nTEXT = "x"\nBARE = (1.0, -2 * 3)\nTOLD = 7\n"""Of a week."""\n'
    )
    assert list(without_a_why(file)) == ["some.py:3 BARE"]
