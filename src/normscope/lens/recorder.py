"""What passes through the layers while a model runs, added to the state of an inspection."""

from typing import Literal

import torch
from torch import Tensor

from normscope.errors import ModelError
from normscope.lens import memory
from normscope.lens.channel_map import CallSlice, slices
from normscope.lens.classes import at_positions
from normscope.lens.images import Images
from normscope.lens.per_sample import per_sample_slice
from normscope.lens.state import InspectionState
from normscope.lens.statistics import TrackedLayer, trace_weights
from normscope.lens.sweep import Sweep, rows_of
from normscope.probe import Call, Norm
from normscope.probe.grammar import Batch

AddedStage = Literal["pre_activation", "activated"]


class Recorder:
    """The watcher of a pass: it adds what it is told to a state."""

    def __init__(self, state: InspectionState, norms: list[Norm], limit: int) -> None:
        self._state, self._limit = state, limit
        known = {_layer_of(n): len(layer.map.gamma) for n, layer in state.layers.items()}
        self._channels = memory.layer_channels(norms) | known
        self._sample = memory.sample_size(self._channels)
        # of calls that all batches go through by the same map: weights do not change in a pass
        self._parts: dict[str, list[CallSlice]] = {}
        # of the layers that ran in this forward: which images went where
        self._running: dict[str, list[tuple[TrackedLayer, CallSlice, Images]]] = {}
        self._pre: tuple[str, str, Tensor] | None = None  # call, activation, what that was given
        self.misses = False  # what an activation was given that made a layer's input
        self._again = False  # the batch runs a second time, for that only
        self._histograms: dict[str, int] = {}
        self._weights: dict[str, Tensor] = {}  # of a layer, see `trace_weights`
        self._check_memory(max(1, len(state.classes or ())))

    def begin(self, batch: Batch, labels: Tensor) -> None:
        """Prepare for a batch; labels are what `Classes.of` returned."""
        self._index, self._labels = batch.index, labels
        condition = None if batch.condition is None else batch.condition.cpu().contiguous()
        self._images = Images(labels, batch.fingerprints(), condition)
        self._at: dict[tuple[int, ...], Images | None] = {}  # where positions have classes
        self._make_room(max(self._least, int(labels.max()) + 1))
        self._running.clear()

    def again(self) -> None:
        """Prepare for the same batch again, where it `misses` something."""
        self._again = True

    def end(self) -> None:
        """Count the batch, which has passed."""
        state, labels = self._state, self._labels
        counts = torch.bincount(labels[labels >= 0], minlength=len(state.counts))
        state.counts += counts
        state.images += len(labels)
        state.batches += 1
        state.pairs += len(labels) * (len(labels) - 1)
        state.equal += int((counts * (counts - 1)).sum())
        self._running.clear()
        self.misses = self._again = False

    def preceded(self, call: Call, activation: str, before: Tensor | None) -> None:
        """Note that an activation made the input of a layer that is about to run of `before`."""
        if before is None:
            self.misses = True
        else:
            self._pre = (call.name, activation, before)

    def normed(self, call: Call, before: Tensor, after: Tensor) -> None:
        """Add what a layer was given and what it put out."""
        if self._again:
            self._add_pre_activation(call, before)
            return
        found = self._slices(call, before, after)
        if not found:
            return
        axis = found[0].axis
        images = self._images_at(before, axis)
        if images is None:
            self._state.skip(call.name, "lens.skip.no_positions")
            return
        if not len(images.labels):  # no position of the batch has a class
            return
        x = Sweep.of(rows_of(before, axis), images, take=True)
        self._check_finite(call, x, "its input")
        running = []
        for part in found:
            own = images.select(part.rows)
            if not len(own.labels):
                continue
            layer = self._tracked(part, call, before)
            part_x = x.of_rows(part.rows, images)
            layer.stage("input").add(part_x, own, self._weights[part.name])
            if part.maps != "per_sample":
                layer.count_bins(x, part.used.mean, part.used.rstd, images, part.rows)
            if part.maps == "per_condition":
                z = part_x.normalised(own.each(part.used.mean), own.each(part.used.rstd))
                layer.stage("normalised").add(z, own, self._weights[part.name])
            if part.rows is None and part.maps == "one" and self._state.kind == "classes":
                layer.add_centred(part_x, own.labels)
            running.append((layer, part, own))
        self._running[call.name] = running
        self._add_pre_activation(call, before)
        # last, so that the activation finds it in the cache
        y = Sweep.of(rows_of(after, axis), images, take=found[0].maps == "per_sample")
        self._check_finite(call, y, "its output")
        for layer, part, own in running:
            part_y = y.of_rows(part.rows, images)
            layer.stage("scaled_shifted").add(part_y, own, self._weights[part.name])
            if part.maps == "per_sample":
                layer.count_bins(y, layer.map.beta, layer.map.inverse_gamma, images, None)
            layer.count_active(part_y, own.labels)

    def activated(self, call: Call, activation: str, after: Tensor) -> None:
        """Add what the activation of its output put out."""
        running = self._running.get(call.name, [])
        if self._again or not running or len(after) != len(self._labels) or after.dim() < 2:
            return
        axis = running[0][1].axis
        if axis >= after.dim() or after.shape[axis] != len(running[0][0].map.gamma):
            return
        self._add(call, "activated", after, f"the {activation} behind it")
        for layer, *_ in running:
            layer.activation = activation

    def _add_pre_activation(self, call: Call, before: Tensor) -> None:
        """Add what the activation was given that made the input of a call."""
        made, self._pre = self._pre, None
        running = self._running.get(call.name, [])
        if made is None or made[0] != call.name or made[2].shape != before.shape or not running:
            return
        self._add(call, "pre_activation", made[2], "what is before it")
        for layer, *_ in running:
            layer.input_activation = made[1]

    def _add(self, call: Call, stage: AddedStage, values: Tensor, where: str) -> None:
        """Add one more stage of a call."""
        axis = self._running[call.name][0][1].axis
        images = self._images_at(values, axis)
        if images is None or not len(images.labels):
            return
        seen = Sweep.of(rows_of(values, axis), images)
        self._check_finite(call, seen, where)
        for layer, part, own in self._running[call.name]:
            layer.stage(stage).add(seen.of_rows(part.rows, images), own, self._weights[part.name])

    def _images_at(self, values: Tensor, axis: int) -> Images | None:
        """Return the images, or their regions at a layer's positions; None: they do not fit."""
        if self._state.kind != "positions":
            return self._images
        shape = tuple(n for d, n in enumerate(values.shape) if d not in (0, axis))
        if shape not in self._at:
            at = at_positions(self._labels, shape)
            self._at[shape] = None if at is None else self._images.of_regions(at)
        return self._at[shape]

    def trim(self) -> None:
        """Drop the room that was made for more classes than came."""
        seen = self._state.counts.nonzero()
        self._state.resize(max(self._least, int(seen[-1]) + 1 if len(seen) else 0))

    @property
    def _least(self) -> int:
        """As many classes as have names."""
        state = self._state
        if state.kind == "none":
            return 1
        return (3 if state.cuts else 0) if state.classes is None else len(state.classes)

    def _slices(self, call: Call, before: Tensor, after: Tensor) -> list[CallSlice]:
        """Split a call into what is reported together; nothing where it cannot be followed."""
        if not self._fits(call, before):
            return []
        name, parts = call.name, self._parts
        if self._is_per_sample(call):
            if name not in parts:
                part = per_sample_slice(call, before, after)
                parts[name] = [] if part is None else [part]
            why = "lens.skip.unknown_map"
        else:
            fits = before.shape == after.shape and before.shape[1] == self._channels[call.layer]
            if not fits or name not in parts or call.condition is not None:
                parts[name] = list(slices(call)) if fits else []
            why = "lens.skip.not_per_channel"
        if not parts[name]:
            self._state.skip(name, why)
        return parts[name]

    def _fits(self, call: Call, before: Tensor) -> bool:
        why: str | None = None
        if call.masked:
            why = "lens.skip.masked"
        elif call.condition is None and getattr(call.module, "missing", None) == "infer":
            why = "lens.skip.mixture"
        elif before.dim() < 2 or len(before) != len(self._labels):
            why = "lens.skip.other_batch"
        if why is not None:
            self._state.skip(call.name, why)
        return call.name not in self._state.skipped

    def _is_per_sample(self, call: Call) -> bool:
        own = getattr(call.module, "own_weight", 0.0)
        return bool(own) or not isinstance(getattr(call.module, "running_mean", None), Tensor)

    def _tracked(self, part: CallSlice, call: Call, before: Tensor) -> TrackedLayer:
        found = self._state.layers.get(part.name)
        if found is None:
            classes, channels = len(self._state.counts), before.shape[part.axis]
            if self._channels[call.layer] != channels:  # without a weight only the input tells
                self._channels[call.layer] = channels
                self._histograms = memory.histogram_channels(self._channels, classes)
            found = TrackedLayer.empty(
                type(call.module).__name__,
                part,
                before,
                classes,
                self._histograms[call.layer],
                self._sample,
            )
            self._state.layers[part.name] = found
        if part.name not in self._weights:
            self._weights[part.name] = trace_weights(found.scale)
        return found

    def _make_room(self, classes: int) -> None:
        """Make room for so many classes, with some to spare where their number is not known."""
        room = len(self._state.counts)
        if classes <= room and self._histograms:
            return
        if classes > room > 1 and self._state.classes is None:
            classes = max(classes, room + room // 4)
        classes = max(classes, room)
        self._histograms = memory.histogram_channels(self._channels, classes)
        self._check_memory(classes)
        most = {name: self._histograms[_layer_of(name)] for name in self._state.layers}
        self._state.resize(classes, most)

    def _check_memory(self, classes: int) -> None:
        needed = memory.bytes_needed(self._channels, classes)
        if needed > self._limit:
            raise ModelError(
                f"{classes:,} classes in {sum(self._channels.values()):,} channels of "
                f"{len(self._channels)} layers need {needed >> 20:,} MiB, the limit is "
                f"{self._limit >> 20:,} MiB; inspect fewer classes, or raise memory_limit "
                "(--memory-limit)"
            )

    def _check_finite(self, call: Call, seen: Sweep, where: str) -> None:
        if not seen.finite:
            raise ModelError(
                f"layer {call.name} ({type(call.module).__name__}): {where} holds NaN or infinity "
                f"in batch {self._index}, and no layer before it does; "
                "check the weights and running statistics up to there"
            )


def _layer_of(name: str) -> str:
    """Name the layer of a call or of one condition of it."""
    return name.partition("[condition")[0].partition("#")[0]
