"""Classification heads: their loss by the formula, in packed rows, and in transformers' classes."""

import json

import pytest
import torch
import transformers
from torch.nn import functional as F

from glm_dist.config import load_config
from glm_dist.engine.export import export_model, import_model
from glm_dist.engine.weights import save_weights
from glm_dist.errors import ConfigError
from glm_dist.model import Batch, ModelSettings, build_model
from glm_dist.model.head_config import auto_class
from glm_dist.model.labels import label_loss
from glm_dist.model.loss import loss_rows

LABELS = ["no", "perhaps", "yes"]
SHAPE = {"num_layers": 2, "hidden_size": 48, "num_heads": 6, "num_kv_heads": 2, "init_std": 0.15}
SHAPE |= {"ffn_hidden_size": 80, "vocab_size": 90, "pad_vocab_multiple": 32}
MODELS = {
    "prefix": {"preset": "glm-tiny", **SHAPE},
    "glm": {"preset": "glm-4-9b", **SHAPE, "head_dim": 8},
    "glm4": {"preset": "glm-4-9b-0414", **SHAPE, "head_dim": 8},
}
LENGTHS = (9, 6)


def settings_of(family, kind, **head):
    head = {"kind": f"{kind}_classification", "labels": LABELS, "dropout": 0.0, **head}
    return ModelSettings(**MODELS[family], head=head)


@pytest.fixture(params=MODELS)
def family(request):
    return request.param


def texts():
    """Two texts, and labels of each token and of the whole."""
    generator = torch.Generator().manual_seed(3)
    tokens = [torch.randint(1, 90, (length,), generator=generator) for length in LENGTHS]
    of_tokens = [torch.randint(0, 3, (length,), generator=generator) for length in LENGTHS]
    return tokens, of_tokens, torch.tensor([2, 0])


def batch_of(settings, rows, labels=None):
    """Rows of texts packed side by side and padded to 16; a sequence's label at its pooled token.

    `labels` [texts] or [texts, labels] are those of sequences; by default each token has its own.
    """
    tokens, of_tokens, _ = texts()
    shape = (len(rows), 16)
    tail = () if labels is None else labels.shape[1:]
    fields = {name: torch.zeros(shape, dtype=torch.long) for name in Batch._fields}
    fields["targets"] = torch.full((*shape, *tail), 77 if not tail else 0)
    for row, members in enumerate(rows):
        start = 0
        for number, text in enumerate(members, start=1):
            length = LENGTHS[text]
            place = slice(start, start + length)
            fields["tokens"][row, place] = tokens[text]
            fields["position_ids"][row, place] = torch.arange(length)
            fields["segment_ids"][row, place] = number
            fields["prefix_ends"][row, place] = start + length
            if labels is None:
                fields["targets"][row, place] = of_tokens[text]
                fields["loss_mask"][row, place] = 1
            else:
                pooled = start if settings.pools_first else start + length - 1
                fields["targets"][row, pooled] = labels[text]
                fields["loss_mask"][row, pooled] = 1
            start += length
    return Batch(**fields)


def scores_of(model, text):
    """Scores of each token of a text that stands alone, by the way of inference."""
    tokens = texts()[0][text][None]
    places = torch.arange(tokens.shape[1])[None]
    seen = torch.ones(1, 1, tokens.shape[1], tokens.shape[1], dtype=torch.bool)
    seen = seen.tril() if model.settings.causal else seen
    return model.logits(model.hidden_states(tokens, places, torch.zeros_like(places), seen))[0]


@pytest.mark.parametrize("gather", [True, False])
def test_the_loss_is_the_formula_in_float64(gather):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 5, 3, dtype=torch.float64, generator=generator)
    mask = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 0, 1, 1]], dtype=torch.uint8)
    targets = torch.randint(0, 3, (2, 5), generator=generator)
    several = torch.randint(0, 2, (2, 5, 3), generator=generator)
    outside = targets.masked_fill(mask == 0, 9999)
    rows = loss_rows(mask) if gather else None
    given = scores.flatten(0, 1)[rows] if gather else scores
    logs = scores - scores.exp().sum(-1, keepdim=True).log()
    expected = -logs.gather(-1, targets[..., None])[..., 0] * mask
    found = label_loss(given, outside, mask, rows)
    torch.testing.assert_close(found.token_losses, expected)
    torch.testing.assert_close(found.loss_sum, expected.sum())
    there = several * scores.sigmoid().log() + (1 - several) * (-scores).sigmoid().log()
    found = label_loss(given, several, mask, rows)
    torch.testing.assert_close(found.token_losses, -there.mean(-1) * mask)
    shares = torch.rand(2, 5, 3, dtype=torch.float64, generator=generator).softmax(-1)
    found = label_loss(given, shares, mask, rows, is_exclusive=True)
    torch.testing.assert_close(found.token_losses, -(shares * logs).sum(-1) * mask)


def test_packed_sequences_have_the_losses_they_have_alone(family):
    settings = settings_of(family, "sequence")
    model, labels = build_model(settings).eval(), texts()[2]
    packed = model(*batch_of(settings, [(0, 1)], labels))
    alone = model(*batch_of(settings, [(0,), (1,)], labels))
    torch.testing.assert_close(packed.loss_sum, alone.loss_sum)
    pooled = [scores_of(model, text)[0 if settings.pools_first else -1] for text in (0, 1)]
    expected = F.cross_entropy(torch.stack(pooled), labels, reduction="sum")
    torch.testing.assert_close(packed.loss_sum, expected)


def test_packed_tokens_have_the_losses_they_have_alone(family):
    settings = settings_of(family, "token")
    model = build_model(settings).eval()
    with torch.no_grad():
        model.score.bias.normal_()
    found = model(*batch_of(settings, [(1, 0)])).loss_sum
    parts = zip((0, 1), texts()[1], strict=True)
    expected = sum(
        F.cross_entropy(scores_of(model, text), labels, reduction="sum") for text, labels in parts
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("kind", ["sequence", "token"])
def test_transformers_opens_a_classifier_and_computes_alike(tmp_path, family, kind, multi_label):
    settings = settings_of(family, kind, multi_label=multi_label and kind == "sequence")
    folder = write_model(tmp_path / "model", settings)
    model = build_model(settings).eval()
    config = export_model(folder, tmp_path / "export")
    path = tmp_path / "export" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pad_token_id": 0}))
    opener = getattr(transformers, auto_class(config))
    theirs = opener.from_pretrained(tmp_path / "export", trust_remote_code=True).eval()
    assert type(theirs).__name__ == config["architectures"][0]
    assert theirs.config.id2label == dict(enumerate(LABELS))

    tokens, of_tokens, labels = texts()
    padded = torch.zeros(2, 9, dtype=torch.long)
    targets = torch.full((2, 9), -100)
    for row in (0, 1):
        padded[row, : LENGTHS[row]] = tokens[row]
        targets[row, : LENGTHS[row]] = of_tokens[row]
    if kind == "sequence":
        targets = F.one_hot(labels, 3).float() if multi_label else labels
        batch = batch_of(settings, [(0,), (1,)], F.one_hot(labels, 3) if multi_label else labels)
    else:
        batch = batch_of(settings, [(0,), (1,)])
    with torch.no_grad():
        found = theirs(padded, attention_mask=(padded > 0).long(), labels=targets)
        expected = [scores_of(model, text) for text in (0, 1)]
        mean = model(*batch).loss_sum / batch.loss_mask.sum()
    torch.testing.assert_close(found.loss, mean, rtol=1e-4, atol=1e-5)
    for row, scores in enumerate(expected):
        wanted = scores[0 if settings.pools_first else -1] if kind == "sequence" else scores
        given = found.logits[row] if kind == "sequence" else found.logits[row, : LENGTHS[row]]
        torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-5)

    back = import_model(tmp_path / "export", tmp_path / "back")
    pooling = "first" if family == "prefix" else "auto"
    assert back.head == settings.head.model_copy(update={"pooling": pooling})


def write_model(folder, settings):
    save_weights(folder, build_model(settings).state_dict())
    config = {"model": settings.model_dump(mode="json"), "name": "test"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("kind", ["sequence", "token"])
def test_the_formula_counts_a_classifiers_parameters(family, kind):
    settings = settings_of(family, kind)
    model = build_model(settings, device="meta")
    assert settings.num_parameters == sum(p.numel() for p in model.parameters())


def test_a_causal_model_pools_the_last_token_and_others_the_first():
    assert [settings_of(name, "sequence").pools_first for name in MODELS] == [True, False, False]
    assert not settings_of("prefix", "sequence", pooling="last").pools_first


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["head={kind: token_classification}"], r"head: labels: got \[\] .* at least 2"),
        (["head={labels: [a, b]}"], "labels: are given, but kind is language_model"),
        (["head={kind: token_classification, labels: [a, b, a]}"], "names a label twice"),
        (
            ["causal=true", "head={kind: sequence_classification, labels: [a, b], pooling: first}"],
            "first takes a token that sees nothing but itself",
        ),
    ],
)
def test_mistakes_are_named(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config(ModelSettings, overrides=overrides)
