"""Metrics on disks that are full."""

import os
import resource

from glm_dist.metrics.sinks import METRICS_FILE, JsonLinesSink, read_metrics


def test_lines_that_find_no_room_wait_for_it(tmp_path):
    child = os.fork()
    if not child:
        sink = JsonLinesSink(tmp_path)
        sink.log(1, {"loss": 3.0})
        size = (tmp_path / METRICS_FILE).stat().st_size
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5, hard))  # room for half a line
        sink.log(2, {"loss": 2.0})
        sink.log(3, {"loss": 1.0})
        is_untouched = (tmp_path / METRICS_FILE).stat().st_size == size
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        sink.log(4, {"loss": 0.5})
        os._exit(0 if is_untouched else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    lines = read_metrics(tmp_path / METRICS_FILE)
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 3), (2, 2), (3, 1), (4, 0.5)]
