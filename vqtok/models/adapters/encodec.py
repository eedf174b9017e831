"""The EnCodec models of transformers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqtok.errors import CorruptFileError
from vqtok.models.adapters.pretrained import TOGETHER, SavedModel
from vqtok.models.adapters.seanet import CORE_SECONDS, in_windows, seanet_layers
from vqtok.networks.receptive_field import context


class Encodec(SavedModel):
    """Meta's codec, with all its codebooks instead of those of its lowest bandwidth.

    Some models, such as the one for 48 kHz, cut audio into overlapping segments. The grid is then the concatenation of
    the grids of the segments, and the side data are the scales of the segments.

    Source: Défossez et al. 2022, "High Fidelity Neural Audio Compression".
    """

    modality = "audio"
    network_class = "EncodecModel"
    padding = None
    settings = (
        "sampling_rate",
        "audio_channels",
        "target_bandwidths",
        "normalize",
        "chunk_length_s",
        "overlap",
        "upsampling_ratios",
        "norm_type",
        "dilation_growth_rate",
        "use_causal_conv",
        "pad_mode",
        "trim_right_ratio",
        "codebook_size",
    )

    def __init__(self, source: str) -> None:
        super().__init__(source)
        config = self.config
        self.sample_rate, self.channels, self.stride = config.sampling_rate, config.audio_channels, config.hop_length
        count = self.network.quantizer.get_num_quantizers_for_bandwidth(config.target_bandwidths[-1])
        self.codebook_sizes = (config.codebook_size,) * count
        self.segment, self.hop = config.chunk_length, config.chunk_stride
        self.has_scales = config.normalize or self.segment is not None
        self.encodes_together = 0 if self.has_scales else TOGETHER
        self.core = None
        if self.segment is not None:
            self.why_whole = "it cuts audio into overlapping segments by itself"
        elif config.normalize or config.norm_type != "weight_norm":
            self.why_whole = "its norms depend on the whole audio"
        else:
            self.why_whole = f"its LSTM depends on the whole audio; convolutions process {CORE_SECONDS:.0f} s at a time"
            self.core = round(CORE_SECONDS * self.sample_rate / self.stride)
            causal, trim = config.use_causal_conv, config.trim_right_ratio
            self.front, self.middle = _split(self.network.encoder)
            self.head, self.tail = _split(self.network.decoder)
            self.front_context = context(seanet_layers(self.front, causal, trim))
            self.tail_context = context(seanet_layers(self.tail, causal, trim))

    def num_steps(self, samples: int) -> int:
        if self.segment is None:
            return super().num_steps(samples)
        return sum(-(-length // self.stride) for length in self._segment_lengths(samples))

    def encode_first(self, x: Tensor, num_codebooks: int) -> Tensor:
        bandwidth = sufficient_bandwidth(self.network, num_codebooks)
        if self.core is not None and x.shape[2] > self.core * self.stride:
            features = in_windows(self.front, x, self.core, self.front_context, takes=self.stride)
            quantizer = self.network.quantizer
            long_codes: Tensor = quantizer.encode(self.middle(features), bandwidth).transpose(0, 1)
            return long_codes
        found = self.network.encode(self._filled(x), bandwidth=bandwidth)
        codes: Tensor = found.audio_codes.permute(1, 2, 0, 3).flatten(2)
        return codes[..., : codes.shape[2] - found.last_frame_pad_length]

    def side_data(self, x: Tensor) -> Tensor:
        """Return the scale of each segment."""
        if not self.has_scales:
            return super().side_data(x)
        filled = self._filled(x)
        scales = []
        for index, length in enumerate(self._segment_lengths(x.shape[2])):
            segment = filled[..., index * (self.hop or 0) :][..., :length]
            mono = segment.sum(dim=1) / segment.shape[1]
            scales.append(mono.pow(2).mean(dim=-1).sqrt() + 1e-8 if self.config.normalize else mono.new_ones(len(x)))
        return torch.stack(scales, dim=1)

    def decode(self, codes: Tensor) -> Tensor:
        return self.decode_with(codes, codes.new_zeros(len(codes), 0))

    def decode_with(self, codes: Tensor, side_data: Tensor) -> Tensor:
        total = codes.shape[2]
        if self.core is not None and total > self.core:
            features = self.head(self.network.quantizer.decode(codes.transpose(0, 1)))
            return in_windows(self.tail, features, self.core, self.tail_context, gives=self.stride)
        count = side_data.shape[1] if self.has_scales else 1
        steps = total if self.segment is None else self._steps_of_first(total, count)
        missing = count * steps - total
        if not 0 <= missing < steps:
            raise CorruptFileError("the number of scales does not match the segments; encode again")
        segments = F.pad(codes, (0, missing)).unflatten(2, (count, steps)).permute(2, 0, 1, 3)
        scales = list(side_data.T) if self.config.normalize else [None] * count
        media: Tensor = self.network.decode(segments, scales, last_frame_pad_length=missing).audio_values
        return media

    def _steps_of_first(self, total: int, count: int) -> int:
        """Return the number of steps of the first segment, and of every other one but the last.

        Args:
            total: The number of steps of all segments.
            count: The number of segments.
        """
        whole = -(-self.segment // self.stride)
        if count != 2 or total > whole:
            return whole
        # The audio is shorter than a segment, but long enough for a second one to begin: neither is whole.
        ends = (self._segment_lengths(samples) for samples in range(self.hop + 1, self.segment))
        steps = ([-(-length // self.stride) for length in lengths] for lengths in ends)
        return next((first for first, last in steps if first + last == total), whole)

    def _segment_lengths(self, samples: int) -> list[int]:
        """Return the number of samples of each segment; audio that the library cannot decode is padded by a few."""
        if self.segment is None:
            return [samples]
        while True:
            lengths = [min(self.segment, samples - start) for start in range(0, samples, self.hop)]
            steps = [-(-length // self.stride) for length in lengths]
            # The library stacks all segments but the last, which must therefore have equal lengths, and requires that
            # the last one ends after the one before.
            if (
                len(set(steps[:-1])) <= 1
                and self.hop + steps[-1] * self.stride >= max(steps[:-1], default=0) * self.stride
            ):
                return lengths
            samples += 1

    def _filled(self, x: Tensor) -> Tensor:
        """Pad audio with zeros up to the end of its segments."""
        lengths = self._segment_lengths(x.shape[2])
        return F.pad(x, (0, (len(lengths) - 1) * (self.hop or 0) + lengths[-1] - x.shape[2]))


def sufficient_bandwidth(network: Any, num_codebooks: int) -> float:
    """Return the lowest bandwidth, in kbit/s, at which a network like EnCodec's has at least so many codebooks."""
    count_at = network.quantizer.get_num_quantizers_for_bandwidth
    return next(float(rate) for rate in network.config.target_bandwidths if count_at(rate) >= num_codebooks)


def _split(network: nn.Module) -> tuple[nn.Sequential, nn.Sequential]:
    """Split an encoder before its LSTM, or a decoder after its LSTM."""
    layers = list(network.get_submodule("layers").children())
    place = next(index for index, layer in enumerate(layers) if hasattr(layer, "lstm"))
    place += any(isinstance(module, nn.ConvTranspose1d) for module in network.modules())
    return nn.Sequential(*layers[:place]), nn.Sequential(*layers[place:])
