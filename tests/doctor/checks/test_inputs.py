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


def test_columns_of_a_table_in_another_order() -> None:
    mean, var = wide(1, -2, 3, 4), wide(1, 4, 16, 64)
    order = [1, 0, 2, 3]
    other = data(by_batch={"a": [stream(mean[order], var[order])]})
    of = case(layer(mean=mean, var=var), data=other, matters=True)
    finding = one("NS033", of)
    assert (finding.layer, finding.severity, finding.repair) == ("a", "error", "")
    assert finding.facts == {"kind": "columns", "count": "2", "of": "4"}
    assert finding.channels == (0, 1)
    assert found("NS003", of) == [], "the statistics are not at fault"
    given = case(layer(mean=mean, var=var), data=other, sizes={"a": 2.0})
    assert [f.facts for f in found("NS033", given)] == [{"factor": "2"}], "told once"
