"""Engines behind message streams: the same bits, also when a replica dies at any point."""

import asyncio
import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest

from glm_dist.errors import RequestError
from glm_dist.inference import (
    BeamSettings,
    Blank,
    Delta,
    EmbedRequest,
    Engine,
    EngineLimits,
    OptionScore,
    Request,
    SamplingSettings,
    ScoreRequest,
    Scores,
)
from glm_dist.serve import remote
from glm_dist.serve.choice import choose
from glm_dist.serve.engine_thread import EngineThread
from glm_dist.serve.errors import FULL_FOR, from_request_error
from glm_dist.serve.link import Address, EngineServer
from glm_dist.serve.progress import Progress
from glm_dist.serve.remote import RemoteEngines
from glm_dist.serve.wire import NEWS, ORDERS, News, Order


class Site:
    """One engine replica in this process."""

    def __init__(self, model, tokenizer, limits=None, weights="a"):
        self.engine = EngineThread(Engine(model, tokenizer, limits or EngineLimits()))
        self.server = EngineServer(self.engine, lambda: self.trouble)
        self.trouble = None
        self.weights = weights

    async def open(self):
        port, secret = await self.server.open("127.0.0.1")
        name = f"replica-{port}"
        self.address = Address(name, "127.0.0.1", port, secret, "kind", self.weights)
        return self

    async def die(self):
        await self.server.close()
        self.engine.close()


class Sites:
    """Replicas and the front that knows them."""

    def __init__(self, model, tokenizer):
        self._new = lambda **options: Site(model, tokenizer, **options)
        self.sites, self.pool = [], RemoteEngines("kind", is_causal=False)

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        self.pool.close()
        for site in self.sites:
            await site.die()

    async def start(self, **options):
        site = await self._new(**options).open()
        self.sites.append(site)
        self.pool.connect([site.address])
        while not any(
            link.address == site.address and link.vitals is not None for link in self.pool.links
        ):
            await asyncio.sleep(0.005)
        return site

    async def kill(self, name):
        site = next(site for site in self.sites if site.address.replica == name)
        self.sites.remove(site)
        await site.die()


@pytest.fixture
def sites(model, tokenizer):
    return lambda: Sites(model, tokenizer)


def prompts(tokenizer):
    """Requests of every kind that are answered in many pieces."""
    special = tokenizer.special
    text = tokenizer.encode("The list returns").tolist()
    drawn = SamplingSettings(max_tokens=90, temperature=1.2, seed=5, ignore_eos=True)
    plain = [special.enc, *text, special.gmask]
    holes = [special.enc, special.mask, *text, special.mask]
    shown = drawn.model_copy(update={"num_logprobs": 3})
    stopped = drawn.model_copy(update={"stop": ("zzzz", "e")})
    both = [Blank(1, drawn), Blank(len(holes) - 1, shown)]
    searched = Blank(len(plain) - 1, SamplingSettings(max_tokens=9, num_logprobs=3))
    return {
        "samples": Request("samples", plain, [Blank(len(plain) - 1, drawn)], 4),
        "logprobs": Request("logprobs", plain, [Blank(len(plain) - 1, shown)], 2),
        "stop": Request("stop", plain, [Blank(len(plain) - 1, stopped)], 3),
        "blanks": Request("blanks", holes, both, 2),
        "apart": Request("apart", holes, both, 2, is_joint=False),
        "search": Request("search", plain, [searched], 2, beams=BeamSettings(num_beams=3)),
    }


def joined(outputs):
    """What is said of each blank of each sample, wherever it is cut."""
    found = {}
    for delta in outputs:
        assert isinstance(delta, Delta)
        whole = found.setdefault((delta.sample, delta.blank), Delta("", delta.sample, delta.blank))
        assert whole.finish_reason is None
        found[delta.sample, delta.blank] = replace(
            whole,
            tokens=whole.tokens + delta.tokens,
            text=whole.text + delta.text,
            logprobs=whole.logprobs + delta.logprobs,
            alternatives=whole.alternatives + delta.alternatives,
            finish_reason=delta.finish_reason,
        )
    return found


async def read(stream):
    return [output async for output in stream.outputs()]


@pytest.fixture(scope="module")
def alone(model, tokenizer):
    """What an engine gives that nobody disturbs."""
    return {
        name: joined(Engine(model, tokenizer).generate([request]))
        for name, request in prompts(tokenizer).items()
    }


@pytest.mark.parametrize("kind", ["samples", "logprobs", "stop", "blanks", "apart"])
def test_a_stream_goes_on_elsewhere_with_the_same_bits(sites, tokenizer, alone, kind):
    request = prompts(tokenizer)[kind]

    async def break_after(count):
        async with sites() as house:
            for _ in range(2):
                await house.start()
            stream = await house.pool.submit(request)
            found = []
            async for output in stream.outputs():
                found.append(output)
                if len(found) == count and stream.link is not None:
                    await house.kill(stream.link.address.replica)
            return found, stream

    for count in (1, 2, 9, 30):
        found, stream = asyncio.run(break_after(count))
        assert joined(found) == alone[kind]
        assert stream.num_deaths or count > 2
        assert stream.usage.completion_tokens == sum(len(each.tokens) for each in found)


def test_requests_of_all_kinds_pass_as_they_are(sites, model, tokenizer, alone):
    special = tokenizer.special
    scoring = ScoreRequest("score", [special.enc, special.gmask], 1, [[7, 8], [9]], num_logprobs=2)
    embedding = EmbedRequest("embed", [special.enc, 7, 8, 9])
    expected = Engine(model, tokenizer).generate([scoring, embedding])

    async def ask():
        async with sites() as house:
            await house.start()
            asked = [scoring, embedding, *prompts(tokenizer).values()]
            streams = [await house.pool.submit(request) for request in asked]
            return await asyncio.gather(*map(read, streams))

    scores, vectors, *answers = asyncio.run(ask())
    assert [replace(each[0], request_id="") for each in (scores, vectors)] == [
        replace(each, request_id="")
        for each in sorted(expected, key=lambda e: not isinstance(e, Scores))
    ]
    assert dict(zip(prompts(tokenizer), map(joined, answers), strict=True)) == alone


def test_nothing_is_lost_while_all_replicas_are_gone(sites, tokenizer, alone):
    request = prompts(tokenizer)["samples"]

    async def ask():
        async with sites() as house:
            site = await house.start()
            stream = await house.pool.submit(request)
            await house.kill(site.address.replica)
            reading = asyncio.create_task(read(stream))
            await asyncio.sleep(0.3)
            assert house.pool.failure is not None
            await house.start()
            return await reading

    assert joined(asyncio.run(ask())) == alone["samples"]


def test_other_weights_never_go_on_with_what_a_client_has(sites, tokenizer, monkeypatch):
    monkeypatch.setattr(remote, "REPLAY_WAIT_SECONDS", 0.3)
    request = prompts(tokenizer)["samples"]

    async def ask():
        async with sites() as house:
            old = await house.start()
            stream = await house.pool.submit(request)
            outputs = stream.outputs()
            await anext(outputs)
            await house.start(weights="b")
            await house.kill(old.address.replica)
            async for _ in outputs:
                pass

    with pytest.raises(RuntimeError, match="can go on"):
        asyncio.run(ask())


def test_a_request_that_ends_its_replicas_is_given_up(sites, tokenizer):
    request = prompts(tokenizer)["samples"]

    async def ask():
        async with sites() as house:
            await house.start()
            stream = await house.pool.submit(request)
            for _ in range(remote.MAX_DEATHS + 1):
                while stream.link is None:
                    await asyncio.sleep(0.005)
                await house.start()
                await house.kill(stream.link.address.replica)
                await asyncio.sleep(0.02)
            await read(stream)

    with pytest.raises(RuntimeError, match="were lost under this request"):
        asyncio.run(ask())


def test_what_is_wrong_is_refused_and_what_has_no_room_goes_elsewhere(sites, tokenizer):
    special = tokenizer.special
    part_a = [special.enc, special.gmask]
    long = SamplingSettings(max_tokens=100, ignore_eos=True)

    def request(number, sampling=long):
        return Request(f"r{number}", part_a, [Blank(1, sampling)], cache_salt=str(number))

    async def ask():
        async with sites() as house:
            for _ in range(2):
                await house.start(limits=EngineLimits(max_running=1, max_waiting=1))
            with pytest.raises(RequestError) as wrong:
                await house.pool.submit(request("x", SamplingSettings(max_tokens=10_000)))
            taken, refused = [], []
            for number in range(12):
                try:
                    taken.append(await house.pool.submit(request(number)))
                except RequestError as error:
                    refused.append(error.code)
            where = {stream.link.address.replica for stream in taken}
            for stream in taken:
                house.pool.cancel(stream)
            return wrong.value, where, refused

    wrong, where, refused = asyncio.run(ask())
    assert (wrong.param, wrong.code) == ("max_tokens", "context_length_exceeded")
    assert len(where) == 2
    assert set(refused) == {"overloaded"}


def test_a_front_refuses_by_its_own_count_before_any_engine_is_asked(sites, tokenizer, monkeypatch):
    special = tokenizer.special
    long = SamplingSettings(max_tokens=100, ignore_eos=True)

    def request(number):
        return Request(f"r{number}", [special.enc, special.gmask], [Blank(1, long)], 2)

    async def ask():
        async with sites() as house:
            house.pool = RemoteEngines("kind", is_causal=False, room=4)
            for _ in range(2):
                await house.start()
            taken = [await house.pool.submit(request(number)) for number in range(4)]
            with monkeypatch.context() as patch:
                patch.setattr(remote.Link, "ask", lambda *_: pytest.fail("an engine was asked"))
                with pytest.raises(RequestError, match="8 answers are in work") as refused:
                    await house.pool.submit(request("x"))
            house.pool.cancel(taken.pop())
            taken.append(await house.pool.submit(request("y")))
            for stream in taken:
                house.pool.cancel(stream)
            return refused.value

    told = from_request_error(asyncio.run(ask()))
    assert (told.status, told.code) == (429, "overloaded")
    assert float(told.headers[FULL_FOR]) > 0


def test_who_leaves_is_asked_nothing_new_and_ends_what_it_has(sites, tokenizer, alone):
    request = prompts(tokenizer)["blanks"]

    async def ask():
        async with sites() as house:
            old = await house.start()
            stream = await house.pool.submit(request)
            new = await house.start()
            leaving = asyncio.create_task(old.server.leave())
            while not any(link.is_leaving for link in house.pool.links):
                await asyncio.sleep(0.005)
            others = [
                await house.pool.submit(replace(request, id=str(number), cache_salt=str(number)))
                for number in range(6)
            ]
            places = {other.link.address for other in others}
            found = await read(stream)
            for other in others:
                house.pool.cancel(other)
            await asyncio.wait_for(leaving, 30)
            return places == {new.address}, found

    is_elsewhere, found = asyncio.run(ask())
    assert is_elsewhere
    assert joined(found) == alone["blanks"]


def test_a_silent_replica_loses_its_requests_and_is_named(sites, tokenizer, alone, monkeypatch):
    request = prompts(tokenizer)["samples"]

    async def ask():
        async with sites() as house:
            mute = await house.start()
            stream = await house.pool.submit(request)
            [link] = house.pool.links
            link._take = lambda news: None
            monkeypatch.setattr(
                type(link), "silent_seconds", property(lambda each: 99.0 * (each is link))
            )
            await house.start()
            assert house.pool.patrol() == [mute.address.replica]
            assert stream.link is not link
            return await read(stream)

    assert joined(asyncio.run(ask())) == alone["samples"]


def test_who_does_not_know_the_secret_hears_nothing(sites):
    async def ask():
        async with sites() as house:
            site = await house.start()
            reader, writer = await asyncio.open_connection("127.0.0.1", site.address.port)
            writer.write(b"guess\n")
            said = await reader.read()
            writer.close()
            return said

    assert asyncio.run(ask()) == b""


def test_who_does_not_wait_any_more_frees_the_replica(sites, tokenizer):
    async def ask():
        async with sites() as house:
            site = await house.start()
            for request in prompts(tokenizer).values():
                house.pool.cancel(await house.pool.submit(request))
            while site.engine.stats.running or site.engine.stats.waiting:
                await asyncio.sleep(0.005)
            return site.engine.stats

    stats = asyncio.run(asyncio.wait_for(ask(), 60))
    assert stats.free_blocks == stats.total_blocks


def test_a_dead_front_frees_the_replica(sites, tokenizer):
    async def ask():
        async with sites() as house:
            site = await house.start()
            await house.pool.submit(prompts(tokenizer)["samples"])
            house.pool.links[0]._writer.transport.abort()
            while site.engine.stats.running or site.engine.stats.waiting:
                await asyncio.sleep(0.005)

    asyncio.run(asyncio.wait_for(ask(), 60))


def test_numbers_and_texts_pass_the_wire_as_the_same_bits():
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 1 << 63, 2000, dtype=np.int64).view(np.float64).tolist()
    numbers = [number for number in numbers if not math.isnan(number)]
    texts = ["\n\ndata: x", "\u2028", "大學🦊", "\x00", '"\\']
    news = News(
        deltas=[Delta("r", 0, 0, text=text) for text in texts],
        scores=[Scores("s", (OptionScore((*numbers, -math.inf, 0.0, -0.0), True),))],
    )
    line = NEWS.write(news)
    assert line.count(b"\n") == 1
    again = NEWS.read(line)
    assert [delta.text for delta in again.deltas] == texts
    given, found = (np.array(each.scores[0].options[0].logprobs) for each in (news, again))
    np.testing.assert_array_equal(given.view(np.int64), found.view(np.int64))


def test_orders_pass_the_wire_whole(tokenizer):
    bias = SamplingSettings(
        logit_bias={7: -1.5}, stop=("a\n",), stop_tokens=(3,), seed=(1 << 63) - 1
    )
    request = replace(prompts(tokenizer)["blanks"], blanks=[Blank(1, bias)])
    assert ORDERS.read(ORDERS.write(Order.of(request))).asked == request
    assert json.loads(ORDERS.write(Order(cancel="x"))) == {"cancel": "x"}


def test_a_replay_may_be_cut_anywhere():
    rng = random.Random(0)
    tokens = list(range(40))
    text = "".join(chr(97 + token % 26) * (token % 3) for token in tokens)

    def pieces():
        """The same blank, cut at random into tokens, and into texts that lag behind."""
        cuts = sorted(rng.sample(range(1, 40), 6))
        ends = [*cuts, 40]
        shown = sorted(rng.randrange(len(text)) for _ in cuts)
        for number, (start, end) in enumerate(zip([0, *cuts], ends, strict=True)):
            first = 0 if number == 0 else shown[number - 1]
            last = len(text) if number == len(cuts) else shown[number]
            yield Delta(
                "r",
                0,
                0,
                tuple(tokens[start:end]),
                text[first:last],
                tuple(float(token) for token in tokens[start:end]),
                finish_reason="length" if number == len(cuts) else None,
            )

    for _ in range(200):
        progress, found = Progress(), []
        for _ in range(3):
            given = list(pieces())
            for delta in given[: rng.randrange(len(given))]:
                found.append(progress.pass_on(delta))
            progress.replay()
        found += [progress.pass_on(delta) for delta in pieces()]
        [whole] = joined([delta for delta in found if delta is not None]).values()
        assert (list(whole.tokens), whole.text, whole.finish_reason) == (tokens, text, "length")
        assert list(whole.logprobs) == [float(token) for token in tokens]
        assert progress.num_tokens == 40


def test_equal_prompts_meet_and_no_replica_gets_much_more_than_its_share():
    loads = dict.fromkeys("abcde", 0)
    assert len({choose(loads, b"same") for _ in range(5)}) == 1
    for number in range(1000):
        loads[choose(loads, str(number).encode())] += 1
    assert max(loads.values()) <= 1.25 * 1001 / 5 + 1
    for _ in range(1000):
        loads[choose(loads, b"same")] += 1
    assert max(loads.values()) <= 1.25 * 2001 / 5 + 1
