"""Cases for the tests of pooling."""

from helpers import pairs, two
from hypothesis import strategies as st
from strategies import _paddings, _per_axis

# kernel_size and parameters: each path of the kernels (strides 1, 2 and more; padded or not; 2x2/2; windows with gaps).
WINDOWS = [
    (1, {}),
    (2, {}),
    (2, {"ceil_mode": True}),
    (3, {}),
    (3, {"stride": 2, "padding": 1}),
    (3, {"stride": 2, "ceil_mode": True}),
    (3, {"stride": 1, "padding": 1}),
    (5, {"stride": 1, "padding": 2}),
    ((2, 3), {"stride": (2, 3), "padding": (1, 2)}),
    ((3, 2), {"padding": (1, 1), "ceil_mode": True}),
    ((1, 7), {"stride": (1, 3), "padding": (0, 3)}),
    ((4, 1), {"stride": (5, 2)}),
    (2, {"stride": 4, "padding": 1}),
    ((1, 2), {"stride": (12, 2)}),
    (3, {"padding": ((2, 0), (0, 2)), "stride": (1, 2)}),
    (3, {"padding": ((0, 1), (2, 1)), "stride": (2, 1), "dilation": (1, 2)}),
    (2, {"padding": 1, "stride": 1, "dilation": 3}),
    (2, {"padding": 5, "stride": 2}),
    (2, {"padding": "same", "stride": 1}),
    ((3, 4), {"padding": "same_lower", "stride": 2}),
]
AROUND_THE_VECTORS = [
    (2, {}),
    (3, {"stride": 2, "padding": 1}),
    (3, {"stride": 1, "padding": 1}),
    ((2, 3), {"ceil_mode": True}),
    (5, {"stride": 1, "padding": 2}),
    (3, {"stride": 1, "padding": ((0, 2), (2, 0))}),
    ((1, 5), {"stride": (1, 4), "padding": (0, 2)}),
]
AVERAGES = [{}, {"count_include_pad": False}, {"divisor_override": 3}, {"divisor_override": 8}]


def split(parameters):
    """The parameters without dilation, and dilation."""
    return {name: value for name, value in parameters.items() if name != "dilation"}, parameters.get("dilation", 1)


def taken_by_torch(kernel, parameters):
    """Whether torch has such a padding: one number per axis, at most half the window."""
    padding = parameters.get("padding", 0)
    if isinstance(padding, str):
        return False
    pads, sizes = (v if isinstance(v, tuple) else (v,) * 3 for v in (padding, kernel))
    return all(isinstance(p, int) and 2 * p <= k for p, k in zip(pads, sizes, strict=False))


def tied(rng, shape, dtype):
    """Few different values, NaN and both infinities among them."""
    values = [-1, 0, 1, 2, float("nan"), float("inf"), float("-inf")]
    return rng.choice(values, shape, p=[0.2, 0.2, 0.2, 0.2, 0.05, 0.05, 0.1]).astype(dtype)


@st.composite
def poolings(draw):
    """A legal pooling: shape of x, kernel size, parameters, those of averages alone, a seed."""
    kernel = draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    parameters = {
        "stride": draw(st.one_of(st.none(), _per_axis(st.integers(1, 5)))),
        "dilation": draw(_per_axis(st.integers(1, 3))),
        "padding": draw(_paddings),
        "ceil_mode": draw(st.booleans()),
    }
    padding = parameters["padding"]
    added = ((0, 0), (0, 0)) if padding in ("same", "same_lower") else pairs(padding)
    size = [
        max(d * (k - 1) + 1 - sum(pad), 1) + draw(st.integers(0, extra))
        for k, d, pad, extra in zip(kernel, two(parameters["dilation"]), added, (6, 40), strict=True)
    ]
    average = {
        "count_include_pad": draw(st.booleans()),
        "divisor_override": draw(st.one_of(st.none(), st.integers(1, 9))),
    }
    return (
        (draw(st.integers(1, 3)), draw(st.integers(1, 3)), *size),
        kernel,
        parameters,
        average,
        draw(st.integers(0, 2**32 - 1)),
    )
