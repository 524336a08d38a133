"""An accumulation as one safetensors file: every number as it is, nothing that is code.

The metadata hold one JSON text under "normscope.accumulation": schema, names, counts of batches,
and per layer what it is. Tensors are named LAYER.PART, the layer by its place: "0.histogram",
"0.map.gamma", "0.input.moments.m2", "0.input.scatter.within", "0.input.sample.features".
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from normscope.errors import FileError
from normscope.files import shown, write_whole
from normscope.lens.channel_map import ChannelMap
from normscope.lens.tally import Sample, Scatter, Stage, Tally
from normscope.moments import Moments

if TYPE_CHECKING:
    from normscope.lens.accumulation import Accumulation

KEY = "normscope.accumulation"
SCHEMA = 1
SUFFIX = ".safetensors"

_MOMENTS = ("count", "mean", "m2")
_MAP = ("mean", "var", "gamma", "beta")
_TALLY = ("histogram", "fired", "centred")
_FACTS = ("activation", "positions", "counted", "precision", "sample")


def beside(record: Path) -> Path:
    """Where the accumulation of a record lies: the same name, .safetensors."""
    return record if record.suffix == SUFFIX else record.with_suffix(SUFFIX)


def write(path: Path, accumulation: "Accumulation") -> Path:
    """Write the file, whole."""
    return write_whole(path, packed(accumulation))


def read(path: Path, into: "Accumulation") -> "Accumulation":
    """Read a file; raises FileError where there is none or it holds something else."""
    try:
        content = path.read_bytes()
    except OSError as problem:
        raise FileError(
            f"{shown(path)} cannot be read: {problem.strerror}; "
            "name what normscope inspect --save wrote"
        ) from problem
    return unpacked(content, into, shown(path))


def packed(accumulation: "Accumulation") -> bytes:
    """The content of the file."""
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {"counts": accumulation.counts}
    layers: list[dict[str, Any]] = []
    if accumulation.head is not None:
        tensors["head.weight"], tensors["head.bias"] = accumulation.head
    for place, (name, layer) in enumerate(accumulation.followed.items()):
        tally = layer.tally
        layers.append(
            {
                "name": name,
                "norm": layer.norm,
                "mixed": layer.mixed,
                "gated": layer.gated,
                "eps": layer.shown.eps,
                "stages": list(tally.stages),
                **{fact: getattr(tally, fact) for fact in _FACTS},
            }
        )
        parts = {f"map.{n}": getattr(layer.shown, n) for n in _MAP}
        parts |= {n: getattr(tally, n) for n in _TALLY}
        for stage_name, stage in tally.stages.items():
            parts |= {f"{stage_name}.{n}": t for n, t in _stage_tensors(stage).items()}
        tensors |= {f"{place}.{n}": t for n, t in parts.items()}
    about = {
        "schema": SCHEMA,
        "model": accumulation.model,
        "data": accumulation.data,
        "classes": accumulation.classes,
        "mates": asdict(accumulation.mates),
        "skipped": accumulation.skipped,
        "norms": accumulation.norms,
        "layers": layers,
    }
    plain = {n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()}
    return save(plain, {KEY: json.dumps(about, ensure_ascii=False)})


def unpacked(content: bytes, into: "Accumulation", where: str) -> "Accumulation":
    """What `packed` made of an accumulation, filled into an empty one."""
    from safetensors.torch import load

    from normscope.lens.accumulation import Followed, Mates

    try:
        head = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        about = json.loads(head["__metadata__"][KEY])
        tensors = load(content)
        if about["schema"] != SCHEMA:
            raise FileError(
                f"{where} has schema {about['schema']}, this normscope reads {SCHEMA}; "
                "inspect again with the same version"
            )
        into.model, into.data = about["model"], about["data"]
        into.classes = None if about["classes"] is None else tuple(about["classes"])
        into.counts, into.mates = tensors["counts"], Mates(**about["mates"])
        into.skipped, into.norms = dict(about["skipped"]), tuple(about["norms"])
        if "head.weight" in tensors:
            into.head = tensors["head.weight"], tensors["head.bias"]
        for place, facts in enumerate(about["layers"]):
            own = {n.split(".", 1)[1]: t for n, t in tensors.items() if n.startswith(f"{place}.")}
            mean, var, gamma, beta = (own[f"map.{n}"] for n in _MAP)
            shown_map = ChannelMap(mean, var, gamma, beta, facts["eps"])
            tally = Tally.__new__(Tally)
            for name in _TALLY:
                setattr(tally, name, own[name])
            for fact in _FACTS:
                setattr(tally, fact, facts[fact])
            tally.stages = {n: _stage(own, n, facts["sample"]) for n in facts["stages"]}
            into.followed[facts["name"]] = Followed(
                facts["norm"], shown_map, facts["mixed"], facts["gated"], tally
            )
    except FileError:
        raise
    except Exception as problem:
        raise FileError(
            f"{where} holds no whole accumulation; name what normscope inspect --save wrote"
        ) from problem
    return into


def _stage_tensors(stage: Stage) -> dict[str, Tensor]:
    kept = {"moments": stage.moments, "classes": stage.scatter.classes}
    kept["conditions"] = stage.conditions
    parts = {f"{n}.{p}": getattr(m, p) for n, m in kept.items() for p in _MOMENTS}
    parts["within"] = stage.scatter.within
    return parts | {n: getattr(stage.sample, n) for n in ("priority", "labels", "features")}


def _stage(own: dict[str, Tensor], name: str, size: int) -> Stage:
    def moments(part: str) -> Moments:
        return Moments(*(own[f"{name}.{part}.{p}"] for p in _MOMENTS))

    features = (own[f"{name}.{n}"] for n in ("priority", "labels", "features"))
    return Stage(
        moments("moments"),
        Scatter(moments("classes"), own[f"{name}.within"]),
        Sample(size, *features),
        moments("conditions"),
    )
