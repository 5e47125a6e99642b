"""Whether the ffmpeg that is installed can write what `job.video` asks for: found out before the model is loaded."""

import difflib
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from imageio_ffmpeg import get_ffmpeg_exe

from runner.config import VideoConfig
from runner.errors import UserError
from runner.media.audio import run_ffmpeg
from runner.media.video import quality

_LARGEST = {"libx264": 51, "libx265": 51}  # which take more, and then do as if it were this


def check_coding(coding: VideoConfig) -> None:
    """Raises UserError for a codec or a quality that ffmpeg cannot write: it is given four frames to try.

    A list of its encoders would not do: there are some that want a device, and some that no mp4 can hold.
    """
    if coding == VideoConfig():
        return
    most = _LARGEST.get(coding.codec, 63)
    if coding.crf is not None and not 0 <= coding.crf <= most:
        raise UserError(f"job.video.crf is {coding.crf}; of {coding.codec} it is 0 (best) to {most}")
    key, value = ("crf", coding.crf) if coding.codec == VideoConfig.codec else ("codec", coding.codec)
    with TemporaryDirectory() as folder:
        source = ["-f", "lavfi", "-i", "testsrc=size=256x256:rate=8", "-frames:v", "4", "-pix_fmt", "yuv420p"]
        command = [get_ffmpeg_exe(), "-hide_banner", "-v", "warning", "-y", *source, "-c:v", coding.codec]
        done = subprocess.run(
            [*command, *quality(coding), str(Path(folder) / "try.mp4")],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            start_new_session=True,
        )
    if done.returncode:
        raise UserError(f"job.video.{key}: ffmpeg cannot write an mp4 with {value} ({_reason(done.stderr)})")
    if "Codec AVOption crf" in done.stderr:  # it goes on without an option that the encoder does not take
        raise UserError(f"job.video.crf: {coding.codec} takes none; leave it out")


def _reason(said: str) -> str:
    """ffmpeg's first line, and for a codec that it does not have the one that is spelt most like it."""
    lines = [line.rpartition("] ")[2].strip() for line in said.splitlines() if "pixel format" not in line]
    lines = [line for line in lines if line] or ["it does not say why"]
    if unknown := next((line for line in lines if "Unknown encoder" in line), None):
        near = difflib.get_close_matches(unknown.split("'")[1], _encoders(), n=1, cutoff=0.0)
        return f"{unknown}; the nearest is {near[0]!r}" if near else unknown
    return lines[0]


def _encoders() -> list[str]:
    """The names of its encoders for video: the lines that begin with V, below the legend."""
    text = run_ffmpeg([get_ffmpeg_exe(), "-hide_banner", "-encoders"]).decode(errors="replace")
    _, _, table = text.partition("------")
    return [words[1] for line in table.splitlines() if (words := line.split()) and words[0].startswith("V")]
