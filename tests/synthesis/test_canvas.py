"""Masks against areas computed by hand."""

import numpy as np
import pytest

from fer_pipeline.synthesis.canvas import Canvas, Window, ellipse, polygon, smoothstep, stroke

WINDOW = Window(0, 0, 40, 40)


def test_areas() -> None:
    square = np.array([[10.0, 10.0], [30.0, 10.0], [30.0, 25.0], [10.0, 25.0]])
    assert polygon(WINDOW, square).sum() == pytest.approx(300, rel=0.04)
    assert polygon(WINDOW, ellipse(np.array([20.0, 20.0]), 10.0)).sum() == pytest.approx(np.pi * 100, rel=0.04)
    assert stroke(WINDOW, np.array([[5.0, 20.0], [35.0, 20.0]]), 4.0).sum() == pytest.approx(120, rel=0.1)


def test_edges_are_partly_covered() -> None:
    covered = polygon(WINDOW, np.array([[10.5, 5.0], [30.0, 5.0], [30.0, 30.0], [10.5, 30.0]]))
    assert covered[15, 10] == pytest.approx(0.5, abs=0.3)
    assert covered[15, 20] == 1.0
    assert covered[15, 8] == 0.0


def test_blending_moves_towards_the_colour_and_stays_in_the_window() -> None:
    canvas = Canvas(8, 8)
    canvas.blend(Window(2, 2, 4, 4), np.full((2, 2), 0.25, np.float32), np.array([1.0, 0.0, 0.5]))
    np.testing.assert_allclose(canvas.pixels[2, 2], [0.25, 0, 0.125])
    assert canvas.pixels.sum() == pytest.approx(4 * 0.375)


def test_what_lies_outside_is_dropped() -> None:
    canvas = Canvas(8, 8)
    canvas.fill(np.array([[20.0, 20.0], [30.0, 20.0], [30.0, 30.0]]), 1.0)
    assert not canvas.pixels.any()


def test_smoothstep() -> None:
    np.testing.assert_allclose(smoothstep(0.0, 1.0, np.array([-1.0, 0.5, 2.0])), [0, 0.5, 1])
    np.testing.assert_allclose(smoothstep(1.0, 0.0, np.array([-1.0, 0.25, 2.0])), [1, 0.84375, 0])
