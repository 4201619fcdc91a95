"""Transitions counted by hand."""

import numpy as np
import pytest
from matplotlib.image import imread

from mdlm_jax.evaluation import evolution as ev
from mdlm_jax.sampling.trace_view import EDITED, NEW, REMASKED

M = 9
FRAMES = np.array([
    [[M, M, 1, 2]],
    [[3, M, M, 2]],  # new, still masked, re-masked, kept
    [[4, 5, 6, 2]],  # edited, new, new, kept
])


def test_transitions_are_counted_a_step_and_a_token():
    found = ev.evolution(FRAMES, M)
    assert found.shares(NEW).tolist() == [0.25, 0.5] and found.per_token(NEW) == 0.75
    assert found.shares(EDITED).tolist() == [0.0, 0.25]
    assert found.shares(REMASKED).tolist() == [0.25, 0.0]
    assert found.masked().tolist() == [0.5, 0.5, 0.0]
    assert "| one | 2 | 0.750 | 0.250 | 0.250 |" in ev.table({"one": found})


def test_every_mask_that_ends_as_a_token_was_filled_once_more_than_it_was_emptied():
    frames = np.random.default_rng(0).integers(0, M + 1, (6, 7, 8))
    frames[-1] = np.minimum(frames[-1], M - 1)
    found = ev.evolution(frames, M)
    assert found.per_token(NEW) - found.per_token(REMASKED) == pytest.approx(found.initial.mean())


def test_the_figure_has_the_three_colours(tmp_path):
    ev.draw({"a": ev.evolution(FRAMES, M), "b": ev.evolution(FRAMES[:2], M)}, tmp_path / "e.png")
    pixels = np.unique((imread(tmp_path / "e.png")[..., :3] * 255).round().astype(int).reshape(-1, 3), axis=0).tolist()
    for kind in ev.TRANSITIONS:
        colour = ev.COLOURS[kind][0]
        assert [int(colour[i : i + 2], 16) for i in (1, 3, 5)] in pixels


def test_one_frame_is_no_evolution():
    with pytest.raises(ValueError, match=r"frames: have shape \[1, 1, 4\]"):
        ev.evolution(FRAMES[:1], M)
