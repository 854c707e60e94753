"""Every format has one reader that checks what it reads, and nothing is read past it.

Accident this prevents: a file of strangers, or one damaged bit, ends a run in a traceback, takes all memory or ends the
process, because one of many places that read the format forgot a case.
"""

import ast
from pathlib import Path

import pytest

READERS = {
    r"json.load json.loads yaml.parse yaml.load yaml.safe_load yaml.load_all yaml.safe_load_all yaml.compose": (
        "core/documents.py",
    ),
    "pq.read_table pq.ParquetFile pq.ParquetDataset pq.read_metadata pq.read_schema": ("artifacts/arrow.py",),
    "pa.ipc.open_file pa.ipc.open_stream pa.ipc.read_tensor pa.memory_map feather.read_table": ("artifacts/arrow.py",),
    "pyarrow.dataset.dataset dataset ds.dataset": (),
    "safe_open": ("artifacts/arrays.py",),
    "load_file safetensors.numpy.load safetensors.torch.load torch.load": ("networks/states.py", "networks/weights.py"),
    "np.load numpy.load joblib.load": ("alignment/networks.py",),
    "Image.open PIL.Image.open": ("alignment/pictures.py", "artifacts/faces.py"),  # some formats start programs
    "h5py.File": ("networks/pretrained/fer_expressions.py",),
    "onnxruntime.InferenceSession": ("alignment/networks.py", "networks/pretrained/_onnx.py"),
    "tarfile.open zipfile.ZipFile": ("commands/weights.py",),
}
WHERE = {call: files for calls, files in READERS.items() for call in calls.split()}
PIPELINES = {"documents.py": {"json.loads", "yaml.parse", "yaml.load"}, "dvc_reader.py": {"json.load"}}  # run alone
LOADERS = ("YAML", "safe_load", "CSafeLoader")  # names that read YAML under another one


def calls_of(file: Path) -> set[str]:
    nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    return {ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)}


@pytest.mark.parametrize("file", sorted(Path("fer_pipeline").rglob("*.py")), ids=str)
def test_the_package_reads_a_format_in_one_place(file: Path) -> None:
    place = file.relative_to("fer_pipeline").as_posix()
    past = sorted(call for call in calls_of(file) & WHERE.keys() if place not in WHERE[call])
    assert not past, f"{past} belongs in {[WHERE[call] for call in past]}; call the reader there"


@pytest.mark.parametrize("file", sorted(Path("pipelines").glob("*.py")), ids=str)
def test_flows_read_a_format_in_one_place(file: Path) -> None:
    past = calls_of(file) & WHERE.keys() - PIPELINES.get(file.name, set())
    assert not past, f"{sorted(past)} belongs in pipelines/documents.py; call the reader there"


@pytest.mark.parametrize(
    "file", sorted([*Path("fer_pipeline").rglob("*.py"), *Path("pipelines").glob("*.py")]), ids=str
)
def test_comments_of_yaml_are_loaded_after_it_was_checked(file: Path) -> None:
    """A `ruamel.yaml.YAML` loads by a method of any name: it is handed to the reader, which checks the text first."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    if file.name == "documents.py" or "ruamel" not in file.read_text(encoding="utf-8"):
        return
    loads = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr in ("load", "load_all")]
    assert not loads, f"line {loads[0].lineno}: call load_commented"


def test_both_packages_hold_the_same_reader(root: Path) -> None:
    ours, flows = root / "fer_pipeline" / "core" / "documents.py", root / "pipelines" / "documents.py"
    assert ours.read_bytes() == flows.read_bytes(), "edit one and copy it over the other"
