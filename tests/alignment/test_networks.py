"""The three networks against a float64 numpy pass over the raw arrays, and against stored numbers."""

import importlib.metadata

import joblib
import numpy as np
import pytest
import torch

from fer_pipeline.alignment.networks import load_networks

RANDOM = np.random.default_rng(5)

# Outputs on `pattern(size)`, written down from the numpy pass below (float64).
STORED = {
    "pnet": [0.1066571, 0.0606655, 0.0247156, -0.0942656, 0.1135621],
    "rnet": [0.0013974, 0.0000795, -0.0496222, 0.0828515, 0.2059858],
    "onet": [
        0.0001290,
        -0.0428778,
        -0.1387981,
        0.1295389,
        0.0962880,
        0.2246042,
        0.5138211,
        0.3116427,
        0.3584419,
        0.6398289,
        0.3598338,
        0.2015559,
        0.4651756,
        0.7971373,
        0.6417535,
    ],
}


def raw(network: str) -> list[np.ndarray]:
    """The arrays as the file holds them, read by joblib."""
    file = next(file for file in importlib.metadata.files("mtcnn") or () if file.name == f"{network}.lz4")
    return [array.astype(np.float64) for array in joblib.load(file.locate())]


def convolved(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """[h w c] by an HWIO kernel without padding."""
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[:2], axis=(0, 1))
    return np.einsum("yxcij,ijco->yxo", windows, weight) + bias


def activated(x: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """PReLU per channel."""
    return np.where(x > 0, x, x * slope.reshape(-1))


def pooled(x: np.ndarray, size: int) -> np.ndarray:
    """Maxima at a stride of 2; windows that begin inside may end outside."""
    height, width = (-(-(side - size) // 2) + 1 for side in x.shape[:2])
    return np.array(
        [[x[2 * y : 2 * y + size, 2 * c : 2 * c + size].max(axis=(0, 1)) for c in range(width)] for y in range(height)]
    )


def face(logits: np.ndarray) -> np.ndarray:
    """Soft-max, second column."""
    grown = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return grown[..., 1] / grown.sum(axis=-1)


def forward(network: str, x: np.ndarray) -> list[np.ndarray]:
    """Face probability, box regression (and landmarks) of one picture [h w 3]."""
    arrays = raw(network)
    pools = {"pnet": [2, 0, 0], "rnet": [3, 3, 0], "onet": [3, 3, 2, 0]}[network]
    for number, pool in enumerate(pools):
        x = activated(convolved(x, *arrays[3 * number : 3 * number + 2]), arrays[3 * number + 2])
        x = pooled(x, pool) if pool else x
    rest = arrays[3 * len(pools) :]
    if network == "pnet":
        return [face(convolved(x, rest[2], rest[3])), convolved(x, rest[0], rest[1])]
    x = activated(x.transpose(1, 0, 2).reshape(-1) @ rest[0] + rest[1], rest[2])  # width, height, channel
    heads = [x @ weight + bias for weight, bias in zip(rest[3::2], rest[4::2], strict=True)]
    return [face(heads[-1]), *heads[:-1]]


def pattern(size: int) -> np.ndarray:
    """A picture that every machine draws alike."""
    y, x, c = np.mgrid[:size, :size, :3]
    return ((x * 7 + y * 13 + c * 29 + x * y) % 256 - 127.5) / 128


@pytest.mark.parametrize(
    ("network", "size"), [("pnet", (12, 12)), ("pnet", (31, 24)), ("rnet", (24, 24)), ("onet", (48, 48))]
)
def test_outputs_equal_a_float64_pass(network: str, size: tuple[int, int]) -> None:
    pictures = RANDOM.uniform(-1, 1, (3, *size, 3))
    pictures[0] = pattern(max(size))[: size[0], : size[1]]
    batch = torch.from_numpy(pictures).float().permute(0, 3, 1, 2)
    found = [output.numpy() for output in getattr(load_networks(), network)(batch)]
    for row, picture in enumerate(pictures):
        for ours, theirs in zip(found, forward(network, picture), strict=True):
            np.testing.assert_allclose(ours[row], theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("network", "size"), [("pnet", 12), ("rnet", 24), ("onet", 48)])
def test_outputs_equal_stored_numbers(network: str, size: int) -> None:
    batch = torch.from_numpy(pattern(size)).float().permute(2, 0, 1)[None]
    found = np.concatenate([output.numpy().reshape(-1) for output in getattr(load_networks(), network)(batch)])
    np.testing.assert_allclose(found, STORED[network], rtol=0, atol=1e-5)


@pytest.mark.parametrize("threshold", [0.0005, 0.002, 0.2])
def test_proposals_are_the_cells_that_pass(threshold: float) -> None:
    """Down to a single cell, which a product of matrices sums in another order than many."""
    net = load_networks().pnet
    pictures = torch.from_numpy(RANDOM.uniform(-1, 1, (3, 40, 52, 3))).float().permute(0, 3, 1, 2)
    faces, offsets = net(pictures)
    single = float(faces.flatten().sort().values[-2:].mean())
    for limit, least in ((threshold, 0), (single, 1), (0.9999, 0)):
        places, scores, boxes = net.propose(pictures, threshold=limit)
        passed = scores > limit
        assert places[passed].tolist() == (faces > limit).nonzero().tolist()
        assert int(passed.sum()) >= least
        index = tuple(places.T)
        np.testing.assert_allclose(scores, faces[index], rtol=0, atol=1e-6)
        np.testing.assert_allclose(boxes, offsets[index], rtol=0, atol=1e-6)
