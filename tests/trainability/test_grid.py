"""Grids as the papers and the command line write them."""

import pytest

from lightning_gp.trainability import decades, parse_rates


def test_decades_of_the_papers():
    rates = decades(1e-4, 9e-1)
    assert len(rates) == 36
    assert rates[:3] == [1e-4, 2e-4, 3e-4]
    assert rates[-1] == 0.9
    assert len(decades(5e-3, 9e0)) == 32


def test_parse():
    assert parse_rates("1e-1:3e-1") == [0.1, 0.2, 0.3]
    assert len(parse_rates("1e-4:9e-1:30")) == 30
    assert parse_rates("[0.1, 1e0]") == parse_rates([0.1, 1]) == [0.1, 1.0]


@pytest.mark.parametrize("text", ["a:b", "1:2:3:4", "", "1,x", "0:1", "2:1", "1.1:1.2", "1:2:1"])
def test_refusals(text):
    with pytest.raises(ValueError, match=r"grid|range|between|span"):
        parse_rates(text)
