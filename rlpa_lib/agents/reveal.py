"""What has a user revealed so far? A judge that reads the words alone, for the Theoretical Max of section 5.3.

A scripted user keeps a ledger of what it said. A language model reports what it told, but may tell more or less than it reports: then the
judge decides, and its agreement with the ledger is a result of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, create_model

from rlpa_lib.dialogue import quoting
from rlpa_lib.dialogue.dialogue import Dialogue
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.reveal import words

if TYPE_CHECKING:
    from rlpa_lib.agents.llm_judges import Questions

MAX_WORDS = 1500  # characters of one utterance that the judge is shown


@cache
def numbers_schema(n: int) -> type[BaseModel]:
    """The answer {"revealed": [1..n]}: no item that does not exist can be named."""
    number = Annotated[Literal[tuple(range(1, n + 1))], BeforeValidator(lambda v: int(v) if isinstance(v, str) and v.strip().isdecimal() else v)]
    return create_model(f"Revealed_{n}", revealed=(Annotated[list[number], Field(json_schema_extra={"maxItems": n})], ...))


class LLMRevealJudge:
    """A language model as reveal judge. Words that outgrow its prompt are asked about in parts, whose answers are put together, so nothing
    is left out; a case is None when one of its parts has no readable answer."""

    def __init__(self, questions: Questions):
        self.questions = questions

    def find_revealed(self, cases: Sequence[tuple[Persona, Dialogue]]) -> list[frozenset[str] | None]:
        """As in `RevealJudge`. JudgeFailed, EndpointError: see `llm_judges.Questions.ask`."""
        asked: list[tuple[str, dict[str, Any], type[BaseModel]]] = []
        owners: list[int] = []
        for i, (persona, dialogue) in enumerate(cases):
            items = self.questions.items(persona.profile, True)
            for part in self._parts(items, words(dialogue)) if items else ():
                label = f"{dialogue.id}, {len(dialogue.turns)} turns"
                asked.append((label, {"items": items, "messages": part}, numbers_schema(len(items))))
                owners.append(i)
        found: list[set[str] | None] = [set() for _ in cases]
        for i, answer in zip(owners, self.questions.ask(asked, "reveal judge"), strict=True):
            slots, known = cases[i][0].profile.slots(), found[i]
            found[i] = None if answer is None or known is None else known | {slots[n - 1] for n in answer.revealed}
        return [None if slots is None else frozenset(slots) for slots in found]

    def _parts(self, items: list[dict[str, Any]], said: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
        room = self.questions.room(items)
        part: list[dict[str, Any]] = []
        left = room
        for text in said:
            entry = self.questions.text(text, MAX_WORDS)
            cost = quoting.estimated_tokens(quoting.dumps(entry))
            if part and cost > left:
                yield part
                part, left = [], room
            part, left = [*part, entry], left - cost
        if part:
            yield part
