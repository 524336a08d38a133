"""How layers stand to each other: the whole answer of each check."""

from torch import nn

from tests.doctor.checks.cases import case, found, layer, one, told


def test_biases_that_a_norm_takes_away_are_counted() -> None:
    model = nn.Sequential(
        nn.Sequential(nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3)), nn.Linear(3, 4), nn.BatchNorm1d(4),
        nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4), nn.Linear(4, 5), nn.BatchNorm1d(4),
    )  # fmt: skip
    finding = one("NS012", case(layer(), subject=model))
    assert told(finding) == ("info", 2, 0, "medium", "fold_bias")
    assert finding.facts == {"first": "1", "norm": "2", "pairs": "2", "count": "7"}
    assert found("NS012", case(layer(), subject=nn.Sequential(model[3], model[4]))) == []


def test_a_norm_on_the_output() -> None:
    norm = nn.BatchNorm1d(2)
    for last, told_of in ((nn.Identity(), True), (nn.Flatten(), True), (nn.ReLU(), False)):
        got = found("NS025", case(layer(), subject=nn.Sequential(nn.Linear(2, 2), norm, last)))
        assert [(f.layer, *told(f)) for f in got] == [("1", "info", 1, 0, "medium", "")] * told_of
    assert found("NS025", case(layer(), subject=nn.Sequential(norm))) == [], "it is all there is"
