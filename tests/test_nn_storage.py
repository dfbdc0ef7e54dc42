"""Parameters in .npz files: what comes back, and which files are refused."""

import numpy as np
import pytest

from cyconv import nn

X = np.random.default_rng(0).standard_normal((3, 2, 6, 6)).astype(np.float32)


def network(seed=0, **options):
    rng = np.random.default_rng(seed)
    return nn.Sequential(
        nn.Conv2D(4, 3, seed=rng, **options), nn.ReLU(), nn.Flatten(), nn.Dense(5, seed=rng, **options)
    )


@pytest.mark.parametrize("seen", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_loaded_network_computes_the_same(tmp_path, seen, bias):
    net, other = network(bias=bias), network(seed=1, bias=bias)
    y = net(X)
    if seen:
        other(X)
    nn.save(net, tmp_path / "parameters")  # as named, without a suffix
    nn.load(other, tmp_path / "parameters")
    assert other(X).tobytes() == y.tobytes()
    assert {name: p.shape for name, p in other.parameters().items()} == {
        name: p.shape for name, p in net.parameters().items()
    }
    other.backward(y)
    nn.SGD(other, 0.1).step()


def test_saving_before_the_first_input_is_an_error_and_writes_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="Conv2D"):
        nn.save(network(), tmp_path / "a.npz")
    assert not (tmp_path / "a.npz").exists()


def right():
    net = network()
    net(X)
    return dict(net.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"0.weight": None}, r"lacks \['0.weight'\]"),
        ({"5.weight": np.ones(3, np.float32)}, r"\['5.weight'\] in excess"),
        ({"3.weight": np.ones((5, 64, 1), np.float32)}, r"3.weight must have shape \(5, \w+\), got \(5, 64, 1\)"),
        ({"3.bias": np.ones(4, np.float32)}, r"3.bias must have shape \(5,\), got \(4,\)"),
        ({"3.bias": np.ones(5)}, "one dtype"),
        ({"3.bias": np.ones(5, ">f4")}, "one dtype"),
        ({name: p.astype(np.float16) for name, p in right().items()}, "float16"),
        ({"3.bias": np.array(["a"] * 5)}, "one dtype"),
        ({"3.bias": np.array([None] * 5)}, "intact"),
    ],
)
@pytest.mark.parametrize("seen", [True, False])
def test_file_that_does_not_fit_is_refused_and_changes_nothing(tmp_path, change, message, seen):
    arrays = {name: a for name, a in (right() | change).items() if a is not None}
    np.savez(tmp_path / "a.npz", **arrays)
    net = network(seed=1)
    if seen:
        net(X)
        before = {name: p.copy() for name, p in net.parameters().items()}
    with pytest.raises(ValueError, match=message):
        nn.load(net, tmp_path / "a.npz")
    if seen:
        for name, p in net.parameters().items():
            np.testing.assert_array_equal(p, before[name])
    else:
        assert net[0].weight is None


def test_dtype_of_the_model_is_kept(tmp_path):
    net = network(dtype=np.float64)
    net(X.astype(np.float64))
    nn.save(net, tmp_path / "a.npz")
    with pytest.raises(ValueError, match="float32 like the model, got float64"):
        nn.load(network(dtype=np.float32), tmp_path / "a.npz")
    fresh = network()
    nn.load(fresh, tmp_path / "a.npz")
    assert fresh[0].weight.dtype == np.float64


def test_groups_and_inputs_that_are_told_are_checked(tmp_path):
    net = nn.Conv2D(4, 3, in_channels=4, groups=2)
    nn.save(net, tmp_path / "a.npz")
    nn.load(nn.Conv2D(4, 3, groups=2), tmp_path / "a.npz")
    with pytest.raises(ValueError, match=r"weight must have shape \(4, 4, 3, 3\), got \(4, 2, 3, 3\)"):
        nn.load(nn.Conv2D(4, 3, in_channels=4), tmp_path / "a.npz")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not an archive", b"\x80\x04K\x01."])
def test_files_that_are_no_archives(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"not an intact \.npz file"):
        nn.load(network(), tmp_path / "a.npz")


def test_npy_file_and_damaged_archive_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", X)
    with pytest.raises(ValueError, match=r"not an intact \.npz file"):
        nn.load(network(), tmp_path / "a.npy")
    np.savez_compressed(tmp_path / "a.npz", **right())
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[200:260] = bytes(60)
    (tmp_path / "b.npz").write_bytes(content)
    (tmp_path / "c.npz").write_bytes(content[: len(content) // 2])
    for name in ("b.npz", "c.npz"):
        with pytest.raises(ValueError, match=rf"{name} is not an intact \.npz file"):
            nn.load(network(), tmp_path / name)


def test_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        nn.load(network(), tmp_path / "a.npz")
