"""Silent corruption: found by what ranks should have alike, and by doing the same twice."""

import pytest
from distributed import run_ranks
from train_scenarios import make_dataset, make_settings, train_with_a_flipped_bit

CHECK_EVERY = 5


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.mark.parametrize("engine", [{"backend": "torch"}, {"zero_stage": 0}])
@pytest.mark.parametrize("flips_at", [None, 10])
def test_a_bit_that_flips_in_one_ranks_weights_is_found_at_the_next_check(
    dataset, tmp_path, engine, flips_at
):
    settings = make_settings(
        dataset,
        duration={"num_steps": 20},
        workers={"num_workers": 2},
        batch={"global_batch_size": 8, "micro_batch_size": 2},
        engine={"dtype": "float32", **engine},
        evaluation={"every_steps": 0, "num_rows": 0},
        guard={"check_every_steps": CHECK_EVERY},
    )
    arguments = (str(dataset.folder), str(tmp_path / "run"), settings, flips_at)
    ended = run_ranks(2, train_with_a_flipped_bit, *arguments)
    if flips_at is None:
        assert ended == ["finished", "finished"]
    else:
        assert ended[0] == ended[1]
        assert ended[0].startswith("step 10: rank 0")  # of two, either may be wrong
        assert ended[0].count("holds weights that most ranks do not") == 2
