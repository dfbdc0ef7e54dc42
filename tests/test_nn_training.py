"""Losses against differences, SGD against its formula."""

import numpy as np
import pytest

from cyconv import nn

LOGITS = np.random.default_rng(0).standard_normal((5, 4))
LABELS = np.array([0, 3, 1, 1, 2])


@pytest.mark.parametrize(
    ("loss", "prediction", "target"),
    [
        (nn.SoftmaxCrossEntropy(), LOGITS, LABELS),
        (nn.MSE(), LOGITS, LOGITS[::-1].copy()),
        (nn.MSE("sum"), LOGITS, LOGITS[::-1].copy()),
    ],
)
def test_gradient_equals_finite_differences(loss, prediction, target):
    loss(prediction, target)
    gradient = loss.backward()
    direction = np.random.default_rng(1).standard_normal(prediction.shape)
    difference = loss(prediction + 1e-6 * direction, target) - loss(prediction - 1e-6 * direction, target)
    assert difference / 2e-6 == pytest.approx(np.sum(gradient * direction), rel=1e-7)


def test_softmax_cross_entropy_is_its_formula():
    softmax = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
    expected = -np.mean(np.log(softmax[np.arange(5), LABELS]))
    assert nn.SoftmaxCrossEntropy()(LOGITS, LABELS) == pytest.approx(expected, rel=1e-14)


def test_softmax_cross_entropy_of_large_logits_does_not_overflow():
    loss = nn.SoftmaxCrossEntropy()
    assert loss(np.array([[1e4, 0.0], [0.0, 1e4]], np.float32), np.array([0, 0])) == 5000
    np.testing.assert_array_equal(loss.backward(), np.array([[0, 0], [-0.5, 0.5]], np.float32))


def test_mse_is_its_formula():
    target = LOGITS[::-1].copy()
    assert nn.MSE()(LOGITS, target) == pytest.approx(np.mean((LOGITS - target) ** 2), rel=1e-14)
    assert nn.MSE("sum")(LOGITS, target) == pytest.approx(np.sum((LOGITS - target) ** 2), rel=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gradients_have_the_dtype_of_the_prediction(dtype):
    for loss, target in ((nn.SoftmaxCrossEntropy(), LABELS), (nn.MSE(), LOGITS.astype(dtype))):
        assert isinstance(loss(LOGITS.astype(dtype), target), float)
        assert loss.backward().dtype == dtype


@pytest.mark.parametrize(
    ("loss", "prediction", "target", "error"),
    [
        (nn.SoftmaxCrossEntropy(), LOGITS, LABELS.astype(float), TypeError),
        (nn.SoftmaxCrossEntropy(), LOGITS, list(LABELS), TypeError),
        (nn.SoftmaxCrossEntropy(), LOGITS, LABELS[:4], ValueError),
        (nn.SoftmaxCrossEntropy(), LOGITS, LABELS + 1, ValueError),
        (nn.SoftmaxCrossEntropy(), LOGITS, LABELS - 1, ValueError),
        (nn.SoftmaxCrossEntropy(), LOGITS[0], LABELS, ValueError),
        (nn.SoftmaxCrossEntropy(), LOGITS[:0], LABELS[:0], ValueError),
        (nn.SoftmaxCrossEntropy(), LABELS[:, None], LABELS, TypeError),
        (nn.MSE(), LOGITS, LOGITS[:1], ValueError),
        (nn.MSE(), LOGITS, LOGITS.astype(np.float32), TypeError),
        (nn.MSE(), LOGITS[:0], LOGITS[:0], ValueError),
    ],
)
def test_wrong_arguments_of_losses(loss, prediction, target, error):
    with pytest.raises(error):
        loss(prediction, target)


@pytest.mark.parametrize("loss", [nn.MSE(), nn.SoftmaxCrossEntropy()])
def test_backward_without_forward_names_the_loss(loss):
    with pytest.raises(RuntimeError, match=f"{type(loss).__name__}.backward"):
        loss.backward()


def test_mse_refuses_an_unknown_reduction():
    with pytest.raises(ValueError, match="none"):
        nn.MSE("none")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sgd_with_momentum_is_its_formula(dtype):
    layer = nn.Dense(2, in_features=3, dtype=dtype)
    expected = {name: p.astype(np.float64) for name, p in layer.parameters().items()}
    velocity = dict.fromkeys(expected, 0.0)
    sgd = nn.SGD(layer, rate=0.1, momentum=0.9)
    for seed in range(3):
        x = np.random.default_rng(seed).standard_normal((4, 3)).astype(dtype)
        layer.backward(layer(x))
        before = layer.weight
        sgd.step()
        assert layer.weight is before  # in place
        for name, gradient in layer.gradients().items():
            velocity[name] = 0.9 * velocity[name] + gradient.astype(np.float64)
            expected[name] -= 0.1 * velocity[name]
    for name, parameter in layer.parameters().items():
        assert parameter.dtype == dtype
        np.testing.assert_allclose(parameter, expected[name], rtol=0, atol=100 * np.finfo(dtype).eps)


def test_sgd_before_backward_names_the_layer():
    sgd = nn.SGD(nn.Dense(2, in_features=3), 0.1)
    with pytest.raises(RuntimeError, match=r"Dense\(2\)"):
        sgd.step()


@pytest.mark.parametrize(
    ("rate", "momentum", "error"),
    [
        (0, 0, ValueError),
        (-0.1, 0, ValueError),
        (np.nan, 0, ValueError),
        (np.inf, 0, ValueError),
        (0.1, 1, ValueError),
        (0.1, -0.5, ValueError),
        (0.1, np.nan, ValueError),
        ("0.1", 0, TypeError),
        (True, 0, TypeError),
        (0.1, None, TypeError),
    ],
)
def test_wrong_arguments_of_sgd(rate, momentum, error):
    with pytest.raises(error):
        nn.SGD(nn.ReLU(), rate, momentum)
