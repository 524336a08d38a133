"""Every public name used as the docs use it: a file for mypy --strict, which no test runs."""

from pathlib import Path
from typing import assert_type

from torch import Tensor, nn

import normscope
from normscope import records


def seen(model: nn.Module, loader: list[tuple[Tensor, Tensor]]) -> None:
    seen = normscope.inspect(model, loader, classes=["cat", "dog"], progress=False)
    assert_type(seen, records.Inspection)
    rows = seen.to_rows()
    assert_type(rows[0]["layer"], object) if rows else None
    seen.to_frame()
    seen.plot()
    assert_type(seen.save_html("page.html", lang="zh"), Path)
    assert_type(seen.save("seen.json"), Path)
    assert_type(records.Inspection.load("seen.json"), records.Inspection)
    assert_type(records.Inspection.from_json(seen.to_json()), records.Inspection)
    assert_type(normscope.load("seen.json"), records.Record)
    assert_type(normscope.compare(seen, seen), records.Difference)
