"""The annotation page in JupyterLab: one item at a time, mouse or keyboard, safe to close at any moment."""

import html
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from rlpa_lib.settings.config import InputError
from rlpa_lib.study.annotation import TASKS, Answers, Item, Task, export_answers

_WIDE = widgets.Layout(width="100%", max_width="56em")
_STYLE = (
    "<style>.rlpa-page p{margin:.15em 0;white-space:pre-wrap;overflow-wrap:anywhere}"
    ".rlpa-page h4{margin:.6em 0 .2em}.rlpa-page .user{border-left:4px solid #0072b2;padding-left:.6em}"
    ".rlpa-page .assistant{border-left:4px solid #d55e00;padding-left:.6em}</style>"
)


def escape(text: str) -> str:
    """Text that shows as itself: no tags, and no formulas, which $ and \\ would begin in JupyterLab."""
    return html.escape(text).translate({ord(sign): f"<span>{sign}</span>" for sign in "$\\"})


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
    """One annotator at one task. Keys: one a question in order, Backspace, Enter saves, b goes back.

    Keys and buttons show the same answers, and an answer is on disk before the next item appears.
    """

    def __init__(self, run_dir: str | Path, task: Task, annotator: str):
        self.run_dir, self.task, self.work = run_dir, task, Answers(run_dir, task, annotator)
        self.place = self.work.next_open()
        self._quiet = False  # True while the program, not a person, fills in answers
        self.head, self.body, self.note = (widgets.HTML(layout=_WIDE) for _ in range(3))
        self.keys = widgets.Textarea(rows=1, layout=widgets.Layout(width="16em"), continuous_update=True,
                                     description="keys", placeholder="type here")  # fmt: skip
        options = [(label, value) for value, label in task.choices.values()]
        look = {"value": None, "layout": _WIDE, "style": {"button_width": "9em"}}
        self.choices = {name: widgets.ToggleButtons(options=options, **look) for name in task.questions}
        rows = [
            widgets.VBox([widgets.HTML(f"<b>{escape(text)}</b>"), self.choices[name]])
            for name, text in task.questions.items()
        ]
        acts = {"Save (Enter)": self.save, "Back (b)": self.back, "Export CSV": self.export}
        save, back, export = (widgets.Button(description=text) for text in acts)
        for button, act in zip((save, back, export), acts.values(), strict=True):
            button.on_click(lambda _, act=act: act())
        self.form = widgets.VBox([*rows, widgets.HBox([self.keys, save, back])])
        self.box = widgets.VBox([self.head, self.body, self.form, self.note, export])
        self.keys.observe(self._type, names="value")
        for choice in self.choices.values():
            choice.observe(self._click, names="value")
        self._show()

    def save(self) -> None:
        """Store the answers to this item and show the next open one; says which questions are open."""
        item = self.work.items[self.place]
        values = {name: choice.value for name, choice in self.choices.items()}
        if missing := [name for name, value in values.items() if value is None]:
            self._tell(f"Not saved: {', '.join(missing)} still open.")
            return
        self.work.save(item, values)
        self.place = self.work.next_open(self.place + 1)
        self._show(f"Saved {item.id}.")

    def back(self) -> None:
        """Show the item before this one, with its answers."""
        self.place = len(self.work.items) - 1 if self.place is None else max(0, self.place - 1)
        self._show()

    def export(self) -> None:
        """Write all annotators' answers as CSV and say where."""
        self._tell(f"Written: {export_answers(self.run_dir, self.task)}")

    def _show(self, told: str = "") -> None:
        title, progress = escape(self.task.title), f"{len(self.work.given)} of {len(self.work.items)} done"
        self._tell(told)
        if self.place is None:
            self.head.value = f"<h3>{title}</h3><p>{progress}: finished, thank you.</p>"
            self.body.value, self.form.layout.display = "", "none"
            return
        item, keys = self.work.items[self.place], escape(" ".join(self.task.choices))
        self.head.value = (
            f"<h3>{title}</h3><p>{escape(self.task.guide)} <i>{progress}; this is item {self.place + 1}. "
            f"Keys ({keys}) answer the questions in order, Enter saves.</i></p>"
        )
        self.body.value, self.form.layout.display = render_item(item), ""
        self._fill(self.work.given.get(item.id, {}))

    def _tell(self, text: str) -> None:
        self.note.value = f'<p role="status">{escape(text)}</p>'

    def _fill(self, given: Mapping[str, Any], keep: bool = False, show: bool = True) -> None:
        """Set the buttons (`keep`: clicks stay where unanswered), and the keys up to a gap if `show`."""
        self._quiet = True
        for name, choice in self.choices.items():
            choice.value = given.get(name, choice.value if keep else None)
        if show:
            keys = {value: key for key, (value, _) in self.task.choices.items()}
            typed = takewhile(bool, (keys.get(choice.value) for choice in self.choices.values()))
            self.keys.value = "".join(typed)
        self._quiet = False

    def _type(self, change: Mapping[str, Any]) -> None:
        text = change["new"]
        if self._quiet:
            return
        if "b" in text:
            self.back()
            return
        known: dict[str, Any] = {}
        for name, key in zip(self.task.questions, text.replace("\n", ""), strict=False):
            if key not in self.task.choices:
                self._fill(known)
                self._tell(f"{key!r} is no answer to {name}.")
                return
            known[name] = self.task.choices[key][0]
        done = "\n" in text or len(text) > len(self.task.questions)  # until then the field is the annotator's
        self._fill(known, keep=len(text) > len(change["old"]), show=done)
        if "\n" in text:
            self.save()

    def _click(self, _: Mapping[str, Any]) -> None:
        if not self._quiet:
            self._fill({}, keep=True)


def annotate(run_dir: str | Path, task: str, annotator: str | None = None) -> widgets.VBox:
    """The page of a task (users, pairs or responses); asks for a name if `annotator` is None. It does not
    claim the run, so several can annotate at once, each in a kernel. InputError: no such task, no items."""
    if task not in TASKS:
        raise InputError(f"task: {task!r} is not one of {', '.join(TASKS)}")
    if annotator is not None:
        return Page(run_dir, TASKS[task], annotator).box
    name, start = widgets.Text(description="your name"), widgets.Button(description="Start")
    note = widgets.HTML()
    box = widgets.VBox([widgets.HBox([name, start]), note])

    def begin(_: Any) -> None:
        try:
            box.children = (Page(run_dir, TASKS[task], name.value.strip()).box,)
        except InputError as error:
            note.value = f'<p role="status">{escape(str(error))}</p>'

    start.on_click(begin)
    return box
