"""python -m cyconv demo: what it prints and draws, and which files it refuses."""

import re
import subprocess
import sys
from types import ModuleType

import numpy as np
import pytest

from cyconv import _demo
from cyconv.__main__ import main

IMAGES = np.random.default_rng(0).random((40, 6, 5))
LABELS = np.arange(40) % 4 - 1


@pytest.fixture(scope="module")
def report():
    """What the demonstration prints, as a user runs it."""
    command = [sys.executable, "-m", "cyconv", "demo"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_held_out_accuracy_has_a_margin_over_98_percent(report):
    assert float(re.search(r"held-out accuracy +([\d.]+)% after", report)[1]) >= 98.8


def test_report_names_source_licence_and_speed(report):
    assert "UCI Machine Learning Repository" in report
    assert "CC BY 4.0" in report
    assert len(re.findall(r"(?:training|inference) +[\d,]+ images/s", report)) == 2


def test_report_shows_filters_edges_and_kernel(report):
    filters = report.partition("first layer, dark to bright:\n\n")[2].partition("The edges")[0]
    assert len(filters.split("\n\n")[0].splitlines()) == 3
    assert filters.count("@@") >= 16
    assert report.count("1 1 0 0 0 0 1 1   ->   0  1  0  0  0 -1  0") == 6
    kernel = re.search(r"->  \[(.*), (.*)\]", report).groups()
    np.testing.assert_allclose(np.array(kernel, float), [1, -1], rtol=0, atol=0.05)


def test_digits_are_those_of_uci():
    images, labels, classes = _demo.load_data(_demo.DIGITS)
    assert images.shape == (1797, 1, 8, 8)
    assert (images.min(), images.max(), images.dtype, classes) == (0, 1, np.float32, 10)
    np.testing.assert_array_equal(np.bincount(labels), [178, 182, 177, 183, 181, 182, 181, 179, 174, 180])
    assert (16 * images.sum(dtype=np.float64)) == 561718
    assert _demo.DIGITS.stat().st_size < 100_000
    assert "CC BY 4.0" in _demo.DIGITS.with_name("README.md").read_text(encoding="utf-8")


def test_own_data(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", images=np.stack([255 * IMAGES] * 3, axis=1).astype(np.uint8), labels=LABELS)
    assert main(["demo", "--data", str(tmp_path / "a.npz"), "--epochs", "2"]) == 0
    printed = capsys.readouterr().out
    assert "40 images (3, 6, 5), 4 classes" in printed
    assert "after 2 epochs" in printed
    assert "UCI" not in printed


def test_same_seed_gives_the_same_result():
    results = []
    for _ in range(2):
        rng = np.random.default_rng(0)
        net = _demo.network(4, rng)
        images, labels, _ = IMAGES.astype(np.float32)[:, None], LABELS + 1, None
        history, _ = _demo.train(net, images, labels, np.arange(8), 2, rng)
        results.append((history, [p.tobytes() for p in net.parameters().values()]))
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": IMAGES, "labels": LABELS}, "lacks ['images']"),
        ({}, "lacks ['images', 'labels']"),
        ({"images": IMAGES[0], "labels": LABELS}, "(6, 5)"),
        ({"images": IMAGES.astype(complex), "labels": LABELS}, "complex128"),
        ({"images": IMAGES.astype(str), "labels": LABELS}, "<U"),
        ({"images": IMAGES[:, :3], "labels": LABELS}, "(40, 3, 5)"),
        ({"images": IMAGES[:, :0], "labels": LABELS}, "(40, 0, 5)"),
        ({"images": IMAGES[:9], "labels": LABELS[:9]}, "(9, 6, 5)"),
        ({"images": IMAGES[:, None][:, :0], "labels": LABELS}, "(40, 0, 6, 5)"),
        ({"images": IMAGES, "labels": LABELS.astype(float)}, "float64"),
        ({"images": IMAGES, "labels": LABELS > 0}, "bool"),
        ({"images": IMAGES, "labels": LABELS[:39]}, "(39,)"),
        ({"images": IMAGES, "labels": LABELS[:, None]}, "(40, 1)"),
        ({"images": IMAGES, "labels": LABELS * 0 + 7}, "two classes, all are 7"),
        ({"images": np.where(IMAGES > 0.9, np.nan, IMAGES), "labels": LABELS}, "NaN"),
        ({"images": np.where(IMAGES > 0.9, np.inf, IMAGES), "labels": LABELS}, "infinity"),
        ({"images": IMAGES.astype(object), "labels": LABELS}, "intact"),
    ],
)
def test_wrong_data_is_one_line_and_exit_code_2(tmp_path, capsys, arrays, message):
    file = str(tmp_path / "a.npz")
    np.savez(file, **arrays)
    assert main(["demo", "--data", file]) == 2
    out, error = capsys.readouterr()
    assert not out
    assert error.startswith("cyconv demo: error: ")
    assert file in error
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("content", [None, b"", b"text", b"PK\x03\x04"])
def test_file_that_is_no_archive_is_one_line_and_exit_code_2(tmp_path, capsys, content):
    if content is not None:
        (tmp_path / "a.npz").write_bytes(content)
    assert main(["demo", "--data", str(tmp_path / "a.npz")]) == 2
    error = capsys.readouterr().err
    assert "a.npz" in error
    assert error.count("\n") == 1


def test_directory_as_data_is_refused(tmp_path, capsys):
    assert main(["demo", "--data", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("images", [np.full((40, 4, 4), 1e300), np.full((40, 4, 4), -(2**63)), np.zeros((40, 4, 4))])
def test_images_are_scaled_without_overflow(tmp_path, images):
    np.savez(tmp_path / "a.npz", images=images, labels=LABELS)
    scaled, labels, classes = _demo.load_data(tmp_path / "a.npz")
    assert np.abs(scaled).max() == (1 if images.any() else 0)
    assert scaled.dtype == np.float32
    np.testing.assert_array_equal(labels, LABELS + 1)
    assert classes == 4


def test_progress_without_tqdm_is_plain_text(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    _demo.Progress(3).step("loss 1")
    assert capsys.readouterr().out == "epoch   1/3  loss 1\n"


def test_progress_with_tqdm_is_its_bar(monkeypatch, capsys):
    calls = []

    class Bar:
        def __init__(self, **options):
            calls.append(options)

        def __getattr__(self, name):
            return lambda *args, **options: calls.append((name, *args))

    fake = ModuleType("tqdm")
    fake.tqdm = Bar
    monkeypatch.setitem(sys.modules, "tqdm", fake)
    progress = _demo.Progress(1)
    progress.step("loss 1")
    assert calls == [{"total": 1, "unit": "epoch"}, ("set_postfix_str", "loss 1"), ("update",), ("close",)]
    assert not capsys.readouterr().out


def test_plot_is_written(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=LABELS)
    file = tmp_path / "a.png"
    assert main(["demo", "--data", str(tmp_path / "a.npz"), "--epochs", "2", "--plot", str(file)]) == 0
    assert file.read_bytes().startswith(b"\x89PNG")
    assert str(file) in capsys.readouterr().out


def test_plot_that_cannot_be_written_is_refused_before_training(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    for file, message in ((tmp_path / "a.xyz", "png"), (tmp_path / "none" / "a.png", "directory")):
        assert main(["demo", "--plot", str(file)]) == 2
        out, error = capsys.readouterr()
        assert not out
        assert message in error
        assert error.count("\n") == 1


def test_plot_without_matplotlib_is_a_clear_error(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["demo", "--plot", "a.png"]) == 2
    out, error = capsys.readouterr()
    assert not out
    assert error == "cyconv demo: error: --plot needs matplotlib: python -m pip install matplotlib\n"


@pytest.mark.parametrize(
    "arguments", [["demo", "--epochs", "0"], ["demo", "--epochs", "1.5"], ["nonsense"], ["--demo"]]
)
def test_wrong_arguments_are_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert arguments[-1].lstrip("-") in capsys.readouterr().err


def test_without_a_command_the_configuration_is_printed(capsys):
    assert main([]) == 0
    assert "instruction set" in capsys.readouterr().out
