"""The graph and the code say the same thing.

Accidents this prevents: a helper missing from `deps`, so that stale results look fresh; a path in `cmd` that is not the
path in `outs`; a recipe that reruns because of data it does not use; a model chosen on a test split.
"""

import ast
import re
import shlex
from pathlib import Path

import grimp
import pytest
import yaml

from fer_pipeline.commands.check import WALK, check
from fer_pipeline.core.plugins import available
from fer_pipeline.run_inputs import OUTPUTS
from tests.house.conftest import Node

# Packages whose modules a stage finds by name at run time, which no import statement shows, and whether it runs all of
# them or only those that dvc.yaml names.
FOUND_BY_NAME = {
    "fer_pipeline.networks.backbones": "all",
    "fer_pipeline.networks.pretrained": "all",
    "fer_pipeline.datasets": "named",
    "fer_pipeline.strategies": "named",
}
FINDERS = {"align": "fer_pipeline.datasets", "train_final": "fer_pipeline.strategies"}
ARTIFACTS_OF_OTHERS = {"raw", "truth", "faces", "control", "second_rule", "true_labels", "reviewed"}


def module_file(root: Path, module: str) -> str:
    path = root / module.replace(".", "/")
    return str((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).relative_to(root))


def covered(path: str, deps: tuple[str, ...]) -> bool:
    return any(path == dep or path.startswith(dep.rstrip("/") + "/") for dep in deps)


def says_nothing(root: Path, file: str) -> bool:
    """An empty module, or one that holds a docstring alone."""
    body = ast.parse((root / file).read_text(encoding="utf-8")).body
    return all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in body)


def files_run_by(root: Path, node: Node, imports: grimp.ImportGraph) -> set[str]:
    """The files of the package that a stage runs: what it imports, and what it finds by name."""
    modules = {f"fer_pipeline.stages.{node.stage}"}
    if finder := FINDERS.get(node.stage):
        folder = finder.replace(".", "/")
        modules |= {dep.removesuffix(".py").replace("/", ".") for dep in node.deps if dep.startswith(f"{folder}/")}
    for module in set(modules):
        modules |= imports.find_upstream_modules(module)
    for package, which in FOUND_BY_NAME.items():
        if package in modules and which == "all":
            modules |= imports.find_descendants(package)
            for module in imports.find_descendants(package):
                modules |= imports.find_upstream_modules(module)
    files = {module_file(root, module) for module in modules}
    return {file for file in files if not says_nothing(root, file)}


def folded(root: Path, files: set[str]) -> set[str]:
    """The same files, by their folder where all of it is among them."""
    found = set(files)
    for folder in sorted(
        {parent for file in files for parent in Path(file).parents if parent.parts[:1] == ("fer_pipeline",)}
    ):
        inside = {str(path.relative_to(root)) for path in (root / folder).rglob("*.py")}
        code = {file for file in inside if not says_nothing(root, file)}
        if str(folder) != "fer_pipeline" and len(code) > 1 and code <= files:
            found = (found - code) | {str(folder)}
    return {one for one in found if not any(one.startswith(f"{other}/") for other in found)}


def test_stages_stand_in_walking_order(root: Path) -> None:
    assert tuple(yaml.safe_load((root / "dvc.yaml").read_text())["stages"]) == WALK
    assert set(available("fer_pipeline.stages")) == set(WALK)


def test_deps_are_the_code_that_a_stage_runs_and_no_more(root: Path, graph) -> None:
    """A helper missing from `deps` leaves stale results that look fresh; a superfluous one reruns days of work."""
    imports, faults = grimp.build_graph("fer_pipeline"), {}
    for node in graph:
        expected = folded(root, files_run_by(root, node, imports))
        listed = {dep for dep in node.deps if dep.startswith("fer_pipeline/")}
        if listed != expected:
            missing, superfluous = sorted(expected - listed), sorted(listed - expected)
            faults[node.stage] = f"{node.stage}: missing {missing}, superfluous {superfluous}"
    assert not faults, "\n".join(faults.values())


def test_code_deps_exist(root: Path, graph) -> None:
    for node in graph:
        for dep in node.deps:
            assert not dep.startswith("fer_pipeline/") or (root / dep).exists(), f"{node.address}: {dep}"


def test_cmd_and_edges_name_the_same_paths(graph) -> None:
    for node in graph:
        words = shlex.split(node.cmd)
        assert words[:4] == ["python", "-m", "fer_pipeline", node.stage]
        for out in node.outs:
            assert out in words or node.stage == "report", f"{node.address}: cmd does not write {out}"
            if node.stage != "report":  # what is no input may change while the stage runs
                option = words[words.index(out) - 1].removeprefix("--").replace("-", "_")
                assert option in {*OUTPUTS, "contents"}, (
                    f"{node.address}: {option} is not among the outputs of run_inputs"
                )
        for word in words:
            if word.startswith(("data/", "models/", "reports/")):
                assert word in {*node.deps, *node.outs}, f"{node.address}: {word} is no edge"


def test_every_artefact_has_its_contract(root: Path, graph) -> None:
    written = {out.split("/")[1] for node in graph for out in node.outs if out.startswith("data/")}
    contracts = set(available("fer_pipeline.artifacts"))
    assert written - ARTIFACTS_OF_OTHERS <= contracts
    assert "faces" in contracts


def test_settings_satisfy_every_config(root: Path) -> None:
    assert set(check(root / "params.yaml").configs) == set(WALK)


def test_the_committed_settings_are_the_demo_profile(root: Path) -> None:
    assert (root / "params.yaml").read_bytes() == (root / "profiles" / "demo.yaml").read_bytes()


@pytest.mark.parametrize("profile", sorted(path.name for path in Path("profiles").glob("*.yaml")))
def test_profiles_satisfy_every_config(root: Path, profile: str) -> None:
    assert set(check(root / "profiles" / profile).configs) == set(WALK)


def test_only_evaluate_depends_on_a_test_split(graph) -> None:
    """After `align`, a test split is opened for the final measurement and for nothing else."""
    openers = {node.stage for node in graph for dep in node.deps if re.search(r"data/faces/[^/]+/test$", dep)}
    assert openers == {"evaluate"}
    whole = {node.stage for node in graph for dep in node.deps if re.search(r"data/faces(/[^/]+)?/?$", dep)}
    assert not whole, f"{whole} depend on every split of a set"


def test_no_learning_code_names_the_test_split(root: Path) -> None:
    rooms = ("training", "strategies", "embedding", "scoring", "mining", "distillation", "networks")
    stages = [root / "fer_pipeline" / "stages" / f"{stage}.py" for stage in WALK[2:9]]
    for file in [*stages, *(file for room in rooms for file in (root / "fer_pipeline" / room).rglob("*.py"))]:
        if file.name == "probe.py":  # it tests on synthetic images that it saved itself
            continue
        words = [node.value for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Constant)]
        assert "test" not in words, f"{file} names the test split"


def test_edited_code_reruns_what_runs_it_alone(graph) -> None:
    """A strategy that is edited, or a margin rule, must not rerun days of embedding."""

    def rerun(*files: str) -> set[str]:
        return {node.address for node in graph for file in files if covered(f"fer_pipeline/{file}", node.deps)}

    recipes = {node.address for node in graph if node.stage == "train_final"}
    assert rerun("strategies/mean_teacher.py") == {"train_final@mean_teacher"}
    assert rerun("strategies/pseudo_label.py") == {"train_final@pseudo_label"}
    others = {"train_final@mean_teacher", "train_final@pseudo_label"}
    assert rerun("strategies/supervised.py") == recipes - others | {"train_primitive"}
    assert rerun("strategies/new.py", "datasets/new.py", "commands/new.py") == set()
    assert rerun("mining/margin.py", "mining/new.py") == {"mine"}
    assert {address.partition("@")[0] for address in rerun("scoring/kernel.py")} == {"score"}


def test_a_recipe_without_mined_faces_does_not_depend_on_them(graph) -> None:
    below: dict[str, set[str]] = {}
    for node in graph:
        reach = {other.address for other in graph for out in other.outs for dep in node.deps if _touch(out, dep)}
        below[node.address] = reach
    changed, frontier = {"mine"}, {"mine"}
    while frontier:
        frontier = {address for address, reach in below.items() if reach & frontier} - changed
        changed |= frontier
    untouched = {node.address for node in graph} - changed
    assert {"train_final@baseline", "train_final@das"} <= untouched, "these distilled images are the anchor's"
    assert {node.address for node in graph if node.stage in WALK[:5]} <= untouched
    assert {"train_final@vas", "train_final@random_vas", "distill@matched", "report"} <= changed


def _touch(out: str, dep: str) -> bool:
    return out == dep or dep.startswith(out + "/") or out.startswith(dep.rstrip("/") + "/")


def test_truth_is_read_by_the_report_and_for_the_bound_alone(graph) -> None:
    """`shard` writes true labels into a folder of their own, which a recipe reads where it says so."""
    readers = {node.stage for node in graph for dep in node.deps if dep.startswith("data/truth")}
    assert readers == {"report", "shard"}
    bound = {node.address for node in graph for dep in node.deps if dep.startswith("data/true_labels")}
    assert bound == {"train_final@true_vas"}
