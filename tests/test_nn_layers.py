"""Layers against the functions they wrap, against differences, and what they keep and refuse."""

import gc
import re
import weakref

import numpy as np
import pytest

import cyconv
from cyconv import nn


def random(*shape, dtype=np.float64, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


LAYERS = [
    nn.Conv2D(4, 3, padding=1),
    nn.Conv2D(4, (2, 3), stride=(1, 2), padding="same_lower", groups=2, activation="relu", bias=False),
    nn.Conv2D(2, 3, padding=((0, 1), (2, 0)), dilation=(1, 2), padding_mode="replicate"),
    nn.MaxPool2D(2),
    nn.MaxPool2D((2, 3), padding=(1, 2), stride=(2, 3)),
    nn.AvgPool2D(2),
    nn.AvgPool2D(3, padding=1, stride=2, count_include_pad=False),
    nn.GlobalAvgPool2D(),
    nn.GlobalMaxPool2D(),
    nn.AvgPool2D(2, stride=1, dilation=2),
    nn.LPPool2D(3, 2, padding=1),
    nn.AdaptiveAvgPool2D((4, None)),
    nn.AdaptiveMaxPool2D(3),
    nn.Flatten(),
    nn.ReLU(),
    nn.Sequential(
        nn.Conv2D(3, 3), nn.ReLU(), nn.AvgPool2D(2), nn.Flatten(), nn.Dense(5, activation="relu"), nn.Dense(2)
    ),
]


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_gradients_equal_finite_differences(layer):
    x = random(3, 2, 6, 7)
    y = layer(x)
    g = random(*y.shape, seed=2)
    grad_x = layer.backward(g)
    arrays = {"x": (x, grad_x)} | {name: (p, layer.gradients()[name]) for name, p in layer.parameters().items()}
    for name, (array, gradient) in arrays.items():
        assert gradient.shape == array.shape
        direction = random(*array.shape, seed=3)
        original, values = array.copy(), []
        for step in (1e-6, -1e-6):
            array[...] = original + step * direction
            values.append(np.sum(layer(x) * g))
        array[...] = original
        assert (values[0] - values[1]) / 2e-6 == pytest.approx(np.sum(gradient * direction), rel=1e-6, abs=1e-7), name


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_backward_without_forward_names_the_layer(layer):
    x = random(3, 2, 6, 7)
    layer.backward(layer(x))
    last = layer[-1] if isinstance(layer, nn.Sequential) else layer
    with pytest.raises(RuntimeError, match=re.escape(f"{last}.backward")):
        layer.backward(layer.training)  # backward has let go of what forward kept


@pytest.mark.parametrize("n", [1, 2, 3])
def test_pooling_layers_are_the_functions(n):
    x = random(2, 3, *[6] * n)
    for name, arguments, options in (
        ("MaxPool", (3,), {"stride": 2, "padding": 1, "ceil_mode": True}),
        ("AvgPool", (2,), {"stride": 1, "count_include_pad": False, "dilation": 2, "divisor_override": 3}),
        ("LPPool", (3, 2), {"padding": "same"}),
        ("AdaptiveMaxPool", (4,), {}),
        ("AdaptiveAvgPool", (None,), {}),
    ):
        layer = getattr(nn, f"{name}{n}D")(*arguments, **options)
        function = {"LPPool": "lp_pool", "AdaptiveMaxPool": "adaptive_max_pool", "AdaptiveAvgPool": "adaptive_avg_pool"}
        kind = function.get(name, f"{name[:3].lower()}_pool")
        y = layer(x)
        np.testing.assert_array_equal(y, getattr(cyconv, f"{kind}{n}d")(x, *arguments, **options))
        g = random(*y.shape, seed=2)
        of = x.shape if "Avg" in name else x
        rest = () if "Adaptive" in name else arguments
        expected = getattr(cyconv, f"{kind}{n}d_backward")(g, of, *rest, **options)
        np.testing.assert_array_equal(layer.backward(g), expected)
        assert layer.__doc__.splitlines()[0].endswith(f"`cyconv.{kind}{n}d`.")
    for name in ("Max", "Avg"):
        layer = getattr(nn, f"Global{name}Pool{n}D")()
        for image in (x, x[0]):
            assert layer(image).shape == image.shape[:-n] + (1,) * n
            assert layer.backward(np.ones(image.shape[:-n] + (1,) * n)).sum() == pytest.approx(image.size / 6**n)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_unpooling_layers_take_indices(n):
    x, layer = random(2, 3, *[6] * n), getattr(nn, f"MaxUnpool{n}D")(2)
    y, indices = getattr(cyconv, f"max_pool{n}d")(x, 2, return_indices=True)
    planes = layer(y, indices)
    np.testing.assert_array_equal(planes, np.where(planes == 0, 0, x))
    np.testing.assert_array_equal(layer.backward(planes), y)


def test_pooling_layers_may_be_derived_from():
    class Halves(nn.MaxPool2D):
        """Halves each axis."""

        def __init__(self):
            super().__init__(2)

    assert Halves.__doc__ == "Halves each axis."
    assert Halves()(np.ones((1, 4, 6))).shape == (1, 2, 3)


def test_conv2d_is_the_function():
    x, layer = random(2, 4, 9, 8), nn.Conv2D(6, 3, stride=2, padding="same", dilation=2, groups=2, activation="relu")
    y = layer(x)
    options = {"stride": 2, "padding": "same", "dilation": 2, "groups": 2}
    np.testing.assert_array_equal(y, cyconv.conv2d(x, layer.weight, layer.bias, activation="relu", **options))
    g = random(*y.shape)
    expected = cyconv.conv2d_backward(np.where(y > 0, g, 0), x, layer.weight, **options)
    np.testing.assert_array_equal(layer.backward(g), expected.x)
    np.testing.assert_array_equal(layer.gradients()["weight"], expected.weight)
    np.testing.assert_array_equal(layer.gradients()["bias"], expected.bias)


def test_conv2d_takes_an_image_without_batch():
    x, layer = random(2, 5, 5), nn.Conv2D(3, 3)
    assert layer(x).shape == (3, 3, 3)
    assert layer.backward(np.ones((3, 3, 3))).shape == x.shape


@pytest.mark.parametrize("n", [1, 2, 17, 64])
def test_dense_is_a_matrix_product(n):
    x, layer = random(n, 30), nn.Dense(7)
    y, g = layer(x), random(n, 7, seed=2)
    assert y.shape == (n, 7)
    np.testing.assert_allclose(y, x @ layer.weight.T + layer.bias, rtol=0, atol=1e-13)
    np.testing.assert_allclose(layer.backward(g), g @ layer.weight, rtol=0, atol=1e-13)
    np.testing.assert_allclose(layer.gradients()["weight"], g.T @ x, rtol=0, atol=1e-13)
    np.testing.assert_allclose(layer.gradients()["bias"], g.sum(axis=0), rtol=0, atol=1e-13)


def test_a_sample_does_not_depend_on_its_batch_in_dense():
    x, layer = random(40, 30, dtype=np.float32), nn.Dense(7)
    np.testing.assert_array_equal(layer(x)[3:4], layer(x[3:4]))


def test_training_is_bitwise_independent_of_threads():
    results = []
    for threads in (1, 2, 5):
        with cyconv.num_threads(threads):
            rng = np.random.default_rng(0)
            net = nn.Sequential(nn.Conv2D(8, 3, seed=rng), nn.MaxPool2D(2), nn.Flatten(), nn.Dense(10, seed=rng))
            loss, sgd = nn.SoftmaxCrossEntropy(), nn.SGD(net, 0.1, 0.9)
            for seed in range(3):
                loss(net(random(33, 3, 20, 20, dtype=np.float32, seed=seed)), np.arange(33) % 10)
                net.backward(loss.backward())
                sgd.step()
            results.append(net.parameters())
    for other in results[1:]:
        for name, parameter in results[0].items():
            assert parameter.tobytes() == other[name].tobytes(), name


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_empty_batch(layer):
    layer(random(1, 2, 6, 7))
    shape = layer(random(1, 2, 6, 7)).shape
    x = random(0, 2, 6, 7)
    y = layer(x)
    assert y.shape == (0, *shape[1:])
    assert layer.backward(y).shape == x.shape
    assert all(not gradient.any() for gradient in layer.gradients().values())


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_inference_keeps_nothing(layer):
    alive = []

    class Tracked(np.ndarray):
        pass

    x = random(3, 2, 6, 7)
    layer(x)  # what training keeps is dropped by inference
    layer.training = False
    try:
        x = x.view(Tracked)
        alive.append(weakref.ref(x))
        y = layer(x)
        del x
        gc.collect()
        assert alive[0]() is None or y.base is not None  # Flatten returns a view
        with pytest.raises(RuntimeError, match="training=True"):
            layer.backward(np.asarray(y))
    finally:
        layer.training = True


def test_training_of_a_network_is_that_of_its_layers():
    net = nn.Sequential(nn.ReLU(), nn.Sequential(nn.ReLU(), nn.Flatten()))
    net.training = False
    assert not any(layer.training for layer in (net[0], net[1], net[1][0], net[1][1]))
    net.training = True
    assert net[1][1].training
    net[1][0].training = False
    assert not net.training


def test_initialisation_is_the_one_of_the_docstring():
    x = random(1, 6, 8, 8, dtype=np.float32)
    conv, dense = nn.Conv2D(50, 3, groups=2, seed=5), nn.Dense(50, seed=5, in_features=40, dtype=np.float64)
    conv(x)
    for layer, fan_in in ((conv, 27), (dense, 40)):
        bound = np.sqrt(6 / fan_in)
        expected = np.random.default_rng(5).uniform(-bound, bound, layer.weight.shape)
        np.testing.assert_array_equal(layer.weight, expected.astype(layer.weight.dtype))
        np.testing.assert_array_equal(layer.bias, np.zeros(50, layer.weight.dtype))
    assert conv.weight.dtype == np.float32
    assert dense.weight.dtype == np.float64


def test_lazy_and_told_inputs_give_the_same_weight():
    lazy, told = nn.Conv2D(4, 3), nn.Conv2D(4, 3, in_channels=2)
    lazy(random(1, 2, 5, 5, dtype=np.float32))
    np.testing.assert_array_equal(lazy.weight, told.weight)


def test_a_shared_generator_gives_each_layer_its_own_weight():
    rng = np.random.default_rng(0)
    first, second = (nn.Dense(4, in_features=4, seed=rng) for _ in range(2))
    assert not np.array_equal(first.weight, second.weight)


def test_a_weight_set_before_the_first_input_is_used():
    layer = nn.Conv2D(1, (1, 2))
    layer.weight = np.array([[[[1.0, -1.0]]]])
    assert layer(np.ones((1, 1, 3, 3))).shape == (1, 1, 3, 2)
    assert layer.parameters().keys() == {"weight", "bias"}


def test_parameters_before_the_first_input_are_an_error_that_names_the_layer():
    for layer in (nn.Conv2D(3, 5), nn.Dense(3), nn.Sequential(nn.ReLU(), nn.Dense(3))):
        with pytest.raises(RuntimeError, match=r"(Conv2D|Dense)\(3.*\) has no parameters"):
            layer.parameters()
        with pytest.raises(RuntimeError, match=r"(Conv2D|Dense)\(3.*\) has no gradients"):
            layer.gradients()


def test_gradient_of_the_input_can_be_skipped():
    net = nn.Sequential(nn.Conv2D(2, 3), nn.Flatten(), nn.Dense(3))
    y = net(random(2, 1, 5, 5))
    assert net.backward(y, wrt_x=False) is None
    first = {name: g.copy() for name, g in net.gradients().items()}
    net(random(2, 1, 5, 5))
    assert net.backward(y).shape == (2, 1, 5, 5)
    for name, gradient in net.gradients().items():
        np.testing.assert_array_equal(gradient, first[name])


def test_relu_keeps_nan_and_its_gradient():
    layer = nn.ReLU()
    np.testing.assert_array_equal(layer(np.array([-1.0, 0.0, 2.0, np.nan])), [0, 0, 2, np.nan])
    np.testing.assert_array_equal(layer.backward(np.array([1.0, np.inf, 3.0, 4.0])), [0, 0, 3, 4])


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: nn.Conv2D(0, 3), ValueError),
        (lambda: nn.Conv2D(2.0, 3), TypeError),
        (lambda: nn.Conv2D(True, 3), TypeError),
        (lambda: nn.Conv2D(4, (3, 3, 3)), ValueError),
        (lambda: nn.Conv2D(4, -1), ValueError),
        (lambda: nn.Conv2D(4, 3, groups=3), ValueError),
        (lambda: nn.Conv2D(4, 3, groups=2, in_channels=3), ValueError),
        (lambda: nn.Conv2D(4, 3, activation="tanh"), ValueError),
        (lambda: nn.Conv2D(4, 3, dtype=np.float16), TypeError),
        (lambda: nn.Dense(0), ValueError),
        (lambda: nn.Dense(3, in_features="4"), TypeError),
        (lambda: nn.Sequential(), ValueError),
        (lambda: nn.Sequential(np.tanh), TypeError),
        (lambda: nn.Sequential(*[nn.ReLU()] * 2), ValueError),
    ],
)
def test_wrong_construction(make, error):
    with pytest.raises(error):
        make()


@pytest.mark.parametrize(
    ("layer", "x", "error"),
    [
        (nn.Conv2D(2, 3), np.ones((5, 5)), ValueError),
        (nn.Conv2D(2, 3), np.ones((1, 1, 2, 5)), ValueError),
        (nn.Conv2D(2, 3, groups=2), np.ones((1, 3, 5, 5)), ValueError),
        (nn.Conv2D(2, 3, in_channels=2, dtype=np.float64), np.ones((1, 3, 5, 5)), ValueError),
        (nn.Conv2D(2, 3, in_channels=1), np.ones((1, 1, 5, 5)), TypeError),
        (nn.Dense(2), np.ones((1, 2, 3)), ValueError),
        (nn.Dense(2), np.ones((3, 0)), ValueError),
        (nn.Dense(2, in_features=4, dtype=np.float64), np.ones((3, 5)), ValueError),
        (nn.Flatten(), np.ones(3), ValueError),
        (nn.ReLU(), np.arange(3), TypeError),
        (nn.ReLU(), [1.0], TypeError),
        (nn.Flatten(), np.ones((2, 2), np.float16), TypeError),
        (nn.MaxPool2D(3), np.ones((1, 1, 2, 2)), ValueError),
        (nn.AvgPool2D(0), np.ones((1, 1, 2, 2)), ValueError),
        (nn.GlobalAvgPool2D(), np.ones((2, 2)), ValueError),
    ],
)
def test_wrong_input(layer, x, error):
    with pytest.raises(error):
        layer(x)


def test_gradient_must_fit_the_output():
    layer = nn.ReLU()
    layer(np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"ReLU\(\).backward.*\(2, 3\).*\(1, 3\)"):
        layer.backward(np.ones((1, 3)))
    with pytest.raises(TypeError, match=r"float64.*float32"):
        layer.backward(np.ones((2, 3), np.float32))
    assert layer.backward(np.ones((2, 3))).shape == (2, 3)  # a refused call changes nothing
