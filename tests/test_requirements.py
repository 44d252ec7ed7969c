"""pip, conda and the package's metadata take their packages from requirements.txt alone."""

import ast
import re
import sys
import tomllib
from importlib import metadata

import pytest
from conftest import CHECKOUT

PINNED = re.compile(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*")


def entries(name: str) -> list[str]:
    """Lines of a file without comments and empty lines."""
    lines = (CHECKOUT / name).read_text(encoding="utf-8").splitlines()
    return [entry for line in lines if (entry := line.split("#")[0].strip())]


def pyproject() -> dict:
    """The package's metadata."""
    return tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_requirement_is_pinned_once():
    requirements = entries("requirements.txt")
    assert all(PINNED.fullmatch(requirement) for requirement in requirements)
    names = [requirement.split("==")[0].lower() for requirement in requirements]
    assert len(names) == len(set(names))


def test_conda_takes_its_packages_from_the_requirements():
    listed = entries("environment.yml")
    packages = listed[listed.index("dependencies:") + 1 :]
    python, *others = packages
    assert others == ["- pip", "- pip:", "- -r requirements.txt", "- -e ."]
    assert re.fullmatch(r"- python=3\.\d+", python)


def test_the_package_takes_its_dependencies_from_the_requirements():
    project = pyproject()
    assert "dependencies" not in project["project"]
    assert "dependencies" in project["project"]["dynamic"]
    dynamic = project["tool"]["setuptools"]["dynamic"]["dependencies"]
    assert dynamic == {"file": ["requirements.txt"]}


def test_the_oldest_python_is_the_same_everywhere():
    oldest = pyproject()["project"]["requires-python"].removeprefix(">=")
    script = (CHECKOUT / "run_all.sh").read_text(encoding="utf-8")
    assert f"sys.version_info < ({oldest.replace('.', ', ')})" in script
    assert f"Python {oldest} or newer" in script
    conda = next(entry for entry in entries("environment.yml") if "python=" in entry)
    assert version(conda.split("=")[1]) >= version(oldest)


def version(text: str) -> tuple[int, ...]:
    """``3.11`` as numbers that compare."""
    return tuple(int(part) for part in text.split("."))


def test_installed_packages_are_the_pinned_ones():
    for requirement in entries("requirements.txt"):
        name, wanted = requirement.split("==")
        assert metadata.version(name).split("+")[0] == wanted


OF_TORCH = {"triton"}
"""Comes with PyTorch for CUDA, and is imported only where it is found."""


@pytest.mark.parametrize("folder", ["paperlib", "tests", "benchmarks"])
def test_imported_packages_are_required(folder):
    providers = metadata.packages_distributions()
    required = {entry.split("==")[0].lower() for entry in entries("requirements.txt")}
    helpers = {path.stem for path in (CHECKOUT / "tests").glob("*.py")}
    own = {"paperlib", "benchmarks"} | OF_TORCH | helpers | set(sys.stdlib_module_names)
    for path in (CHECKOUT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module]
            for module in {name.split(".")[0] for name in modules} - own:
                found = {name.lower() for name in providers.get(module, [])}
                assert found & required, f"{path.name} imports {module}, not in requirements.txt"
