"""How the parts are kept small and apart: levels of modules, lengths of files, plain notebooks."""

import ast
import json
import re
import subprocess

import pytest
from conftest import CHECKOUT

import paperlib

LIBRARY = CHECKOUT / "paperlib"
MODULES = {
    ".".join(path.relative_to(LIBRARY).with_suffix("").parts): path
    for path in sorted(LIBRARY.rglob("*.py"))
    if path.name not in ("__init__.py", "__main__.py")
}
NOTEBOOKS = sorted((CHECKOUT / "notebooks").glob("*.ipynb"))


def levels() -> dict[str, int]:
    """Level of each module and subpackage, from the docstring of ``paperlib``."""
    found = {}
    for number, names in re.findall(
        r"^(\d)\. [^:]*: (.*?)(?=^\d\.|\Z)", paperlib.__doc__, re.M | re.S
    ):
        found |= dict.fromkeys(re.findall(r"``(\w+)``", names), int(number))
    return found


def imports(path) -> set[str]:
    """Modules of ``paperlib`` that a file imports, as dotted names without ``paperlib``."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")[1:] if name.split(".")[0] == "paperlib" else []
            # The longest beginning that is a module or a subpackage; the rest is a name in it.
            while parts and not (LIBRARY.joinpath(*parts).is_dir() or ".".join(parts) in MODULES):
                parts.pop()
            found |= {".".join(parts)} if parts else set()
    return found


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_from_lower_levels(module):
    level = levels()
    own = module.split(".")[0]
    assert own in level, f"the docstring of paperlib gives {own} no level"
    for other in {name.split(".")[0] for name in imports(MODULES[module])} - {own}:
        assert level[other] <= level[own], f"{module} imports {other} from a higher level"


def test_no_circles():
    remaining = {module: imports(path) & MODULES.keys() for module, path in MODULES.items()}
    while free := {module for module, needs in remaining.items() if not needs}:
        remaining = {m: needs - free for m, needs in remaining.items() if m not in free}
    assert not remaining


def test_every_level_names_modules_there_are():
    assert levels().keys() == {module.split(".")[0] for module in MODULES}


def test_library_does_not_know_its_users():
    users = {"conftest", "tests", "benchmarks", "notebooks"}
    for path in MODULES.values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not users & {alias.name.split(".")[0] for alias in node.names}
            if isinstance(node, ast.ImportFrom):
                assert node.module.split(".")[0] not in users


def test_no_python_file_is_long():
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py", "Snakefile"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
    )
    # A download without git has no list; all of its files count then.
    names = listed.stdout.split() or [str(path) for path in CHECKOUT.glob("[!.]*/**/*.py")]
    lengths = {
        name: len((CHECKOUT / name).read_text(encoding="utf-8").splitlines()) for name in names
    }
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def source(cell: dict) -> str:
    """Text of a cell, which notebooks keep whole or as lines."""
    return "".join(cell["source"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_plain(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)
    assert source(cells[0]).startswith("# ")

    parameters = [cell for cell in code if "parameters" in cell["metadata"].get("tags", [])]
    assert len(parameters) == 1
    assert {'profile = "quick"', "seeds = None"} <= set(source(parameters[0]).splitlines())

    for cell in code:
        # Lines of IPython's own (%, !) are no Python.
        lines = ["" if line[:1] in "%!" else line for line in source(cell).splitlines()]
        for node in ast.walk(ast.parse("\n".join(lines))):
            if "own-model" not in cell["metadata"].get("tags", []):  # what a reader replaces
                assert not isinstance(node, ast.ClassDef)
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 10, f"{node.name} is over 10 lines"
