"""The training objective: losses of the reconstruction, of the codebooks and of discriminators."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vqtok.compute.device import autocast, channels_last
from vqtok.compute.distributed import gather, gather_own, world_size
from vqtok.config import Config, Modality
from vqtok.losses.code_matching import code_distributions, code_matching_loss
from vqtok.losses.reconstruction import ReconstructionLoss
from vqtok.models.vqmodel import VQModel
from vqtok.training.adversary import Adversary
from vqtok.training.data import NO_PAIR, Batch
from vqtok.training.optim import cosine


@dataclass(frozen=True)
class TensorBatch:
    """A `Batch` on the device of the model."""

    media: Mapping[Modality, Tensor]
    inputs: Mapping[Modality, Tensor]
    pairs: Tensor
    speech: Tensor
    codes: Mapping[Modality, Tensor]

    @classmethod
    def of(cls, batch: Batch, device: torch.device) -> TensorBatch:
        """Move a batch to a device."""
        media, inputs, codes = (
            {modality: torch.from_numpy(array).to(device) for modality, array in arrays.items()}
            for arrays in (batch.media, batch.inputs, batch.codes)
        )
        pairs, speech = (torch.from_numpy(array).to(device) for array in (batch.pairs, batch.speech))
        return cls(media, inputs, pairs, speech, codes)

    def __len__(self) -> int:
        """Return the number of items of all modalities."""
        return sum(map(len, self.media.values()))

    def chunk(self, count: int) -> list[TensorBatch]:
        """Split the batch into parts."""

        def chunks(tensors: Mapping[Modality, Tensor]) -> list[dict[Modality, Tensor]]:
            parts = {modality: x.chunk(count) for modality, x in tensors.items()}
            return [{modality: own[i] for modality, own in parts.items()} for i in range(len(pairs))]

        pairs = self.pairs.chunk(count)
        media, inputs, codes = map(chunks, (self.media, self.inputs, self.codes))
        return [TensorBatch(*part) for part in zip(media, inputs, pairs, self.speech.chunk(count), codes, strict=True)]


@dataclass(frozen=True)
class Objective:
    """All losses of a model, and their gradients.

    Args:
        config: Has the weights of the losses and the number of parts that a batch is split into.
        reconstruction: The reconstruction loss of each modality.
        adversary: The discriminators, if any.
        precision: The type that the model computes in.
    """

    config: Config
    reconstruction: Mapping[Modality, ReconstructionLoss]
    adversary: Adversary | None
    precision: torch.dtype

    def backward(
        self, model: VQModel, batch: TensorBatch, *, quantize: bool, fraction: float
    ) -> tuple[dict[str, float], Tensor | None]:
        """Add the gradients of a batch to those of the model and of the discriminators.

        Args:
            model: The model in training.
            batch: The batch.
            quantize: Whether to quantize the latents.
            fraction: The progress of the run, from 0 to 1.

        Returns:
            The losses by name (in a fusion model after the modality, such as `image.l2`), and the codes
            `(1, num_codebooks, positions)` of all items and modalities; None if nothing was quantized.
        """
        parts = batch.chunk(self.config.train.accumulate)
        found = [self._backward(model, part, quantize, fraction, 1 / len(parts)) for part in parts]
        losses = {name: sum(figures[name] for figures, _ in found) for name in found[0][0]}
        codes = [codes for _, codes in found if codes is not None]
        return losses, torch.cat(codes, dim=2) if codes else None

    def _backward(
        self, model: VQModel, batch: TensorBatch, quantize: bool, fraction: float, part: float
    ) -> tuple[dict[str, float], Tensor | None]:
        """Add the gradients of a part of a batch; return its share of the losses, and its codes."""
        losses: dict[str, Tensor] = {}
        latents: dict[Modality, Tensor] = {}
        codes: list[Tensor] = []
        total = torch.zeros((), device=batch.pairs.device)
        for modality, side in model.sides.items():
            x, weights = batch.media[modality], self.config.of(modality).loss_weights
            with autocast(x.device, self.precision):
                if modality in batch.codes:
                    x_hat, output = side.reconstruct_codes(batch.codes[modality]), None
                else:
                    z = side.encoder(channels_last(batch.inputs[modality]))
                    x_hat, output = side.reconstruct(z, quantize=quantize)
            x_hat = x_hat.float()
            own = self.reconstruction[modality](x, x_hat, batch.speech)
            if self.adversary:
                own |= self.adversary.losses(x, x_hat, fraction, part)
                weights = self.adversary.weights(own, x_hat, side.decoder, part)
            if output is not None:
                own |= output.losses
                codes.append(output.codes.movedim(1, 0).flatten(1)[None])
                latents[modality] = z
            total = total + sum((weights[name] * loss for name, loss in own.items()), x.new_zeros(()))
            losses |= own if len(model.sides) == 1 else {f"{modality}.{name}": loss for name, loss in own.items()}
        if self.config.loss.code_matching and latents:
            pairs = gather(batch.pairs)
            are_pairs = pairs != NO_PAIR
            if are_pairs.sum() > 1:
                (codebook,) = model.quantizer.codebooks()
                image, audio = (gather_own(code_distributions(z, codebook))[are_pairs] for z in latents.values())
                losses["code_matching"] = code_matching_loss(image, audio, pairs[are_pairs])
                # It falls to zero like the learning rate: the reconstruction pays for it, and codes that have met stay
                # together in small steps. The loss is that of the batches of all processes, and the mean of their
                # gradients divides it.
                weight = self.config.loss.code_matching * cosine(fraction)
                total = total + world_size() * weight * losses["code_matching"]
        (part * total).backward()
        values = torch.stack([loss.detach() for loss in losses.values()]).tolist()
        figures = {name: part * value for name, value in zip(losses, values, strict=True)}
        return figures, torch.cat(codes, dim=2) if codes else None
