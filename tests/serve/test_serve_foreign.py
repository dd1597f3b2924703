"""Programs of others against our endpoints, each unmodified, in an environment of its own.

GLM_DIST_FOREIGN_CLIENTS names the `bin` folders of such environments, separated by colons.
"""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Library
from tokenizers.processors import TemplateProcessing

from glm_dist.engine import save_weights
from glm_dist.engine.export import export_model
from glm_dist.inference import load_model
from glm_dist.model import ModelSettings, build_model

pytestmark = pytest.mark.slow
FOLDERS = os.environ.get("GLM_DIST_FOREIGN_CLIENTS", "").split(":")


def program(name, module):
    """Where a program is whose environment has a module too."""
    for folder in map(Path, filter(None, FOLDERS)):
        pythons = folder.parent.glob(f"lib/python*/site-packages/{module}")
        if (folder / name).exists() and any(pythons):
            return str(folder / name)
    return pytest.skip(f"no environment in GLM_DIST_FOREIGN_CLIENTS has {module}")


def run(*command, **options):
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OPENAI_API_KEY": "none"}
    done = subprocess.run(
        command,
        env={**os.environ, **offline, "OMP_NUM_THREADS": "1", **options.pop("env", {})},
        capture_output=True,
        text=True,
        timeout=500,
        **options,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def causal(tokenizer, tmp_path_factory):
    """A causal model's folder, and its export, whose tokenizer begins as the model was trained."""
    folder = tmp_path_factory.mktemp("causal")
    settings = ModelSettings(
        preset="glm-4-9b", num_layers=2, hidden_size=48, num_heads=6, num_kv_heads=2, head_dim=8,
        ffn_hidden_size=80, init_std=0.2, max_position_embeddings=512,
    ).with_vocab_size(tokenizer.vocab_size)  # fmt: skip
    save_weights(folder / "model", build_model(settings).state_dict())
    tokenizer.save(folder / "model")
    config = {"model": settings.model_dump(mode="json"), "name": "causal"}
    (folder / "model" / "config.json").write_text(json.dumps(config))
    export_model(folder / "model", folder / "export")
    library = Library.from_file(str(folder / "export" / "tokenizer.json"))
    begin = ("[ENC]", "[gMASK]", "<sop>")
    library.post_processor = TemplateProcessing(
        single=[*begin, "$A"], special_tokens=[(name, library.token_to_id(name)) for name in begin]
    )
    library.save(str(folder / "export" / "tokenizer.json"))
    return folder


TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
EVALUATE = """
import json, sys
import lm_eval
from lm_eval.tasks import TaskManager

found = {}
for model, arguments in json.loads(sys.argv[2]).items():
    results = lm_eval.simple_evaluate(
        model=model, model_args=arguments, tasks=["lists"], log_samples=True, bootstrap_iters=0,
        task_manager=TaskManager(include_path=sys.argv[1], include_defaults=False),
    )
    found[model] = {
        "resps": [s["filtered_resps"] for s in results["samples"]["lists"]],
        "scores": {k: v for k, v in results["results"]["lists"].items() if k.startswith("acc")},
    }
print("FOUND", json.dumps(found))
"""


def test_lm_eval_finds_the_same_likelihoods_over_http_and_in_transformers(causal, serve, tmp_path):
    python = program("python", "lm_eval")
    lines = [
        {"question": f"The list returns item {number}", "choices": choices, "answer": number % 2}
        for number in range(40)
        for choices in [[[" in order.", " naïve façade"], [" 大學之道", " its items"]][number % 2]]
    ]  # fmt: skip
    (tmp_path / "lists.json").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "lists.yaml").write_text(TASK.format(name="lists", data=tmp_path / "lists.json"))
    model, tokenizer = load_model(causal / "model")
    server = serve(model=model, tokenizer=tokenizer)
    export = causal / "export"
    models = {
        "hf": f"pretrained={export},dtype=float32,device=cpu",
        "local-completions": f"model=tiny/glm,base_url={server.url}/v1/completions,"
        f"tokenizer_backend=huggingface,tokenizer={export},num_concurrent=2,max_length=256",
    }
    (tmp_path / "evaluate.py").write_text(EVALUATE)
    output = run(python, "evaluate.py", str(tmp_path), json.dumps(models), cwd=tmp_path)
    found = json.loads(output.split("FOUND ")[1])
    pairs = zip(*(found[name]["resps"] for name in models), strict=True)
    likelihoods = [
        (float(one[0]), float(other[0]), one[1], other[1])
        for theirs, ours in pairs
        for one, other in zip(theirs, ours, strict=True)
    ]
    assert len(likelihoods) == 80
    largest = max(abs(one - other) for one, other, _, _ in likelihoods)
    print(f"largest difference of {len(likelihoods)} log-likelihoods: {largest:.2e}")
    assert largest < 1e-4
    assert all(one == other for _, _, one, other in likelihoods)
    assert len({round(one, 3) for one, *_ in likelihoods}) > 40
    assert found["hf"]["scores"] == found["local-completions"]["scores"]


def test_langchain_talks_streams_and_offers_tools(server):
    python = program("python", "langchain_openai")
    script = """
import sys
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
shared = {"base_url": sys.argv[1], "api_key": "none", "model": "tiny/glm"}
chat = ChatOpenAI(**shared, temperature=0, max_tokens=5, stream_usage=True)
whole = chat.invoke("The list?")
assert whole.usage_metadata["output_tokens"] > 0, whole
assert "".join(part.content for part in chat.stream("The list?")) == whole.content
def find(place: str) -> str:
    "Find it."
    return place
called = chat.bind_tools([find], tool_choice="find").invoke("Where?")
assert called.additional_kwargs or called.tool_calls or called.invalid_tool_calls, called
text = OpenAI(**shared, temperature=0, max_tokens=5)
assert text.invoke("The list") == "".join(text.stream("The list"))
vectors = OpenAIEmbeddings(**shared, check_embedding_ctx_length=False).embed_documents(["a", "b"])
assert len(vectors) == 2 and len(vectors[0]) == 32
print("FINE")
"""
    assert "FINE" in run(python, "-c", script, f"{server.url}/v1")


def test_the_llm_command_prompts_and_streams(server, tmp_path):
    command = program("llm", "llm")
    models = [
        {"model_id": "ours", "model_name": "tiny/glm", "api_base": f"{server.url}/v1"},
        {"model_id": "text", "model_name": "tiny/glm", "api_base": f"{server.url}/v1",
         "completion": True},
    ]  # fmt: skip
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps(models))
    place = {"LLM_USER_PATH": str(tmp_path)}
    for model in ("ours", "text"):
        for flags in ((), ("--no-stream",)):
            said = run(command, "-m", model, *flags, "-o", "temperature", "0", "-o", "max_tokens",
                       "5", "--key", "none", "The list", env=place)  # fmt: skip
            assert said.strip()


def test_schemathesis_finds_nothing(server, faults):
    """All its checks but two: keys are none here, and no schema says what a model has room for."""
    command = program("schemathesis", "schemathesis")
    checks = "ignored_auth,positive_data_acceptance"
    done = subprocess.run(
        [command, "run", f"{server.url}/openapi.json", "--phases", "examples,coverage",
         "--checks", "all", "--exclude-checks", checks, "--workers", "1"],
        capture_output=True, text=True, timeout=580,
    )  # fmt: skip
    summary = done.stdout[-2500:]
    print(summary)
    cases = re.search(r"(\d+) generated, (\d+) passed", summary)
    told = "none" if cases is None else f"{cases[2]} of {cases[1]} cases"
    faults.add("S8", 1, int(done.returncode == 0), schemathesis=told)
    assert done.returncode == 0, done.stdout
