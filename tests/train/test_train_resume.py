"""The curve survives: resumed anywhere, on any number of ranks, it is the curve it would have been.

In the slow tier every step and every stage; in the fast tier a few of both.
"""

import numpy as np
import pytest
from distributed import run_ranks
from train_scenarios import Runner, make_dataset, make_settings, resume_everywhere, run_segment

from glm_dist.engine import EngineSettings

SHIPPED_LEARNING_RATE = 3e-3  # of jobs/configs/demo.yaml
SEGMENTS = ((2, 33), (1, 66), (3, None))
DROPOUT = {"hidden_dropout": 0.1, "attention_dropout": 0.1, "embedding_dropout": 0.1}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("dataset"))


def every_step(dataset, num_steps, stage):
    return make_settings(
        dataset,
        duration={"num_steps": num_steps},
        workers={"num_workers": 2},
        batch={"global_batch_size": 8, "micro_batch_size": 2},
        model=DROPOUT,
        engine=EngineSettings(zero_stage=stage, dtype="float32", reduce_bucket_elements=5000)
        if stage
        else EngineSettings(zero_stage=0, dtype="float32"),
        evaluation={"every_steps": 0, "num_rows": 0},
        checkpoints={"every_steps": 1},
    )


def check_bitwise(dataset, folder, stage, num_steps, steps, faults):
    settings = every_step(dataset, num_steps, stage)
    results = run_ranks(
        2,
        resume_everywhere,
        str(dataset.folder),
        str(folder),
        settings,
        steps,
        timeout_seconds=1800,
    )[0]
    undisturbed = results.pop("undisturbed")
    assert len(undisturbed[0]) == num_steps
    different = [step for step, result in results.items() if result != undisturbed]
    assert not different
    print(f"ZeRO {stage}: {len(results)} of {len(steps)} resumes bitwise equal")
    faults.add("T13", len(results), len(results))


@pytest.mark.parametrize("stage", [2, 3])
def test_a_run_resumed_at_some_steps_is_bitwise_the_undisturbed_one(
    dataset, tmp_path, stage, faults
):
    check_bitwise(dataset, tmp_path, stage, 6, [1, 3, 5], faults)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_run_resumed_at_every_step_is_bitwise_the_undisturbed_one(
    dataset, tmp_path, stage, faults
):
    check_bitwise(dataset, tmp_path, stage, 40, list(range(1, 40)), faults)


class Elastic:
    """One config run undisturbed at several world sizes, and once through all SEGMENTS."""

    def __init__(self, dataset, folder, engine, num_steps, segments):
        self.dataset, self.folder, self.engine = dataset, folder, engine
        self.num_steps, self.segments = num_steps, segments

    def settings(self, world_size):
        return make_settings(
            self.dataset,
            duration={"num_steps": self.num_steps},
            workers={"num_workers": world_size},
            batch={"global_batch_size": 12, "micro_batch_size": 2},
            engine=self.engine,
            evaluation={"every_steps": 0, "num_rows": 0},
            checkpoints={"every_steps": 1000},
            schedule={"peak_learning_rate": SHIPPED_LEARNING_RATE},
        )

    def undisturbed(self, world_size):
        return self._run(f"undisturbed-{world_size}", ((world_size, None),))

    def resized(self, num_resizes=2):
        """All segments, or those up to a resize, the last of them going on to the end."""
        segments = self.segments[: num_resizes + 1]
        return self._run(f"resized-{num_resizes}", (*segments[:-1], (segments[-1][0], None)))

    def _run(self, name, segments):
        folder = self.folder / name
        for world_size, stop_at in segments:
            ended = run_ranks(
                world_size,
                run_segment,
                str(self.dataset.folder),
                str(folder),
                self.settings(world_size),
                stop_at,
            )
            assert set(ended) == {stop_at or self.num_steps}
        runner = Runner(self.dataset, self.settings(1), folder)
        losses = [runner.losses()[step] for step in range(1, self.num_steps + 1)]
        return np.array(losses), runner.rows_seen()


def check_rows(resized, undisturbed):
    assert resized == undisturbed
    ids = [row for step in sorted(resized) for row in resized[step]]
    assert ids == list(range(len(ids)))


def test_two_then_one_then_three_ranks_in_float64_is_the_undisturbed_curve(
    dataset, tmp_path, faults
):
    engine = EngineSettings(backend="torch", dtype="float64")
    elastic = Elastic(dataset, tmp_path, engine, 100, SEGMENTS)
    expected, rows = elastic.undisturbed(2)
    losses, resized_rows = elastic.resized()
    check_rows(resized_rows, rows)
    furthest = np.abs(losses - expected).max()
    assert furthest <= 1e-10
    faults.add("T14-float64", 1, 1, furthest=f"{furthest:.1e}")


@pytest.mark.slow
def test_two_then_one_then_three_ranks_under_zero_2_stays_within_rounding(dataset, tmp_path):
    check_zero(dataset, tmp_path, 2, 12, ((2, 4), (1, 8), (3, None)), (2,))


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_two_then_one_then_three_ranks_stays_within_the_spread_of_undisturbed_runs(
    dataset, tmp_path, stage, faults
):
    losses, curves = check_zero(dataset, tmp_path, stage, 100, SEGMENTS, (1, 2, 3))
    spread = (curves.max(axis=0) - curves.min(axis=0)).max()
    furthest = np.abs(losses - curves).min(axis=0).max()
    print(f"ZeRO {stage}: furthest {furthest:.1e}, spread of undisturbed runs {spread:.1e}")
    assert furthest <= 2 * spread
    faults.add("T14-zero", 1, 1, **{f"zero_{stage}": f"{furthest:.1e} of {spread:.1e}"})


def check_zero(dataset, folder, stage, num_steps, segments, world_sizes):
    engine = EngineSettings(zero_stage=stage, dtype="float32", reduce_bucket_elements=5000)
    elastic = Elastic(dataset, folder, engine, num_steps, segments)
    undisturbed = {size: elastic.undisturbed(size) for size in world_sizes}
    losses, rows = elastic.resized()
    check_rows(rows, undisturbed[2][1])
    not_resized = [undisturbed[2][0], elastic.resized(num_resizes=1)[0]]
    for (_, resized_at), curve in zip(segments[:-1], not_resized, strict=True):
        after = np.abs(losses - curve)[resized_at : resized_at + 5]
        print(f"ZeRO {stage}: first five steps after the resize at {resized_at}: {after.max():.1e}")
        assert after.max() <= 1e-5
    return losses, np.stack([curve for curve, _ in undisturbed.values()])
