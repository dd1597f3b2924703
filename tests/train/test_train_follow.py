"""Whoever follows a run's lines sees whole ones, whatever a resumed run does to the file."""

import json
import os

from glm_dist.train.follow import Follower


def rewrite(path, steps, text):
    """As a sink does: cut off what is done again, then go on."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps({"step": s, "text": text}) + "\n" for s in steps))
    os.replace(temporary, path)


def test_lines_stay_whole_when_the_file_is_cut_and_grows_past_its_old_end(tmp_path):
    path, shown = tmp_path / "metrics.jsonl", []
    follower = Follower(path, lambda line: shown.append(json.loads(line)["step"]))
    rewrite(path, range(3), "short")
    follower._show_new()
    rewrite(path, range(20), "another length")
    follower._show_new()
    with path.open("a") as file:
        file.write(json.dumps({"step": 20}))
    follower._show_new()
    with path.open("a") as file:
        file.write("\n")
    follower._show_new()
    assert shown[:3] == [0, 1, 2]
    assert shown[3:] == list(range(shown[3], 21))
    assert shown[3] <= 4


def test_lines_come_again_where_the_file_was_cut_short(tmp_path):
    path, shown = tmp_path / "metrics.jsonl", []
    follower = Follower(path, lambda line: shown.append(json.loads(line)["step"]))
    rewrite(path, range(5), "a")
    follower._show_new()
    rewrite(path, range(2), "a")
    follower._show_new()
    rewrite(path, range(4), "a")
    follower._show_new()
    assert shown == [0, 1, 2, 3, 4, 2, 3]
