"""Chat templates made fit for training: every model hears the system prompt, and a prompt is the same on any
day."""

import datetime

from jinja2.exceptions import TemplateError

from rlpa_lib.settings.config import InputError

# What a template that asks for today is told: Llama 3's own fallback, at noon.
DATE = datetime.datetime(2024, 7, 26, 12)
# what a template may raise: it computes, and takes keys and attributes
FAULTS = (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError)
DIRECTIVES = "aAbBcdDeFgGHIjklmMnpPrRsStTuUVwWxXyYzZ"
TALK = (
    ("system", "probe of the system"), ("user", "probe of the user"), ("assistant", "probe of the assistant"),
    ("user", "second probe of the user"),
)  # fmt: skip
# Gemma and older Mistral models refuse the system role; others leave it out without a word.
FOLD_SYSTEM = (
    "{%- if messages|length > 1 and messages[0]['role'] == 'system' %}"
    "{%- set messages = [{'role': messages[1]['role'], "
    "'content': messages[0]['content'] + '\n\n' + messages[1]['content']}] + messages[2:] %}"
    "{%- endif %}{{ '' }}"
)


def fit_template(tokenizer) -> None:
    """Change the tokenizer's chat template where it must be: the system prompt goes in front of the first
    user message if the template has no place for it, and today's date becomes `DATE`.

    InputError: there is no template, or none of it helps to make a prompt of a whole dialogue.
    """
    try:
        template = tokenizer.get_chat_template()
    except ValueError as error:
        raise InputError(f"policy.model: its tokenizer has no chat template ({_shorten(error)})") from None
    if "strftime_now" in template:
        template = _freeze_date() + template
    problem = _find_problem(tokenizer, template)
    if problem:
        folded = FOLD_SYSTEM + template
        if _find_problem(tokenizer, folded):
            raise InputError(f"policy.model: its chat template makes no prompt of a dialogue: {problem}")
        template = folded
    if template != tokenizer.chat_template:
        tokenizer.chat_template = template


def _find_problem(tokenizer, template: str) -> str:
    """Why a dialogue does not come through whole; "" where it does."""
    messages = [{"role": role, "content": text} for role, text in TALK]
    options = {"chat_template": template, "tokenize": False, "add_generation_prompt": True}
    try:
        shown, again = (tokenizer.apply_chat_template(messages, **options) for _ in range(2))
    except FAULTS as error:
        return _shorten(error)
    if shown != again:
        return "it writes something else each time"
    missing = [role for role, text in TALK if text not in shown]
    return f"it leaves out what the {missing[0]} says" if missing else ""


def _freeze_date() -> str:
    """A macro in the place of the clock: it writes `DATE` in any format, as `strftime` would."""
    # "%%" is hidden first and shown last, so that "%%d" stays a percent sign and a letter
    pairs = [("%%", "\x00"), *((f"%-{d}", DATE.strftime(f"%-{d}")) for d in "dmHIMSjy")]
    pairs += [(f"%{d}", DATE.strftime(f"%{d}")) for d in DIRECTIVES]
    steps = "".join(f"|replace({old!r}, {new!r})" for old, new in [*pairs, ("\x00", "%")])
    return "{%- macro strftime_now(format) -%}{{- format" + steps + " -}}{%- endmacro %}{{ '' }}"


def _shorten(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
