"""The import rule, read from every source file: left never imports right, and heavy packages stay where they belong.

foundation → models, ops, losses, metrics → plan, stage → data → engines → hospital → pipeline → train →
evaluation, pages → jobs, serve
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "adamatch_ray"

LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"config", "training_config", "model_config", "cli", "schema", "geometry", "__init__"})
    | {"files", "filesystems", "specs", "storage", "lease"},
    frozenset({"cluster", "shards"}),
    frozenset({"models", "ops", "losses", "codebooks", "metrics"}),
    frozenset({"counting", "plan", "stage_plans", "stage"}),
    frozenset({"data"}),
    frozenset({"instructions"}),
    frozenset({"engines"}),
    frozenset({"hospital"}),
    frozenset({"pipeline"}),
    frozenset({"train"}),
    frozenset({"evaluation", "pages"}),
)
BARE = {
    "models",
    "ops",
    "losses",
    "metrics",
    "engines",
    "files",
    "geometry",
    "schema",
    "model_config",
    "instructions",
    "codebooks",
}
"""Parts that run on a GPU machine without Ray and pydantic."""


class Import(NamedTuple):
    """One import: the module's dotted name, and whether it happens when the file itself is imported."""

    name: str
    at_import: bool

    @property
    def top(self) -> str:
        return self.name.split(".")[0]


def python_files() -> list[Path]:
    return sorted(p for folder in ("adamatch_ray", "jobs", "serve") for p in (ROOT / folder).rglob("*.py"))


def imports(path: Path) -> Iterator[Import]:
    """Every import of a file but those only for type checkers; `from a.b import c` is both a.b and a.b.c."""

    def visit(node: ast.AST, at_import: bool) -> Iterator[Import]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, at_import) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield Import(node.module, at_import)
            yield from (Import(f"{node.module}.{alias.name}", at_import) for alias in node.names)
        inside = at_import and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inside)

    yield from visit(ast.parse(path.read_text("utf-8")), True)


def part(path: Path) -> str:
    """The top-level part of the project a file belongs to: `models`, `config`, `jobs`, …"""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[1] if parts[0] == "adamatch_ray" else parts[0]


def layer(name: str) -> int:
    for number, names in enumerate(LAYERS):
        if name in names:
            return number
    assert name in ("jobs", "serve"), f"{name} has no place in the import order yet: add it to LAYERS"
    return len(LAYERS)


def module_file(name: str) -> Path | None:
    """The file of one of the project's modules, if the name is one."""
    base = ROOT.joinpath(*name.split("."))
    if base.with_suffix(".py").is_file():
        return base.with_suffix(".py")
    return base / "__init__.py" if (base / "__init__.py").is_file() else None


@pytest.mark.parametrize("path", python_files(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_left_never_imports_right(path: Path) -> None:
    own = layer(part(path))
    for item in imports(path):
        if item.top in ("adamatch_ray", "jobs", "serve") and (target := module_file(item.name)):
            other = part(target)
            assert layer(other) <= own, f"{part(path)} may not import {item.name}"
            assert own < len(LAYERS) or part(path) == other or other not in ("jobs", "serve"), item.name


def project_imports(path: Path) -> set[Path]:
    """Files of the project that a file's import loads: those imported at its top, not those for type checkers."""
    own = [item for item in imports(path) if item.at_import and item.top in ("adamatch_ray", "jobs", "serve")]
    return {target for item in own if (target := module_file(item.name)) and target.name != "__init__.py"}


def cycle_in(graph: dict[Path, set[Path]]) -> list[Path]:
    """Files that import each other in a ring, if there are any."""
    done: set[Path] = set()

    def walk(path: Path, trail: list[Path]) -> list[Path]:
        if path in trail:
            return trail[trail.index(path) :]
        if path in done:
            return []
        for target in sorted(graph.get(path, ())):
            if ring := walk(target, [*trail, path]):
                return ring
        done.add(path)
        return []

    return next((ring for path in sorted(graph) if (ring := walk(path, []))), [])


def test_no_file_imports_itself_through_others() -> None:
    assert not cycle_in({path: project_imports(path) for path in python_files()})


def test_a_planted_cycle_is_found() -> None:
    a, b, c = Path("a"), Path("b"), Path("c")
    assert cycle_in({a: {b}, b: {c}, c: {b}}) == [b, c]
    assert not cycle_in({a: {b, c}, b: {c}, c: set()})


def test_every_file_of_the_library_is_reached_by_a_job_or_the_service() -> None:
    """Tests and benchmarks do not count: what lives by them alone is dead."""
    queue = [path for path in python_files() if part(path) in ("jobs", "serve")]
    reached = set(queue)
    while queue:
        for item in imports(queue.pop()):
            target = module_file(item.name) if item.top in ("adamatch_ray", "serve") else None
            if target and target not in reached:
                reached.add(target)
                queue.append(target)
    lost = {path.relative_to(ROOT).as_posix() for path in python_files()} - {
        path.relative_to(ROOT).as_posix() for path in reached
    }
    assert not {name for name in lost if not name.endswith("__init__.py")}


def users(package: str) -> set[str]:
    """Files that import a package anywhere, as paths in the repository."""
    found = set()
    for path in python_files():
        for item in imports(path):
            if item.name == package or item.name.startswith(f"{package}."):
                found.add(path.relative_to(ROOT).as_posix())
    return found


def test_ray_is_only_where_work_is_spread() -> None:
    allowed = ("adamatch_ray/train/", "jobs/", "serve/")
    strays = {name for name in users("ray") if not name.startswith(allowed)}
    assert strays == {"adamatch_ray/cluster.py", "adamatch_ray/shards.py", "adamatch_ray/data/loading.py"}


def test_loading_starts_no_ray_when_it_is_imported() -> None:
    assert not [i.name for i in imports(PACKAGE / "data" / "loading.py") if i.top == "ray" and i.at_import]


def test_deepspeed_is_imported_by_the_training_that_needs_it_only_and_inside_a_function() -> None:
    for name in users("deepspeed"):
        assert name.startswith("adamatch_ray/train/")
        assert not [i for i in imports(ROOT / name) if i.top == "deepspeed" and i.at_import]


def test_one_file_speaks_torch_distributed() -> None:
    assert users("torch.distributed") == {"adamatch_ray/train/distributed.py"}


def test_pydantic_is_the_run_configurations_and_the_protocols_alone() -> None:
    assert all(name == "adamatch_ray/config.py" or name.startswith("serve/") for name in users("pydantic"))


@pytest.mark.parametrize("package", ["ray", "pydantic", "deepspeed"])
def test_models_kernels_metrics_and_engines_run_on_a_bare_gpu_machine(package: str) -> None:
    """Not even through another module of the project: everything their import loads is followed."""
    reached: dict[str, str] = {}
    queue = [p for p in python_files() if p.is_relative_to(PACKAGE) and part(p) in BARE]
    for path in queue:
        reached[path.relative_to(ROOT).as_posix()] = ""
    while queue:
        path = queue.pop()
        here = path.relative_to(ROOT).as_posix()
        for item in imports(path):
            if not item.at_import:
                continue
            assert item.top != package, f"{here} imports {item.name} (reached from {reached[here] or 'itself'})"
            target = module_file(item.name) if item.top == "adamatch_ray" else None
            if target and (name := target.relative_to(ROOT).as_posix()) not in reached:
                reached[name] = here
                queue.append(target)
    assert "adamatch_ray/data/loading.py" in reached, "engines read shards through it"


def test_importing_the_configuration_loads_no_model_library() -> None:
    heavy = {"torch", "transformers", "timm", "ray", "torchvision", "deepspeed"}
    for name in LAYERS[0] - {"__init__"}:
        assert not {i.top for i in imports(PACKAGE / f"{name}.py")} & heavy, name


def test_jobs_answer_help_before_anything_heavy_is_imported() -> None:
    light = {f"adamatch_ray.{name}" for name in ("cli", "config", "specs", "stage", "storage")}
    for path in sorted((ROOT / "jobs").glob("*.py")):
        for item in imports(path):
            if item.at_import and module_file(item.name) and item.name != "adamatch_ray":
                assert item.name in light, f"{path.name} imports {item.name} at its top"
            assert not (item.at_import and item.top in ("torch", "ray", "transformers")), path.name


def test_the_rule_sees_what_it_forbids(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text("import os\nfrom ray import data\ndef f():\n    import torch.distributed as dist\n")
    assert [(i.name, i.at_import) for i in imports(file)] == [
        ("os", True),
        ("ray", True),
        ("ray.data", True),
        ("torch.distributed", False),
    ]
    assert layer("models") < layer("data") < layer("engines") < layer("train") < layer("jobs")
