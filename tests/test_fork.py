"""A forked child must neither hang nor compute anything else than its parent, which has used threads before."""

import os

import pytest
from helpers import run_python

SETUP = """
import multiprocessing, os, warnings
import numpy as np
import cyconv
# Python 3.12 and later warn of any fork in a process with threads; that it works here is what is tested.
warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)

x = np.random.default_rng(0).standard_normal((4, 32, 30, 30)).astype("f")
weight = np.random.default_rng(1).standard_normal((32, 32, 3, 3)).astype("f")

def results(_=None):
    out = cyconv.conv2d(x, weight, padding=1)
    grad = cyconv.conv2d_backward(out, x, weight, padding=1)
    return out.tobytes(), grad.x.tobytes(), grad.weight.tobytes(), grad.bias.tobytes(), cyconv.get_num_threads()

cyconv.set_num_threads(4)
expected = results()
context = multiprocessing.get_context("fork")
"""

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


def test_process_after_use_in_the_parent():
    code = """
queue = context.Queue()
process = context.Process(target=lambda: queue.put(results()))
process.start()
actual = queue.get(timeout=60)
process.join()
print(actual[:4] == expected[:4], actual[4], process.exitcode, results() == expected)
"""
    assert run_python(SETUP + code) == "True 1 0 True"


def test_pool_after_use_in_the_parent():
    code = """
with context.Pool(3) as pool:
    found = pool.map_async(results, range(6)).get(timeout=60)
print(all(f[:4] == expected[:4] for f in found), {f[4] for f in found}, results() == expected)
"""
    assert run_python(SETUP + code) == "True {1} True"


def test_num_threads_in_a_child_is_one_whatever_is_asked():
    code = """
read, write = os.pipe()
if os.fork() == 0:
    with cyconv.num_threads(3):
        os.write(write, str(cyconv.get_num_threads()).encode())
    os._exit(0)
print(os.read(read, 9).decode(), os.wait()[1])
"""
    assert run_python(SETUP + code) == "1 0"


def test_fork_while_another_thread_computes():
    code = """
import threading
stop = False
def work():
    while not stop:
        results()
thread = threading.Thread(target=work)
thread.start()
same = []
for _ in range(5):
    queue = context.SimpleQueue()
    process = context.Process(target=lambda: queue.put(results()[:4] == expected[:4]))
    process.start()
    process.join(60)
    same.append(process.exitcode == 0 and queue.get())
stop = True
thread.join()
print(same)
"""
    assert run_python(SETUP + code) == "[True, True, True, True, True]"


def test_spawned_process():
    code = """
import multiprocessing
import cyconv
with multiprocessing.get_context("spawn").Pool(1) as pool:
    print(pool.apply_async(cyconv.get_num_threads).get(timeout=60))
"""
    assert run_python(code, CYCONV_NUM_THREADS="1") == "1"
