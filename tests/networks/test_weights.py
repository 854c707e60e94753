"""Weights files: the report says what became of every tensor, and what cannot be trusted is refused in one line."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fer_pipeline.core.errors import ConfigError, DataError
from fer_pipeline.networks.backbones import build
from fer_pipeline.networks.checkpoints import save_checkpoint
from fer_pipeline.networks.preprocessing import Preprocessing
from fer_pipeline.networks.settings import Card, NetworkSettings
from fer_pipeline.networks.weights import WeightSettings, load_weights, read_tensors

RESNET = NetworkSettings(name="resnet18", size=32)
SMALL = NetworkSettings(size=32, width=8)


@pytest.fixture
def published() -> dict[str, torch.Tensor]:
    model = build(RESNET, 3, seed=1)
    return {key.removeprefix("backbone."): value for key, value in model.backbone.state_dict().items()}


def save(path: Path, tensors: dict[str, torch.Tensor]) -> WeightSettings:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return WeightSettings(path=path, layout="torchvision")


def test_the_report_names_missing_unexpected_and_misshaped(tmp_path: Path, published) -> None:
    del published["layer4.1.conv2.weight"]
    published["layer9.strange"] = torch.zeros(3)
    published["conv1.weight"] = torch.zeros(64, 1, 7, 7)
    settings = save(tmp_path / "w.safetensors", published).model_copy(update={"least_filled": 0.5})
    report = load_weights(build(RESNET, 3, seed=0), RESNET, settings)
    assert report.missing == ["backbone.conv1.weight", "backbone.layer4.1.conv2.weight"]
    assert report.unexpected == ["layer9.strange"]
    assert report.misshaped == ["conv1.weight: found (64, 1, 7, 7), expected (64, 3, 7, 7)"]
    lost = 64 * 3 * 7 * 7 + 512 * 512 * 3 * 3
    total = sum(
        value.numel() for key, value in build(RESNET, 3, seed=0).backbone.state_dict().items() if "tracked" not in key
    )
    assert report.filled == pytest.approx(1 - lost / total)
    assert "2 missing" in report.line
    assert "1 unexpected (layer9.strange)" in report.line


def test_too_little_is_refused(tmp_path: Path, published) -> None:
    kept = {name: value for name, value in published.items() if not name.startswith("layer4")}
    with pytest.raises(DataError, match=r"fill 24\.\d% of the backbone .* expected at least 95%"):
        load_weights(build(RESNET, 3, seed=0), RESNET, save(tmp_path / "w.safetensors", kept))


def test_the_hash_is_checked_before_anything_is_read(tmp_path: Path, published) -> None:
    settings = save(tmp_path / "w.safetensors", published)
    right = hashlib.sha256(settings.path.read_bytes()).hexdigest()
    model = build(RESNET, 3, seed=0)
    load_weights(model, RESNET, settings.model_copy(update={"sha256": right.upper()}))
    (tmp_path / "junk.pth").write_bytes(b"no weights at all")
    with pytest.raises(DataError, match="expected " + "0" * 64):
        load_weights(model, RESNET, WeightSettings(path=tmp_path / "junk.pth", sha256="0" * 64))


class Evil:
    """A pickle that would run code."""

    def __reduce__(self):
        return (print, ("code ran",))


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, capsys) -> None:
    torch.save({"conv1.weight": torch.zeros(1), "evil": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(DataError, match=r"refused .*save a plain state_dict"):
        load_weights(build(RESNET, 3, seed=0), RESNET, WeightSettings(path=tmp_path / "evil.pth"))
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["junk.pth", "junk.safetensors", "absent.pth", "list.pth", "empty.pth"])
def test_damaged_and_foreign_files_are_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "junk.pth").write_bytes(b"\x80\x02junk" * 9)
    (tmp_path / "junk.safetensors").write_bytes(b"junk" * 9)
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(DataError, match=r"^weights [^\n]+; [^\n]+$"):
        load_weights(build(RESNET, 3, seed=0), RESNET, WeightSettings(path=tmp_path / name))


def test_an_unknown_layout_lists_the_choices(tmp_path: Path, published) -> None:
    settings = save(tmp_path / "w.safetensors", published).model_copy(update={"layout": "caffe"})
    with pytest.raises(ConfigError, match="choose one of auto, checkpoint, torchvision"):
        load_weights(build(RESNET, 3, seed=0), RESNET, settings)


def test_our_own_checkpoint_fits_any_family_with_its_preprocessing(tmp_path: Path) -> None:
    trained = build(SMALL, 3, seed=5)
    preprocessing = Preprocessing(size=32, mean=(0.1, 0.2, 0.3))
    save_checkpoint(tmp_path, trained, Card(network=SMALL, classes=("a", "b", "c"), preprocessing=preprocessing))
    fresh = build(SMALL, 3, seed=6)
    head = fresh.head.weight.clone()
    report = load_weights(fresh, SMALL, WeightSettings(path=tmp_path / "weights.safetensors"))
    assert report.layout == "checkpoint"
    assert report.filled == 1.0
    assert report.normalisation.mean == (0.1, 0.2, 0.3)
    assert torch.equal(fresh.head.weight, head)
    assert torch.equal(fresh.backbone.stem[0].weight, trained.backbone.stem[0].weight)
    load_weights(fresh, SMALL, WeightSettings(path=tmp_path / "weights.safetensors", head=True))
    assert torch.equal(fresh.head.weight, trained.head.weight)


@pytest.mark.parametrize("name", ["net.pth", "net.safetensors"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<!DOCTYPE html><title>Sign in", "is a web page, not the file itself"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a pointer of git-LFS, not the file itself"),
    ],
)
def test_what_a_failed_download_leaves_is_called_what_it_is(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        read_tensors(tmp_path / name, sha256="0" * 64)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"a": torch.zeros(1).expand(2**40)}, "hold a, which is no plain tensor"),
        ({"a": torch.eye(3).to_sparse()}, "hold a, which is no plain tensor"),
        ({"a": torch.empty(3, device="meta")}, "hold a, which is no plain tensor"),
        ([torch.zeros(3)], "hold no state_dict, found list"),
        ({"x\x1b[31m\n": torch.zeros(1).expand(5)}, r"hold x.x1b.31m, which is no plain tensor"),
    ],
)
def test_what_is_no_plain_tensor_is_refused(tmp_path: Path, content: object, told: str) -> None:
    torch.save(content, tmp_path / "net.pth")
    with pytest.raises(DataError, match=told) as raised:
        read_tensors(tmp_path / "net.pth")
    assert str(raised.value).isprintable()


def test_names_that_are_no_text_are_left_out(tmp_path: Path) -> None:
    torch.save({1: torch.zeros(2), "module.a": torch.ones(2)}, tmp_path / "net.pth")
    read = read_tensors(tmp_path / "net.pth")
    assert {name: tensor.tolist() for name, tensor in read.items()} == {"a": [1, 1]}
