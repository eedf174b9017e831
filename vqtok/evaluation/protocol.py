"""The protocol of an evaluation: all that its numbers depend on."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from vqtok.evaluation import stability
from vqtok.evaluation.candidates import Plan
from vqtok.evaluation.codecs import CODECS
from vqtok.metrics.catalogue import METRICS, versions

PACKAGES = "vqtok", "torch", "numpy", "pillow", "soundfile"
RULES = {
    "image": {
        "original": "8-bit sRGB, upright, transparent parts on white, at its own size: no scaling and no crop",
        "reconstruction": "rounded to 8 bits, as in a decoded file; no alignment",
        "model with one channel": "gets 0.299 R + 0.587 G + 0.114 B; its image is compared in all three channels",
    },
    "audio": {
        "original": "float32 at its own rate and with its own channels, unless `sample_rate` or `mono` are set below",
        "reconstruction": "resampled back to the original's rate, cut to its length or followed by silence; "
        "encoder delays are removed by the decoder, without further alignment",
    },
    "both": {
        "bytes": "whole token files with header and checksum; whole files of classical codecs",
        "classical codecs": "at a model's bytes: interpolated over the logarithm of the bytes between the smallest "
        "file with at least as many bytes and the next smaller file measured; the smallest file "
        "where all have more bytes, the best one where all have fewer",
        "means": "over items for which all candidates have a finite figure; failed items are left out of all",
        "order-0": "the entropy of the histogram of each codebook over all items, without headers",
    },
}


def make_protocol(plans: Sequence[Plan], items: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Return the protocol of plans, one for each modality, and their evaluated items."""
    return {
        "format": "vqtok evaluation protocol",
        "version": 1,
        "packages": {name: _version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "machine": f"{platform.system()} {platform.machine()}",
        "rules": {name: RULES[name] for name in (*(plan.modality for plan in plans), "both")},
        "seeds": {"noise": stability.SEED},
        "modalities": {
            plan.modality: plan_facts(plan)
            | {
                "changes": stability.CHANGES[plan.modality] if plan.stability else {},
                "items": [{name: item[name] for name in ("key", "sha256", "size")} for item in items[plan.modality]],
            }
            for plan in plans
        },
    }


def plan_facts(plan: Plan) -> dict[str, Any]:
    """Return what the figures of an item depend on."""
    return {
        "models": [
            {
                "name": model.name,
                "model": model.given,
                "identity": model.identity,
                "num_codebooks": list(model.codebooks),
                "stride": model.stride,
                "sample_rate": model.sample_rate,
            }
            for model in plan.models
        ],
        "codecs": {name: _codec_facts(name, plan) for name in plan.codecs},
        "metrics": {
            name: {"computed_by": versions(METRICS[name]), "note": METRICS[name].note} for name in plan.metrics
        },
        "left_out": plan.missing,
        "sample_rate": plan.sample_rate,
        "mono": plan.mono,
        "degrade": list(plan.degrade),
        "effort": plan.effort,
        "stability": plan.stability,
        "device": plan.device,
        "precision": plan.precision,
    }


def digest(plan: Plan) -> str:
    """Return a hash of what the figures of an item depend on."""
    facts = {"modality": plan.modality, "packages": {name: _version(name) for name in PACKAGES}} | plan_facts(plan)
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _codec_facts(name: str, plan: Plan) -> dict[str, Any]:
    codec = CODECS[name]
    return {
        "implementation": codec.version(),
        "setting": codec.unit,
        "curve": list(codec.ladder) if plan.curves else [],
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
