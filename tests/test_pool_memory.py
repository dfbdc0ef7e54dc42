"""No kernel touches memory outside its arrays: they end, or begin, at pages that cannot be read or written."""

import sys

import numpy as np
import pytest
from guarded import Guarded
from hypothesis import given
from hypothesis import strategies as st
from pool_helpers import poolings

import cyconv

pytestmark = [
    pytest.mark.usefixtures("isa"),
    pytest.mark.skipif(sys.platform != "linux", reason="mprotect is called through the C library of Linux"),
]


@given(case=poolings(), at_the_end=st.booleans())
def test_nothing_outside_the_arrays_is_touched(dtype, case, at_the_end):
    shape, kernel, parameters, average, seed = case
    rng, guarded = np.random.default_rng(seed), Guarded(at_the_end)
    average = average | {"count_include_pad": True}  # no 0 / 0
    x = guarded.random(rng, shape, dtype)
    numpy_empty = np.empty

    def empty(shape, dtype=np.float64):
        return guarded.empty(shape, dtype) if np.dtype(dtype).kind == "f" else numpy_empty(shape, dtype)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "empty", empty)
        out, indices = cyconv.max_pool2d(x, kernel, return_indices=True, **parameters)
        grad_out = guarded.random(rng, out.shape, dtype)
        results = [
            out,
            cyconv.max_pool2d(x, kernel, **parameters),
            cyconv.max_pool2d_backward(grad_out, x, kernel, **parameters),
            cyconv.max_pool2d_backward(grad_out, x, kernel, indices=indices, **parameters),
            cyconv.avg_pool2d(x, kernel, **parameters, **average),
            cyconv.avg_pool2d_backward(grad_out, x.shape, kernel, **parameters, **average),
            cyconv.global_avg_pool(x),
            cyconv.global_max_pool(x),
            cyconv.global_max_pool_backward(guarded.random(rng, (*shape[:2], 1, 1), dtype), x),
            cyconv.adaptive_max_pool2d(x, (2, 3)),
        ]
    assert not any(np.isnan(a).any() for a in results)
