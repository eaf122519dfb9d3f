"""The pictures: what they say about themselves, and that they show the numbers."""

from __future__ import annotations

import dataclasses
import re
import xml.etree.ElementTree as ElementTree

import matplotlib as mpl
import numpy as np
import pytest
from studies import make_study

from onnx_attnq.errors import CannotWrite
from onnx_attnq.report import plots
from onnx_attnq.report.html_report import pictures
from onnx_attnq.report.picture_style import save_figure, to_bytes
from onnx_attnq.scheme import numerics, preset
from onnx_attnq.study import head_metrics as metrics
from onnx_attnq.study import scheme_label
from onnx_attnq.study.probability_statistics import measure

STUDY = make_study(schemes=(preset(), preset(bits=2), preset("prune-only")))
PICTURES = {picture.name: picture for picture in pictures(STUDY)}


def texts(svg: bytes) -> str:
    root = ElementTree.fromstring(svg)
    return " ".join("".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text"))


@pytest.mark.parametrize("name", PICTURES)
def test_every_picture_says_what_it_shows_and_where_it_comes_from(name):
    figure = PICTURES[name].draw()
    assert figure.get_suptitle()
    source = figure.get_supxlabel().replace("\n", " ")
    if name == "transfer":
        assert "by definition, no data" in source
    else:
        assert "tiny.onnx · random 0, 2 samples, 8 tokens" in source
    assert "scheme: " in source
    panels = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
    assert any(axes.get_xlabel() for axes in panels)
    assert all(axes.get_ylabel() for axes in panels)
    shown = texts(to_bytes(figure, "svg"))
    assert not set("$\\") & set(shown.replace("$c", ""))  # formulas are not typeset; $c is a token
    assert figure.get_suptitle().split("\n")[0] in shown


@pytest.mark.parametrize("name", ["transfer", "context-error", "diversity", "sparsity-relative"])
def test_no_text_leaves_its_picture(name):
    figure = PICTURES[name].draw()
    figure.draw_without_rendering()
    page = figure.bbox.padded(2)
    for text in (item for axes in figure.axes for item in (axes.xaxis.label, axes.yaxis.label, axes.title)):
        place = text.get_window_extent()
        assert page.x0 <= place.x0 <= place.x1 <= page.x1, text.get_text()
        assert page.y0 <= place.y0 <= place.y1 <= page.y1, text.get_text()


def test_the_pictures_that_the_study_is_for_are_all_there():
    wanted = {"sparsity", "majority-50", "transfer", "divergence", "context-error", "safe-1", "entropy", "diversity"}
    wanted |= {"to-first", "to-separator", "layer-0", "layer-1-relative"}
    wanted |= {f"example-{which}-{kind}" for which in ("most", "least") for kind in ("probabilities", "log", "codes")}
    assert wanted <= set(PICTURES)


def test_lines_and_cells_hold_the_numbers():
    above, below = plots.distribution(STUDY, 1).axes[:2]
    for head, line in enumerate(below.lines):
        np.testing.assert_array_equal(line.get_ydata(), STUDY.sites[1].share_below()[head])
    assert sum(line.get_ydata().sum() for line in above.lines) == pytest.approx(3.0)
    image = plots.heatmap(STUDY, metrics.ENTROPY).axes[0].images[0].get_array()
    np.testing.assert_array_equal(image, [site.mean_entropy for site in STUDY.sites])
    image = plots.scheme_heatmap(STUDY, metrics.PRUNED, preset()).axes[0].images[0].get_array()
    np.testing.assert_array_equal(image, [site.of(preset()).pruned_share for site in STUDY.sites])


def test_the_transfer_curve_is_that_of_the_numerics():
    scheme = preset("ji2021")
    line = next(line for line in plots.transfer([scheme]).axes[0].lines if scheme_label(scheme) in line.get_label())
    x, y = line.get_xdata(), np.nan_to_num(line.get_ydata())
    np.testing.assert_array_equal(y, numerics.values(x, scheme))


def test_safe_heads_are_those_within_the_limit():
    errors = np.array([site.of(preset()).mean_context_error for site in STUDY.sites])
    limit = float(np.median(errors))
    figure = plots.safe_heads(STUDY, preset(), limit)
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), (errors <= limit).astype(float))
    assert f"{(errors <= limit).sum()} of 6" in figure.get_suptitle()


def test_the_codes_are_those_of_the_numerics():
    scheme = preset()
    p = STUDY.example.maps["layer.0"][1]
    image = plots.code_map(STUDY, 0, 1, scheme).axes[0].images[0].get_array()
    np.testing.assert_array_equal(image, numerics.codes(p / p.max(axis=-1, keepdims=True), scheme))


def test_tokens_are_labels_and_never_formulas():
    shown = texts(to_bytes(plots.attention_map(STUDY, 0, 0), "svg"))
    assert "<b>" in shown
    assert "$c" in shown


def test_equal_figures_give_equal_files_in_both_formats(tmp_path):
    for form, start in (("svg", b"<?xml"), ("png", b"\x89PNG")):
        for name in ("a", "b"):
            save_figure(plots.sparsity(STUDY), tmp_path / f"{name}.{form}")
        content = (tmp_path / f"a.{form}").read_bytes()
        assert content.startswith(start)
        assert content == (tmp_path / f"b.{form}").read_bytes()


def test_shorter_coordinates_do_not_touch_the_text():
    svg = to_bytes(plots.transfer([preset("ji2021", threshold=0.00123)]), "svg")
    assert "t=0.00123" in texts(svg)
    assert not re.search(rb' d="[^"]*\d\.\d{3}', svg)


def test_another_ending_is_refused(tmp_path):
    with pytest.raises(CannotWrite, match=r"\.svg or \.png"):
        save_figure(plots.diversity(STUDY), tmp_path / "a.jpg")
    assert list(tmp_path.iterdir()) == []


def test_the_users_own_style_is_neither_used_nor_changed():
    plain = to_bytes(plots.diversity(STUDY), "svg")
    with mpl.rc_context({"font.size": 30.0, "lines.linewidth": 9.0}):
        assert to_bytes(plots.diversity(STUDY), "svg") == plain
        assert mpl.rcParams["font.size"] == 30.0


def test_a_study_without_an_example_has_no_maps():
    bare = dataclasses.replace(STUDY, example=None)
    assert not any(picture.name.startswith("example") for picture in pictures(bare))
    with pytest.raises(ValueError, match="no example"):
        plots.attention_map(bare, 0, 0)


@pytest.mark.slow
def test_layers_with_other_numbers_of_heads_and_without_context_are_drawn():
    rng = np.random.default_rng(0)
    schemes = (preset(), preset(bits=2))
    sites = [
        measure(f"s{heads}", numerics.softmax(rng.normal(size=(1, heads, 3, 5))), True, schemes) for heads in (1, 20)
    ]
    study = dataclasses.replace(STUDY, sites=tuple(sites), example=None)
    drawn = {picture.name: to_bytes(picture.draw(), "svg") for picture in pictures(study)}
    assert "entropy" in drawn
    assert "context-error" not in drawn
    grid = plots.heatmap(study, metrics.ENTROPY).axes[0].images[0].get_array()
    assert grid.shape == (2, 20)
    assert np.ma.filled(grid, np.nan)[0, 1:].size == np.isnan(np.ma.filled(grid, np.nan)[0, 1:]).sum()


def test_the_colours_of_heat_maps_rise_in_lightness():
    red, green, blue, _ = mpl.colormaps[plots.SEQUENTIAL](np.linspace(0.0, 1.0, 64)).T
    lightness = 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2
    assert (np.diff(lightness) > 0.0).all()
