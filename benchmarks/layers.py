"""normscope's layers beside torch's, side by side in one run: medians of forward + backward.

Prints a Markdown table: plain batch norm, and K groups as a loop of torch layers over masks
against one conditional layer.
"""

from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch
from torch import Tensor, nn

import normscope

SHAPES = [(64, 64), (64, 64, 28, 28), (256, 256, 14, 14)]
GROUPS = (8, 64)
REPEATS = 20


def milliseconds(calls: dict[str, Callable[[], None]]) -> dict[str, float]:
    """The median of each call, taken in turns so that a busy moment hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(REPEATS):
        for name, call in calls.items():
            start = perf_counter()
            call()
            times[name].append(1e3 * (perf_counter() - start))
    return {name: median(values) for name, values in times.items()}


def step(forward: Callable[[Tensor], Tensor], x: Tensor, dy: Tensor) -> Callable[[], None]:
    """One forward and backward."""

    def run() -> None:
        x.grad = None
        forward(x).backward(dy)

    return run


def masked_loop(layers: nn.ModuleList, ids: Tensor) -> Callable[[Tensor], Tensor]:
    """The usual way: every group through a layer of its own."""

    def forward(x: Tensor) -> Tensor:
        y = torch.empty_like(x)
        for k, layer in enumerate(layers):
            here = ids == k
            y[here] = layer(x[here])
        return y

    return forward


def main() -> None:
    """Measure and print."""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, median of {REPEATS}\n")
    print("| shape | what | torch ms | normscope ms | ratio |\n| --- | --- | --- | --- | --- |")
    for shape in SHAPES:
        x, dy = torch.randn(shape, requires_grad=True), torch.randn(shape)
        rank = 1 if len(shape) == 2 else 2
        plain = getattr(nn, f"BatchNorm{rank}d")
        ours = getattr(normscope, f"BatchNorm{rank}d")
        rows = {"plain": (plain(shape[1]), ours(shape[1]))}
        for groups in (k for k in GROUPS if shape[0] >= 2 * k or rank == 2):
            ids = torch.arange(shape[0]) % groups
            loop = nn.ModuleList(plain(shape[1]) for _ in range(groups))
            layer = getattr(normscope, f"ConditionalBatchNorm{rank}d")(shape[1], groups)
            rows[f"K = {groups}"] = (
                masked_loop(loop, ids),
                lambda x, layer=layer, ids=ids: layer(x, ids),
            )
        for what, (theirs, mine) in rows.items():
            found = milliseconds({"theirs": step(theirs, x, dy), "mine": step(mine, x, dy)})
            ratio = found["theirs"] / found["mine"]
            print(
                f"| {shape} | {what} | {found['theirs']:.2f} | {found['mine']:.2f} | {ratio:.2f} |"
            )


if __name__ == "__main__":
    main()
