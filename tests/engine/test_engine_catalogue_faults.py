"""Checkpoints under fire: corrupted in two thousand ways, and killed in the middle of saving.

Every trial prints nothing and costs milliseconds: a save is killed in a forked child, either right
before one of its own file operations or at a random moment, writes under way included.
"""

import os
import random
import shutil
import signal
import sys
import time

import engine_scenarios as scenarios
from killing import FILE_EVENTS, dying_before_operation, in_a_child, was_killed

from glm_dist.engine import Catalogue

CORRUPTIONS, KILLS, SAVES = 2000, 200, 200


def flip_a_bit(folder, rng):
    path = any_file(folder, rng)
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def truncate(folder, rng):
    path = any_file(folder, rng)
    os.truncate(path, rng.randrange(path.stat().st_size))


def zero_a_page(folder, rng):
    path = rng.choice(rank_files(folder))
    content = bytearray(path.read_bytes())
    start = rng.randrange(len(content))
    length = min(rng.choice([16, 512, 4096]), len(content) - start)
    if any(content[start : start + length]):
        content[start : start + length] = bytes(length)
    else:
        content[start : start + length] = b"\1" * length
    path.write_bytes(content)


def swap_rank_files(folder, rng):
    one, other = rank_files(folder)
    one.rename(folder / "one")
    other.rename(one)
    (folder / "one").rename(other)


def lose_a_file(folder, rng):
    any_file(folder, rng).unlink()


def add_a_file(folder, rng):
    (folder / f"rank-{rng.randrange(2, 99):05d}.safetensors").write_bytes(b"more")


def append_bytes(folder, rng):
    with any_file(folder, rng).open("ab") as file:
        file.write(rng.randbytes(rng.randrange(1, 100)))


def take_an_older_file(folder, rng):
    shutil.copy(folder.with_name("older") / "rank-00000.safetensors", folder)


def claim_another_step(folder, rng):
    folder.rename(folder.with_name(f"checkpoint-{rng.randrange(100, 9999):08d}"))


HARMS = [
    *[flip_a_bit] * 8,
    *[truncate] * 3,
    *[zero_a_page] * 3,
    swap_rank_files,
    lose_a_file,
    add_a_file,
    append_bytes,
    take_an_older_file,
    claim_another_step,
]


def any_file(folder, rng):
    return rng.choice(sorted(folder.iterdir()))


def rank_files(folder):
    return sorted(folder.glob("rank-*"))


def test_every_corruption_is_found_before_use_and_the_older_checkpoint_is_used(
    life, tmp_path, faults
):
    """Of a checkpoint that two ranks wrote; an older one of one rank lies beside it."""
    newest = Catalogue(life.folder / "zero2").newest().folder
    older = Catalogue(tmp_path / "once").save(1, scenarios.make_engine("twin"), {})
    used = set()
    for trial in range(CORRUPTIONS):
        rng = random.Random(trial)
        run_folder = tmp_path / "run"
        shutil.copytree(newest, run_folder / newest.name)
        shutil.copytree(older, run_folder / older.name)
        shutil.copytree(older, run_folder / "older")
        harm = rng.choice(HARMS)
        harm(run_folder / newest.name, rng)
        catalogue = Catalogue(run_folder)
        assert catalogue.newest().step == 1, f"trial {trial}: {harm.__name__} was not found"
        assert len(catalogue.damaged) == 1
        assert catalogue.damaged[0].folder.is_dir()
        used.add(harm)
        shutil.rmtree(run_folder)
    assert used == set(HARMS)
    faults.add("C4", CORRUPTIONS, CORRUPTIONS, kinds=len(used))


class Saves:
    """Saves of one run folder, each in a process that may be killed."""

    def __init__(self, folder, **options):
        self.folder, self.options = folder, options
        self.engine = scenarios.make_engine("twin")
        self.kills = self.lost = 0

    def save(self, step):
        Catalogue(self.folder, **self.options).save(step, self.engine, {"next_row": step})

    def measure(self):
        """File operations and seconds of one save."""
        scratch, count = self.folder.with_name("scratch"), 0
        catalogue = Catalogue(scratch, **self.options)
        for step in range(1, 5):
            catalogue.save(step, self.engine, {})
        measuring = True

        def hook(event, arguments):
            nonlocal count
            if measuring and event in FILE_EVENTS and str(arguments[0]).startswith(str(scratch)):
                count += 1

        sys.addaudithook(hook)
        start = time.monotonic()
        catalogue.save(5, self.engine, {})
        seconds = time.monotonic() - start
        measuring = False
        return count, seconds

    def try_to_save(self, step, kill):
        """Save `step`, perhaps killed by `kill`; the step that can be resumed from afterwards."""
        pid = kill(lambda: self.save(step))
        self.kills += was_killed(pid)
        catalogue = Catalogue(self.folder, **self.options)
        newest = catalogue.newest()
        assert not catalogue.damaged
        assert newest.step in (step - 1, step), f"killed at step {step}, resumes at {newest.step}"
        assert newest.state == {"next_row": newest.step}
        self.lost += newest.step < step
        return newest.step


def test_a_save_killed_anywhere_leaves_its_checkpoint_or_the_one_before(tmp_path, faults):
    saves = Saves(tmp_path / "run")
    operations, seconds = saves.measure()
    rng = random.Random(0)
    saves.save(0)
    step = 0
    while saves.kills < KILLS:
        if rng.random() < 0.5:
            number = rng.randrange(operations)

            def kill(save, number=number):
                return in_a_child(dying_before_operation(number, saves.folder, save))
        else:
            delay = rng.uniform(0, 1.2 * seconds)

            def kill(save, delay=delay):
                pid = in_a_child(save)
                time.sleep(delay)
                os.kill(pid, signal.SIGKILL)
                return pid

        step = saves.try_to_save(step + 1, kill)
    print(f"{saves.kills} kills of saves, {saves.lost} of them before the commit; 0 unusable")
    assert 0 < saves.lost < KILLS
    assert not list(saves.folder.glob("*.damaged*"))
    faults.add("C1", saves.kills, saves.kills, before_the_commit=saves.lost)


def test_the_right_checkpoints_are_left_after_two_hundred_saves_with_kills(tmp_path, faults):
    saves = Saves(tmp_path / "run", keep_last=3, milestone_every_steps=25)
    operations, _ = saves.measure()
    rng = random.Random(1)
    saves.save(0)
    step = 0
    while step < SAVES:
        number = rng.randrange(3 * operations)  # two thirds of the saves live

        def kill(save, number=number):
            return in_a_child(dying_before_operation(number, saves.folder, save))

        step = saves.try_to_save(step + 1, kill)
        whole = [path for path in saves.folder.glob("checkpoint-*") if "." not in path.name]
        assert len(whole) >= min(3, step)
    saves.save(step + 1)
    print(f"{SAVES} saves with {saves.kills} kills")
    assert saves.kills > SAVES / 10
    left = sorted(int(path.name.removeprefix("checkpoint-")) for path in saves.folder.iterdir())
    assert left == [*range(0, SAVES, 25), SAVES - 2, SAVES - 1, SAVES, SAVES + 1]
    faults.add("C8", 1, 1, saves=SAVES, kills=saves.kills)
