from __future__ import annotations

import pytest
import torch

from vqtok.generation.config import NetworkConfig
from vqtok.generation.network import CodeTable, Generator, attend
from vqtok.generation.streams import HIDDEN, Stream, text_codes, text_of

STREAMS = [Stream("image", (16, 16), (3, 4)), Stream("audio", (8,), (5,)), Stream("text", (257,), (6,))]


@pytest.fixture
def generator() -> Generator:
    torch.manual_seed(0)
    return Generator(NetworkConfig(32, 2, 2, 0.0), STREAMS, {"image": [torch.randn(16, 4)] * 2}).eval()


def codes_of(stream: Stream, batch: int = 2) -> torch.Tensor:
    return torch.stack([torch.randint(0, size, (batch, *stream.window)) for size in stream.codebook_sizes], dim=1)


@torch.no_grad()
def test_features_have_a_row_for_each_position_of_the_given_streams(generator):
    codes = {stream.name: codes_of(stream) for stream in STREAMS[:2]}
    features = generator(codes)
    assert {name: tuple(x.shape) for name, x in features.items()} == {"image": (2, 12, 32), "audio": (2, 5, 32)}
    assert generator.logits("image", 1, features["image"]).shape == (2, 12, 16)


@torch.no_grad()
def test_every_position_sees_every_stream(generator):
    codes = {stream.name: codes_of(stream, 1) for stream in STREAMS}
    before = generator(codes)
    for stream in STREAMS:
        changed = codes[stream.name].clone()
        changed[0, 0].view(-1)[0] = (changed[0, 0].view(-1)[0] + 1) % 8
        after = generator({**codes, stream.name: changed})
        assert all((after[name] - before[name]).abs().amax(-1).min() > 1e-7 for name in codes)


@torch.no_grad()
def test_hidden_positions_differ_by_their_place(generator):
    hidden = torch.full((1, 2, 3, 4), HIDDEN)
    (features,) = generator({"image": hidden})["image"]
    assert torch.pdist(features).min() > 1e-4


@torch.no_grad()
def test_a_smaller_grid_is_the_corner_of_the_window(generator):
    table = generator.layers["image"].places
    small = generator.layers["image"].embed(torch.zeros(1, 2, 2, 3, dtype=torch.long))
    large = generator.layers["image"].embed(torch.zeros(1, 2, 3, 4, dtype=torch.long))
    assert table.shape == (3, 4, 32)
    torch.testing.assert_close(small.view(2, 3, 32), large.view(3, 4, 32)[:2, :3])


def test_codes_with_like_vectors_start_alike_and_can_part():
    vectors = torch.tensor([[0.0, 1.0], [0.0, 1.1], [1.0, -1.0]])
    table = CodeTable(3, 8, vectors)
    near, far = (table()[0] - table()[1]).norm(), (table()[0] - table()[2]).norm()
    assert near < 0.2 * far
    assert table.correction.requires_grad
    assert table.correction.abs().max() == 0


def test_the_gradient_reaches_everything(generator):
    codes = {stream.name: codes_of(stream) for stream in STREAMS}
    codes["image"][:, 1] = HIDDEN
    codes["audio"][:, :, 0] = HIDDEN
    codes["text"][:, :, 0] = HIDDEN
    features = generator.train()(codes)
    sum(
        generator.logits(name, index, features[name]).logsumexp(-1).sum()
        for name, index in (("image", 0), ("image", 1), ("audio", 0), ("text", 0))
    ).backward()
    without = [n for n, p in generator.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # Nothing of the first codebook was hidden.
    assert without == ["layers.image.tables.0.hidden"]


def test_attention_is_that_of_the_fused_function():
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, 7, 8) for _ in range(3))
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(attend(query, key, value), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("text", ["", "seven", "größe", "猫"])
def test_captions_return_from_their_codes(text):
    assert text_of(text_codes(text, 12)) == text


def test_a_caption_is_cut_to_the_length():
    assert text_of(text_codes("seventeen", 5)) == "seven"
