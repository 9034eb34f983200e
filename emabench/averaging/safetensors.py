"""The safetensors format, read and written without its library: 8 bytes of header length, JSON, then the tensors.

See https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.complex64: "C64",
}
_TYPES = {name: dtype for dtype, name in _NAMES.items()}


def save(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and strings. The file is written completely or not at all.

    Raises ValueError for a type that the format has no name for, and for DTensors, which no one process holds.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    at = 0
    order = sorted(
        tensors, key=lambda name: (-tensors[name].element_size(), name)
    )  # aligned, as the library has it
    for name in order:
        tensor = tensors[name]
        if tensor.dtype not in _NAMES:
            raise ValueError(f"{name!r} is {tensor.dtype}, which safetensors has no name for")
        if hasattr(tensor, "full_tensor"):
            raise ValueError(
                f"{name!r} is sharded: gather it (full_tensor) in all processes before it is saved"
            )
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + size],
        }
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path = Path(path)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            file.write(len(text).to_bytes(8, "little"))
            file.write(text)
            for name in order:
                tensor = tensors[name].detach().to("cpu").contiguous()
                if tensor.numel():
                    file.write(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
            file.flush()
            os.fsync(file.fileno())
            Path(file.name).chmod(0o666 & ~_umask())
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def load(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors by name, metadata). ValueError if the file is not of this format or is cut off."""
    content = bytearray(Path(path).read_bytes())
    try:
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length].decode())
        metadata = header.pop("__metadata__", {})
        tensors = {}
        for name, entry in header.items():
            begin, end = (8 + length + offset for offset in entry["data_offsets"])
            dtype, shape = _TYPES[entry["dtype"]], entry["shape"]
            if end > len(content) or end - begin != math.prod(shape) * dtype.itemsize:
                raise ValueError("it is cut off")
            count = math.prod(shape)
            flat = (
                torch.frombuffer(content, dtype=dtype, count=count, offset=begin)
                if count
                else torch.empty(0, dtype=dtype)
            )
            tensors[name] = flat.reshape(shape).clone()
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from error
    return tensors, metadata


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
