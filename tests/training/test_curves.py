"""The loss curve: what is drawn is what was recorded, however little that is."""

import json
import math

import numpy as np
import pytest
from matplotlib.image import imread

from mdlm_jax.config import ConfigError
from mdlm_jax.training import curves
from mdlm_jax.training.curves import loss_curve_png, loss_figure, smoothed


def lines(figure) -> dict:
    """Label -> points of every line that has one."""
    return {str(line.get_label()).partition(",")[0]: line.get_xydata() for line in figure.axes[0].get_lines()}


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_smoothing_is_the_mean_of_the_window():
    values = np.random.default_rng(0).standard_normal(60)
    expected = [values[max(0, i - 3) : i + min(i, 3) + 1].mean() for i in range(60)]
    np.testing.assert_allclose(smoothed(values), expected, rtol=1e-12)


def test_smoothing_keeps_constants_and_the_first_point():
    np.testing.assert_allclose(smoothed(np.full(100, 2.5)), 2.5, rtol=1e-12)
    falling = 10.0 / np.arange(1, 201)
    assert smoothed(falling)[0] == falling[0]
    assert smoothed(np.array([])).shape == (0,) and smoothed(np.array([4.0])).tolist() == [4.0]


def labels(figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def test_points_units_and_errors_are_those_of_the_records():
    """In bits per byte the bound is the recorded one; only the training loss is converted, by its own text."""
    records = [{"step": 10, "loss": 2.0},
               {"step": 20, "loss": 1.0, "eval/loss": 1.5, "eval/loss_error": 0.25, "eval/bits_per_byte": 3.0},
               {"step": 30, "eval/loss": 1.25, "eval/bits_per_byte": 2.5}]
    figure = loss_figure(records, {"bigram": 3.5}, bytes_per_token=2.0)
    (axes,) = figure.axes
    factor = 1 / (2 * math.log(2))
    np.testing.assert_allclose(lines(figure)["training (smoothed)"], [[10, 2 * factor], [20, factor]])
    (bars,) = axes.containers
    np.testing.assert_allclose(bars.lines[0].get_xydata(), [[20, 3.0], [30, 2.5]])
    (segments,) = (collection.get_segments() for collection in bars.lines[2])
    np.testing.assert_allclose(segments[0], [[20, 2.5], [20, 3.5]])
    np.testing.assert_allclose(np.ptp(segments[1], axis=0), 0.0)  # no error recorded, no bar
    assert set(labels(figure)) == {f"training (smoothed), {factor:.3f}", "held out (bound ± standard error), 2.500"}
    assert [3.5, 3.5] in [list(line.get_ydata()) for line in axes.get_lines()]
    assert "bigram 3.50" in [text.get_text() for text in axes.texts]
    assert axes.get_ylabel() == "loss, bits per byte"


def test_in_nats_per_token_nothing_is_converted():
    figure = loss_figure([{"step": 1, "loss": 2.0, "eval/loss": 1.5, "eval/loss_error": 0.25}], {})
    assert set(labels(figure)) == {"training (smoothed), 2.000", "held out (bound ± standard error), 1.500 ± 0.250"}
    assert figure.axes[0].get_ylabel() == "loss, nats per token"


def test_a_training_loss_that_is_no_bound_has_its_own_axis():
    records = [{"step": 10, "loss": 0.02}, {"step": 20, "loss": 0.01, "eval/loss": 1.5, "eval/bits_per_byte": 3.0}]
    left, right = loss_figure(records, {"bigram": 3.5}, bytes_per_token=2.0, own_scale="weighting constant").axes
    assert left.get_ylabel() == "bound, bits per byte"
    assert right.get_ylabel() == "training loss, nats per token\n(weighting constant)"
    assert right.yaxis.get_label_position() == "right"
    np.testing.assert_allclose([line.get_ydata() for line in right.get_lines()], [[0.02, 0.01]] * 2)
    assert all(min(line.get_ydata()) > 2 for line in left.get_lines())
    assert right.get_ylim()[1] < 0.1 and left.get_ylim()[0] > 2.5
    assert "training loss (right axis), no bound, 0.010" in labels(left.figure)


def test_the_final_bound_is_written_and_marked():
    records = [{"step": 10, "loss": 2.0}, {"step": 20, "loss": 1.9}]
    figure = loss_figure(records, {}, final=(1.75, 0.125))
    assert "final bound, 1.750 ± 0.125" in labels(figure)
    assert lines(figure)["final bound"].tolist() == [[20, 1.75]]
    low, high = figure.axes[0].get_ylim()
    assert low < 1.75 < high
    assert labels(loss_figure([], {}, final=(1.75, 0.0))) == ["final bound, 1.750"]


def test_every_line_is_inside_the_picture_and_spikes_are_not():
    records = [{"step": s, "loss": 1e6 if s == 500 else 2.0 + 3 / s} for s in range(1, 1001)]
    records[-1]["eval/loss"] = 1.9
    low, high = loss_figure(records, {"far below": 0.5, "far above": 9.0}).axes[0].get_ylim()
    assert -0.5 < low < 0.5 and 9.0 < high < 10.0
    low, high = loss_figure(records, {}).axes[0].get_ylim()
    assert low < 1.9 and 5.0 < high < 6.0


@pytest.mark.parametrize(
    "records",
    [
        [],
        [{"step": 1, "loss": 3.0}],
        [{"step": 1, "loss": 3.0}, {"step": 2, "loss": "NaN"}, {"step": 3, "loss": "Infinity"}],
        [{"step": 0, "eval/loss": 2.0}],
        [{"step": 5, "eval/loss": 2.0, "eval/loss_error": "NaN"}, {"step": 5, "tokens_per_second": 4.0}],
        [{"step": s, "loss": 2.0} for s in range(40)],
    ],
)
@pytest.mark.parametrize("options", [{}, {"log_x": True}, {"own_scale": "levels $fixed$", "final": (2.0, 0.1)}])
def test_any_run_has_a_picture(records, options, tmp_path):
    write(tmp_path / "metrics.jsonl", records)
    target = tmp_path / "loss.png"
    loss_curve_png(tmp_path, target, {"$x$ <bigram>": 3.5}, bytes_per_token=1.3, title="a $title$", **options)
    pixels = imread(target)
    assert pixels.shape[:2] == (700, 1190) and np.ptp(pixels) > 0.5


def test_a_run_without_losses_says_so():
    texts = [text.get_text() for text in loss_figure([], {}).axes[0].texts]
    assert texts == ["no loss is recorded yet"]


def test_numbers_that_are_not_finite_are_passed_over():
    records = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": math.nan}, {"step": 3, "loss": 2.0}]
    np.testing.assert_allclose(lines(loss_figure(records, {}))["training (smoothed)"], [[1, 3.0], [3, 2.0]])


def test_logarithmic_steps_leave_step_0_out(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(curves, "loss_figure", lambda *arguments: calls.append(arguments) or loss_figure(*arguments))
    path = write(tmp_path / "metrics.jsonl", [{"step": 0, "loss": 9.0}, {"step": 1, "loss": 1.0}])
    loss_curve_png(path, tmp_path / "a.png", log_x=True)
    loss_curve_png(path, tmp_path / "b.png")
    assert [len(records) for records, *_ in calls] == [1, 2]


def test_a_file_of_something_else_is_an_error(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("hello\n")
    with pytest.raises(ConfigError, match="line 1"):
        loss_curve_png(tmp_path, tmp_path / "loss.png")


def test_no_line_goes_through_the_name_of_another():
    """Two references closer than a name is high: behind the lower name nothing is left of the other's line."""
    figure = loss_figure([{"step": 10, "loss": 2.0}, {"step": 20, "loss": 4.0}], {"a": 3.40, "bb": 3.45})
    axes = figure.axes[0]
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3].min(-1)
    box = next(text for text in axes.texts if text.get_text().startswith("a ")).get_window_extent()
    other = axes.transData.transform((0, 3.45))[1]
    assert box.y0 < other < box.y1
    row = pixels[len(pixels) - 1 - round(other)]
    left, right = round(box.x0), round(box.x1)
    widest = max(map(len, "".join("x" if dark else " " for dark in row[left:right] < 200).split()))
    assert widest < 10  # a dash of the line has 10 pixels and more, a letter's stroke fewer
