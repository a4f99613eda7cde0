"""What the pictures of learning rates show: artists, their data, labels and colours."""

import itertools
from xml.etree import ElementTree

import matplotlib
import numpy as np
import optax
import pytest
from PIL import Image

from neuron_optax.plot import panels, plot_frequency, plot_neurons, plot_rates, save

STEPS = [1, 2, 5, 10, 30]
WIDE, NARROW = "Dense_0/kernel", "Dense_1/bias"
PLANTED = [3, 9, 17]
MASKED = optax.MaskedNode()


def recorded(seed=0):
    """Draw rates of two layers within a factor of two, and plant three outliers."""
    generator = np.random.default_rng(seed)
    wide = generator.uniform(0.1, 0.2, (len(STEPS), 1, 4, 10))
    wide.reshape(len(STEPS), -1)[:, PLANTED] *= [1e3, 1e-3, 1e5]
    narrow = generator.uniform(1, 2, (len(STEPS), 7))
    return [
        {"Dense_0": {"kernel": one}, "Dense_1": {"bias": other}, "x": MASKED}
        for one, other in zip(wide, narrow, strict=True)
    ]


HISTORY = recorded()
KERNEL = np.stack([tree["Dense_0"]["kernel"].ravel() for tree in HISTORY])
BIAS = np.stack([tree["Dense_1"]["bias"] for tree in HISTORY])


def test_lines_are_medians_over_the_neurons():
    figure = plot_rates(HISTORY, STEPS)
    for axes, rates in zip(figure.axes, (KERNEL, BIAS), strict=True):
        np.testing.assert_array_equal(axes.lines[0].get_xdata(), STEPS)
        drawn = axes.lines[0].get_ydata()
        np.testing.assert_array_equal(drawn, np.median(rates, axis=1))
        assert not np.allclose(drawn, np.mean(rates, axis=1), rtol=1e-3)


@pytest.mark.parametrize(("band", "low", "high"), [(0, 0.05, 0.95), (1, 0.25, 0.75)])
def test_edges_of_bands_are_quantiles_of_the_neurons(band, low, high):
    axes = plot_rates(HISTORY, STEPS).axes[1]
    (path,) = axes.collections[band].get_paths()
    quantiles = np.quantile(BIAS, [low, high], axis=1)
    corners = np.stack([np.tile(STEPS, 2), quantiles.ravel()], axis=1)
    drawn = np.unique(path.vertices, axis=0)
    np.testing.assert_array_equal(drawn, np.unique(corners, axis=0))
    assert not np.isin(BIAS[0].min(), drawn)


def test_outliers_are_those_planted_in_the_order_of_their_last_rates():
    axes, other = plot_rates(HISTORY, STEPS).axes
    names = [line.get_label() for line in axes.lines[1:]]
    assert names == ["neuron 17", "neuron 3", "neuron 9"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == names
    for line, neuron in zip(axes.lines[1:], (17, 3, 9), strict=True):
        np.testing.assert_array_equal(line.get_ydata(), KERNEL[:, neuron])
    assert len(other.lines) == 1 and other.get_legend() is None


def test_only_the_farthest_outliers_are_drawn_and_the_legend_counts_them():
    axes = plot_rates(HISTORY, STEPS, outliers=1).axes[0]
    assert [line.get_label() for line in axes.lines[1:]] == ["neuron 17"]
    assert axes.get_legend().get_title().get_text() == "1 of 3 outliers"
    assert len(plot_rates(HISTORY, outliers=0).axes[0].lines) == 1


def test_equal_rates_but_for_rounding_have_no_outliers():
    rates = np.full(50, 0.1)
    rates[0] *= 1 + 1e-7
    assert len(plot_rates([rates]).axes[0].lines) == 1
    rates[0] *= 1.02
    assert len(plot_rates([rates]).axes[0].lines) == 2


def test_layers_stand_side_by_side_on_one_logarithmic_scale_with_units():
    figure = plot_rates(HISTORY, STEPS, unit="parameter")
    first, second = figure.axes
    assert first.get_ylabel() == "learning rate [parameter]"
    assert [axes.get_xlabel() for axes in figure.axes] == ["step", "step"]
    assert first.get_title("left") == f"{WIDE}\n40 neurons"
    assert first.get_yscale() == "log" and first.get_ylim() == second.get_ylim()
    assert first.get_position().x1 <= second.get_position().x0
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["5 to 95 % of the neurons", "25 to 75 %", "median"]


def test_layers_are_chosen_by_their_path():
    (axes,) = plot_rates(HISTORY, layers="bias$").axes
    assert axes.get_title("left") == f"{NARROW}\n7 neurons"
    np.testing.assert_array_equal(axes.lines[0].get_xdata(), [1, 2, 3, 4, 5])


def test_a_heat_map_has_a_cell_for_every_neuron_and_step():
    figure = plot_neurons(HISTORY, WIDE, STEPS)
    axes, bar = figure.axes
    (mesh,) = axes.collections
    np.testing.assert_array_equal(mesh.get_array(), KERNEL.T)
    assert not np.array_equal(mesh.get_array(), KERNEL[::-1].T)
    edges = mesh.get_coordinates()[0, :, 0]
    np.testing.assert_array_equal(edges, [0.5, 1.5, 3.5, 7.5, 20, 40])
    assert axes.get_xlabel() == "step" and axes.get_ylabel() == "neuron"
    assert bar.get_ylabel() == "learning rate [parameter / gradient]"


def test_colours_of_a_heat_map_are_logarithmic():
    (mesh,) = plot_neurons([np.array([1.0, 10.0, 100.0])], "").axes[0].collections
    np.testing.assert_allclose(mesh.norm([1.0, 10.0, 100.0]), [0, 0.5, 1], atol=0.01)


def test_a_sorted_heat_map_has_the_largest_last_rate_on_top():
    axes = plot_neurons(HISTORY, WIDE, sort=True).axes[0]
    drawn = axes.collections[0].get_array()
    np.testing.assert_array_equal(drawn[:, -1], np.sort(KERNEL[-1]))
    assert "rank" in axes.get_ylabel() and axes.get_ylim()[0] < axes.get_ylim()[1]
    assert np.any(np.diff(KERNEL[-1]) < 0)


def test_points_are_rates_against_activation_frequency():
    shares = np.random.default_rng(1).uniform(0.01, 1, (1, 4, 10))
    frequency = {"Dense_0": {"kernel": shares}}
    (axes,) = plot_frequency(HISTORY[-1], frequency, unit="parameter").axes
    points = axes.collections[0].get_offsets()
    expected = np.stack([shares.ravel(), KERNEL[-1]], axis=1)
    np.testing.assert_array_equal(points, expected)
    assert not np.array_equal(points, expected[:, ::-1])
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert axes.get_xlabel() == "activation frequency [share of steps]"
    assert axes.get_ylabel() == "learning rate [parameter]"


BARE = np.array([0.1, 0.0, np.nan, np.inf, -1.0, 0.2, 0.3, 0.4])


def test_rates_without_a_logarithm_are_left_out_and_counted():
    figures = [
        (plot_rates([BARE] * 2), "50% not drawn: 0 or not finite"),
        (plot_neurons([BARE] * 2, "", sort=True), "50% hatched: 0 or not finite"),
        (plot_frequency(BARE, np.full(8, 0.5)), "50% not drawn: never active, or"),
    ]
    for figure, said in figures:
        assert said in figure.axes[0].get_title("left")
        figure.draw_without_rendering()
    lines = figures[0][0].axes[0].lines
    np.testing.assert_allclose(lines[0].get_ydata(), 0.25)
    assert figures[1][0].axes[0].collections[0].get_array().mask.sum() == 8
    assert figures[1][0].axes[0].patch.get_hatch()


def test_the_axis_of_frequencies_ends_beyond_1():
    for least in (1.0, 0.01):
        figure = plot_frequency(np.ones(2), np.array([least, 1.0]))
        figure.draw_without_rendering()
        low, high = figure.axes[0].get_xlim()
        assert low < least and 1 < high < 1.5


def test_a_neuron_that_was_never_active_is_left_out():
    (axes,) = plot_frequency(np.ones(4), np.array([0, 0.5, 1, 1])).axes
    assert len(axes.collections[0].get_offsets()) == 3
    assert "25% not drawn: never active" in axes.get_title("left")


SMALL = {
    "scalar": 0.1,
    "one neuron": np.ones((1, 1)),
    "zero": np.zeros(3),
    "equal": np.full(4, 0.1),
    "far apart": np.array([5e-324, 1e-320, 1e308]),
}


@pytest.mark.parametrize("rates", SMALL.values(), ids=SMALL)
def test_what_is_small_can_be_drawn(rates):
    plot_rates([rates]).draw_without_rendering()
    plot_neurons([rates], "").draw_without_rendering()
    plot_frequency(rates, np.ones_like(rates)).draw_without_rendering()


def test_leaves_without_neurons_are_no_layers():
    tree = {"a": np.ones((1, 2)), "none": None, "empty": np.ones((1, 0))}
    assert len(plot_rates([tree]).axes) == len(plot_frequency(tree, tree).axes) == 1
    assert len(plot_rates([tree | {"empty": np.ones((1, 1))}]).axes) == 2


def test_a_single_step_is_marked_and_a_line_is_not():
    assert plot_rates(HISTORY[:1]).axes[0].lines[0].get_marker() == "o"
    assert plot_rates(HISTORY).axes[0].lines[0].get_marker() != "o"


def check_titles():
    """Compare the boxes of titles, of which the last stands in a row of its own."""
    path = "decoder/blocks_11/attention/query_projection/kernel"
    trees = [{path.replace("11", name): BARE for name in "abcde"}]
    figure = plot_rates(trees, layers="decoder")
    figure.draw_without_rendering()
    boxes = [axes._left_title.get_window_extent() for axes in figure.axes]
    assert len(boxes) == 5
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_long_titles_do_not_overlap(monkeypatch):
    check_titles()
    monkeypatch.setattr(panels, "TITLE", 99)
    with pytest.raises(AssertionError, match="any"):
        check_titles()


def test_panels_are_equally_large_and_outliers_are_named_below():
    figure = plot_rates(HISTORY, STEPS)
    figure.draw_without_rendering()
    boxes = [axes.get_window_extent() for axes in figure.axes]
    np.testing.assert_allclose(boxes[0].size, boxes[1].size, rtol=1e-3)
    legend = figure.axes[0].get_legend().get_window_extent()
    assert boxes[0].x0 < legend.x0 and legend.x1 < boxes[0].x1
    label = figure.axes[0].xaxis.label.get_window_extent()
    assert legend.y1 <= label.y0 < boxes[0].y0


def test_files_are_pictures_and_the_same_when_drawn_again(tmp_path):
    names = "a.png", "a.svg", "b.png", "b.svg"
    png, svg, png_again, svg_again = (tmp_path / name for name in names)
    save(plot_neurons(HISTORY, WIDE, STEPS), png, svg)
    save(plot_neurons(HISTORY, WIDE, STEPS), png_again, svg_again)
    with Image.open(png) as picture:
        assert picture.format == "PNG" and picture.size == (1300, 800)
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 20
    assert ElementTree.parse(svg).getroot().tag.endswith("}svg")
    assert png.read_bytes() == png_again.read_bytes()
    assert svg.read_bytes() == svg_again.read_bytes()
    save(plot_neurons(recorded(seed=1), WIDE, STEPS), svg_again)
    assert svg.read_bytes() != svg_again.read_bytes()


def test_drawing_leaves_no_trace_in_matplotlib(tmp_path):
    before = dict(matplotlib.rcParams)
    save(plot_rates(HISTORY, STEPS), tmp_path / "rates.svg")
    assert dict(matplotlib.rcParams) == before


def test_what_cannot_be_drawn_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a step at least"):
        plot_rates([])
    with pytest.raises(TypeError, match="one tree"):
        plot_rates(HISTORY[0])
    with pytest.raises(ValueError, match=r"5 finite numbers that .* got \[1, 2"):
        plot_rates(HISTORY, [1, 2])
    for steps in ([1, 2, 2, 3, 4], [1, 2, 3, 4, np.inf], [np.nan, 2, 3, 4, 5]):
        with pytest.raises(ValueError, match="increase"):
            plot_rates(HISTORY, steps)
    with pytest.raises(ValueError, match=r"regular expression, got '\('"):
        plot_rates(HISTORY, layers="(")
    many = {f"w{n}": np.ones(1) for n in range(panels.MOST + 1)}
    for draw in (lambda: plot_rates([many]), lambda: plot_frequency(many, many)):
        with pytest.raises(ValueError, match=r"41 layers .* choose some by layers="):
            draw()
    for draw in (lambda: plot_rates([{}]), lambda: plot_neurons([{}], "w")):
        with pytest.raises(ValueError, match="history must have leaves with neurons"):
            draw()
    with pytest.raises(ValueError, match="frequency must have leaves"):
        plot_frequency(many, {})
    with pytest.raises(ValueError, match=r"history\[1\].*'Dense_0/kernel': \(40,\)"):
        plot_rates([HISTORY[0], {"Dense_0": {"kernel": np.ones(3)}}])
    with pytest.raises(ValueError, match="outliers must be at least 0, got -1"):
        plot_rates(HISTORY, outliers=-1)
    with pytest.raises(ValueError, match=r"\['Dense_0/kernel', .* got 'conv'"):
        plot_rates(HISTORY, layers="conv")
    with pytest.raises(ValueError, match="got 'Dense_0'"):
        plot_neurons(HISTORY, "Dense_0")
    with pytest.raises(ValueError, match=r"'rates\.pdf'"):
        save(plot_rates(HISTORY), "rates.pdf")


def test_a_frequency_that_is_none_is_refused():
    rates = {"a": np.ones((1, 2))}
    with pytest.raises(ValueError, match="b: frequency must have rates"):
        plot_frequency(rates, {"b": np.ones((1, 2))})
    with pytest.raises(ValueError, match=r"a: .*shape \(1, 2\) of its rates, got \(2,"):
        plot_frequency(rates, {"a": np.ones(2)})
    with pytest.raises(ValueError, match=r"a: .*\[0, 1\], got 0.5 to 1.5"):
        plot_frequency(rates, {"a": np.array([[0.5, 1.5]])})
