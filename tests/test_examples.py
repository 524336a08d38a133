"""Every public name has an example in its docstring, and each does what it says."""

import ast
import doctest
import inspect
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
    # those of 2d and 3d layers continue that of the 1d layer, which has the imports
    before = {"torch": torch, "normscope": normscope} if name.endswith(("2d", "3d")) else {}
    example = doctest.DocTestParser().get_doctest(text, before, name, None, None)
    assert example.examples, f"{name} has no example"
    assert "normscope" in text
    told: list[str] = []
    done = doctest.DocTestRunner(verbose=False).run(example, out=told.append)
    assert done.failed == 0, "".join(told)
    assert torch.is_grad_enabled()


def test_the_example_of_the_package_runs() -> None:
    assert doctest.testmod(normscope).failed == 0
    assert doctest.testmod(normscope).attempted > 0


def test_editors_and_type_checkers_see_every_public_name() -> None:
    (block,) = [node for node in ast.parse(SOURCE.read_text()).body if isinstance(node, ast.If)]
    seen = [
        alias for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    ]
    assert all(alias.asname for alias in seen), "without a name of its own it is not exported"
    assert {alias.asname for alias in seen} == {*normscope.__all__} - {"__version__"}


def test_the_file_for_mypy_uses_every_public_name() -> None:
    tree = ast.parse((Path(__file__).parent / "typing_examples.py").read_text())
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "normscope"
    }
    assert used >= set(NAMES)


def test_signatures_are_explicit() -> None:
    given = {"num_features", "eps", "momentum", "affine", "track_running_stats", "bias", "act"}
    own = {"BatchNorm": set(), "GhostBatchNorm": {"ghost_size"}, "EvalNorm": {"own_weight"}}
    own["BatchRenorm"] = {"r_max", "d_max", "warm_up", "ramp"}
    for name in NAMES:
        if not name.endswith("d") or not name[:-2].endswith(("Norm", "Renorm")):
            continue
        parameters = inspect.signature(getattr(normscope, name)).parameters
        kinds = {p.kind for p in parameters.values()}
        assert not kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}, name
        if name[:-2] in own:
            assert set(parameters) >= given | own[name[:-2]] | {"device", "dtype", "process_group"}
        torchs = getattr(torch.nn, name, None)
        if torchs is not None:  # what torch takes by place is taken in the same places
            assert list(parameters)[:7] == list(inspect.signature(torchs).parameters)[:7]
