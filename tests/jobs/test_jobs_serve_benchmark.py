"""The serving benchmark: all answer the same requests, and the figures say who was how fast."""

import json
from argparse import Namespace

import benchmark
import pytest
from _serve_contest import QUICK, Answered, Entry, entries
from _serve_online import SERVED
from _serve_page import collect, describe


def answered(cpu_seconds, answers):
    return Answered(seconds=cpu_seconds / 2, cpu_seconds=cpu_seconds, answers=answers)


def test_every_contestant_takes_part_in_every_number_of_slots():
    found = list(entries(QUICK))
    assert {(each.kind, each.slots) for each in found} == {
        (kind, slots) for kind in ("ours", "generate", "continuous batching") for slots in (1, 4)
    } | {("ours, free shapes", 4), ("ours, prefix", 4)}


def test_ratios_are_against_the_fastest_peer_and_the_worst_of_them_is_shown():
    right, wrong = [[1, 2], [3]], [[1, 2], [4]]
    turns = {
        Entry("ours", "short", "float32", 1): [answered(1, right), answered(3, right)],
        Entry("generate", "short", "float32", 1): [answered(4, right)],
        Entry("continuous batching", "short", "float32", 1): [answered(3, right)],
        Entry("ours", "short", "bfloat16", 1): [answered(2, wrong)],
        Entry("generate", "short", "bfloat16", 1): [answered(2.5, right)],
        Entry("vLLM", "short", "bfloat16", 1): [answered(1.2, right)],
        Entry("vLLM", "short", "float32", 1): [answered(4, right)],
        Entry("ours", "short", "int8", 1): [answered(0.1, wrong)],
        Entry("ours, free shapes", "short", "bfloat16", 1): [answered(1.6, right)],
        Entry("ours, prefix", "short", "bfloat16", 1): [answered(2.5, right)],
    }
    figures = collect(QUICK, turns, {})
    # At its best each: ours in float32, transformers and vLLM in bfloat16; int8 is ours alone.
    assert figures["vs_transformers_best"] == {1: pytest.approx(2 / 1.2)}
    assert figures["vs_vllm_cpu"] == {1: pytest.approx(2 / (3 / 1.2))}
    ours, theirs = (3 / 1 + 3 / 3) / 2, 3 / 3
    assert figures["vs_transformers_best_by"][0]["ratio"] == pytest.approx(ours / theirs)
    assert figures["fixed_shapes_cost"] == {"bfloat16": pytest.approx(0.2)}
    assert figures["prefix_vs_causal"] == {"bfloat16": pytest.approx(0.8)}
    assert figures["equal_tokens_fp32"]
    assert "| vLLM | 0.80 |" in describe({**figures, "parameters": 1e6})
    turns[Entry("ours", "short", "float32", 1)] = [answered(1, wrong)]
    assert not collect(QUICK, turns, {})["equal_tokens_fp32"]


@pytest.mark.parametrize("part", ["offline", "online"])
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "by --docs"),
        (["--quick", "--docs", "{docs}"], "leave --quick out"),
        (["--docs", "{docs}"], "serve.json is not there"),
    ],
)
def test_one_part_alone_needs_figures_to_go_beside(part, flags, message, tmp_path, capsys):
    flags = [flag.format(docs=tmp_path) for flag in flags]
    assert benchmark.run("serve", ["--only", part, *flags]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_one_part_alone_keeps_the_figures_of_the_other(tmp_path):
    figures = {"http_ttft_ms_added": 8.0, "online": {}, "cells": [], "vs_vllm_cpu_reason": "old"}
    (tmp_path / "serve.json").write_text(json.dumps(figures))

    def kept(part):
        arguments = Namespace(only=part, docs=str(tmp_path), quick=False)
        return benchmark.kept_figures(arguments).keys()

    assert kept("offline") == {"http_ttft_ms_added", "online"}
    assert kept("online") == {"cells", "vs_vllm_cpu_reason"}


@pytest.mark.slow
def test_the_quick_size_measures_all_and_writes_page_figures_and_picture(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("GLM_DIST_HOME", str(tmp_path / "home"))
    files = ["--json", str(tmp_path / "serve.json"), "--docs", str(tmp_path / "docs")]
    assert benchmark.run("serve", ["--quick", "--turns", "1", *files]) == 0
    figures = json.loads((tmp_path / "serve.json").read_text())
    assert figures["equal_tokens_fp32"] is True
    assert figures["errors"] == {}
    assert figures["http_throughput_share"] > 0
    assert figures["online"]["paths"].keys() == {"engine", *SERVED}
    assert figures["vs_transformers_best"].keys() == {"1", "4"}
    assert all(cell["speed"] > 0 for cell in figures["cells"])
    page = (tmp_path / "docs/serve.md").read_text()
    assert "tokens a CPU-second" in page
    assert "Through HTTP and Ray" in page
    assert (tmp_path / "docs/serve-tokens.png").stat().st_size > 5000
    assert (tmp_path / "docs/serve-online.png").stat().st_size > 5000
    assert "equal_tokens_fp32        True" in capsys.readouterr().out
