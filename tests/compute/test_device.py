"""TF32, which is switched by flags of the whole process."""

from __future__ import annotations

import pytest
import torch

from vqtok.compute.device import tf32
from vqtok.quantizers.base import exact


def test_tf32_is_for_gpus(run, photo):
    result = run("encode", photo, "--precision", "tf32")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "--device cuda" in result.stderr


@pytest.fixture
def flags():
    """Restore the flags of the process at the end."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    yield matmul, cudnn
    matmul.allow_tf32, cudnn.allow_tf32 = before


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("allowed", [False, True])
def test_tf32_is_switched_and_restored(flags, before, allowed):
    matmul, cudnn = flags
    matmul.allow_tf32, cudnn.allow_tf32 = before, not before
    with tf32(allowed):
        assert (matmul.allow_tf32, cudnn.allow_tf32) == (allowed, allowed)
        with exact(torch.device("cuda")):
            assert not matmul.allow_tf32
        assert matmul.allow_tf32 == allowed
    assert (matmul.allow_tf32, cudnn.allow_tf32) == (before, not before)


def test_tf32_is_restored_under_the_name_it_was_set_by(flags):
    matmul, _ = flags
    if not hasattr(matmul, "fp32_precision"):
        pytest.skip("this version of torch has only one name for it")
    matmul.fp32_precision = "tf32"
    with tf32(False):
        assert not matmul.allow_tf32
    assert matmul.fp32_precision == "tf32"
