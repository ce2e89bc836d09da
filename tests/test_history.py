"""The history of a training: as a CSV file and as a picture."""

import sys

import pytest
from fastrnn.training.history import History
from fastrnn.util import storage


@pytest.fixture
def history():
    return History(
        steps=3,
        train_bits=[5.5, 1 / 3, 4.0],
        lr=[0.1, 0.05, 0.0],
        grad_norm=[1.0, 1e-20, 2.5],
        held_out=[(0, 6.0), (2, 4.25), (3, 4.5)],
        held_out_bits=4.25,
        best_step=2,
    )


def test_csv_has_a_line_a_step(history, tmp_path):
    history.to_csv(tmp_path / "history.csv")
    assert (tmp_path / "history.csv").read_text() == (
        "step,train_bits,lr,grad_norm,held_out_bits\n"
        "1,5.5,0.1,1.0,\n"
        "2,0.3333333333333333,0.05,1e-20,4.25\n"
        "3,4.0,0.0,2.5,4.5\n"
    )


def test_csv_of_no_steps_is_its_head(tmp_path):
    History().to_csv(tmp_path / "history.csv")
    assert (tmp_path / "history.csv").read_text() == "step,train_bits,lr,grad_norm,held_out_bits\n"


@pytest.mark.parametrize("suffix", ["csv", "svg"])
def test_failure_leaves_the_old_file(history, tmp_path, monkeypatch, suffix):
    if suffix == "svg":
        pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    path = tmp_path / f"history.{suffix}"
    path.write_text("old")
    monkeypatch.setattr(storage.os, "replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        history.to_csv(path) if suffix == "csv" else history.plot(path)
    assert path.read_text() == "old"


@pytest.mark.parametrize(
    ("name", "start"), [("a.png", b"\x89PNG"), ("a.pdf", b"%PDF"), ("a.svg", b"<?xml"), ("plain", b"\x89PNG")]
)
def test_picture_has_the_format_of_its_suffix(history, tmp_path, name, start):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    history.plot(tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(start)


def test_picture_shows_what_happened(history, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    bits, lr, norm = history.plot(tmp_path / "a.png").axes
    train, held_out, best = bits.lines
    assert list(train.get_xdata()) == [1, 2, 3]
    assert list(train.get_ydata()) == history.train_bits
    assert list(held_out.get_xdata()) == [0, 2, 3]
    assert list(held_out.get_ydata()) == [6.0, 4.25, 4.5]
    assert list(best.get_xdata()) == [2, 2]
    assert list(lr.lines[0].get_ydata()) == history.lr
    assert list(norm.lines[0].get_ydata()) == history.grad_norm


def test_figure_without_a_path_is_one_of_pyplot(history):
    matplotlib = pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure = history.plot()
    assert pyplot.gcf() is figure
    pyplot.close(figure)


def test_history_of_no_steps_can_be_drawn(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    History().plot(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 0


def test_unknown_format_is_refused(history, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    with pytest.raises(ValueError, match="'wav' is not supported"):
        history.plot(tmp_path / "a.wav")
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_the_error_says_what_to_install(history, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match="a plot needs matplotlib: pip install matplotlib"):
        history.plot(tmp_path / "a.png")
