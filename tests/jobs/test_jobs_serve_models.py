"""Several models in one application, each by its name."""

import openai
import pytest
from serving import Oracle, Served, wait_for_engines, write_model

pytestmark = pytest.mark.ray


def test_a_request_is_answered_by_the_model_it_names(tmp_path):
    folders = [write_model(tmp_path / name, seed) for seed, name in enumerate(("one", "two"))]
    more = f"models=[{{model: {folders[1]}}}]"
    with Served(tmp_path, f"model={folders[0]}", more) as served:
        wait_for_engines(served, 2)
        client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
        assert [model.id for model in client.models.list().data] == ["one", "two"]
        for folder in folders:
            oracle = Oracle(folder, "The list", max_tokens=20)
            reply = client.completions.create(
                model=folder.name,
                prompt="The list",
                max_tokens=20,
                seed=3,
                extra_body={"ignore_eos": True},
            )
            assert reply.choices[0].text == oracle(3)
        with pytest.raises(openai.NotFoundError, match="one, two"):
            client.completions.create(model="three", prompt="x")
        assert served.stop()[0] == 0
