import json
import os

import numpy as np
import pytest

from keras_passport import plots
from support.processes import run_in_fresh_process

RESULT = {
    "original_accuracy": 87.3,
    "valid_accuracy": 86.9,
    "fake_accuracies": [9.0, 10.2, 10.4, 11.9],
}
HISTORY = {
    "original": {"accuracy": [40.0, 60.0], "val_accuracy": [38.0, 55.0]},
    "protected": {"accuracy": [39.0, 58.0], "val_accuracy": [37.0, 54.0]},
    "layer": {
        "name": "conv2",
        "weight_change": [0.01, 0.005],
        "gamma": [0.2, 0.3],
        "beta": [0.1, 0.2],
    },
}


CURVES = {
    "x_label": "Part of the training set (%)",
    "log": True,
    "curves": {
        "RevA": {"x": [1, 10, 100], "accuracies": [12.0, [30.0, 34.0], 60.0]},
        "From scratch": {"x": [10], "accuracies": [40.0]},
    },
    "valid_accuracy": 86.9,
    "chance": 10.0,
}
PANELS = {"panels": [RESULT, {**RESULT, "attack": "RevA", "title": "V3"}]}


def without(mapping, *keys):
    return {key: mapping[key] for key in mapping if key not in keys}


def pixels(path):
    from matplotlib import image

    return image.imread(path)[..., :3]


def has_color(path, color):
    """Whether a picture has at least 50 pixels of this colour."""
    from matplotlib import colors

    distance = np.abs(pixels(path) - colors.to_rgb(color)).max(-1)
    return (distance < 0.02).sum() > 50


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were drawn, and not written, to see what they hold."""
    figures = []
    monkeypatch.setattr(
        plots, "_write", lambda figure, path: figures.append(figure)
    )
    return figures


@pytest.fixture
def written(monkeypatch):
    """The figures that were drawn and written."""
    figures = []
    write = plots._write
    monkeypatch.setattr(
        plots,
        "_write",
        lambda figure, path: (figures.append(figure), write(figure, path)),
    )
    return figures


class TestPlotFakes:
    def test_figure_6(self, tmp_path, written):
        path = tmp_path / "fakes.png"
        plots.plot_fakes({**RESULT, "title": "V3, T3"}, path)
        (figure,) = written
        (axes,) = figure.axes
        assert axes.get_xlim() == (0, 100)
        heights = [bar.get_height() for bar in axes.patches]
        assert sum(heights) == 4
        assert heights[10] == 2  # 10.2 and 10.4
        lines = sorted(line.get_xdata()[0] for line in axes.lines)
        assert lines == [86.9, 87.3]
        (legend,) = figure.legends
        words = " | ".join(text.get_text() for text in legend.get_texts())
        assert "Original: 87.3 %" in words
        assert "Valid passport: 86.9 %" in words
        assert "4 fakes: 10.4 ± 1.2 %, max 11.9 %" in words
        assert axes.get_title() == "V3, T3"
        assert pixels(path).shape[1] > 1000
        assert has_color(path, plots._ORIGINAL)

    def test_nothing_is_cut_off(self, tmp_path):
        result = {
            "original_accuracy": 100.0,
            "valid_accuracy": np.linspace(98, 100, 5),
            "fake_accuracies": np.linspace(0, 100, 12345),
            "title": "A title",
        }
        plots.plot_fakes(result, tmp_path / "fakes.png")
        picture = pixels(tmp_path / "fakes.png")
        for edge in (picture[:, :2], picture[:, -2:], picture[:2]):
            assert edge.min() == 1.0

    @pytest.mark.parametrize("count, lines", [(1, 2), (10, 11), (11, 1)])
    def test_many_valid_accuracies_become_a_histogram(
        self, tmp_path, drawn, count, lines
    ):
        result = {**RESULT, "valid_accuracy": np.linspace(84, 88, count)}
        plots.plot_fakes(result, tmp_path / "fakes.png")
        axes = drawn[0].axes[0]
        assert len(axes.lines) == lines
        assert len(axes.patches) == (200 if lines == 1 else 100)

    @pytest.mark.parametrize("accuracy", [0.0, 50.0, 100.0])
    def test_every_accuracy_falls_into_a_bin(self, tmp_path, drawn, accuracy):
        result = {**RESULT, "fake_accuracies": [accuracy]}
        plots.plot_fakes(result, tmp_path / "fakes.png")
        bars = drawn[0].axes[0].patches
        assert sum(bar.get_height() for bar in bars) == 1

    def test_result_json_serves(self, tmp_path):
        result = json.loads(json.dumps({**RESULT, "config": {"depth": 20}}))
        plots.plot_fakes(result, str(tmp_path / "fakes.png"))

    def test_what_is_not_finite_is_named_and_why(self, tmp_path):
        for value, number in (([1.0, np.nan], 1), ([np.inf], 0), ([None], 0)):
            result = {"valid_accuracy": 90.0, "fake_accuracies": value}
            with pytest.raises(
                ValueError,
                match=f"'fake_accuracies'.*as number {number} .*diverged",
            ):
                plots.plot_fakes(result, tmp_path / "fakes.png")

    @pytest.mark.parametrize("key", list(RESULT))
    @pytest.mark.parametrize(
        "bad", [None, "high", [], [[1.0], [2.0]], float("nan"), 101, -1]
    )
    def test_what_is_no_accuracy_is_refused(self, tmp_path, key, bad):
        path = tmp_path / "fakes.png"
        with pytest.raises(ValueError, match=rf"Expected '{key}'.*Received"):
            plots.plot_fakes({**RESULT, key: bad}, path)
        if key != "original_accuracy":
            with pytest.raises(ValueError, match=f"Expected '{key}'.*Received"):
                plots.plot_fakes(without(RESULT, key), path)
        assert not list(tmp_path.iterdir())

    def test_where_there_is_no_original(self, tmp_path, written):
        path = tmp_path / "fakes.png"
        plots.plot_fakes(without(RESULT, "original_accuracy"), path)
        assert len(written[0].axes[0].lines) == 1
        assert not has_color(path, plots._ORIGINAL)


class TestPlotTraining:
    def test_figure_3(self, tmp_path, written):
        plots.plot_training(HISTORY, tmp_path / "training.png")
        (figure,) = written
        titles = [axes.get_title() for axes in figure.axes]
        assert titles == [
            "Accuracy (%)",
            "Mean |ΔW| per epoch",
            "Mean |γ|",
            "Mean |β|",
        ]
        accuracy, change, gamma, beta = figure.axes
        labels = [line.get_label() for line in accuracy.lines]
        assert labels == [
            "Original, training",
            "Original, test",
            "Protected, training",
            "Protected, test",
        ]
        np.testing.assert_array_equal(gamma.lines[0].get_xdata(), [1, 2])
        np.testing.assert_array_equal(gamma.lines[0].get_ydata(), [0.2, 0.3])
        np.testing.assert_array_equal(beta.lines[0].get_ydata(), [0.1, 0.2])
        assert "conv2" in figure.get_suptitle()
        assert has_color(tmp_path / "training.png", plots._VALID)

    @pytest.mark.parametrize(
        "history, panels, curves",
        [
            (without(HISTORY, "original"), 4, 2),
            (without(HISTORY, "layer"), 1, 4),
            ({**HISTORY, "layer": None, "original": None}, 1, 2),
            ({**HISTORY, "layer": {"name": "c", "beta": [0.0, 0.0]}}, 2, 4),
            ({"protected": {"accuracy": [50.0]}}, 1, 1),
            ({"protected": {"accuracy": [1.0], "val_accuracy": None}}, 1, 1),
            ({**HISTORY, "original": {"accuracy": [1.0] * 7}}, 4, 3),
        ],
    )
    def test_what_was_not_measured_is_left_out(
        self, tmp_path, drawn, history, panels, curves
    ):
        plots.plot_training(history, tmp_path / "training.png")
        assert len(drawn[0].axes) == panels
        assert len(drawn[0].axes[0].lines) == curves

    @pytest.mark.parametrize(
        "history, name",
        [
            ({}, "protected"),
            ({"protected": [1.0, 2.0]}, "protected"),
            ({"protected": {}}, r"protected\.accuracy"),
            ({**HISTORY, "original": {}}, r"original\.accuracy"),
            (
                {"protected": {"accuracy": [1.0], "val_accuracy": []}},
                r"protected\.val_accuracy",
            ),
            ({**HISTORY, "layer": {"gamma": ["big"]}}, r"layer\.gamma"),
            ({**HISTORY, "layer": {"beta": [np.inf]}}, r"layer\.beta"),
        ],
    )
    def test_bad_histories_are_refused(self, tmp_path, history, name):
        with pytest.raises(ValueError, match=rf"Expected '{name}'.*Received"):
            plots.plot_training(history, tmp_path / "training.png")
        assert not list(tmp_path.iterdir())


class TestPlotHistograms:
    @pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7])
    def test_a_panel_each(self, tmp_path, drawn, count):
        panels = [{**RESULT, "title": f"V{i}"} for i in range(count)]
        plots.plot_histograms({"panels": panels}, tmp_path / "figure.png")
        shown = [axes for axes in drawn[0].axes if axes.get_visible()]
        assert [axes.get_title() for axes in shown] == [
            panel["title"] for panel in panels
        ]

    def test_figure_7(self, tmp_path, drawn):
        """What an attack reaches is seen where the valid passport is."""
        valid = [86.1, 86.4, 86.9, 87.2, 87.4]
        panel = {
            **RESULT,
            "valid_accuracy": valid,
            "fake_accuracies": valid,
            "attack": "RevA",
        }
        plots.plot_histograms({"panels": [panel]}, tmp_path / "figure.png")
        (axes,) = drawn[0].axes
        words = [text.get_text() for text in axes.get_legend().get_texts()]
        assert words[2] == "5 RevA: 86.8 ± 0.5 %, max 87.4 %"
        lines = max(line.get_zorder() for line in axes.lines)
        assert lines < axes.patches[0].get_zorder()

    @pytest.mark.parametrize("bad", [None, [], "V1", 3])
    def test_no_panels(self, tmp_path, bad):
        with pytest.raises(ValueError, match="Expected 'panels'.*Received"):
            plots.plot_histograms({"panels": bad}, tmp_path / "figure.png")


class TestPlotCurves:
    def test_figure_8(self, tmp_path, drawn):
        plots.plot_curves(CURVES, tmp_path / "figure.png")
        (axes,) = drawn[0].axes
        lines = {line.get_label(): line for line in axes.lines}
        assert list(lines["RevA"].get_ydata()) == [12.0, 32.0, 60.0]
        assert lines["From scratch"].get_linestyle() == "--"
        assert lines["Valid passport: 86.9 %"].get_ydata()[0] == 86.9
        assert "Chance: 10.0 %" in lines
        assert axes.get_xscale() == "log"
        assert axes.get_ylim() == (0, 100)

    def test_no_logarithm_of_0(self, tmp_path):
        curves = {"RevA": {"x": [0, 1], "accuracies": [1.0, 2.0]}}
        with pytest.raises(ValueError, match="x above 0.*Received: 0"):
            plots.plot_curves({**CURVES, "curves": curves}, tmp_path / "a.png")

    def test_figure_5(self, tmp_path, drawn):
        noise = {"x": [0, 50, 100], "accuracies": [[90.0] * 2, [30, 40], 10]}
        plots.plot_curves({"curves": {"noise": noise}}, tmp_path / "figure.png")
        (axes,) = drawn[0].axes
        assert axes.get_xscale() == "linear"
        # The means, and the trials of two places.
        assert len(axes.lines) == 3

    @pytest.mark.parametrize(
        "curves, name",
        [
            (None, "curves"),
            ({}, "curves"),
            ({"RevA": [1.0]}, "RevA"),
            ({"RevA": {"x": [1], "accuracies": 5.0}}, "accuracies"),
            ({"RevA": {"x": [1, 2], "accuracies": [5.0]}}, "RevA"),
            ({"RevA": {"x": [1], "accuracies": [[]]}}, r"RevA\.accuracies"),
            ({"RevA": {"x": ["a"], "accuracies": [1.0]}}, r"RevA\.x"),
            ({"RevA": {"x": [1], "accuracies": [101]}}, r"RevA\.accuracies"),
        ],
    )
    def test_bad_curves_are_refused(self, tmp_path, curves, name):
        with pytest.raises(ValueError, match=rf"Expected '{name}'.*Received"):
            plots.plot_curves({"curves": curves}, tmp_path / "figure.png")
        assert not list(tmp_path.iterdir())


PLOTS = [
    (plots.plot_fakes, RESULT),
    (plots.plot_training, HISTORY),
    (plots.plot_histograms, PANELS),
    (plots.plot_curves, CURVES),
]


# Each plot, and each format: one function writes them all.
@pytest.mark.parametrize(
    "plotted, name, start",
    [
        (PLOTS[0], "figure.svg", b"<?xml"),
        (PLOTS[1], "figure.png", b"\x89PNG"),
        (PLOTS[2], "figure.pdf", b"%PDF"),
        (PLOTS[3], "figure.PNG", b"\x89PNG"),
    ],
)
def test_the_suffix_chooses_the_format(tmp_path, plotted, name, start):
    plot, numbers = plotted
    plot(numbers, tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(start)
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_pyplot_stays_out_of_it(tmp_path):
    drawn = "".join(
        f"plots.{plot.__name__}({numbers!r}, "
        f"{str(tmp_path / f'{plot.__name__}.png')!r})\n"
        for plot, numbers in PLOTS
    )
    run_in_fresh_process(
        "import sys\n"
        "from keras_passport import plots\n"
        'assert "matplotlib" not in sys.modules\n'
        f"{drawn}"
        'assert "matplotlib.pyplot" not in sys.modules\n'
    )
    assert len(list(tmp_path.iterdir())) == len(PLOTS)


@pytest.mark.parametrize("plot, numbers", PLOTS)
class TestFiles:
    @pytest.mark.parametrize("name", ["figure", "figure.txt", "figure.h5"])
    def test_other_suffixes_are_refused(self, tmp_path, plot, numbers, name):
        with pytest.raises(ValueError, match=r"\.png.*Received: path="):
            plot(numbers, tmp_path / name)

    def test_a_folder_that_is_missing_is_named(self, tmp_path, plot, numbers):
        with pytest.raises(FileNotFoundError, match="folder.*run_7"):
            plot(numbers, tmp_path / "run_7" / "figure.png")
        assert not list(tmp_path.iterdir())

    def test_an_existing_picture_is_replaced_or_left(
        self, tmp_path, plot, numbers, monkeypatch
    ):
        """Whole in both cases, also where a write was interrupted."""
        path = tmp_path / "figure.png"
        path.write_bytes(b"the old picture")

        def fail(*_):
            raise OSError("disk full")

        with monkeypatch.context() as broken:
            broken.setattr(os, "replace", fail)
            with pytest.raises(OSError, match="disk full"):
                plot(numbers, path)
        assert path.read_bytes() == b"the old picture"
        assert list(tmp_path.iterdir()) == [path]
        plot(numbers, path)
        assert path.read_bytes().startswith(b"\x89PNG")


WILD = "a $\\frac{$ of 5 $"


@pytest.mark.parametrize(
    "plot, numbers",
    [
        (plots.plot_fakes, {**RESULT, "title": WILD}),
        (plots.plot_training, {**HISTORY, "layer": {"name": WILD, "gamma": 1}}),
        (plots.plot_histograms, {**PANELS, "title": WILD}),
        (plots.plot_curves, {**CURVES, "title": WILD}),
        (plots.plot_curves, {**CURVES, "x_label": WILD}),
        (plots.plot_curves, {"curves": {WILD: {"x": 1, "accuracies": [2.0]}}}),
    ],
)
def test_dollars_are_no_formulas(tmp_path, plot, numbers):
    """Names of layers and networks are whoever's."""
    plot(numbers, tmp_path / "figure.svg")
    # Beside letters' outlines, the file has each text as a comment.
    assert WILD in (tmp_path / "figure.svg").read_text()
