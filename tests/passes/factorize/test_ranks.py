from __future__ import annotations

from shave.passes.factorize import ranks
from shave.passes.factorize.cp import Cp
from shave.passes.factorize.metric import Metric
from shave.passes.factorize.svd import Svd
from shave.passes.factorize.tucker import Tucker
from tests.passes.factorize.layers import convolution, linear, only_layer, random
from tests.passes.factorize.test_convolutions import of


def test_one_number_is_for_all_ranks_as_far_as_they_go() -> None:
    tucker = Tucker(only_layer(convolution(random(8, 6, 3, 3))), Metric())
    assert ranks.fixed(tucker, 7) == (7, 6)
    assert ranks.fixed(tucker, (5, 4)) == (5, 4)
    assert ranks.fixed(tucker, 9) == "rank 9 is above the largest, 8"
    assert ranks.fixed(tucker, (5, 7)) == "rank 5 x 7 is above the largest, 8 x 6"
    assert ranks.share(tucker, 0.5) == (4, 3)
    assert ranks.share(tucker, 0.01) == (1, 1)


def test_vbmf_takes_each_mode_by_itself() -> None:
    weight = of(Tucker, (3, 2)) + 0.05 * random(8, 6, 3, 3, seed=9)
    layer = only_layer(convolution(weight))
    assert ranks.vbmf(Tucker(layer, Metric())) == (3, 2)
    assert ranks.vbmf(Cp(layer, Metric())) == (3,)


def test_vbmf_has_no_answer_where_it_finds_nothing() -> None:
    assert ranks.vbmf(Svd(only_layer(linear(random(60, 80))), Metric())) is None
