"""The passes of a convolution by cyconv and by its peers, each called as its users would.

Each contender is a pair: a call without arguments, and a function that turns what the call returns into an array.
"""

import os

import numpy as np
from harness import OURS, optional, skipped

import cyconv

torch = optional("torch")
onnx = optional("onnx")
onnxruntime = optional("onnxruntime")
openvino = optional("openvino")
scipy = optional("scipy")
MODULES = (torch, onnxruntime, openvino, scipy)

if os.environ.get("CYCONV_ISA", "avx512") != "avx512" and onnxruntime:
    skipped["onnxruntime"] = "cannot be restricted to an instruction set"
    onnxruntime = None
if onnxruntime and not onnx:
    skipped["onnxruntime"] = "needs onnx to build its models"
    onnxruntime = None


def conv(case, kind, threads, arrays, algorithm):
    """Return {name: (call, as_array)} of all who can compute this pass."""
    x, weight, grad_out = arrays
    cyconv.set_num_threads(threads)
    found = {OURS: _cyconv(case, kind, x, weight, grad_out, algorithm)}
    if torch:
        torch.set_num_threads(threads)
        for name, layout in (("torch", torch.contiguous_format), ("torch channels-last", torch.channels_last)):
            tensors = (torch.from_numpy(a).contiguous(memory_format=layout) for a in arrays)
            found[name] = _torch(case, kind, *tensors)
    if kind == "forward" and x.dtype == np.float32:
        if onnxruntime:
            found["onnxruntime"] = _onnxruntime(case, threads, x, weight)
        if openvino:
            found["openvino"] = _openvino(case, threads, x, weight)
    if scipy and case.x[:2] == (1, 1) and case.channels == case.stride == case.dilation == 1:
        found |= _scipy(case, kind, x[0, 0], weight[0, 0], grad_out[0, 0])
    return found


def _cyconv(case, kind, x, weight, grad_out, algorithm):
    parameters = case.parameters | ({} if algorithm == "auto" else {"algorithm": algorithm})
    if kind == "forward":
        out = np.empty_like(grad_out)
        return lambda: cyconv.conv2d(x, weight, out=out, **parameters), np.asarray
    wrt = (kind.removeprefix("grad_"),)
    return (
        lambda: cyconv.conv2d_backward(grad_out, x, weight, wrt=wrt, **parameters),
        lambda gradients: getattr(gradients, *wrt),
    )


def _torch(case, kind, x, weight, grad_out):
    stride, dilation = [case.stride] * 2, [case.dilation] * 2
    if kind == "forward":
        conv2d = torch.nn.functional.conv2d
        rest = None, stride, case.padding, dilation, case.groups
        return lambda: conv2d(x, weight, *rest), lambda y: y.numpy()
    backward, mask = torch.ops.aten.convolution_backward, [kind == "grad_x", kind == "grad_weight", False]
    rest = None, stride, list(case.padding), dilation, False, [0, 0], case.groups, mask
    return lambda: backward(grad_out, x, weight, *rest), lambda gradients: gradients[mask.index(True)].numpy()


def _onnxruntime(case, threads, x, weight):
    """A model of one node."""
    node = onnx.helper.make_node(
        "Conv",
        ["x", "weight"],
        ["out"],
        strides=[case.stride] * 2,
        pads=case.padding * 2,
        dilations=[case.dilation] * 2,
        group=case.groups,
    )
    return onnx_model([node], {"weight": weight}, x, case.out, threads)


def onnx_model(nodes, constants, x, shape, threads):
    """Contender: ONNX Runtime with nodes from "x" to "out"; it packs constants (by name) when the model is loaded."""
    helper, number = onnx.helper, onnx.TensorProto.FLOAT
    ends = (helper.make_tensor_value_info(*end) for end in (("x", number, x.shape), ("out", number, shape)))
    constants = [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "model", *([end] for end in ends), constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding, out = session.io_binding(), np.empty(shape, x.dtype)
    binding.bind_ortvalue_input("x", onnxruntime.OrtValue.ortvalue_from_numpy(x))
    binding.bind_ortvalue_output("out", onnxruntime.OrtValue.ortvalue_from_numpy(out))

    def call():
        session.run_with_iobinding(binding)
        return x, out  # named here so that they live: the session knows only their addresses

    return call, lambda arrays: arrays[1]


def _openvino(case, threads, x, weight):
    ops, pads = openvino.opset13, [*case.padding]
    rest = [case.stride] * 2, pads, pads, [case.dilation] * 2
    image = ops.parameter(case.x, np.float32)
    if case.groups == 1:
        out = ops.convolution(image, ops.constant(weight), *rest)
    else:
        grouped = weight.reshape(case.groups, -1, *weight.shape[1:])
        out = ops.group_convolution(image, ops.constant(grouped), *rest)
    return openvino_model(image, out, x, case.out, threads)


def openvino_model(image, out, x, shape, threads):
    """Contender: OpenVINO with what computes `out` from the parameter `image`."""
    options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(openvino.Model([out], [image]), "CPU", options).create_infer_request()
    result = np.empty(shape, np.float32)
    request.set_input_tensor(openvino.Tensor(x, shared_memory=True))
    request.set_output_tensor(openvino.Tensor(result, shared_memory=True))

    def call():
        request.infer(share_outputs=True)
        return x, result  # as above

    return call, lambda arrays: arrays[1]


def _scipy(case, kind, x, weight, grad_out):
    """One image of one channel, and the padding that keeps its size."""
    from scipy import ndimage, signal

    pads = [(p, p) for p in case.padding]
    if any(2 * p != k - 1 for p, k in zip(case.padding, case.kernel, strict=True)):
        return {}
    calls = {
        "forward": {
            "scipy correlate2d": lambda: signal.correlate2d(x, weight, "same"),
            "scipy ndimage": lambda: ndimage.correlate(x, weight, mode="constant"),
            "scipy fftconvolve": lambda: signal.fftconvolve(x, weight[::-1, ::-1], "same"),
        },
        "grad_x": {"scipy convolve2d": lambda: signal.convolve2d(grad_out, weight, "same")},
        "grad_weight": {"scipy correlate2d": lambda: signal.correlate2d(np.pad(x, pads), grad_out, "valid")},
    }
    return {name: (call, lambda y: y[None, None]) for name, call in calls[kind].items()}
