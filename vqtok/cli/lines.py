"""One-line summaries of results."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vqtok.tokens.shard.writer import Merged


def encoded_line(facts: Mapping[str, Any]) -> str:
    """Return a line such as `cat.png 768x512 -> cat.vqt 3.1 kB (6144 tokens, 0.063 bpp, 380:1)`."""
    if facts["modality"] == "image":
        raw_bytes = facts["width"] * facts["height"] * 3
        rate = f"{facts['bpp']:.3f} bpp"
    else:
        raw_bytes = facts["duration_seconds"] * facts["sample_rate"] * facts["channels"] * 2
        rate = f"{facts['kbps']:.2f} kbps"
    smaller = raw_bytes / facts["file_bytes"]
    chosen = f", {facts['num_codebooks']} codebook{'s' * (facts['num_codebooks'] > 1)}"
    return (
        f"{_input(facts)} {media_size(facts)} -> {facts['output']} {file_size(facts['file_bytes'])} "
        f"({facts['num_tokens']} tokens, {rate}, {smaller:.{0 if smaller >= 10 else 1}f}:1"
        f"{chosen if 'target_reached' in facts else ''})"
    )


def _input(facts: Mapping[str, Any]) -> str:
    """Return the name of what was encoded: a file, or a row of one."""
    key = facts.get("key", "")
    return str(facts["file"]) if str(facts["file"]).endswith(key) else f"{facts['file']}: {key}"


def decoded_line(facts: Mapping[str, Any]) -> str:
    """Return the line for one decoded file."""
    used, there = facts["decoded_codebooks"], facts["num_codebooks"]
    source = f"{facts['file']}: {facts['key']}" if "key" in facts else facts["file"]
    return f"{source} -> {facts['output']} {media_size(facts)} ({used} of {there} codebooks)"


class Tally:
    """Counts outcomes, and measures their rate and speed."""

    def __init__(self) -> None:
        self.done = self.skipped = self.failed = 0
        self._bits = {"bpp": 0, "kbps": 0}
        self._extent = {"bpp": 0.0, "kbps": 0.0}  # pixels, and milliseconds
        self._started = time.monotonic()

    @property
    def count(self) -> int:
        return self.done + self.skipped + self.failed

    def add(self, facts: Mapping[str, Any]) -> None:
        """Count one outcome by its facts, as `--json` prints them. The rate is that of the codebooks that were used."""
        if "error" in facts:
            self.failed += 1
        elif "skipped" in facts:
            self.skipped += 1
        else:
            self.done += 1
        for rate in facts.keys() & self._bits:
            self._bits[rate] += 8 * facts.get("decoded_bytes", facts["file_bytes"])
            self._extent[rate] += (
                facts["width"] * facts["height"] if rate == "bpp" else 1000 * facts["duration_seconds"]
            )

    def facts(self) -> dict[str, Any]:
        """Return the summary that `--json` prints as its last line."""
        counts = {"kind": "summary", "done": self.done, "skipped": self.skipped, "failed": self.failed}
        return counts | {"seconds": time.monotonic() - self._started} | self._rates()

    def __str__(self) -> str:
        """Return a summary such as `31.5 items/s, 0.063 bpp: 200 done, 3 skipped, 1 failed`."""
        counts = f"{self.done} done, {self.skipped} skipped, {self.failed} failed"
        if not self.done:
            return counts
        speed = f"{self.done / (time.monotonic() - self._started):.3g} items/s"
        rates = [f"{value:.3f} {rate}" for rate, value in self._rates().items()]
        return f"{', '.join([speed, *rates])}: {counts}"

    def _rates(self) -> dict[str, float]:
        return {rate: self._bits[rate] / extent for rate, extent in self._extent.items() if extent}


def converted_line(facts: Mapping[str, Any]) -> str:
    """Return the line for one converted item."""
    if facts["kind"] == "array":
        return f"{facts['file']} -> {facts['output']} (shape {times(facts['shape'])})"
    codebooks = "1 codebook" if facts["num_codebooks"] == 1 else f"{facts['num_codebooks']} codebooks"
    return (
        f"{facts['file']} -> {facts['output']} {file_size(facts['file_bytes'])} "
        f"({facts['num_tokens']} tokens: {codebooks}, {media_size(facts)})"
    )


def exported_line(facts: Mapping[str, Any]) -> str:
    """Return the line for an export."""
    items = f"{facts['num_items']} {'row' if 'models' in facts else 'item'}" + ("s" if facts["num_items"] > 1 else "")
    files = [name for name in facts["files"] if not name.endswith(".json")]
    several = f" ({len(files)} files)" if "models" in facts and len(files) > 1 else ""
    failed = f", {facts['failed']} left out" if facts["failed"] else ""
    left = f", of which {facts['ids_left_over']} do not fill a sequence" if facts.get("ids_left_over") else ""
    return (
        f"{items} -> {facts['files'][0]}{several} {file_size(facts['file_bytes'])} "
        f"({facts['num_ids']} token ids{left}, {facts['layout']}, vocabulary of {facts['vocabulary_size']}){failed}"
    )


def generated_line(facts: Mapping[str, Any]) -> str:
    """Return the line for one generated output, or a caption after its source and a tab."""
    source = f"{facts['file']} -> " if "file" in facts else ""
    if facts["modality"] == "text":
        return "\t".join([*([facts["file"]] if "file" in facts else []), facts["caption"]])
    caption = f", caption {facts['caption']!r}" if "caption" in facts else ""
    return f"{source}{facts['output']} {media_size(facts)} (seed {facts['seed']}{caption})"


def bits_line(alone: Mapping[str, float], given_rest: Mapping[str, float]) -> str:
    """Return the bits per token of a generator, such as `image 4.21, 3.98 given the rest; text 0.11 given the rest`."""
    parts = []
    for name in dict.fromkeys([*alone, *given_rest]):
        own = [f"{alone[name]:.2f}"] if name in alone else []
        rest = [f"{given_rest[name]:.2f} given the rest"] if name in given_rest else []
        parts.append(f"{name} {', '.join(own + rest)}")
    return "; ".join(parts)


def media_size(facts: Mapping[str, Any]) -> str:
    if "width" in facts:
        return f"{facts['width']}x{facts['height']}"
    channels = {1: "mono", 2: "stereo"}.get(facts["channels"], f"{facts['channels']} channels")
    return f"{facts['duration_seconds']:.2f} s {facts['sample_rate']} Hz {channels}"


def file_size(num_bytes: float) -> str:
    if num_bytes < 1000:
        return f"{num_bytes:.0f} bytes"
    unit, scale = ("kB", 1e3) if num_bytes < 1e6 else ("MB", 1e6)
    return f"{num_bytes / scale:.1f} {unit}"


def merged_line(output: Path, merged: Merged) -> str:
    """Return the line for a merged shard."""
    return f"{output}: {merged.num_items} items, {file_size(output.stat().st_size)}"


def times(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))
