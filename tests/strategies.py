"""Hypothesis strategies."""

from helpers import pairs, two
from hypothesis import strategies as st

_paddings = st.one_of(
    st.integers(0, 4),
    st.tuples(st.integers(0, 6), st.integers(0, 6)),
    st.tuples(*[st.tuples(st.integers(0, 6), st.integers(0, 6))] * 2),
    st.sampled_from(["valid", "same", "same_lower"]),
)


def _per_axis(integers):
    return st.one_of(integers, st.tuples(integers, integers))


@st.composite
def convolutions(draw, largest=20):
    """Shapes of x and weight, parameters, a seed. The image has up to `largest` rows more than it must have."""
    groups = draw(st.integers(1, 4))
    per_group = draw(st.integers(1, 5))
    F = groups * draw(st.integers(1, 6))
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    parameters = {
        "stride": draw(_per_axis(st.integers(1, 4))),
        "dilation": draw(_per_axis(st.integers(1, 3))),
        "padding": draw(_paddings),
        "groups": groups,
    }
    size = []
    dilation, padding = two(parameters["dilation"]), parameters["padding"]
    added = ((99, 0), (99, 0)) if padding in ("same", "same_lower") else pairs(padding)
    for k, d, pad in zip(kernel, dilation, added, strict=True):
        smallest = max(d * (k - 1) + 1 - sum(pad), 1)
        size.append(smallest + draw(st.integers(0, largest)))
    return (
        (draw(st.integers(1, 3)), groups * per_group, *size),
        (F, per_group, *kernel),
        parameters,
        draw(st.integers(0, 2**32 - 1)),
    )
