"""The annotation page in a real JupyterLab and a real browser: three dialogues are rated, the page is closed,
opened again and finished."""

import json
import os
import socket
import subprocess
import sys
from contextlib import contextmanager
from urllib.error import URLError
from urllib.request import urlopen

import nbformat
import pytest
from browser import Browser, find, until
from test_annotation import DANGEROUS, dialogue_items

from rlpa_lib.study import annotation

TOKEN = "for-this-test-alone"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find() is None,
        reason="no Chromium or Chrome is installed "
        "(Debian: apt install chromium; RLPA_BROWSER names another)",
    ),
]


@contextmanager
def jupyterlab(folder):
    """A server of its own on a free port; yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home = {
        "JUPYTER_CONFIG_DIR": folder / "config", "JUPYTER_RUNTIME_DIR": folder / "runtime",
        "JUPYTERLAB_SETTINGS_DIR": folder / "settings", "JUPYTERLAB_WORKSPACES_DIR": folder / "workspaces",
        "IPYTHONDIR": folder / "ipython",
    }
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}",
        "--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={folder}",
        "--LabApp.expose_app_in_browser=True", "--LabApp.news_url=None",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]
    no_news = folder / "settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    no_news.parent.mkdir(parents=True)
    # else a question takes the keyboard
    no_news.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    log = open(folder / "server.log", "w")  # noqa: SIM115 - the server's as long as it lives
    process = subprocess.Popen(
        command, env={**os.environ, **{k: str(v) for k, v in home.items()}}, stdout=log, stderr=log
    )
    address = f"http://127.0.0.1:{port}"

    def answers():
        assert process.poll() is None, (folder / "server.log").read_text()
        try:
            return urlopen(f"{address}/api?token={TOKEN}", timeout=5).status == 200
        except (URLError, ConnectionError, TimeoutError):
            return False

    try:
        until(answers, "JupyterLab answers")
        yield address
    finally:
        process.terminate()
        process.wait(timeout=60)
        log.close()


def open_page(tab, address):
    """Open the notebook, run its cell and wait for the page; the key field then has the keyboard."""
    tab.go(f"{address}/doc/tree/rate.ipynb?token={TOKEN}&reset")
    until(
        lambda: tab.run("document.readyState") == "complete" and tab.run("!!window.jupyterapp"),
        "JupyterLab has loaded",
    )
    panel = "Array.from(window.jupyterapp.shell.widgets('main'))[0]"
    until(
        lambda: tab.run(
            "(w => !!(w && w.sessionContext && w.sessionContext.session "
            f"&& w.sessionContext.session.kernel))({panel})"
        ),
        "a kernel",
    )
    tab.run(f"window.jupyterapp.shell.activateById({panel}.id)")
    tab.run("window.jupyterapp.commands.execute('notebook:run-all-cells').then(() => true)")
    until(lambda: tab.run("!!document.querySelector('.widget-textarea textarea')"), "the page is there")
    tab.run("document.querySelector('.widget-textarea textarea').focus()")


def text(tab):
    return tab.run(
        "Array.from(document.querySelectorAll('.jp-OutputArea-output')).map(o => o.innerText).join('\\n')"
    )


def rate(tab, keys, done):
    """Type keys and Enter, and wait until the page counts that answer."""
    tab.press(*keys)
    until(
        lambda: tab.run("document.querySelector('.widget-textarea textarea').value") == keys,
        "the keys are in the field",
    )
    tab.press("Enter")
    until(lambda: f"{done} of 5 done" in text(tab), f"{done} answers are counted: {text(tab)[:300]}")


def test_three_are_rated_the_page_is_closed_and_opened_and_the_rest_is_done(tmp_path):
    run_dir = tmp_path / "run"
    annotation.prepare(run_dir, annotation.USERS, dialogue_items(5), seed=0)
    cell = f"from rlpa_lib.study.annotation_page import annotate\nannotate({str(run_dir)!r}, 'users', 'ann')"
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    nbformat.write(
        nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)], metadata=kernel),
        tmp_path / "rate.ipynb",
    )
    file = annotation.locate_task(run_dir, annotation.USERS) / "answers" / "ann.jsonl"
    with jupyterlab(tmp_path) as address:
        with Browser(find(), tmp_path / "first") as tab:
            open_page(tab, address)
            assert (
                "0 of 5 done" in text(tab)
                and DANGEROUS in text(tab)
                and tab.run("window.hacked === undefined")
            )
            # what is hidden is nowhere in the page
            assert "model-x" not in tab.run("document.documentElement.innerHTML")
            tab.press("9")
            until(lambda: "no answer to coherence" in text(tab), "a wrong key is refused")
            tab.press("4", "5")
            tab.press("Backspace", "3", "2", "1")
            tab.press("Enter")
            until(lambda: "1 of 5 done" in text(tab), "the first answer is counted")
            for done, keys in ((2, "5555"), (3, "1234")):
                rate(tab, keys, done)
            if os.environ.get("RLPA_PICTURE"):
                tab.picture(tmp_path.parent / "page.png")
        assert len(file.read_text().splitlines()) == 3
        with Browser(find(), tmp_path / "second") as tab:
            open_page(tab, address)
            assert "3 of 5 done" in text(tab)
            rate(tab, "3333", 4)
            tab.press(*"4444", "Enter")
            until(lambda: "finished, thank you" in text(tab), "all are rated")
            export = (
                "Array.from(document.querySelectorAll('button'))"
                ".find(b => b.innerText.includes('Export CSV')).click()"
            )
            tab.run(export)
            until(lambda: "Written:" in text(tab), "the CSV is written")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    order = [item.id for item in annotation.Answers(run_dir, annotation.USERS, "ann").items]
    assert [row["item"] for row in rows] == order
    names = list(annotation.USERS.questions)
    assert [[row["answers"][name] for name in names] for row in rows] == [
        [4, 3, 2, 1], [5] * 4, [1, 2, 3, 4], [3] * 4, [4] * 4,
    ]
    assert (
        len(annotation.load_answers(run_dir, annotation.USERS)) == 5
        and (file.parents[1] / "answers.csv").is_file()
    )
