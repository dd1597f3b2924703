"""An engine that lives and cannot answer is noticed."""

import asyncio
import threading
from copy import deepcopy

import pytest
import torch

from glm_dist.inference import Blank, Engine, Failure, Request, SamplingSettings
from glm_dist.serve.engine_thread import EngineThread
from glm_dist.serve.settings import WatchSettings
from glm_dist.serve.watch import Watch

SETTINGS = WatchSettings(probe_seconds=0.3, unready_seconds=0.5, wedged_seconds=1.5)


@pytest.fixture
def engine(model, tokenizer):
    thread = EngineThread(Engine(deepcopy(model), tokenizer))
    yield thread
    thread.close()


def request(tokenizer, max_tokens=4):
    special = tokenizer.special
    sampling = SamplingSettings(max_tokens=max_tokens, ignore_eos=True)
    return Request("r", [special.enc, special.gmask], [Blank(1, sampling)])


async def verdict(watch):
    """What is said of an engine beyond hope, and whether it was known for trouble before."""
    said = []
    running = asyncio.create_task(watch.run(said.append))
    troubled = False
    while not said:
        troubled |= watch.trouble is not None and watch.verdict is None
        await asyncio.sleep(0.01)
    await running
    return said[0], troubled


def test_an_idle_engine_is_asked_for_a_token_now_and_then(engine):
    async def look():
        watch = Watch(engine, SETTINGS)
        running = asyncio.create_task(watch.run(pytest.fail))
        while engine.stats.generated_tokens < 2:
            assert watch.trouble is None
            await asyncio.sleep(0.01)
        running.cancel()

    asyncio.run(asyncio.wait_for(look(), 30))


def test_a_step_that_never_ends_is_trouble_and_then_the_end(engine, tokenizer, monkeypatch):
    release = threading.Event()

    async def look():
        watch = Watch(engine, SETTINGS)
        await watch.probe()
        monkeypatch.setattr(engine.engine, "step", lambda: release.wait() and [])
        asking = asyncio.create_task(engine.submit(request(tokenizer)))
        said, troubled = await verdict(watch)
        release.set()
        monkeypatch.undo()
        await asking
        return said, troubled

    said, troubled = asyncio.run(look())
    assert "a step has taken" in said
    assert troubled


def test_a_request_breaks_alone_where_logits_are_no_numbers_and_the_engine_is_ended(
    engine, tokenizer, monkeypatch
):
    async def look():
        watch = Watch(engine, SETTINGS)
        await watch.probe()
        assert watch.verdict is None
        runner = engine.engine._runner
        decode = runner.decode
        monkeypatch.setattr(runner, "decode", lambda rows: decode(rows) * torch.nan)
        stream = await engine.submit(request(tokenizer))
        outputs = [output async for output in stream.outputs()]
        return outputs, await verdict(watch)

    outputs, (said, _) = asyncio.run(look())
    assert isinstance(outputs[-1], Failure)
    assert "a probe failed" in said


def test_an_engine_that_breaks_down_answers_all_who_wait_or_come(engine, tokenizer, monkeypatch):
    def broken():
        raise ValueError("out of memory")

    async def look():
        watch = Watch(engine, SETTINGS)
        monkeypatch.setattr(engine.engine, "step", broken)
        stream = await engine.submit(request(tokenizer))
        with pytest.raises(RuntimeError, match="out of memory"):
            [output async for output in stream.outputs()]
        with pytest.raises(RuntimeError, match="out of memory"):
            await engine.submit(request(tokenizer))
        return await verdict(watch)

    said, _ = asyncio.run(look())
    assert "broke down" in said
