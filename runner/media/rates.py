"""How fast a pipeline's clips and sounds play: it says so itself, or nobody does."""

import inspect
from collections.abc import Mapping
from typing import Any

# Arguments of calls that say how fast the clip that is made plays.
FRAME_RATES = ("frame_rate", "fps")
# It doubles the frames of a clip whose own rate it is given.
_FRAMES_A_FRAME = {"LTX2DFRTemporalRefinePipeline": 2}
# Where diffusers' examples read it, the most telling first: LTX-2's audio VAE works at a lower rate than its vocoder
# gives, so the part that gives the waveform comes before the one that decodes to it.
_OF_THE_PIPELINE = ("audio_sample_rate", "sample_rate")
_PARTS = ("vocoder", "sound_tokenizer", "audio_vae", "audio_decoder", "vae")
_OF_A_PART = ("output_sampling_rate", "sampling_rate", "sample_rate")


def frame_rate(cls: Any, call: Mapping[str, Any]) -> float | None:
    """Frames a second of the clips that this call of the pipeline makes; None where the pipeline does not say."""
    parameters = inspect.signature(cls.__call__).parameters
    for name in FRAME_RATES:
        if name in parameters:
            said = call.get(name, parameters[name].default)
            if isinstance(said, int | float) and not isinstance(said, bool) and said > 0:
                return float(said) * _FRAMES_A_FRAME.get(cls.__name__, 1)
    return None


def sampling_rate(stock: Any) -> int | None:
    """Samples a second of the waveforms that this pipeline makes; None where neither it nor its parts say."""
    said = [getattr(stock, name, None) for name in _OF_THE_PIPELINE]
    configs = [getattr(getattr(stock, part, None), "config", None) for part in _PARTS]
    said += [getattr(config, name, None) for config in configs if config is not None for name in _OF_A_PART]
    return next((rate for rate in said if isinstance(rate, int) and rate > 0), None)
