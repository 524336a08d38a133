"""Sounds of classes on a page: samples become 16-bit WAV inside of the file."""

import base64
import io
import wave
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from normscope.errors import InputError, shown
from normscope.records import Record
from normscope.report.bilingual import tr
from normscope.report.document import Document, Figures, Paragraph, Section, Sound

LARGEST = 32767  # of 16 bits
RATES = (3000, 192_000)  # samples per second that browsers play
TOTAL = 10_000_000  # samples of all sounds of a page: 20 MB, 27 MB as text

Sounds = Mapping[str, tuple[Any, Any]]  # class -> samples and rate


def with_sounds(document: Document, record: Record, sounds: Sounds) -> Document:
    """Add a section behind the answer that plays a sound of each class.

    Raises:
        InputError: a name that is no class of the record, samples or a rate that are no sound.
    """
    classes = getattr(record, "classes", tuple(sounds))
    unknown = [name for name in sounds if name not in classes]
    if unknown:
        raise InputError(
            f"there is a sound of {shown(str(unknown[0]))!r}, which is no class of this "
            f"{record.kind}; its classes are {shown(', '.join(classes[:12]))}"
        )
    made = [sound(name, *sounds[name]) for name in classes if name in sounds]
    if sum(len(samples) for samples, _ in sounds.values()) > TOTAL:
        raise InputError(
            f"the sounds have more than {TOTAL:,} samples together; take shorter ones, a lower "
            "rate, or sounds of some classes only"
        )
    blocks = (Paragraph(tr("page.sound.note"), "quiet"), Figures(tuple(made), small=True))
    section = Section(tr("page.sound.title"), blocks, "sounds")
    first, *rest = document.sections
    return replace(document, sections=(first, section, *rest))


def sound(name: str, samples: Any, rate: Any) -> Sound:
    """Make the block of one sound.

    Args:
        name: what it is a sound of.
        samples: (N,) int16, or floating point numbers between -1 and 1; louder ones are divided
            by their peak.
        rate: samples per second.

    Raises:
        InputError: samples or a rate that are no sound.
    """
    values, which = np.asarray(samples), f"the sound of {shown(name)!r}"
    if values.ndim != 1 or not values.size:
        raise InputError(f"{which} has shape {values.shape}; give one channel of samples, (N,)")
    if isinstance(rate, bool) or not isinstance(rate, int) or not RATES[0] <= rate <= RATES[1]:
        raise InputError(
            f"{which} has rate {rate!r}; give samples per second, a whole number from "
            f"{RATES[0]:,} to {RATES[1]:,}"
        )
    if values.dtype != np.int16:
        if values.dtype.kind != "f" or not np.isfinite(values).all():
            kind = "numbers that are not finite" if values.dtype.kind == "f" else values.dtype.name
            raise InputError(
                f"{which} is of {kind}; give int16, or finite floating point numbers between -1 "
                "and 1"
            )
        peak = max(1.0, float(np.abs(values).max()))
        values = np.rint(values.astype(float) / peak * LARGEST).astype(np.int16)
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(values.astype("<i2").tobytes())
    source = "data:audio/wav;base64," + base64.b64encode(file.getvalue()).decode()
    return Sound(name, source, len(values) / rate)
