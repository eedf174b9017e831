"""Run a tokenizer's network on windows of media or codes: device, precision and batches."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqtok.codec.batches import Batches, Run
from vqtok.compute.device import Precision, channels_last, tf32
from vqtok.errors import ModelError
from vqtok.models.tokenizer import Tokenizer
from vqtok.models.vqmodel import VQModel

NO_SIDE_DATA: NDArray[np.float32] = np.zeros(0, np.float32)
BATCH_POSITIONS = {"cpu": 1 << 14, "cuda": 1 << 18}
"""Pixels or samples in a batch of small windows; larger windows run one by one, since batches make them no faster."""
Result = TypeVar("Result")


@contextmanager
def _library_errors() -> Iterator[None]:
    """Turn what a library may raise for an odd item into an error of this item, so that the others go on."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(f"its library cannot process this: {type(error).__name__}: {reason}") from error


_gpu_flags = threading.Lock()
"""Held while torch's process-wide TF32 flags are changed."""


class Inference:
    """Encode and decode windows asynchronously, in batches. Methods may be called from many threads.

    Args:
        tokenizer: The model; a module must be on `device` already.
        jobs: Processor cores to keep busy.
        effort: Paths through residual codebooks that are followed in encoding.
    """

    def __init__(
        self, tokenizer: Tokenizer, device: torch.device, precision: Precision, jobs: int, effort: int = 1
    ) -> None:
        self._tokenizer, self._device, self._precision, self._effort = tokenizer, device, precision, effort
        self._runs: dict[int, Run] = {}
        """Functions that encode with so many codebooks."""
        self._cores = Batches(jobs, BATCH_POSITIONS["cpu"])
        self._batches = self._cores if device.type == "cpu" else Batches(1, BATCH_POSITIONS["cuda"])

    @property
    def workers(self) -> int:
        """Windows that are worth submitting ahead."""
        return self._batches.workers

    def on_core(self, work: Callable[[], Result]) -> Future[Result]:
        """Run other work on one of the processor cores that the network uses."""
        return self._cores.alone(work)

    def encode(self, window: NDArray[np.float32], num_codebooks: int) -> Future[NDArray[np.int32]]:
        """Encode one window.

        Shapes:
            window: `(channels, *size)`. Result: `(n, *grid)`, n at least `num_codebooks`.
        """
        together = self._tokenizer.encodes_together
        if self._tokenizer.one_by_one and not together:
            return self._batches.alone(lambda: self._encode(window[None], num_codebooks)[0])
        # The same function each time, by which batches know what belongs together.
        run = self._runs.setdefault(num_codebooks, partial(self._encode, num_codebooks=num_codebooks))
        return self._batches.submit(run, window, math.prod(window.shape[1:]), independent=together)

    def decode(
        self, codes: NDArray[np.int32], side_data: NDArray[np.float32] = NO_SIDE_DATA
    ) -> Future[NDArray[np.float32]]:
        """Decode one window.

        Shapes:
            codes: `(num_codebooks, *grid)`. Result: `(channels, *size)`.
        """
        if self._tokenizer.one_by_one:
            return self._batches.alone(lambda: self._decode(codes[None], side_data[None])[0])
        steps = codes.shape[1:]
        return self._batches.submit(self._decode, codes, math.prod(steps) * self._tokenizer.stride ** len(steps))

    def side_data(self, window: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the numbers that decoding needs besides the codes of a window `(channels, *size)`."""
        with torch.inference_mode():
            found: NDArray[np.float32] = self._tokenizer.side_data(self._on_device(window[None]))[0].cpu().numpy()
        return found

    def _encode(self, batch: NDArray[np.float32], num_codebooks: int) -> NDArray[np.int32]:
        x = channels_last(self._on_device(batch))
        with self._computing():
            if self._effort > 1:
                found = self._tokenizer.encode_searching(x, num_codebooks, self._effort)
            else:
                found = self._tokenizer.encode_first(x, num_codebooks)
            codes: NDArray[np.int32] = found.to(torch.int32).cpu().numpy()
        return codes

    def _decode(self, batch: NDArray[np.int32], side_data: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        codes = self._on_device(batch).long()
        with self._computing():
            if side_data is None:
                decoded = self._tokenizer.decode(codes)
            else:
                decoded = self._tokenizer.decode_with(codes, self._on_device(side_data))
            media: NDArray[np.float32] = decoded.float().cpu().numpy()
        return media

    def _on_device(self, batch: NDArray[Any]) -> Tensor:
        x = torch.from_numpy(batch)
        return x.pin_memory().to(self._device, non_blocking=True) if self._device.type == "cuda" else x.to(self._device)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Compute in the chosen precision. GPUs use TF32 only if it was chosen.

        Raises:
            ModelError: The code of another library fails for this item.
        """
        with ExitStack() as context:
            if not isinstance(self._tokenizer, VQModel):
                context.enter_context(_library_errors())
            context.enter_context(torch.inference_mode())
            bfloat16 = self._precision == "bfloat16"
            context.enter_context(torch.autocast(self._device.type, torch.bfloat16, enabled=bfloat16))
            if self._device.type == "cuda":
                context.enter_context(_gpu_flags)
                context.enter_context(tf32(self._precision == "tf32"))
            yield
