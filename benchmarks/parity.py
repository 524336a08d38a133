"""Published networks with one difference planted: the first norm that differs, and why.

The networks of `published.py` are compared with true equals (compiled, exported, folded, converted,
ONNX where onnx, onnxruntime and onnxscript are installed), and with copies in which one thing was
changed in a norm in the middle, or in all. Nothing is downloaded by this script.

    python benchmarks/parity.py FOLDER [beginning of a network's name ...]

Right is: the norm that was changed first in the order of execution, with the reason.
"""

import argparse
import copy
import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from published import NETWORKS, Network
from torch import Tensor, nn

from normscope import convert, fold, parity
from normscope.equivalence import summary
from normscope.probe import find_norms

Change = Callable[[nn.Module, Any, Tensor], Any]


def norms(model: nn.Module) -> list[Any]:
    return [n.module for n in find_norms(model) if n.skipped is None]


def names(model: nn.Module) -> list[str]:
    return [n.name for n in find_norms(model) if n.skipped is None]


def exported(model: nn.Module, x: Tensor) -> Any:
    return torch.export.export(model, (x,))


def reset(model: nn.Module, norm: Any, x: Tensor) -> Any:
    norm.reset_running_stats()
    return model


def scaled(model: nn.Module, norm: Any, x: Tensor) -> Any:
    norm.running_var.mul_(100 / 99)
    return model


def other_eps(model: nn.Module, norm: Any, x: Tensor) -> Any:
    norm.eps = 1e-5 if norm.eps > 1e-4 else 1e-3
    return model


def other_momentum(model: nn.Module, norm: Any, x: Tensor) -> Any:
    norm.momentum = 0.37
    return model


def all_reset(model: nn.Module, norm: Any, x: Tensor) -> Any:
    for each in norms(model):
        each.reset_running_stats()
    return model


def left_in_train(model: nn.Module, norm: Any, x: Tensor) -> Any:
    norm.train()
    return torch.compile(model, backend="eager")


def in_train(model: nn.Module, norm: Any, x: Tensor) -> Any:
    return exported(model.train(), x)


def half(model: nn.Module, norm: Any, x: Tensor) -> Any:
    return model.bfloat16()


def clipped(model: nn.Module, norm: Any, x: Tensor) -> Any:
    with torch.no_grad():
        low, high = norm.weight.quantile(torch.tensor([0.2, 0.8]))
        norm.weight.clamp_(low, high)
    return model


def rounded(model: nn.Module, norm: Any, x: Tensor) -> Any:
    with torch.no_grad():
        norm.bias.copy_(norm.bias.bfloat16())
    return model


def overwritten(model: nn.Module, norm: Any, x: Tensor) -> Any:
    for each in norms(model):
        each.momentum = 0.1
    model.train()(x)
    return model.eval()


def exporter_lost_eps(model: nn.Module, norm: Any, x: Tensor) -> Any:
    program = exported(model, x).module()
    node = [n for n in program.graph.nodes if "batch_norm" in str(n.target)][middle(model)]
    node.update_arg(7, 1e-5 if node.args[7] > 1e-4 else 1e-3)
    program.recompile()
    return program


def folded_other_eps(model: nn.Module, norm: Any, x: Tensor) -> Any:
    return fold(other_eps(model, norm, x), rest="affine").model


def wrong_bias(model: nn.Module, norm: Any, x: Tensor) -> Any:
    done = fold(model, rest="affine")
    layer = dict(done.folded).get(names(model)[middle(model)], names(model)[middle(model)])
    with torch.no_grad():
        done.model.get_submodule(layer).bias[0] += 0.5
    return done.model


def middle(model: nn.Module) -> int:
    return len(norms(model)) // 2


PLANTED: dict[str, tuple[Change, str, bool]] = {  # the reason, whether from the first norm on
    "eps": (other_eps, "eps", False),
    "momentum": (other_momentum, "momentum", False),
    "one norm reset": (reset, "reset", False),
    "all reset": (all_reset, "reset", True),
    "variance n/(n-1)": (scaled, "variance_unbiased", False),
    "exported in train()": (in_train, "training", True),
    "compiled, a norm in train()": (left_in_train, "training", False),
    "fold, another eps": (folded_other_eps, "eps", False),
    "fold, a wrong bias": (wrong_bias, "fused_bias", False),
    "bfloat16": (half, "dtype", True),
    "gamma clipped": (clipped, "gamma_clipped", False),
    "beta rounded": (rounded, "beta_rounded", False),
    "statistics overwritten": (overwritten, "overwritten_batch", True),
    "exporter lost eps": (exporter_lost_eps, "eps", False),
}


def equals(model: nn.Module, x: Tensor) -> dict[str, Callable[[], Any]]:
    def converted() -> nn.Module:
        other = copy.deepcopy(model)
        convert(other, "batch")
        return other

    forms: dict[str, Callable[[], Any]] = {
        "compiled": lambda: torch.compile(copy.deepcopy(model), backend="eager"),
        "exported": lambda: exported(model, x),
        "folded": lambda: fold(model).model,
        "folded, the rest affine": lambda: fold(model, rest="affine").model,
        "folded, then exported": lambda: exported(fold(model, rest="affine").model, x),
        "converted": converted,
    }
    if all(importlib.util.find_spec(n) for n in ("onnx", "onnxruntime", "onnxscript")):
        forms["onnx"] = lambda: torch.onnx.export(model, (x,), dynamo=True, verbose=False)
    return forms


def measure(network: Network) -> tuple[int, int, int, int]:
    model, x = network.model, network.sample[0][0][:8].contiguous()
    right = equal = 0
    print(f"\n{network.name}: {len(norms(model))} norms, batch {tuple(x.shape)}")
    for name, make in equals(model, x).items():
        form = make()
        begun = perf_counter()
        found = parity(model, form, x, modes="eval")
        equal += found.ok
        took = perf_counter() - begun
        print(f"  {name:30} {'same' if found.ok else summary(found):60} {took:5.1f} s "
              f"{found.modes[0].outputs:.1e} of {found.modes[0].allowed:.1e}")  # fmt: skip
    for name, (change, code, first) in PLANTED.items():
        other = copy.deepcopy(model)
        place = 0 if first else middle(other)
        other = change(other, norms(other)[place], x)
        begun = perf_counter()
        found = parity(model, other, x, modes="eval")
        took = perf_counter() - begun
        wanted = names(model)[place]
        good = found.first is not None and (found.first.name, found.why) == (wanted, code)
        right += good
        print(f"  {name:30} {'right' if good else 'WRONG: ' + summary(found):60} {took:5.1f} s "
              f"{found.forwards[0]} + {found.forwards[1]} forwards")  # fmt: skip
    return right, len(PLANTED), equal, len(equals(model, x))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    for name, make in NETWORKS.items():
        if not given.names or any(name.startswith(n) for n in given.names):
            network = make(given.folder)
            right, planted, equal, forms = measure(network)
            print(f"  {right} of {planted} planted differences, {equal} of {forms} equals")


if __name__ == "__main__":
    main()
