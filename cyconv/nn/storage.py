"""Parameters in .npz files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import os

    from .layers import Layer


def save(model: Layer, file: str | os.PathLike[str]) -> None:
    """Write the parameters of a layer or network to an .npz file, named as in `parameters()`.

    Parameters
    ----------
    model : Layer
    file : str or path
        Written as named, without an added suffix; replaced if it exists.

    Raises
    ------
    RuntimeError
        If a layer has no parameters yet.
    """
    arrays: dict[str, Any] = model.parameters()
    with open(file, "wb") as stream:
        np.savez(stream, **arrays)


def load(model: Layer, file: str | os.PathLike[str]) -> None:
    """Replace the parameters of a layer or network by those of a file that `save` wrote.

    The model needs no input before it: what a layer would learn from its first input is taken from the file.

    Parameters
    ----------
    model : Layer
    file : str or path

    Raises
    ------
    ValueError
        If the file is not such an archive or its names, shapes or dtypes do not fit; the model is then unchanged.
    OSError
        If the file cannot be read.
    """
    arrays = read_npz(file)
    slots = model._slots()
    if arrays.keys() != slots.keys():
        missing, unknown = sorted(slots.keys() - arrays.keys()), sorted(arrays.keys() - slots.keys())
        raise ValueError(f"{file} does not fit the model: it lacks {missing} and has {unknown} in excess")
    dtypes = {a.dtype for a in arrays.values()}
    if len(dtypes) > 1 or not dtypes <= {np.dtype(np.float32), np.dtype(np.float64)}:
        raise ValueError(f"{file} must hold arrays of one dtype, float32 or float64, got {sorted(map(str, dtypes))}")
    for name, (layer, _, shape) in slots.items():
        array = arrays[name]
        if len(array.shape) != len(shape) or any(m not in (None, k) for k, m in zip(array.shape, shape, strict=True)):
            wanted = str(shape).replace("None", "any")
            raise ValueError(f"{file}: {name} must have shape {wanted}, got {array.shape}")
        dtype = layer._dtype if layer.weight is None else layer.weight.dtype
        if dtype not in (None, array.dtype):
            raise ValueError(f"{file}: {name} must be {dtype} like the model, got {array.dtype}")
    for name, (layer, attribute, _) in slots.items():
        setattr(layer, attribute, arrays[name])


def read_npz(file: str | os.PathLike[str]) -> dict[str, np.ndarray[Any, Any]]:
    """Return the arrays of an .npz file; ValueError if it is not one or is damaged."""
    try:
        with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, MemoryError):
        raise
    except Exception as error:  # NumPy and zipfile raise a dozen kinds for foreign and damaged files
        raise ValueError(f"{file} is not an intact .npz file of arrays: {error}") from error
    if not all(isinstance(a, np.ndarray) for a in arrays.values()):
        raise ValueError(f"{file} is not an .npz file of arrays: it has {sorted(arrays)}")
    return arrays
