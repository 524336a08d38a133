"""What the verbs that change a model return, shown in a terminal or a notebook."""

import copy

import torch
from torch import nn

import normscope


def test_what_a_change_returns_says_in_a_few_lines_what_it_did() -> None:
    blocks = [
        nn.Sequential(nn.Conv2d(3 if i == 0 else 4, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
        for i in range(40)
    ]
    model = nn.Sequential(*blocks, nn.GroupNorm(2, 4))
    batches = [torch.randn(8, 3, 4, 4) for _ in range(3)]
    for block in blocks[:7]:
        block[1].eval()
    done = normscope.convert(copy.deepcopy(model), "ghost", ghost_size=4)
    results = {
        "Layers made ghost: 40": done,
        "equal, computed in float64": done.verify(batches[0]),
        "33 layers measured on 3 batches": normscope.recalibrate(copy.deepcopy(model), batches),
        "Adaptation of Sequential to 24": normscope.adapt(copy.deepcopy(model), batches),
        "40 norms folded into a neighbour": normscope.fold(model),
        "40 layers (0.1, 1.1, 2.1 and 37 more), every 100 steps": normscope.monitor(model),
    }
    for sentence, result in results.items():
        text = repr(result)
        assert sentence in text, text
        assert len(text) < 1500
        assert text.count("\n") < 12
    assert len(done.record.comparisons) == len(done.verify(batches[0]).comparisons)
    assert "<" in done._repr_html_()
