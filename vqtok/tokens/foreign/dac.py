"""DAC's `.dac` files, which are pickles, read without running code."""

from __future__ import annotations

import io
import pickle
import pickletools
import re
from typing import Any, ClassVar, NoReturn

import numpy as np
from numpy.typing import NDArray

from vqtok.errors import CorruptFileError, MediaError, UnsupportedVersionError
from vqtok.tokens.foreign.codes import ForeignCodes, integers

VERSION = "1.0.0"


def read_dac(data: bytes) -> ForeignCodes:
    """Read a pickle of DAC with a reader that creates only numbers, strings, lists, dicts and arrays.

    Source: Kumar et al. 2023, "High-Fidelity Audio Compression with Improved RVQGAN", in the form of its library.
    """
    try:
        found = _unpickled(data)
        codes, metadata = integers(found["codes"].array()), found["metadata"]
        samples, rate, channels = (int(metadata[name]) for name in ("original_length", "sample_rate", "channels"))
        version, padding = metadata["dac_version"], metadata["padding"]
        level = metadata["input_db"]
        decibels = float(np.mean(level.array() if isinstance(level, _Array) else level))
        if codes.ndim != 3 or len(codes) != channels:
            raise ValueError("codes of another shape")
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, MemoryError):
        raise CorruptFileError("damaged .dac file, or a pickle of something else") from None
    if version != VERSION:
        raise UnsupportedVersionError(f"a .dac file of version {version!r}; vqtok knows {VERSION}")
    if not padding:
        raise MediaError(
            "encoded in windows that overlap by parts of a step, which only DAC can decode; write it again with a "
            "--win_duration longer than the audio"
        )
    # DAC normalizes the loudness of all audio and restores it when it decodes.
    metadata = {"input_db": round(decibels, 4)}
    return ForeignCodes(
        codes.swapaxes(0, 1) if channels > 1 else codes[0], (samples, rate, channels), metadata=metadata
    )


class _Array:
    """Stands in for an array in a pickle."""

    state: tuple[Any, ...] = ()

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def array(self) -> NDArray[Any]:
        _, shape, dtype, is_fortran, data = self.state
        return np.frombuffer(data, dtype.dtype()).reshape(shape, order="F" if is_fortran else "C")


class _DType:
    """Stands in for a dtype in a pickle."""

    order = "|"

    def __init__(self, name: str, *arguments: Any) -> None:
        self.name = name

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    def dtype(self) -> np.dtype[Any]:
        if not re.fullmatch(r"[iuf][1248]", self.name) or self.order not in ("|", "<", ">", "="):
            raise ValueError(f"arrays of {self.name}")
        return np.dtype(self.order + self.name)


class _Unpickler(pickle.Unpickler):
    """Creates plain values and stand-ins for arrays; refuses a pickle that names anything else."""

    ADMITTED: ClassVar = {
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _DType,
        **{(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("core", "_core")},
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.ADMITTED[module, name]
        except KeyError:
            raise CorruptFileError(f"a pickle that asks for {module}.{name}, which no .dac file has") from None

    def persistent_load(self, pid: Any) -> NoReturn:
        raise ValueError("a reference to something outside")


def _unpickled(data: bytes) -> Any:
    """Return the only entry of a pickled array of objects, as `np.save` writes one.

    Raises:
        ValueError, LookupError, TypeError, AttributeError, OverflowError: There is none.
        CorruptFileError: The pickle names anything else than arrays.
    """
    for opcode, argument, _ in pickletools.genops(data):
        if "PUT" in opcode.name and isinstance(argument, int) and argument > len(data):
            raise ValueError("claims more memory than it has data")
    try:
        outer = _Unpickler(io.BytesIO(data)).load()
    except (pickle.UnpicklingError, EOFError, IndexError) as error:
        raise ValueError(str(error)) from None
    (found,) = outer.state[4]
    return found
