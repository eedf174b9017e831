"""Classical codecs: each encodes media at any of its settings, from the fewest bytes to the most."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL
import soundfile
from numpy.typing import NDArray
from PIL import Image, features

from vqtok.errors import MediaError, UsageError
from vqtok.media.audio import read_audio, write_audio
from vqtok.media.image import as_bytes, as_float, read_image, write_image
from vqtok.media.kinds import is_installed
from vqtok.media.media import Media
from vqtok.media.resample import resample

OPUS_RATES = (8000, 12_000, 16_000, 24_000, 48_000)
OPUS_KBPS = tuple(range(6, 129))
WRITE_SAMPLES = 1 << 16
PERCENT = tuple(range(101))


@dataclass(frozen=True)
class ClassicalCodec(ABC):
    """A codec that is not a tokenizer."""

    name: str
    heading: str
    modality: Literal["image", "audio"]
    settings: Sequence[int]
    """What it can be set to, from the fewest bytes to the most."""
    ladder: Sequence[int]
    """The settings that stand for its whole range."""
    unit: str
    """What a setting is."""

    @abstractmethod
    def why_missing(self) -> str:
        """Return why it cannot be used here; empty if it can."""

    @abstractmethod
    def version(self) -> str:
        """Return the implementation and its version."""

    @abstractmethod
    def encode(self, media: Media, setting: int) -> bytes:
        """Return the file of media.

        Raises:
            MediaError: The codec cannot encode them.
        """

    @abstractmethod
    def decode(self, data: bytes, like: Media) -> Media:
        """Return what a file decodes to, with the rate and length of the original."""


@dataclass(frozen=True)
class PillowCodec(ClassicalCodec):
    """A format of Pillow, or of one of its plugins, with `quality` as its setting."""

    format: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    feature: str = ""
    """The name of the library among Pillow's features, or of the plugin."""

    def why_missing(self) -> str:
        if self.feature == "pillow_jxl":
            return "" if is_installed("pillow_jxl") else "needs pillow-jxl-plugin: pip install 'vqtok[jxl]'"
        return "" if features.check(self.feature) else f"this Pillow was built without {self.heading}"

    def version(self) -> str:
        options = "".join(f", {name} {value}" for name, value in self.options.items())
        if self.feature == "pillow_jxl":
            from importlib.metadata import version

            return f"pillow-jxl-plugin {version('pillow-jxl-plugin')}{options}"
        return f"Pillow {PIL.__version__}, {self.feature} {features.version(self.feature)}{options}"

    def encode(self, media: Media, setting: int) -> bytes:
        if self.feature == "pillow_jxl":
            import pillow_jxl  # noqa: F401
        file = BytesIO()
        rows = as_bytes(media.data).transpose(1, 2, 0)
        try:
            Image.fromarray(np.ascontiguousarray(rows)).save(file, self.format, quality=setting, **self.options)
        except (OSError, ValueError, RuntimeError) as error:
            raise MediaError(f"{self.name} cannot encode it: {error}") from error
        return file.getvalue()

    def decode(self, data: bytes, like: Media) -> Media:
        with Image.open(BytesIO(data)) as image:
            rows = np.asarray(image.convert("RGB"))
        return Media("image", as_float(rows.transpose(2, 0, 1)))


@dataclass(frozen=True)
class SoundfileCodec(ClassicalCodec):
    """A lossy format of libsndfile; the setting is its compression level in percent, counted from the strongest."""

    container: str = ""
    subtype: str = ""
    rates: Sequence[int] = ()
    """The sample rates that it can encode; empty for any."""
    mode: str | None = None
    """The bitrate mode of libsndfile."""

    def why_missing(self) -> str:
        found = self.subtype in soundfile.available_subtypes(self.container)
        return "" if found else f"this libsndfile ({soundfile.__libsndfile_version__}) was built without {self.heading}"

    def version(self) -> str:
        return f"libsndfile {soundfile.__libsndfile_version__}"

    def encode(self, media: Media, setting: int) -> bytes:
        data, rate = at_rate(media, self.rates)
        file = BytesIO()
        level = 1 - setting / self.settings[-1]
        try:
            with soundfile.SoundFile(
                file,
                "w",
                rate,
                len(data),
                self.subtype,
                format=self.container,
                compression_level=level,
                bitrate_mode=self.mode,
            ) as target:
                for start in range(0, data.shape[1], WRITE_SAMPLES):  # Vorbis overflows the stack in one call.
                    target.write(data[:, start : start + WRITE_SAMPLES].T.clip(-1, 1))
        except (soundfile.LibsndfileError, TypeError, ValueError) as error:
            raise MediaError(f"{self.name} cannot encode {len(data)} channels at {rate} Hz: {error}") from error
        return file.getvalue()

    def decode(self, data: bytes, like: Media) -> Media:
        return fitted(read_audio(data), like)


@dataclass(frozen=True)
class CommandCodec(ClassicalCodec):
    """Programs on the PATH that encode a PNG or WAV file and decode to one."""

    suffix: str = ""
    encoder: Sequence[str] = ()
    """The command line, with `{input}`, `{output}` and `{setting}`."""
    decoder: Sequence[str] = ()
    """The command line; empty for files that vqtok reads."""
    rates: Sequence[int] = ()
    version_option: str = "--version"

    def why_missing(self) -> str:
        missing = [program[0] for program in (self.encoder, self.decoder) if program and not shutil.which(program[0])]
        return f"{' and '.join(missing)} not found on the PATH" if missing else ""

    def version(self) -> str:
        return f"{_first_line(self.encoder[0], self.version_option)}: {' '.join(self.encoder)}"

    def encode(self, media: Media, setting: int) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder) / f"source{self._plain}", Path(folder) / f"target{self.suffix}"
            if media.modality == "image":
                write_image(media, source)
            else:
                data, rate = at_rate(media, self.rates)
                write_audio(Media("audio", data, rate), source)
            self._call(self.encoder, source, target, setting)
            return target.read_bytes()

    def decode(self, data: bytes, like: Media) -> Media:
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder) / f"source{self.suffix}", Path(folder) / f"target{self._plain}"
            source.write_bytes(data)
            if self.decoder:
                self._call(self.decoder, source, target, 0)
            decoded = target if self.decoder else source
            return read_image(decoded) if like.modality == "image" else fitted(read_audio(decoded), like)

    @property
    def _plain(self) -> str:
        return ".png" if self.modality == "image" else ".wav"

    def _call(self, command: Sequence[str], source: Path, target: Path, setting: int) -> None:
        words = [word.format(input=source, output=target, setting=setting) for word in command]
        done = subprocess.run(words, capture_output=True, check=False, stdin=subprocess.DEVNULL)
        if done.returncode:
            lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
            raise MediaError(f"{self.name}: {command[0]} failed: {lines[-1]}")


@cache
def _first_line(program: str, option: str) -> str:
    found = subprocess.run([program, option], capture_output=True, check=False, stdin=subprocess.DEVNULL)
    return (found.stdout or found.stderr).decode(errors="replace").strip().partition("\n")[0]


def at_rate(media: Media, rates: Sequence[int]) -> tuple[NDArray[np.float32], int]:
    """Return audio at its own sample rate if a codec can encode it, else at the next higher one that it can."""
    rate = media.sample_rate or 1
    if not rates or rate in rates:
        return media.data, rate
    chosen = next((other for other in rates if other > rate), rates[-1])
    return resample(media.data, rate, chosen), chosen


def fitted(decoded: Media, like: Media) -> Media:
    """Return decoded audio at the original's rate, cut to its length or followed by silence."""
    rate, samples = like.sample_rate or 1, like.data.shape[1]
    data = resample(decoded.data, decoded.sample_rate or rate, rate)[:, :samples]
    return Media("audio", np.pad(data, ((0, 0), (0, samples - data.shape[1]))), rate)


def _pillow(name: str, heading: str, format: str, feature: str, **options: Any) -> PillowCodec:
    ladder = (5, 15, 30, 50, 75, 95)
    settings = PERCENT[:100] if format == "JXL" else PERCENT  # The plugin fails at 100.
    return PillowCodec(name, heading, "image", settings, ladder, "quality", format, options, feature)


def _sndfile(
    name: str,
    heading: str,
    container: str,
    subtype: str,
    ladder: Sequence[int],
    rates: Sequence[int] = (),
    mode: str | None = None,
) -> SoundfileCodec:
    # The strongest level is no valid one for MP3.
    settings = tuple(range(1 if subtype == "MPEG_LAYER_III" else 0, 1001))
    return SoundfileCodec(name, heading, "audio", settings, ladder, "1000 - level", container, subtype, rates, mode)


MP3_RATES = (8000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
_CJXL = ("cjxl", "{input}", "{output}", "-q", "{setting}", "--quiet")
_FFMPEG = ("ffmpeg", "-y", "-v", "error", "-i", "{input}")
_ALL: tuple[ClassicalCodec, ...] = (
    _pillow("jpeg", "JPEG", "JPEG", "jpg", optimize=True),
    _pillow("webp", "WebP", "WEBP", "webp", method=6),
    _pillow("avif", "AVIF", "AVIF", "avif", speed=4),
    _pillow("jxl", "JPEG XL", "JXL", "pillow_jxl"),
    CommandCodec(
        "cjxl",
        "JPEG XL (cjxl)",
        "image",
        PERCENT,
        (5, 15, 30, 50, 75, 95),
        "quality",
        ".jxl",
        _CJXL,
        ("djxl", "{input}", "{output}", "--quiet"),
    ),
    # Opus has 6 to 256 kbps per channel over its levels, so that its low rates need fine steps.
    _sndfile("opus", "Opus", "OGG", "OPUS", (0, 10, 30, 80, 200, 500), OPUS_RATES),
    _sndfile("mp3", "MP3", "MP3", "MPEG_LAYER_III", (1, 50, 150, 300, 500, 900), MP3_RATES, "AVERAGE"),
    _sndfile("vorbis", "Vorbis", "OGG", "VORBIS", (0, 100, 250, 450, 700, 1000)),
    CommandCodec(
        "opusenc",
        "Opus (opusenc)",
        "audio",
        OPUS_KBPS,
        (6, 8, 12, 16, 32, 64),
        "kbps",
        ".opus",
        ("opusenc", "--quiet", "--bitrate", "{setting}", "--framesize", "60", "{input}", "{output}"),
        rates=OPUS_RATES,
    ),
    CommandCodec(
        "aac",
        "AAC (ffmpeg)",
        "audio",
        tuple(range(8, 257, 2)),
        (8, 16, 24, 48, 96, 160),
        "kbps",
        ".m4a",
        (*_FFMPEG, "-c:a", "aac", "-b:a", "{setting}k", "{output}"),
        (*_FFMPEG, "-c:a", "pcm_s16le", "{output}"),
        version_option="-version",
    ),
)
CODECS = {codec.name: codec for codec in _ALL}
DEFAULT_CODECS = "jpeg", "webp", "avif", "jxl", "opus", "mp3"


def chosen_codecs(names: Sequence[str] | None, modality: str) -> tuple[list[ClassicalCodec], dict[str, str]]:
    """Return the codecs of a modality that are installed, and why each of the others is not.

    Raises:
        UsageError: There is no codec of such a name.
    """
    for name in names or ():
        if name not in CODECS:
            raise UsageError(f"`against`: no codec {name!r}; there are {', '.join(CODECS)}")
    wanted = [
        CODECS[name] for name in (DEFAULT_CODECS if names is None else names) if CODECS[name].modality == modality
    ]
    missing = {codec.name: why for codec in wanted if (why := codec.why_missing())}
    return [codec for codec in wanted if codec.name not in missing], missing


class Files:
    """The files of one original by one codec; each is encoded once."""

    def __init__(self, codec: ClassicalCodec, original: Media) -> None:
        self.codec = codec
        self._original = original
        self._files: dict[int, bytes] = {}

    def file(self, setting: int) -> bytes:
        if setting not in self._files:
            self._files[setting] = self.codec.encode(self._original, setting)
        return self._files[setting]

    def at_least(self, num_bytes: int) -> int:
        """Return the setting of the smallest file with at least `num_bytes`; the last setting if there is none."""
        settings = self.codec.settings
        # Files that exist already narrow the search.
        known = sorted(self._files)
        low = max((s for s in known if len(self._files[s]) < num_bytes), default=None)
        begin = 0 if low is None else settings.index(low) + 1
        high = min((s for s in known if s >= (low or 0) and len(self._files[s]) >= num_bytes), default=None)
        end = len(settings) if high is None else settings.index(high)
        found = bisect_left(settings, num_bytes, begin, end, key=lambda setting: len(self.file(setting)))
        return settings[min(found, len(settings) - 1)]

    def decode(self, setting: int) -> Media:
        return self.codec.decode(self.file(setting), self._original)
