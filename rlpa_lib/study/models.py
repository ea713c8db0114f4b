"""Language models that rewrite profiles (H.1) and find users' contradictions (G); texts are quoted data."""

from collections.abc import Callable, Sequence
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
Mark = Annotated[Literal[0, 1], BeforeValidator(lambda mark: int(mark) if isinstance(mark, bool) else mark)]
Case = tuple[dict[str, Any], type[BaseModel]]  # what the prompt is filled with, and the schema of the answer


class Claim(BaseModel):
    """One thing that a user says about itself, with the number of the utterance."""

    utterance: Annotated[int, Field(json_schema_extra={"minimum": 1, "maximum": 99})]
    claim: Annotated[str, Field(json_schema_extra={"maxLength": 80})]
    against_persona: Mark
    against_earlier: Mark


@cache
def _claims_schema(utterances: int) -> type[BaseModel]:
    """All claims of so many utterances, bounded so that a weak model comes to an end."""
    listed = Annotated[list[Claim], Field(json_schema_extra={"maxItems": CLAIMS_EACH * utterances})]
    return create_model("Claims", claims=(listed, ...))


@cache
def _rewritten_schema(n: int) -> type[BaseModel]:
    values = (Annotated[list[str], Field(min_length=n, max_length=n)], ...)
    return create_model(f"Rewritten_{n}", paraphrased=values, altered=values)


def make_rewriters(run: Run, references: Sequence[Persona]) -> list[Callable[..., str | None]]:
    """The two rewriters of `rewrites.rewrite_set` for these personas, paraphrasing and altering, by
    `user.model`, which is asked at once; None where it gave nothing new.

    EndpointError: no readable answer. InputError: no model is named.
    """
    profiles = [persona.profile for persona in references]
    cases = [({"items": _quote_items(profile)}, _rewritten_schema(len(profile))) for profile in profiles]
    tables: tuple[dict, dict] = {}, {}
    for profile, answer in zip(profiles, _ask(run, "user", "rewriter", "rewrite", cases), strict=True):
        for table, values in zip(tables, (answer.paraphrased, answer.altered), strict=True):
            for (slot, old), new in zip(profile.items, map(str.strip, values), strict=True):
                table[slot, old] = new if new and new.casefold() != old.casefold() else None
    return [lambda slot, value, _, table=table: table[slot, value] for table in tables]


def find_claims(run: Run, talks: Sequence[tuple[Persona, Dialogue]]) -> list[list[Claim]]:
    """What each user says about itself and what of it is wrong, by the model of section `judge`.

    EndpointError: no readable answer. InputError: no model is named.
    """
    cases = []
    for persona, dialogue in talks:
        who = {
            "description": quoting.plain(persona.description, MAX_RESPONSE),
            "manner": quoting.plain(persona.personality, MAX_RESPONSE),
            "profile": _quote_items(persona.profile),
        }
        texts = [quoting.plain(turn.user.text, MAX_UTTERANCE) for turn in dialogue.turns]
        said = [{"number": n, "text": text} for n, text in enumerate(texts, start=1)]
        cases.append(({"persona": who, "utterances": said}, _claims_schema(len(said))))
    return [answer.claims for answer in _ask(run, "judge", "user_judge", "user_claims", cases)]


def _quote_items(profile: Profile) -> list[dict[str, str]]:
    return [{"slot": quoting.plain(s, 80), "value": quoting.plain(v, MAX_VALUE)} for s, v in profile.items]


def _ask(run: Run, party: str, role: str, prompt: str, cases: Sequence[Case]) -> list[Any]:
    from rlpa_lib.client.endpoint import endpoint_for  # slow to import, and most runs need no server

    cfg, section = run.cfg, getattr(run.cfg, party)
    if section.model is None:
        raise InputError(f"{party}.model: is needed as {role} of notebook 34")
    prompt_set = "en" if cfg.run.prompt_set == "mini" else cfg.run.prompt_set
    words = JudgePrompt.read(prompt_files.load_prompt(prompt, prompt_set, cfg.run.prompt_dir))
    longest = max((len(values.get("utterances", ())) for values, _ in cases), default=0)
    room = max(1024, section.max_tokens, CLAIM_TOKENS * CLAIMS_EACH * longest)
    requests = [Request(words.messages(values), schema, max_tokens=room) for values, schema in cases]
    answers = endpoint_for(cfg, role, run).complete(requests, desc=role) if requests else []
    return [answer.parsed for answer in answers if isinstance(answer, Answer)]
