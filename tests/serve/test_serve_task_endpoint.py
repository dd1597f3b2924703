"""What a model was tuned for, over HTTP: the answers are those that evaluation scores."""

import jsonschema
import pytest
from answer_scenarios import CASES, tuned
from finetune_scenarios import small_tokenizer

from glm_dist.evaluate.answers import Answerer, reply_of, request_of
from glm_dist.evaluate.occlusion import falls, parts_of, without
from glm_dist.evaluate.task_report import score_answers
from glm_dist.inference import Engine
from glm_dist.serve.key_file import new_key
from glm_dist.serve.keys import ApiKeys
from glm_dist.tasks import Answer

ROWS = 200
AT_ONCE = 25


@pytest.fixture(scope="module")
def task_tokenizer():
    return small_tokenizer()


@pytest.fixture(scope="module")
def tuned_servers(serve, task_tokenizer):
    """By case: a server, its model, its task and examples."""
    found = {}

    def get(case):
        if case not in found:
            model, task, examples = tuned(case, task_tokenizer, ROWS)
            server = serve(model=model, tokenizer=task_tokenizer, task=task)
            found[case] = server, model, task, examples
        return found[case]

    return get


def asked(task, example):
    """The fields of an example that a client has."""
    given = {name: example.fields.get(name) for name in task.settings.asked_fields}
    return {name: value for name, value in given.items() if value is not None}


def ask(server, input):
    return server.http.post("/v1/tasks/tiny/glm", json={"input": input})


def replies_of(model, tokenizer, task, questions):
    requests = [request_of(str(n), one, task, model.settings) for n, one in enumerate(questions)]
    outputs = Engine(model, tokenizer).generate(requests)
    return [reply_of(one, [o for o in outputs if o.request_id == one.id]) for one in requests]


@pytest.mark.parametrize("case", CASES)
def test_two_hundred_rows_score_over_http_what_they_score_offline(
    case, tuned_servers, task_tokenizer
):
    server, model, task, examples = tuned_servers(case)
    offline = Answerer(model, task_tokenizer, task).answer(examples)
    data = []
    for start in range(0, ROWS, AT_ONCE):
        inputs = [asked(task, example) for example in examples[start : start + AT_ONCE]]
        reply = ask(server, inputs)
        assert reply.status_code == 200, reply.text
        assert reply.json()["task"] == task.settings.kind
        data += reply.json()["data"]
    assert [one["value"] for one in data] == [one.value for one in offline]
    served = [Answer(one["value"], tuple(one.get("probs", {}).values())) for one in data]
    assert [one.probabilities for one in served] == [one.probabilities for one in offline]
    scores = [
        [(score.name, score.value) for score in score_answers(task, examples, answers)]
        for answers in (offline, served)
    ]
    assert scores[0] == scores[1]
    assert len({str((one["value"], one.get("probs"))) for one in data}) > 1


@pytest.mark.parametrize("case", CASES)
def test_answers_are_as_described(case, tuned_servers):
    server, _, task, examples = tuned_servers(case)
    document = server.http.get("/openapi.json").json()
    operation = document["paths"]["/v1/tasks/{name}"]["post"]
    assert [one["name"] for one in operation["parameters"]] == ["name"]
    body = {"input": asked(task, examples[0])}
    for told, given in (
        (operation["requestBody"], body),
        (operation["responses"]["200"], ask(server, **body).json()),
    ):
        schema = told["content"]["application/json"]["schema"]
        schema = {**schema, "components": document["components"]}
        jsonschema.Draft202012Validator(schema).validate(given)


def test_entities_come_as_spans_of_a_running_text(tuned_servers):
    server, _, task, _ = tuned_servers("labelling")
    [one] = ask(server, {"tokens": "the man, a dog 好"}).json()["data"]
    assert one["tokens"] == ["the", "man", ",", "a", "dog", "好"]
    assert len(one["value"]) == 6
    for span in one["spans"]:
        assert one["value"][span["start"]] == f"B-{span['kind']}"
        assert span["text"].split(" ")[0] == one["tokens"][span["start"]]


@pytest.mark.parametrize("case", ["cloze", "head"])
def test_classify_knows_the_labels_that_were_learnt(case, tuned_servers):
    server, _, task, examples = tuned_servers(case)
    texts = [example.text("text") for example in examples[:5]]
    reply = server.http.post("/v1/classify", json={"input": texts}).json()
    expected = ask(server, [{"text": text} for text in texts]).json()
    assert [one["label"] for one in reply["data"]] == [one["value"] for one in expected["data"]]
    assert [one["probs"] for one in reply["data"]] == [one["probs"] for one in expected["data"]]
    assert set(reply["data"][0]["probs"]) == set(task.labels)


def test_a_model_says_what_it_was_tuned_for(tuned_servers, server):
    tuned_server, _, task, _ = tuned_servers("head")
    [entry] = tuned_server.http.get("/v1/models").json()["data"]
    assert entry["task"] == {
        "kind": "classification",
        "fields": ["text"],
        "optional_fields": ["text_b"],
        "labels": list(task.labels),
    }
    [entry] = server.http.get("/v1/models").json()["data"]
    assert (entry["kind"], entry["task"]) == ("base model", None)
    assert "/v1/tasks/{name}" in server.http.get("/openapi.json").json()["paths"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"words": "x"}, "'words' is no field of classification; it has text, text_b"),
        ({"label": "x"}, "'label' is no field"),
        ({"text": ""}, "the text is empty"),
        ({}, "the text is empty"),
        ({"text": 3}, "input"),
        ([], "input"),
    ],
)
def test_inputs_that_cannot_be_answered_are_named(tuned_servers, given, says):
    server, *_ = tuned_servers("cloze")
    reply = ask(server, [{"text": "fine"}, given] if given != [] else [])
    assert reply.status_code == 400
    assert reply.json()["error"]["param"].startswith("input")
    assert says in reply.json()["error"]["message"]


def test_who_was_tuned_for_nothing_says_so(server):
    reply = ask(server, {"text": "x"})
    assert (reply.status_code, reply.json()["error"]["param"]) == (404, "model")
    reply = server.http.post("/v1/classify", json={"input": "x"})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "labels")
    reply = server.http.post("/v1/tasks/elsewhere", json={"input": {"text": "x"}})
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "model_not_found")


def test_a_model_that_labels_is_ready_and_generates_nothing(tuned_servers):
    server, *_ = tuned_servers("head")
    assert server.http.get("/health/ready").status_code == 200
    for path, body in (
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/infill", {"input": "x [MASK]"}),
        ("/v1/score", {"text_1": "x", "text_2": "y"}),
        ("/v1/classify", {"input": "x", "labels": ["a", "b"]}),
    ):
        reply = server.http.post(path, json=body)
        assert reply.status_code == 400, path
        assert "scores the labels x, y, z and no tokens" in reply.json()["error"]["message"]
    assert server.http.post("/v1/embeddings", json={"input": "x"}).status_code == 200


def test_tasks_are_a_scope_of_their_own_for_any_model(serve, tmp_path):
    keys = {}
    lines = []
    for scope in ("tasks", "classify"):
        keys[scope], line = new_key(scopes=scope)
        lines.append(line)
    path = tmp_path / "keys"
    path.write_text("\n".join(lines))
    server = serve(keys=ApiKeys.load(str(path)))

    def status(scope, path):
        header = {"authorization": f"Bearer {keys[scope]}"}
        return server.http.post(path, json={"input": {"text": "x"}}, headers=header).status_code

    assert status("classify", "/v1/tasks/tiny/glm") == 403
    assert status("classify", "/v1/tasks/tiny/glm/") == 403
    assert status("classify", "/tasks/tiny/glm") == 403
    assert status("tasks", "/v1/tasks/tiny/glm") == 404  # tuned for nothing


@pytest.mark.parametrize("case", ["cloze", "head"])
def test_words_are_weighed_by_the_scores_of_the_text_without_them(
    case, tuned_servers, task_tokenizer
):
    server, model, task, examples = tuned_servers(case)
    body = {"input": asked(task, examples[0]), "explain": True}
    reply = server.http.post("/v1/tasks/tiny/glm", json=body).json()
    plain = ask(server, body["input"]).json()
    [one], [unexplained] = reply["data"], plain["data"]
    explanation = one.pop("explanation")
    assert one == unexplained
    question = task.questions(examples[0])[0]
    parts = parts_of(question.tokens, task_tokenizer)
    assert [told["text"] for told in explanation] == [part.text for part in parts]
    masked = [without(question, part, task_tokenizer.special.mask) for part in parts]
    asked_all = [question, *masked]
    whole, *rest = replies_of(model, task_tokenizer, task, asked_all)
    expected = falls(whole, rest, task.labels.index(one["value"]))
    assert [told["fall"] for told in explanation] == expected
    assert len(set(expected)) > 1
    taken = [one["usage"]["prompt_tokens"] for one in (reply, plain)]
    assert taken[0] == taken[1] + len(asked_all) * len(question.tokens)


def test_what_cannot_be_explained_is_refused(tuned_servers):
    server, _, task, examples = tuned_servers("labelling")
    body = {"input": asked(task, examples[0]), "explain": True}
    reply = server.http.post("/v1/tasks/tiny/glm", json=body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "explain")
    server, *_ = tuned_servers("head")
    body = {"input": [{"text": "one"}, {"text": "two"}], "explain": True}
    reply = server.http.post("/v1/tasks/tiny/glm", json=body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "input")
    assert "got 2 inputs" in reply.json()["error"]["message"]
