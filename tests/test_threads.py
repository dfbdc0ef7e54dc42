"""Threads: the same bits for any number of them, calls from several Python threads, the GIL, limits from outside."""

import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers import LAYERS, assert_bits, random, run_python

import cyconv
from cyconv import _runtime

needs_openmp = pytest.mark.skipif(not _runtime.openmp, reason="built without OpenMP")
# Large enough for several threads (256 Ki multiply-adds each), odd sizes: x, weight, parameters.
LARGE = [
    ((3, 16, 30, 31), (24, 16, 3, 3), {"padding": 1}),
    ((1, 64, 14, 14), (70, 64, 3, 3), {"padding": 1}),
    ((1, 128, 7, 7), (130, 128, 3, 3), {"padding": 1}),
    ((5, 33, 17, 19), (65, 33, 1, 1), {}),
    ((1, 3, 64, 65), (20, 3, 7, 7), {"padding": 3, "stride": 2}),
    ((2, 24, 40, 41), (24, 1, 3, 3), {"padding": 1, "groups": 24}),
    ((1, 48, 33, 32), (96, 4, 3, 3), {"padding": 1, "groups": 12, "stride": 2}),
    ((7, 1, 28, 28), (6, 1, 5, 5), {}),
    ((1, 1, 300, 310), (1, 1, 5, 5), {"dilation": 2}),
]


def arrays(rng, dtype, x, weight, parameters):
    """Return x, weight, bias and grad_out."""
    x, weight = random(rng, x, dtype), random(rng, weight, dtype)
    out = cyconv.conv2d(x, weight, **parameters)
    return x, weight, random(rng, len(weight), dtype), random(rng, out.shape, dtype)


def results(x, weight, bias, grad_out, parameters):
    return (
        cyconv.conv2d(x, weight, bias, **parameters),
        *cyconv.conv2d_backward(grad_out, x, weight, **parameters),
    )


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize(("x", "weight", "parameters"), LARGE)
def test_result_is_bitwise_independent_of_threads(rng, dtype, x, weight, parameters):
    data = arrays(rng, dtype, x, weight, parameters)
    with cyconv.num_threads(1):
        expected = results(*data, parameters)
    for n in (2, 3, 5, 8):
        with cyconv.num_threads(n):
            for actual, e in zip(results(*data, parameters), expected, strict=True):
                assert_bits(actual, e)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize(("x", "weight", "parameters"), [*LARGE, *LAYERS])
def test_an_image_does_not_depend_on_its_batch(rng, dtype, x, weight, parameters):
    x, weight, bias, grad_out = arrays(rng, dtype, (5, *x[1:]), weight, parameters)
    out = cyconv.conv2d(x, weight, bias, **parameters)
    grad_x = cyconv.conv2d_backward(grad_out, x, weight, wrt=("x",), **parameters).x
    for images in (slice(0, 1), slice(4, 5), slice(1, 4)):
        assert_bits(cyconv.conv2d(x[images], weight, bias, **parameters), out[images])
        some = cyconv.conv2d_backward(grad_out[images], x[images], weight, wrt=("x",), **parameters)
        assert_bits(some.x, grad_x[images])


def test_eight_python_threads_at_once(rng, dtype):
    cases = [(arrays(rng, dtype, x, weight, parameters), parameters) for x, weight, parameters in LARGE[:8]]
    expected = [results(*data, parameters) for data, parameters in cases]
    start = threading.Barrier(8)

    def work(i):
        start.wait()
        for repeat in range(6):
            k = (i + repeat) % 8
            with cyconv.num_threads(1 + (i + repeat) % 3):
                for actual, e in zip(results(*cases[k][0], cases[k][1]), expected[k], strict=True):
                    assert_bits(actual, e)
        return i

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == list(range(8))


@pytest.mark.parametrize("function", ["forward", "x", "weight", "bias"])
def test_the_gil_is_released(function):
    """With a switch interval of a minute another thread can run only while the kernel has let go of the GIL."""
    x, weight = np.ones((4, 32, 128, 128), "f"), np.ones((32, 32, 3, 3), "f")
    grad_out = cyconv.conv2d(x, weight)

    def call():
        with cyconv.num_threads(1):
            if function == "forward":
                cyconv.conv2d(x, weight, out=grad_out)
            else:
                cyconv.conv2d_backward(grad_out, x, weight, wrt=(function,))

    call()  # modules are imported and scratch is allocated here
    count, stop = 0, False

    def counter():
        nonlocal count
        while not stop:
            count += 1
            time.sleep(0)

    interval = sys.getswitchinterval()
    thread = threading.Thread(target=counter)
    try:
        thread.start()
        sys.setswitchinterval(60)
        before = count
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:  # the other thread must get a processor within one of the calls
            call()
            after = count
            if after > before:
                break
    finally:
        stop = True
        sys.setswitchinterval(interval)
        thread.join()
    assert after > before


@needs_openmp
def test_num_threads_nests_and_is_undone():
    default = cyconv.get_num_threads()
    with cyconv.num_threads(3):
        assert cyconv.get_num_threads() == 3
        with cyconv.num_threads(5):
            assert cyconv.get_num_threads() == 5
        assert cyconv.get_num_threads() == 3
        with pytest.raises(ZeroDivisionError), cyconv.num_threads(2):
            _ = 1 / 0
        assert cyconv.get_num_threads() == 3
    assert cyconv.get_num_threads() == default


@needs_openmp
def test_num_threads_is_local_to_the_python_thread():
    inside, seen = threading.Barrier(2), []

    def work():
        inside.wait()
        seen.append(cyconv.get_num_threads())
        inside.wait()

    default = cyconv.get_num_threads()
    thread = threading.Thread(target=work)
    thread.start()
    with cyconv.num_threads(default + 3):
        inside.wait()
        inside.wait()
    thread.join()
    assert seen == [default]


@needs_openmp
def test_set_num_threads_holds_for_the_process():
    code = """
import threading, cyconv
cyconv.set_num_threads(4)
print(cyconv.get_num_threads())
thread = threading.Thread(target=lambda: print(cyconv.get_num_threads()))
thread.start()
thread.join()
with cyconv.num_threads(2):
    print(cyconv.get_num_threads())
"""
    assert run_python(code, CYCONV_NUM_THREADS="3").split() == ["4", "4", "2"]


@pytest.mark.parametrize(
    ("n", "error"),
    [(0, ValueError), (-1, ValueError), (1025, ValueError), (True, TypeError), (2.0, TypeError), ("2", TypeError)],
)
def test_a_bad_number_of_threads_is_refused(n, error):
    for function in (cyconv.set_num_threads, cyconv.num_threads):
        with pytest.raises(error, match=f"n must be .*got {n!r}"):
            function(n)


AFFINITIES = """
import os
import numpy as np, cyconv
before = os.sched_getaffinity(0)
x, weight = np.ones((1, 64, 56, 56), np.float32), np.ones((64, 64, 3, 3), np.float32)
for _ in range(3):
    cyconv.conv2d(x, weight)
others = [os.sched_getaffinity(int(t)) for t in os.listdir("/proc/self/task") if int(t) != os.getpid()]
print(os.sched_getaffinity(0) == before, [len(before - other) for other in others])
"""


@needs_openmp
@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs Linux and two processors"
)
@pytest.mark.parametrize(("threads", "expected"), [("1", "True []"), ("2", "True [1]")])
def test_woken_threads_keep_off_the_processor_of_the_caller(threads, expected):
    assert run_python(AFFINITIES, OMP_NUM_THREADS=threads, OPENBLAS_NUM_THREADS="1") == expected


@needs_openmp
def test_threadpoolctl_limits_cyconv():
    pytest.importorskip("threadpoolctl")
    code = """
import cyconv, threadpoolctl
print(cyconv.get_num_threads())
with threadpoolctl.threadpool_limits(2):
    print(cyconv.get_num_threads())
    with cyconv.num_threads(3):
        print(cyconv.get_num_threads())
    with cyconv.num_threads(1):
        print(cyconv.get_num_threads())
print(cyconv.get_num_threads())
"""
    assert run_python(code, OMP_NUM_THREADS="4").split() == ["4", "2", "2", "1", "4"]
