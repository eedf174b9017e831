"""What the tests of this room share."""

from __future__ import annotations

from io import BytesIO

import av
import numpy as np
import soundfile
from numpy.typing import NDArray

from vqtok.media.containers import mpeg

RATE = 24000


def chord(seconds: float = 1, channels: int = 1, rate: int = RATE) -> NDArray[np.float32]:
    """Return a tone that is loud, then quiet, so that frames differ in size if the bit rate is variable."""
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(0).standard_normal((channels, len(time)))
    return (0.3 * np.sin(2 * np.pi * 440 * time) + 0.1 * noise * (time < seconds / 3)).astype(np.float32)


def encoded(x: NDArray[np.float32], format: str, rate: int = RATE, **how: object) -> bytes:
    buffer = BytesIO()
    soundfile.write(buffer, x.T, rate, format=format, **how)
    return buffer.getvalue()


def mp3(x: NDArray[np.float32], rate: int = RATE, xing: bool = True, **how: object) -> bytes:
    """Return an MP3 file, with or without the Xing frame at its start."""
    data = encoded(x, "MP3", rate, **how)
    header = mpeg.parse_header(data[:4])
    assert header
    return data if xing else data[header.size :]


def with_av(x: NDArray[np.float32], format: str, codec: str, rate: int = RATE, video: bool = False) -> bytes:
    buffer = BytesIO()
    with av.open(buffer, "w", format=format) as container:
        layout = "stereo" if len(x) == 2 else "mono"
        stream = container.add_stream(codec, rate=rate, layout=layout)
        stream.bit_rate = 96000
        if video:
            picture = container.add_stream("mpeg4", rate=1)
            picture.width = picture.height = 16
            picture.pix_fmt = "yuv420p"
            container.mux(picture.encode(av.VideoFrame(16, 16, "yuv420p")))
            container.mux(picture.encode(None))
        frame = av.AudioFrame.from_ndarray(x, format="fltp", layout=layout)
        frame.sample_rate, frame.pts = rate, 0
        if codec == "flac":
            (frame,) = av.AudioResampler("s16").resample(frame)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()
