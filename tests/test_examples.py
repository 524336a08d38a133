"""Every public name has an example in its docstring, and each does what it says."""

import doctest
from pathlib import Path

import pytest
import torch

import normscope

NAMES = [name for name in normscope.__all__ if name not in ("__version__", *normscope._ROOMS)]
SOURCE = Path(normscope.__file__)


@pytest.mark.parametrize("name", NAMES)
def test_the_example_of_a_public_name_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = getattr(normscope, name).__doc__
    example = doctest.DocTestParser().get_doctest(text, {}, name, None, None)
    assert example.examples, f"{name} has no example"
    assert "normscope" in text
    told: list[str] = []
    done = doctest.DocTestRunner(verbose=False).run(example, out=told.append)
    assert done.failed == 0, "".join(told)
    assert torch.is_grad_enabled()


def test_the_example_of_the_package_runs() -> None:
    assert doctest.testmod(normscope).failed == 0
    assert doctest.testmod(normscope).attempted > 0
