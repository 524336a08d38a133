"""Inputs on another scale than in training, and when a scale is another."""

from tests.doctor.checks.cases import case, data, found, layer, one, skipped, stream, told, wide


def test_inputs_on_another_scale() -> None:
    far = data(by_batch={"a": [stream(wide(1.3, 1.3) * 2**0.5, wide(2, 2))]})
    of = case(layer(mean=wide(1, 1) * 2**0.5), data=far, matters=True, sizes={"a": 2.5})
    finding = one("NS033", of)
    assert told(finding) == ("warning", 0.3, 0.1, "high", "")
    assert (finding.layer, finding.facts) == ("a", {"factor": "2.5"})
    near = case(layer(), data=data(), matters=True, sizes={"a": 2.5})
    assert told(one("NS033", near))[:3] == ("warning", 0, 0.1)
    assert found("NS033", case(layer(), data=data())) == []
    fresh = layer(mean=wide(0, 0), var=wide(1, 1))
    assert skipped("NS033", case(fresh, data=data())) == "doctor.skip.none"
