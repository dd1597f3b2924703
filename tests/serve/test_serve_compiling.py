"""Forms are compiled for one answer while all others go on, by an engine here or elsewhere."""

import asyncio
import contextlib
import threading

import pytest

from glm_dist.errors import RequestError
from glm_dist.inference import Blank, Engine, EngineLimits, Request, SamplingSettings
from glm_dist.serve.engine_thread import EngineThread
from glm_dist.serve.link import Address, EngineServer
from glm_dist.serve.remote import RemoteEngines


class Gate:
    """Compiling that begins at once and ends when it is let."""

    def __init__(self, engine):
        self.begun, self.opened = threading.Semaphore(0), threading.Event()
        self._prepare, engine.prepare = engine.prepare, self.prepare

    def prepare(self, request):
        self.begun.release()
        assert self.opened.wait(60)
        return self._prepare(request)


@pytest.fixture
def thread(model, tokenizer):
    thread = EngineThread(Engine(model, tokenizer, EngineLimits(max_waiting=3)))
    yield thread
    thread.close()


@contextlib.asynccontextmanager
async def asked(thread, place):
    """The engine here, or at the end of a message stream."""
    if place == "here":
        yield thread
        return
    server = EngineServer(thread, lambda: None)
    port, secret = await server.open("127.0.0.1")
    pool = RemoteEngines("kind", is_causal=False)
    pool.connect([Address("replica", "127.0.0.1", port, secret, "kind", "weights")])
    while pool.failure is not None:
        await asyncio.sleep(0.005)
    yield pool
    pool.close()
    await server.close()


@pytest.fixture
def make(tokenizer):
    special = tokenizer.special

    def request(name, **options):
        sampling = SamplingSettings(max_tokens=30, **options)
        return Request(name, [special.enc, special.gmask], [Blank(1, sampling)])

    return request


async def text_of(stream):
    return "".join([delta.text async for delta in stream.outputs()])


def run(work):
    return asyncio.run(asyncio.wait_for(work, 60))


@pytest.mark.parametrize("place", ["here", "elsewhere"])
def test_others_are_answered_while_a_form_is_compiled(thread, make, place):
    gate = Gate(thread.engine)

    async def ask():
        async with asked(thread, place) as engine:
            held = asyncio.create_task(engine.submit(make("held", regex="[0-9]{4}")))
            await asyncio.to_thread(gate.begun.acquire)
            for number in range(3):
                assert await text_of(await engine.submit(make(f"free{number}", ignore_eos=True)))
            assert not held.done()
            gate.opened.set()
            return await text_of(await held)

    text = run(ask())
    assert text.isdigit()
    assert len(text) == 4


@pytest.mark.parametrize("place", ["here", "elsewhere"])
def test_who_leaves_while_a_form_is_compiled_leaves_nothing(thread, make, place):
    gate = Gate(thread.engine)

    async def ask():
        async with asked(thread, place) as engine:
            held = asyncio.create_task(engine.submit(make("held", regex="[0-9]{4}")))
            await asyncio.to_thread(gate.begun.acquire)
            held.cancel()
            await asyncio.gather(held, return_exceptions=True)
            # Orders keep their sequence, so the engine knows of the leaving by the answer to this.
            assert await text_of(await engine.submit(make("free", ignore_eos=True)))
            before = thread.stats
            gate.opened.set()
            await text_of(await engine.submit(make("next", regex="[0-9]{2}")))
            return before, thread.stats

    before, after = run(ask())
    # The prompt of the one that was asked last, and of no other.
    assert after.prompt_tokens == before.prompt_tokens + 2
    assert after.running == after.waiting == 0


def test_no_more_wait_for_a_form_than_for_an_answer(thread, make):
    gate = Gate(thread.engine)

    async def ask():
        held = [
            asyncio.create_task(thread.submit(make(str(number), regex="[0-9]{4}")))
            for number in range(3)
        ]
        await asyncio.to_thread(gate.begun.acquire)
        with pytest.raises(RequestError, match="too many") as refused:
            await thread.submit(make("beyond", regex="[0-9]{4}"))
        gate.opened.set()
        return refused.value.code, [await text_of(await each) for each in held]

    code, texts = run(ask())
    assert code == "overloaded"
    assert all(text.isdigit() for text in texts)
