"""What a language model does for notebook 34 where the miniature's lexicon cannot: rewrite profiles (H.1), and find what a user says against its
persona (appendix G). Texts reach it as quoted data only."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, create_model

from rlpa_lib.agents.asking import MAX_RESPONSE, MAX_UTTERANCE, MAX_VALUE, JudgePrompt
from rlpa_lib.client.chat import Answer, Request
from rlpa_lib.dialogue import prompt_files, quoting
from rlpa_lib.dialogue.dialogue import Dialogue
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.profile import Profile
from rlpa_lib.runs.run import Run
from rlpa_lib.settings.config import InputError

CLAIMS_EACH, CLAIM_TOKENS = 4, 128  # claims of one utterance at most, and what one takes of the answer
Mark = Annotated[Literal[0, 1], BeforeValidator(lambda value: int(value) if isinstance(value, bool) else value)]


class Claim(BaseModel):
    """One thing that a user says about itself, with the number of the utterance."""

    utterance: Annotated[int, Field(json_schema_extra={"minimum": 1, "maximum": 99})]  # bounds for servers that can hold a model to them
    claim: Annotated[str, Field(json_schema_extra={"maxLength": 80})]
    against_persona: Mark
    against_earlier: Mark


@cache
def _claims(utterances: int) -> type[BaseModel]:
    """All that a user says about itself in so many utterances; a weak model that is held to the schema comes to an end."""
    listed = Annotated[list[Claim], Field(json_schema_extra={"maxItems": CLAIMS_EACH * utterances})]
    return create_model("Claims", claims=(listed, ...))


@cache
def _rewritten(n: int) -> type[BaseModel]:
    values = (Annotated[list[str], Field(min_length=n, max_length=n)], ...)
    return create_model(f"Rewritten_{n}", paraphrased=values, altered=values)


def rewritten(run: Run, profiles: Sequence[Profile]) -> list[tuple[dict[str, str], dict[str, str]]]:
    """Per profile, slot -> the value in other words, and slot -> another value, by the model of section `user`.

    A value that came back unchanged is left out. EndpointError: no readable answer. InputError: no model is named.
    """
    cases = []
    for profile in profiles:
        items = [{"slot": quoting.plain(slot, 80), "value": quoting.plain(value, MAX_VALUE)} for slot, value in profile.items]
        cases.append(({"items": items}, _rewritten(len(items))))
    found = []
    for profile, answer in zip(profiles, _ask(run, "rewriter", "rewrite", cases), strict=True):
        pairs = []
        for values in (answer.paraphrased, answer.altered):
            fresh = zip(profile.items, values, strict=True)
            pairs.append({slot: new.strip() for (slot, old), new in fresh if new.strip() and new.strip().casefold() != old.casefold()})
        found.append((pairs[0], pairs[1]))
    return found


def rewriters(run: Run, references: Sequence[Persona]) -> tuple[Any, Any]:
    """The two rewriters of `rewrites.rewrite_set` for these personas, asked for at once."""
    same, other = {}, {}
    for persona, (paraphrased, altered) in zip(references, rewritten(run, [p.profile for p in references]), strict=True):
        same |= {(slot, value): paraphrased.get(slot) for slot, value in persona.profile.items}
        other |= {(slot, value): altered.get(slot) for slot, value in persona.profile.items}

    def paraphrase(slot: str, value: str, _: random.Random) -> str | None:
        return same[slot, value]

    def alter(slot: str, value: str, _: random.Random) -> str | None:
        return other[slot, value]

    return paraphrase, alter


def claims(run: Run, talks: Sequence[tuple[Persona, Dialogue]]) -> list[list[Claim]]:
    """What each user says about itself and what of it is wrong, by the model of section `judge`. EndpointError, InputError as above."""
    cases = []
    for persona, dialogue in talks:
        items = [{"slot": quoting.plain(s, 80), "value": quoting.plain(v, MAX_VALUE)} for s, v in persona.profile.items]
        who = {"description": quoting.plain(persona.description, MAX_RESPONSE), "manner": quoting.plain(persona.personality, MAX_RESPONSE)}
        said = [{"number": n, "text": quoting.plain(t.user.text, MAX_UTTERANCE)} for n, t in enumerate(dialogue.turns, start=1)]
        cases.append(({"persona": {**who, "profile": items}, "utterances": said}, _claims(len(said))))
    return [answer.claims for answer in _ask(run, "user_judge", "user_claims", cases)]


def _ask(run: Run, role: str, prompt: str, cases: Sequence[tuple[dict[str, Any], type[BaseModel]]]) -> list[Any]:
    from rlpa_lib.client.roles import endpoint_for

    cfg = run.cfg
    section = cfg.user if role == "rewriter" else cfg.judge
    if section.model is None:
        raise InputError(f"{'user' if role == 'rewriter' else 'judge'}.model: is needed as {role} of notebook 34")
    words = JudgePrompt.read(prompt_files.load_prompt(prompt, "en" if cfg.run.prompt_set == "mini" else cfg.run.prompt_set, cfg.run.prompt_dir))
    room = max([1024, section.max_tokens, *(CLAIM_TOKENS * CLAIMS_EACH * len(values.get("utterances", ())) for values, _ in cases)])
    requests = [Request(words.messages(values), schema, max_tokens=room) for values, schema in cases]
    answers = endpoint_for(cfg, role, run).complete(requests, desc=role) if requests else []
    return [answer.parsed for answer in answers if isinstance(answer, Answer)]
