"""What a model thinks aloud before it speaks, told from what it says: one rule for servers and for models in
process."""

import re

_NAMES = "think|thinking|thought|seed:think"
_OPEN = re.compile(rf"\s*(?:<({_NAMES})>|\[(THINK)\])", re.IGNORECASE)
_CLOSE = re.compile(rf"\s*(?:</(?:{_NAMES})>|\[/THINK\])", re.IGNORECASE)
# A template may open the thinking itself. A tag quoted in JSON is safe: no raw line break can follow it.
_HEADLESS = re.compile(rf"(.*?)(?:</(?:{_NAMES})>|\[/THINK\])(?:[ \t]*\n|\s*\Z)", re.DOTALL | re.IGNORECASE)
_OPEN_END = re.compile(rf"(?:<(?:{_NAMES})>|\[THINK\])\s*\Z", re.IGNORECASE)


def split_thinking(text: str) -> tuple[str, str]:
    """(thinking, visible text); an opening <think>...</think>, empty or never closed, is thinking, and so is
    all before a lone </think> that ends its line. Takes linear time."""
    thoughts, at = [], 0
    while match := _OPEN.match(text, at) or (_CLOSE.match(text, at) if thoughts else None):
        at = match.end()
        if name := match.lastindex and match[match.lastindex]:
            closing = f"[/{name}]" if match[2] else f"</{name}>"
            end = re.compile(re.escape(closing), re.IGNORECASE).search(text, at)
            thoughts.append(text[at : end.start() if end else len(text)].strip())
            at = end.end() if end else len(text)
    if not thoughts and (match := _HEADLESS.match(text)) and not _starts_thinking(match[1]):
        thoughts, at = [match[1].strip()], match.end()
    return "\n\n".join(filter(None, thoughts)), text[at:].lstrip() if thoughts else text


def find_open_thought(prompt: str) -> str:
    """The tag at a prompt's end that opens the thinking for the model; "" where there is none."""
    match = _OPEN_END.search(prompt)
    return match[0] if match else ""


def _starts_thinking(text: str) -> bool:
    return "<think" in text.lower() or "[think]" in text.lower()
