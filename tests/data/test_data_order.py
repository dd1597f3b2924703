import numpy as np
import pytest

from glm_dist.data.order import Permutation, RowOrder, RowSchedule, nth_rows
from glm_dist.data.row_table import Packer, RowTable, finish_table, write_part


@pytest.mark.parametrize("size", [1, 2, 3, 17, 1000, 65_537])
def test_a_permutation_meets_every_element_once(size):
    images = Permutation(size, 7, 0)(np.arange(size))
    assert np.array_equal(np.sort(images), np.arange(size))


def test_a_permutation_depends_on_every_part_of_its_key_and_only_on_it():
    rows = np.arange(1000)
    assert np.array_equal(Permutation(1000, 1, 2)(rows), Permutation(1000, 1, 2)(rows))
    assert not np.array_equal(Permutation(1000, 1, 2)(rows), Permutation(1000, 2, 1)(rows))
    assert not np.array_equal(Permutation(1000, 1, 2)(rows), Permutation(1000, 1, 3)(rows))


def test_a_permutation_gives_one_row_the_image_it_has_among_all():
    permutation = Permutation(12345, 3)
    assert permutation(np.array([77]))[0] == permutation(np.arange(12345))[77]


def test_packing_keeps_every_token_once_and_no_row_overflows():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 400, size=200).tolist()
    grow = lambda document, start, length: length + 2 * (1 + length // 20) + 1  # noqa: E731
    rows = Packer(sequence_length=128, min_piece_tokens=16, infilled_length=grow).pack(
        range(200), lengths
    )
    covered = [np.zeros(length, dtype=int) for length in lengths]
    for row in rows:
        assert row
        assert sum(grow(*piece) for piece in row) <= 128
        for document, start, length in row:
            covered[document][start : start + length] += 1
    assert all((counts == 1).all() for counts in covered)
    fill = sum(sum(grow(*piece) for piece in row) for row in rows) / (128 * len(rows))
    assert fill > 0.9


def make_table(tmp_path, epoch, num_rows):
    folder = tmp_path / f"epoch-{epoch:05d}"
    parts = []
    for number, part in enumerate(np.array_split(np.arange(num_rows), 3)):
        rows = [[(int(row), epoch, 5), (int(row), 9, 2)] for row in part]
        parts.append(write_part(folder, number, rows))
    return finish_table(folder, {"epoch": epoch}, parts)


def test_every_row_of_every_epoch_comes_once_and_is_found_again(tmp_path):
    order = RowOrder([make_table(tmp_path, 0, 10_000), make_table(tmp_path, 1, 37)], seed=5)
    rows = np.arange(10_037)
    contents = list(order.pieces(rows))
    assert sorted(pieces[0].document for epoch, pieces in contents if epoch == 0) == list(
        range(10_000)
    )
    assert sorted(pieces[0].document for epoch, pieces in contents if epoch == 1) == list(range(37))
    assert all(pieces[0].start == epoch and pieces[1].start == 9 for epoch, pieces in contents)
    assert next(order.pieces(np.array([10_003]))) == contents[10_003]


def test_a_table_is_read_again_with_the_same_hash(tmp_path):
    table = make_table(tmp_path, 0, 100)
    assert RowTable(table.folder).sha256 == table.sha256
    assert make_table(tmp_path / "again", 0, 100).sha256 == table.sha256


def test_the_rows_of_a_step_do_not_depend_on_the_number_of_ranks():
    for step in range(5):
        expected = RowSchedule(100, ((110, 113),), 12, 1).rank_rows(step, 0)
        for world_size in (2, 3, 4):
            schedule = RowSchedule(100, ((110, 113),), 12, world_size)
            parts = [schedule.rank_rows(step, rank) for rank in range(world_size)]
            assert np.array_equal(np.concatenate(parts), expected)


def test_skipped_ranges_are_left_out_and_nothing_else():
    rows = nth_rows(np.arange(20), 5, [(22, 24), (0, 7), (9, 12)])
    expected = [row for row in range(5, 40) if not (row < 7 or 9 <= row < 12 or 22 <= row < 24)]
    assert rows.tolist() == expected[:20]


def test_a_schedule_resumed_after_some_steps_goes_on_where_it_was():
    whole = RowSchedule(0, ((30, 34),), 8, 2)
    resumed = RowSchedule(whole.next_row_after(4), ((30, 34),), 8, 4)
    for step in range(4):
        assert np.array_equal(whole.step_rows(4 + step), resumed.step_rows(step))
