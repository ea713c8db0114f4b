"""The annotation page in JupyterLab: one item at a time, rated with the mouse or the keyboard alone, safe to close at any moment."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from rlpa_lib.settings.config import InputError
from rlpa_lib.study.annotation import TASKS, Answers, Item, Task, export_answers

_WIDE = widgets.Layout(width="100%", max_width="56em")
_STYLE = (
    "<style>.rlpa-page p{margin:.15em 0;white-space:pre-wrap;overflow-wrap:anywhere}.rlpa-page h4{margin:.6em 0 .2em}"
    ".rlpa-page .user{border-left:4px solid #0072b2;padding-left:.6em}.rlpa-page .assistant{border-left:4px solid #d55e00;padding-left:.6em}</style>"
)


def escape(text: str) -> str:
    """Text that shows as itself: no tags, and no formulas, which JupyterLab would set between dollar signs or after a backslash."""
    safe = html.escape(text)
    for sign in ("$", "\\"):
        safe = safe.replace(sign, f"<span>{sign}</span>")
    return safe


def render_item(item: Item) -> str:
    """An item as HTML; every text in it is escaped."""
    parts = []
    for head, lines in item.blocks:
        parts.append(f"<h4>{escape(head)}</h4>")
        for label, text in lines:
            side = label if label in ("user", "assistant") else "fact"
            parts.append(f'<p class="{side}"><b>{escape(label)}:</b> {escape(text)}</p>')
    return f'{_STYLE}<div class="rlpa-page">{"".join(parts)}</div>'


class Page:
    """One annotator at one task. Keys: one for each question in order, Backspace takes one back, Enter saves and goes on, b goes back.

    What is typed is mirrored in the buttons and the other way round. Each answer is on disk before the next item appears.
    """

    def __init__(self, run_dir: str | Path, task: Task, annotator: str):
        self.run_dir, self.task, self.work = run_dir, task, Answers(run_dir, task, annotator)
        self.place = self.work.next_open()
        self._quiet = False
        self.head, self.body = widgets.HTML(layout=_WIDE), widgets.HTML(layout=_WIDE)
        self.note = widgets.HTML(layout=_WIDE)
        self.keys = widgets.Textarea(rows=1, layout=widgets.Layout(width="16em"), continuous_update=True,
                                     description="keys", placeholder="type here")  # fmt: skip
        self.choices = [
            widgets.ToggleButtons(options=[(label, value) for value, label in q.choices.values()], value=None, layout=_WIDE,
                                  style={"button_width": "9em"})  # fmt: skip
            for q in task.questions
        ]
        rows = [widgets.VBox([widgets.HTML(f"<b>{escape(q.text)}</b>"), c]) for q, c in zip(task.questions, self.choices, strict=True)]
        buttons = [widgets.Button(description=text) for text in ("Save (Enter)", "Back (b)", "Export CSV")]
        for button, act in zip(buttons, (self.save, self.back, self.export), strict=True):
            button.on_click(lambda _, act=act: act())
        self.form = widgets.VBox([*rows, widgets.HBox([self.keys, *buttons[:2]])])
        self.box = widgets.VBox([self.head, self.body, self.form, self.note, buttons[2]])
        self.keys.observe(self._typed, names="value")
        for choice in self.choices:
            choice.observe(self._clicked, names="value")
        self._show()

    def save(self) -> None:
        """Store the answers to this item and show the next open one; says what is missing when a question is open."""
        item, values = self.work.items[self.place], self._values()
        missing = [q.name for q in self.task.questions if values[q.name] is None]
        if missing:
            self._tell(f"Not saved: {', '.join(missing)} still open.")
            return
        self.work.save(item, values)
        following = next((p for p in range(self.place + 1, len(self.work.items)) if self.work.items[p].id not in self.work.given), None)
        self.place = self.work.next_open() if following is None else following
        self._show(f"Saved {item.id}.")

    def back(self) -> None:
        """Show the item before this one, with its answers."""
        self.place = len(self.work.items) - 1 if self.place is None else max(0, self.place - 1)
        self._show()

    def export(self) -> None:
        """Write all annotators' answers as CSV and say where."""
        self._tell(f"Written: {export_answers(self.run_dir, self.task)}")

    def _values(self) -> dict[str, Any]:
        return {q.name: c.value for q, c in zip(self.task.questions, self.choices, strict=True)}

    def _show(self, told: str = "") -> None:
        total, done = len(self.work.items), len(self.work.given)
        progress = f"{done} of {total} done"
        if self.place is None:
            self.head.value = f"<h3>{escape(self.task.title)}</h3><p>{progress}: finished, thank you.</p>"
            self.body.value, self.form.layout.display = "", "none"
            self._tell(told)
            return
        item = self.work.items[self.place]
        keys = " ".join("".join(q.choices) for q in self.task.questions[:1])
        self.head.value = (
            f"<h3>{escape(self.task.title)}</h3><p>{escape(self.task.guide)} <i>{progress}; this is item {self.place + 1}. "
            f"Keys ({escape(keys)}) answer the questions in order, Enter saves.</i></p>"
        )
        self.body.value, self.form.layout.display = render_item(item), ""
        self._fill(self.work.given.get(item.id, {}))
        self._tell(told)

    def _tell(self, text: str) -> None:
        self.note.value = f'<p role="status">{escape(text)}</p>'

    def _fill(self, given: Mapping[str, Any]) -> None:
        """Put answers into the buttons and the key field, without taking that for typing."""
        self._quiet = True
        for question, choice in zip(self.task.questions, self.choices, strict=True):
            choice.value = given.get(question.name)
        self.keys.value = self._as_keys()
        self._quiet = False

    def _as_keys(self) -> str:
        """The answers from the first question up to the first open one, as they would be typed."""
        typed = []
        for question, choice in zip(self.task.questions, self.choices, strict=True):
            key = next((k for k, (value, _) in question.choices.items() if value == choice.value and choice.value is not None), None)
            if key is None:
                break
            typed.append(key)
        return "".join(typed)

    def _typed(self, change: Mapping[str, Any]) -> None:
        if self._quiet:
            return
        text = change["new"]
        if "b" in text:
            self.back()
            return
        lines = text.split("\n")
        known: dict[str, Any] = {}
        for question, key in zip(self.task.questions, "".join(lines), strict=False):
            if key not in question.choices:
                self._fill(known)
                self._tell(f"{key!r} is no answer to {question.name}.")
                return
            known[question.name] = question.choices[key][0]
        if len("".join(lines)) > len(self.task.questions) or len(lines) > 1:
            self._fill(known)  # the line end, or a key too many, goes out of the field
        else:
            self._mirror(known, keep=len(text) > len(change["old"]))
        if len(lines) > 1:
            self.save()

    def _mirror(self, known: Mapping[str, Any], keep: bool) -> None:
        """Put what was typed into the buttons; `keep`: questions behind it stay as clicked."""
        self._quiet = True
        for question, choice in zip(self.task.questions, self.choices, strict=True):
            choice.value = known.get(question.name, choice.value if keep else None)
        self._quiet = False

    def _clicked(self, _: Mapping[str, Any]) -> None:
        if not self._quiet:
            self._quiet = True
            self.keys.value = self._as_keys()
            self._quiet = False


def annotate(run_dir: str | Path, task: str, annotator: str | None = None) -> widgets.VBox:
    """The page of a task (users, pairs or responses) in a run directory; without `annotator` it asks for a name first.

    It does not claim the run, so several annotators may work at once, each in a kernel of their own. InputError: no such task, or
    nothing has been prepared.
    """
    if task not in TASKS:
        raise InputError(f"task: {task!r} is not one of {', '.join(TASKS)}")
    if annotator is not None:
        return Page(run_dir, TASKS[task], annotator).box
    name, start, note = widgets.Text(description="your name"), widgets.Button(description="Start"), widgets.HTML()
    box = widgets.VBox([widgets.HBox([name, start]), note])

    def begin(_: Any) -> None:
        try:
            box.children = (Page(run_dir, TASKS[task], name.value.strip()).box,)
        except InputError as error:
            note.value = f'<p role="status">{escape(str(error))}</p>'

    start.on_click(begin)
    return box
