"""The page without a browser: its headers, that nothing foreign is in it, and its words."""

import hashlib
import json
import re
from html.parser import HTMLParser

import httpx
import pytest

from glm_dist.serve.keys import ApiKeys
from glm_dist.serve.page import FOLDER
from glm_dist.serve.protocol import InfillRequest
from glm_dist.serve.settings import RequestLimits

FILES = sorted(path.name for path in FOLDER.iterdir())
SCRIPTS = {name: (FOLDER / name).read_text("utf-8") for name in FILES if name.endswith(".js")}
HTML = (FOLDER / "index.html").read_text("utf-8")
TEXTS = json.loads((FOLDER / "texts.json").read_text("utf-8"))
TYPES = {
    "html": "text/html",
    "js": "text/javascript",
    "css": "text/css",
    "json": "application/json",
    "svg": "image/svg+xml",
}


class Tags(HTMLParser):
    """All tags of the page with their attributes."""

    def __init__(self):
        super().__init__()
        self.found = []
        self.feed(HTML)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


TAGS = Tags().found
IDS = [attributes["id"] for _, attributes in TAGS if "id" in attributes]


@pytest.mark.parametrize("path", ["/", *(f"/page/{name}" for name in FILES)])
def test_every_file_is_open_without_a_key_and_closed_to_foreign_code(serve, tmp_path, path):
    (tmp_path / "keys").write_text(hashlib.sha256(b"secret").hexdigest())
    server = serve(keys=ApiKeys.load(str(tmp_path / "keys")))
    reply = server.http.get(path)
    assert reply.status_code == 200
    kind = TYPES[path.rpartition(".")[2] if "." in path else "html"]
    assert reply.headers["content-type"].partition(";")[0] == kind
    rules = dict(
        rule.strip().split(" ", 1) for rule in reply.headers["content-security-policy"].split(";")
    )
    assert rules["default-src"] == rules["frame-ancestors"] == rules["base-uri"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["referrer-policy"] == "no-referrer"
    known = {"if-none-match": reply.headers["etag"]}
    assert server.http.get(path, headers=known).status_code == 304
    assert server.http.head(path).status_code == 200
    server.close()


def test_only_files_of_the_page_are_open(server, serve, tmp_path):
    (tmp_path / "keys").write_text(hashlib.sha256(b"secret").hexdigest())
    locked = serve(keys=ApiKeys.load(str(tmp_path / "keys")))
    for path in ("/page/../app.py", "/page/%2e%2e/app.py", "/page/nothing.js", "/page/"):
        reply = httpx.get(httpx.URL(locked.url).copy_with(raw_path=path.encode()))
        assert reply.status_code in (401, 404)
        assert "error" in reply.json()
    for path in ("/page", "/v1/models", "/pages/x", "//page/x", "/tokenize"):
        assert locked.http.get(path, follow_redirects=False).status_code == 401
    assert server.http.post("/").status_code == 405
    locked.close()


def test_nothing_in_it_is_inline_or_from_elsewhere():
    for tag, attributes in TAGS:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], tag
        for name in ("src", "href"):
            assert not re.match(r"\w+:|/", attributes.get(name) or ""), "addresses are relative"
    assert re.findall(r"<script[^>]*>", HTML) == ['<script type="module" src="page/main.js">']
    assert "<style" not in HTML
    for name in FILES:
        written = (FOLDER / name).read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.findall(r"//[\w-]+\.\w+", written), name
    for name, script in SCRIPTS.items():
        forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function"
        assert not re.findall(forbidden, script), name


def test_what_a_user_fills_in_has_a_label():
    labelled = {attributes["for"] for tag, attributes in TAGS if tag == "label"}
    assert labelled <= set(IDS)
    for tag, attributes in TAGS:
        if tag in ("input", "select", "textarea"):
            assert attributes["id"] in labelled, attributes
        if attributes.get("role") == "textbox":
            assert "data-label" in attributes
    assert len(IDS) == len(set(IDS))
    for _, attributes in TAGS:
        for name in ("aria-controls", "aria-labelledby", "aria-describedby"):
            assert attributes.get(name, IDS[0]) in IDS


def used_keys():
    """Keys of texts that the page names, and patterns of those that it puts together."""
    spoken = {
        value
        for _, attributes in TAGS
        for name, value in attributes.items()
        if name in ("data-text", "data-label", "data-placeholder", "data-stop")
    }
    quoted = set(re.findall(r'"(\w+)"', "\n".join(SCRIPTS.values())))
    return spoken, quoted | {f"finish_{reason}" for reason in ("stop", "length", "stopped")}


def test_every_text_is_there_in_both_languages_and_in_use():
    spoken, quoted = used_keys()
    assert spoken <= set(TEXTS)
    called = re.findall(r'\btext\("(\w+)"', "\n".join(SCRIPTS.values()))
    assert len(called) > 20
    assert set(called) <= set(TEXTS)
    assert set(TEXTS) <= spoken | quoted, "texts that nobody shows"
    for key, languages in TEXTS.items():
        assert list(languages) == ["en", "zh"], key
        assert all(languages.values()), key
        places = [set(re.findall(r"\{\w+\}", one)) for one in languages.values()]
        assert places[0] == places[1], key


def test_parameters_stay_within_what_the_server_takes():
    schema = InfillRequest.model_json_schema()["properties"]
    numbers = {
        attributes["name"]: (float(attributes["min"]), float(attributes["max"]))
        for tag, attributes in TAGS
        if attributes.get("type") == "number"
    }
    assert set(numbers) < set(schema)
    for name, (least, most) in numbers.items():
        kinds = schema[name].get("anyOf", [schema[name]])
        [allowed] = [kind for kind in kinds if kind.get("type") != "null"]
        assert least >= allowed.get("minimum", allowed.get("exclusiveMinimum", least))
        assert least < most <= allowed.get("maximum", most)
    assert numbers["n"][1] <= RequestLimits().max_samples
