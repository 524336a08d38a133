"""Change a model's normalisation layers where they stand, as a transaction that can be undone."""

import copy
from collections.abc import Iterable
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm

from normscope.arguments import check_model, listed
from normscope.conversion.blend import Blend, blended
from normscope.conversion.former import TABLES, Former, remembered, undo
from normscope.conversion.fuse import FUSING, fuse_layers
from normscope.conversion.kinds import (
    NAMES,
    PLAIN,
    Kind,
    Plain,
    Refusal,
    check_options,
    equality,
    is_norm,
    made,
    read,
)
from normscope.conversion.verification import LEVELS, Level, Verification, verified
from normscope.errors import InputError, ModelError
from normscope.layers.batch import Normalizer
from normscope.probe import bare
from normscope.probe.frozen import refuse_traced
from normscope.records import Change, Converted, Left

OWN = "it normalises within each sample in training; name it in only= to convert it all the same"


class Conversion:
    """What `convert` did to a model, the proof of it and the way back.

    Attributes:
        model: the model, the same object, changed.
        record: what became of each layer, and what `verify` found.
        changed: the layers that became others.
        kept: normalisation layers for which there was nothing to do.
        refused: layers that could not be changed without loss; left as they were.
        fused: activations, and sums before them, that a layer does now.
        unfused: with fuse=True, the layers that do none, with the reason.
    """

    def __init__(self, model: nn.Module, record: Converted, former: list[Former]) -> None:
        self.model, self.record, self._former = model, record, former
        self.changed, self.kept, self.refused = record.changed, record.kept, record.refused
        self.fused, self.unfused = record.fused, record.unfused

    def __repr__(self) -> str:
        return repr(self.record)

    def _repr_html_(self) -> str:
        return self.record._repr_html_()

    def verify(self, *inputs: Any, double: bool = True, steps: int = 1) -> Verification:
        """Compare with the model before, on copies: outputs, gradients, training, buffers.

        Both run in eval(), then `steps` training steps (plain SGD) from the same random numbers.
        What a change leaves equal in eval() only is compared in eval() only, and what is another
        function not at all. Conditional layers get the conditions 0, 1, ... in turn.

        Args:
            inputs: a batch, as the model's forward takes it.
            double: in float64, where equal means to 1e-9, or to what the model makes of rounding;
                False: in the model's own dtype.
            steps: training steps.

        Raises:
            InputError: no inputs, or steps below 1.
            ModelError: the model fails on them, before or after.
        """
        after = copy.deepcopy(self.model)
        before, former = copy.deepcopy((self.model, self._former))
        undo(former)
        found = {change.equal for change in self.changed}
        level: Level = next((level for level in reversed(LEVELS) if level in found), "always")
        proof = verified(before, after, inputs, level=level, double=double, steps=steps)
        self.record = replace(self.record, comparisons=proof.comparisons)
        return proof

    def revert(self) -> nn.Module:
        """Give every layer its former class, parameters and arguments back; returns the model.

        What was trained since stays where both have it in the same shape; where the shapes
        differ, the numbers of before come back.
        """
        undo(self._former)
        self._former = []
        return self.model


def convert(
    model: nn.Module,
    to: str,
    *,
    only: Iterable[str] = (),
    partial: bool = False,
    dims: Literal[1, 2, 3] | None = None,
    fuse: bool = False,
    **options: Any,
) -> Conversion:
    """Make a model's batch norms another member of the family, in place and without loss.

    Layers stay the same objects and change their class, so hooks, optimizers, shared modules,
    training flags, requires_grad, dtype, device, memory format, qconfig and names stay. All
    layers are checked before the first is changed.

    Args:
        model: any module; a normalisation layer itself serves too.
        to: "torch" (`torch.nn.BatchNorm*d`, or the class that a layer was derived from), "sync"
            (`torch.nn.SyncBatchNorm`), "batch", "ghost", "renorm", "evalnorm", "frozen",
            "conditional", "mode" (normscope's), or "group" (`torch.nn.GroupNorm`: another
            function).
        only: patterns of layer names, as "encoder.*"; empty: all layers.
        partial: convert what can be, and leave the rest; see `Conversion.refused`.
        dims: 1, 2 or 3, for layers that do not say it (`SyncBatchNorm`).
        fuse: let each layer also do the ReLU, LeakyReLU(0.01) or SiLU that follows it, and the
            residual sum between the two, in the same pass over memory; see below.
        options: of the layers: ghost_size=16; num_conditions=4 with stats, affine, missing,
            min_count; num_modes=2; own_weight=0.1; r_max, d_max, warm_up, ramp; num_groups=8;
            process_group.

    One row of statistics becomes K equal rows, and K rows become one by the law of total
    variance. Where a parameter changes its shape it stays the same object, without a gradient;
    an optimizer that has state for it must be made anew. Freezing makes parameters buffers, in
    the same memory. GroupNorm, LayerNorm and InstanceNorm are kept: no batch norm equals them in
    training. An InstanceNorm with running statistics, which one does equal in eval(), is converted
    where `only` names it, or where it is the model itself.

    With fuse=True an activation module behind a layer becomes an `nn.Identity`, the same object,
    where it is given outputs of such layers only. Where it is also called elsewhere, or is a
    function, or there is a sum before it, the block around gets a second forward, for "batch"
    layers: it runs where the block's own would do the same operations, and the block's own
    otherwise. What torch.fx cannot trace, with the default arguments of forward, in train() and in
    eval(), and what a hook looks at, is left alone; see `Conversion.unfused`. No name in the
    state_dict changes.

    Raises:
        InputError: an unknown kind or option, a pattern that fits nothing, fuse with a kind whose
            layers have no activation.
        ModelError: a layer would lose something (unless partial), no layer is there, or the
            model is a program of TorchScript or torch.export.

    >>> import torch
    >>> import normscope
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU())
    >>> done = normscope.convert(net, "ghost", ghost_size=16)
    >>> type(net[1]).__name__, done.verify(torch.randn(32, 4)).ok
    ('GhostBatchNorm1d', True)
    """
    refuse_traced(model, parts=False)
    check_model(model)
    kind = check_options(to, options)
    if fuse and kind not in FUSING:
        raise InputError(
            f"fuse=True needs layers with an activation of their own, which {kind} has not; "
            f"to can be {listed(FUSING)}"
        )
    patterns = tuple(only)
    chosen = _chosen(model, patterns)
    plans: list[_Plan] = []
    kept: list[Left] = []
    refused: list[Left] = []
    for name, layer in chosen:
        here = type(layer).__name__
        try:
            if isinstance(layer, _InstanceNorm) and layer is not model and not patterns:
                kept.append(Left(name, here, OWN))
                continue
            plain = read(layer)
            if plain is None:
                reason = "it normalises within each sample; no batch norm equals it"
                kept.append(Left(name, here, reason))
            elif plain.kind == kind and all(plain.options[k] == v for k, v in options.items()):
                kept.append(Left(name, here, f"it is {kind} already"))
            else:
                new = made(plain, kind, dims, dict(options))
                plans.append(_Plan(name, layer, plain, kind, new, _class(layer, plain, new, kind)))
        except (Refusal, ValueError) as problem:
            refused.append(Left(name, here, str(problem)))
    if refused and not partial:
        first = "; ".join(f"{left.name} ({left.layer}): {left.reason}" for left in refused[:3])
        more = f"; and {len(refused) - 3} more" if len(refused) > 3 else ""
        raise ModelError(
            f"nothing was converted to {kind}: {first}{more}; partial=True leaves them"
        )
    former: list[Former] = []
    try:
        changed = tuple(_carry_out(plan, former) for plan in plans)
        done = {left.name for left in refused}
        layers = {name: layer for name, layer in chosen if name not in done}
        fused, unfused = fuse_layers(model, layers, former) if fuse else ((), ())
    except BaseException:
        undo(former)
        raise
    record = Converted(
        model=type(bare(model)).__name__,
        to=kind,
        changed=changed,
        kept=tuple(kept),
        refused=tuple(refused),
        fused=fused,
        unfused=unfused,
    )
    return Conversion(model, record, former)


class _Plan(NamedTuple):
    name: str
    layer: nn.Module
    plain: Plain
    kind: Kind
    new: nn.Module
    cls: type[nn.Module]


def _chosen(model: nn.Module, only: tuple[str, ...]) -> list[tuple[str, nn.Module]]:
    within = (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
    found = [
        (name or type(module).__name__, module)
        for name, module in model.named_modules()
        if isinstance(module, within) or is_norm(module)
    ]
    if not found:
        raise ModelError(f"{type(model).__name__} has no normalisation layer to convert")
    for pattern in only:
        if not any(fnmatchcase(name, pattern) for name, _ in found):
            names = ", ".join(name for name, _ in found[:5])
            raise InputError(f"no normalisation layer is called {pattern!r}; there is {names}")
    return [(n, m) for n, m in found if not only or any(fnmatchcase(n, p) for p in only)]


def _class(layer: nn.Module, plain: Plain, new: nn.Module, kind: Kind) -> type[nn.Module]:
    """Return the class that the layer gets: the new one's, with what the user's own adds."""
    target, cls = type(new), type(layer)
    origin = getattr(cls, "origin", cls)
    if kind == "torch" and issubclass(origin, target) and not issubclass(origin, Normalizer):
        return origin
    if not issubclass(cls, Blend):
        own = cls.__mro__[: cls.__mro__.index(plain.base)]
        for part in own:
            if "forward" in part.__dict__:
                raise Refusal(f"its class {part.__name__} has a forward of its own")
            if "__slots__" in part.__dict__ or hasattr(layer, "parametrizations"):
                raise Refusal("its parameters are computed from others (parametrized)")
    is_own = origin not in (plain.base, target) or plain.behind
    if not is_own:
        return target
    if plain.behind and kind == "torch":
        raise Refusal(f"its class {origin.__name__} is not derived from {target.__name__}")
    if not plain.behind and not (issubclass(target, Normalizer) and plain.kind in PLAIN):
        raise Refusal(f"its class {origin.__name__} is the user's own, which {kind} cannot carry")
    return blended(target, origin, plain.behind)


def _carry_out(plan: _Plan, former: list[Former]) -> Change:
    layer, new, before = plan.layer, plan.new, type(plan.layer).__name__
    record = remembered(layer)
    former.append(record)
    notes = []
    for name in NAMES:
        given = plan.plain.tensors.get(name)
        wanted = new._parameters.get(name, new._buffers.get(name))
        if wanted is None:  # `made` refuses to lose a parameter
            continue
        if given is None:
            new._parameters.pop(name, None)
            setattr(new, name, None)
        elif name in new._parameters:
            own = layer._parameters.get(name)
            if own is not None and own.shape != wanted.shape:
                record.data[name] = (own.data, own.grad)
                own.grad, own.data = None, _fitted(given, wanted)
                notes.append(f"{name} is {tuple(own.shape)} now")
            new._parameters[name] = nn.Parameter(given) if own is None else own
        else:
            new._buffers[name] = _fitted(given, wanted)
    private = ("_", "training", "act") if plan.plain.behind else ("_", "training")
    layer.__dict__.update({k: v for k, v in new.__dict__.items() if not k.startswith(private)})
    new._modules.update(layer._modules)
    new.train(layer.training)
    layer.__dict__.update({table: new.__dict__[table] for table in TABLES})
    layer.__class__ = plan.cls
    equal = equality(plan.plain, plan.kind, layer)
    return Change(plan.name, before, type(layer).__name__, equal, "; ".join(notes))


def _fitted(given: Tensor, wanted: Tensor) -> Tensor:
    """Make K equal rows of one where that is wanted; put a parameter as a buffer in its memory."""
    if given.shape != wanted.shape:
        return given.detach().expand(wanted.shape).clone()
    return given.detach() if isinstance(given, nn.Parameter) else given
