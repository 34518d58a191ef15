"""What the project declares is what it imports, and the other way round."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OWN = {"adamatch_ray", "jobs", "serve", "benchmarks"} | {path.stem for path in (ROOT / "tests").glob("*.py")}

BROUGHT = {
    "boto3": "moto",
    "click": "ray",
    "fastapi": "ray",
    "huggingface-hub": "transformers",
    "hypothesis": "schemathesis",
    "markupsafe": "jinja2",
    "openjpeg": "pylibjpeg-openjpeg",
    "prometheus-client": "ray",
    "requests": "dicomweb-client",
    "retrying": "dicomweb-client",
    "starlette": "ray",
    "tokenizers": "transformers",
    "triton": "torch",
    "uvicorn": "ray",
    "werkzeug": "moto",
}
"""Packages that are imported and come with a declared one, in the version that fits it."""

BEHIND = {
    "playwright": "axe_playwright_python",
    "pylibjpeg": "pydicom",
    "pylibjpeg-libjpeg": "pydicom",
    "pylibjpeg-openjpeg": "pydicom",
    "python-multipart": "starlette.formparsers",
    "tensorboard": "torch.utils.tensorboard",
}
"""Declared packages that work through another one's module."""

TOOLS = {"mypy", "pytest-xdist", "ruff", "types-pyyaml"}
"""Declared for those who work on the project; commands, not imports."""

IMPORTED_AS = {"scikit-image": "skimage", "pillow": "PIL", "pyyaml": "yaml"}


def module_of(package: str) -> str:
    return IMPORTED_AS.get(package, package.replace("-", "_"))


def imports(*folders: str) -> set[str]:
    """Dotted names of all modules that the files of these folders import, anywhere in them."""

    def names(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.importorskip":
            yield from (str(value.value) for value in node.args[:1] if isinstance(value, ast.Constant))

    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return {name for path in files for node in ast.walk(ast.parse(path.read_text("utf-8"))) for name in names(node)}


def declared(*groups: str) -> set[str]:
    """Packages that a user gets who installs the project with these extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *(line for group in groups for line in extras[group])]
    names = {re.split(r"[\[<>=;! ]", line)[0].lower() for line in lines}
    return names - {"adamatch-ray"}


def unused(packages: Iterable[str], imported: set[str]) -> set[str]:
    """Declared packages that nothing imports, itself or through the module they work behind."""
    return {name for name in packages if BEHIND.get(name, module_of(name)) not in imported | _tops(imported)}


def undeclared(imported: set[str], packages: set[str]) -> set[str]:
    """Imported modules that are neither the project's own nor Python's nor of a declared package."""
    known = {module_of(name) for name in packages}
    known |= {module_of(name) for name, source in BROUGHT.items() if source in packages}
    return _tops(imported) - known - OWN - set(sys.stdlib_module_names)


def _tops(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def test_every_dependency_is_imported_by_what_it_is_declared_for() -> None:
    library = imports("adamatch_ray", "jobs", "serve")
    assert not unused(declared(), library)
    assert not unused(declared("dicom", "eval", "hospital", "lora"), library)
    assert not unused(declared("dev") - TOOLS, library | imports("tests"))


def test_every_import_is_declared() -> None:
    assert not undeclared(imports("adamatch_ray", "jobs", "serve"), declared("dicom", "eval", "hospital", "lora"))
    assert not undeclared(imports("tests", "benchmarks"), declared("dicom", "eval", "hospital", "lora", "dev"))


def test_a_planted_dependency_and_a_planted_import_are_found() -> None:
    assert unused({"numpy", "planted"}, {"numpy.random"}) == {"planted"}
    assert undeclared({"numpy.random", "planted.deep", "json", "adamatch_ray.cli"}, {"numpy"}) == {"planted"}
