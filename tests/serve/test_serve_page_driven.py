"""The page as a person uses it, in a real browser.

With GLM_DIST_PICTURES=FOLDER it leaves pictures. GLM_DIST_PAGE_MODEL names a finished model to ask
instead of one of random weights.
"""

import os
import shutil
from pathlib import Path

import pytest
from answer_scenarios import tuned
from finetune_scenarios import small_tokenizer

from glm_dist.engine.folders import model_folder
from glm_dist.evaluate.answers import Answerer
from glm_dist.inference import load_model
from glm_dist.tasks import load_task
from glm_dist.tasks.labelling import find_spans

playwright = pytest.importorskip("playwright.sync_api", reason="needs glm-dist[page]")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
PICTURES = os.environ.get("GLM_DIST_PICTURES")
MODEL = os.environ.get("GLM_DIST_PAGE_MODEL")
TUNED = os.environ.get("GLM_DIST_PAGE_CLASSIFIER")
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking")
LANGUAGES = {"en": "en-GB", "zh": "zh-CN"}
ANSWER_MILLISECONDS = 30_000


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def base(serve):
    if MODEL is None:
        return serve()
    model, tokenizer = load_model(Path(MODEL))
    return serve(model=model, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def labeller(serve):
    tokenizer = small_tokenizer()
    model, task, examples = tuned("labelling", tokenizer)
    server = serve(model=model, tokenizer=tokenizer, task=task)
    answers = Answerer(model, tokenizer, task).answer(examples)
    server.sentence = next(
        " ".join(one.fields["tokens"])
        for one, answer in zip(examples, answers, strict=True)
        if find_spans(answer.value)
    )
    return server


@pytest.fixture(scope="module")
def classifier(serve):
    """GLM_DIST_PAGE_CLASSIFIER names a tuned model to ask instead of one of random weights."""
    if TUNED is None:
        tokenizer = small_tokenizer()
        model, task, _ = tuned("cloze", tokenizer)
    else:
        model, tokenizer = load_model(Path(TUNED))
        task = load_task(model_folder(Path(TUNED)), tokenizer, pools_first=True)
    return serve(model=model, tokenizer=tokenizer, task=task)


@pytest.fixture(scope="module")
def several(serve):
    tokenizer = small_tokenizer()
    model, task, _ = tuned("mixture", tokenizer)
    return serve(model=model, tokenizer=tokenizer, task=task)


@pytest.fixture(params=LANGUAGES)
def language(request):
    return request.param


@pytest.fixture
def page(browser, language):
    """A page that has logged nothing when the test is over."""
    scheme = "dark" if language == "zh" else "light"
    context = browser.new_context(
        locale=LANGUAGES[language], color_scheme=scheme, viewport={"width": 1180, "height": 860}
    )
    page, said = context.new_page(), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.set_default_timeout(ANSWER_MILLISECONDS)
    yield page
    context.close()
    # The browser itself tells of replies that are no success.
    assert [text for text in said if not text.startswith("Failed to load resource")] == []


def visit(page, server, mode):
    page.goto(f"{server.url}/#{mode}")
    page.wait_for_selector("body[data-state=ready]")
    page.wait_for_selector(f"#{mode}:visible")


def run(page, mode):
    """Press the button, and wait until the answer is whole."""
    page.click(f"#{mode} .run")
    page.wait_for_selector(f"#{mode} .stats dd")
    page.wait_for_selector(f"#{mode}:not([data-busy])")


def picture(page, mode, language):
    if PICTURES:
        page.screenshot(path=Path(PICTURES) / f"page-{mode}-{language}.png")


def use_example(page, mode, number=0):
    page.click(f"#{mode} .examples button:nth-of-type({number + 1})")


def test_blanks_are_filled_and_another_answer_can_be_taken(page, base, language):
    visit(page, base, "fill")
    use_example(page, "fill")
    run(page, "fill")
    choices = page.locator("#blanks .card:last-child .choice")
    assert choices.count() >= 2
    wanted = choices.last.locator(".choice-text").inner_text()
    choices.last.click()
    assert wanted in page.inner_text("#fill-text")
    picture(page, "fill", language)


def test_a_text_goes_on(page, base, language):
    visit(page, base, "complete")
    use_example(page, "complete")
    before = page.inner_text("#complete-text")
    run(page, "complete")
    assert len(page.inner_text("#complete-text")) > len(before)
    picture(page, "complete", language)


def test_a_dialogue_has_turns(page, base, language):
    visit(page, base, "chat")
    page.fill("#chat-text", {"en": "Which list?", "zh": "哪一个？"}[language])
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#chat .stats dd")
    assert len(page.query_selector_all("#turns article")) == 2
    picture(page, "chat", language)


def test_labels_get_shares(page, base, language):
    visit(page, base, "classify")
    use_example(page, "classify", 1)
    run(page, "classify")
    assert len(page.query_selector_all("#shares .share")) >= 2
    picture(page, "classify", language)


def test_a_tuned_model_has_the_form_of_its_task(page, labeller, language):
    page.goto(labeller.url)
    page.wait_for_selector("#task:visible")  # what it can do best is what it opens on
    page.fill("#task-tokens", labeller.sentence)
    run(page, "task")
    shown = page.inner_text("#task-answer")
    assert all(word in shown for word in labeller.sentence.split())
    assert page.query_selector("#task-answer mark")
    picture(page, "task", language)
    page.click("#task .code")
    assert "/v1/tasks/tiny/glm" in page.inner_text("#code-curl")


def test_a_label_is_explained_word_by_word(page, classifier, language):
    page.goto(classifier.url)
    page.wait_for_selector("#task:visible")
    text = "a moving story of one man, and never a dull moment"
    page.fill("#task-text", text)
    assert page.is_hidden("#task-why")
    run(page, "task")
    before = page.inner_text("#task-answer")
    page.click("#task-why")
    page.wait_for_selector("#task-words:visible")
    assert page.inner_text("#task-answer") == before
    words = page.locator("#task-words .word")
    assert text in page.inner_text("#task-words p")
    weights = [float(word.get_attribute("title").replace("\u2212", "-")) for word in words.all()]
    assert any(weights)
    picture(page, "why", language)
    page.fill("#task-text", "another text")
    assert page.is_hidden("#task-words")


def test_a_base_model_has_no_task_and_language_and_look_can_be_changed(page, base, language):
    visit(page, base, "fill")
    assert page.is_hidden("#tab-task")
    before = page.inner_text("#tab-fill")
    page.click("#language")
    assert page.inner_text("#tab-fill") != before
    page.select_option("#theme", "dark")
    assert page.get_attribute("html", "data-theme") == "dark"


def test_a_failure_is_said_and_named(page, base, language):
    visit(page, base, "classify")
    page.fill("#classify-text", "x")
    page.fill("#classify-labels", "one, one")
    page.click("#classify .run")
    page.wait_for_selector("#notice:visible")
    assert "labels" in page.inner_text("#notice-text")


def test_of_several_tasks_one_is_chosen(page, several, language):
    visit(page, several, "task")
    for name, fields in (("turned", ["source"]), ("kinds", ["text"])):
        page.select_option("#task-name", name)
        asked = page.locator("#task-fields textarea")
        assert set(fields) <= {one.get_attribute("name") for one in asked.all()}
        page.fill(f"#task-{fields[0]}", "a man and his dog")
        run(page, "task")
        assert page.inner_text("#task-answer").strip()
        assert page.locator("#task-why").is_visible() == (name == "kinds")
    picture(page, "several", language)
    page.click("#task-why")
    page.wait_for_selector("#task-words:visible span")
