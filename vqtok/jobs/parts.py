"""Jobs of the parts of files and rows: flipped images, and segments of audio, as items of their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from vqtok.errors import MediaError
from vqtok.files.paths import STDIO, RemotePath, is_stream
from vqtok.jobs.job import Job
from vqtok.media.audio import audio_info
from vqtok.media.kinds import kind_of, modality_of, sniff
from vqtok.media.transforms import Part, Transforms, with_label


@dataclass(frozen=True)
class PartJobs:
    """The jobs of the parts of all inputs, in order.

    Args:
        jobs: One for each input.
        transforms: What is done to all of them.
        in_one_file: Whether all items go to one output, where keys tell them apart.
        files: The files of the jobs with their keys, if they are not rows.
    """

    jobs: Iterable[Job]
    transforms: Transforms
    in_one_file: bool = False
    files: Sequence[tuple[str, Path]] | None = None

    def __iter__(self) -> Iterator[Job]:
        for job in self.jobs:
            for part in self._parts(job):
                yield self._job(job, part)

    def _parts(self, job: Job) -> list[Part]:
        """Return the parts of an input. Of one that cannot be read the whole fails when its turn comes."""
        with suppress(MediaError, OSError):
            modality = _modality(job)
            seconds = None
            if modality == "audio" and self.transforms.segment_seconds is not None and not _is_read_once(job):
                samples, sample_rate, _ = audio_info(job.media)
                seconds = samples / sample_rate
            if modality is not None:
                return self.transforms.parts(modality, seconds)
        return [Part(self.transforms)]

    def _job(self, job: Job, part: Part) -> Job:
        if not part.label:
            return replace(job, part=part)
        target = job.target
        if not self.in_one_file and target != STDIO:
            target = target.with_name(with_label(target.name, part.label))
        key = None if job.key is None else with_label(job.key, part.label)
        return replace(job, part=part, target=target, key=key)


def _modality(job: Job) -> str | None:
    if job.row is not None and isinstance(job.row.media, bytes):
        return sniff(job.row.media[:64])
    path = job.row.media if job.row is not None and isinstance(job.row.media, Path) else job.source
    return modality_of(path) or (None if _is_read_once(job) else kind_of(path))


def _is_read_once(job: Job) -> bool:
    return job.row is None and (isinstance(job.source, RemotePath) or is_stream(job.source))
