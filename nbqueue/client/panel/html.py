"""A PanelModel as HTML, live and saved: inline styles, the theme's colours, nothing from the network.

Every inserted text is escaped by `_safe`. Colours are variables of JupyterLab and VS Code, with fallbacks.
"""

from __future__ import annotations

import html
from collections.abc import Mapping

from nbqueue.client.panel.job_details import JobDetails
from nbqueue.client.panel.model import FailureLine, PanelModel
from nbqueue.client.panel.polling import JobProgress

TRACE = 6_000  # characters of a traceback in a saved notebook

_HUES = {
    "finished": "var(--jp-success-color1,var(--vscode-charts-green,#388e3c))",
    "failed": "var(--jp-error-color1,var(--vscode-charts-red,#d32f2f))",
    "canceled": "var(--jp-ui-font-color3,var(--vscode-disabledForeground,#8a8a8a))",
    "started": "var(--jp-brand-color1,var(--vscode-charts-blue,#1976d2))",
    "queued": "rgba(128,128,128,.45)",
    "scheduled": "#9575cd",
    "deferred": "#bcaaa4",
}
_PLAIN = {  # for frontends that sanitize HTML and drop variables
    "finished": "#388e3c",
    "failed": "#d32f2f",
    "canceled": "#8a8a8a",
    "started": "#1976d2",
    "queued": "#bdbdbd",
    "scheduled": "#9575cd",
    "deferred": "#bcaaa4",
}
# Text and background from one source: from two, both might be light. Without a theme, the browser's own colours.
PAIR = (
    "color:var(--jp-ui-font-color1,var(--vscode-foreground,CanvasText));"
    "background:var(--jp-layout-color0,var(--vscode-editor-background,Canvas))"
)
_MUTED = "opacity:.8"
_SMALL = "font-size:11px;opacity:.8;white-space:nowrap"
_NONE = "display:none !important"
_LINE = "rgba(128,128,128,.35)"
_FONT = "var(--jp-ui-font-family,system-ui,sans-serif)"
_CODE = "var(--jp-code-font-family,ui-monospace,monospace)"


def _safe(text: str) -> str:
    return html.escape(text, quote=True)


def head(view: PanelModel) -> str:
    """Everything that is visible without a click: the top, and the lines below."""
    return _page(_top(view) + _lines(view))


def top(view: PanelModel) -> str:
    """The part that moves: title, rate, bar, counts, and the progress of running jobs."""
    return _page(_top(view))


def lines(view: PanelModel) -> str:
    """The lines below, which seldom change: a selected command in them stays selected."""
    text = _lines(view)
    return _page(text) if text else ""


def _top(view: PanelModel) -> str:
    about = f" <span style='{_MUTED}'>{_safe(view.about)}</span>" if view.about else ""
    progress = f"<span style='margin-left:auto'>{_safe(view.progress_text)}</span>"
    title = f"<span><b>{_safe(view.title)}</b>{about}</span>{progress}"
    seed = f"<span style='margin-left:auto;{_SMALL}'>{_safe(view.seed)}</span>" if view.seed else ""
    parts = [
        f"<div style='display:flex;flex-wrap:wrap;column-gap:16px'>{title}</div>",
        _bar(view),
        f"<div style='display:flex;flex-wrap:wrap;column-gap:16px'>{_legend(view)}{seed}</div>",
        *(_job_progress(each) for each in view.running),
    ]
    return "".join(parts)


def _lines(view: PanelModel) -> str:
    found = [_note(text, "failed") for text in view.problems]
    found += [_note(text, "started", command) for text, command in view.notes]
    found += [_note(each.advice, "started", each.command) for each in view.workers if each.advice]
    text = _safe("".join(f"{part.rstrip('.')}. " for part in (view.workers_text, view.retention) if part)).rstrip()
    # The line exists from the beginning, so that the layout does not jump when it gets text.
    return "".join(found) + (f"<div style='{_MUTED}'>{text or '&nbsp;'}</div>" if text or not view.ended else "")


def _page(inner: str) -> str:
    style = f"max-width:860px;padding:1px 0;font-family:{_FONT};font-size:13px;line-height:1.6;{PAIR}"
    return f"<div class='nbqueue' style='{style}'>{inner}</div>"


def _bar(view: PanelModel) -> str:
    words = _safe(", ".join(f"{count:,} {state}" for state, count in view.counts))
    parts = "".join(
        f"<div title='{count:,} {state}' style='min-width:3px;height:10px;width:{count / max(view.n, 1):.3%};"
        f"background-color:{_PLAIN[state]};background-color:{_HUES[state]}'></div>"
        for state, count in view.counts
        if count
    )
    outer = f"display:flex;height:10px;border-radius:3px;overflow:hidden;box-shadow:inset 0 0 0 1px {_LINE}"
    aria = f"role='progressbar' aria-valuemin='0' aria-valuemax='{view.n}' aria-valuenow='{view.tally.over}'"
    return f"<div {aria} aria-label='{words}' style='{outer}'>{parts}</div>"


def _legend(view: PanelModel) -> str:
    dot = "display:inline-block;width:9px;height:9px;border-radius:2px;margin-right:5px"
    return "".join(
        f"<span><span aria-hidden='true' style='{dot};background-color:{_PLAIN[state]};"
        f"background-color:{_HUES[state]}'></span>{count:,} {state}</span> "
        for state, count in view.counts
    )


def _job_progress(each: JobProgress | None) -> str:
    """The progress of a running job in one line; an empty line for None."""
    if each is None:
        return "<div>&nbsp;</div>"
    bar = ""
    if each.share is not None:
        outer = f"display:inline-block;width:80px;height:6px;border-radius:3px;box-shadow:inset 0 0 0 1px {_LINE}"
        inner = f"display:block;height:6px;border-radius:3px;width:{each.share:.0%};background-color:"
        bar = (
            f"<span style='{outer}'><span style='{inner}{_PLAIN['started']};{inner}{_HUES['started']}'></span></span> "
        )
    # Always one line high; without wrapping, a long text would widen the panel.
    line = f"{_MUTED};height:1.6em;overflow:hidden;overflow-wrap:anywhere"
    return f"<div style='{line}'>{_safe(each.job)} {bar}{_safe(each.words)}</div>"


def _note(text: str, hue: str, command: str = "") -> str:
    """A highlighted line; a command in it is set as code, and selected with one click."""
    text = _with_command(text[:1].upper() + text[1:], command)
    return f"<div style='border-left:3px solid {_HUES[hue]};padding-left:8px;margin:3px 0'>{text}</div>"


def _with_command(text: str, command: str) -> str:
    if not command:
        return _safe(text)
    style = f"font-family:{_CODE};user-select:all;padding:0 4px;border:1px solid {_LINE};border-radius:3px"
    return _safe(text).replace(_safe(command), f"<code style='{style}'>{_safe(command)}</code>")


def message(text: str, *, wrong: bool = False) -> str:
    """A line about the last click: its result, or its error."""
    return _page(_note(text, "failed" if wrong else "started")) if text else ""


def job_html(job: JobDetails, arguments: str | None = None, *, most: int | None = None) -> str:
    """One failed job: its run, traceback and log; its arguments if given."""
    trace = job.traceback if most is None or len(job.traceback) <= most else "...\n" + job.traceback[-most:]
    parts = [f"<div><b>{_safe(job.job)}</b> <span style='{_MUTED}'>{_safe(job.facts)}</span></div>", _pre(trace)]
    if arguments is not None:
        parts += ["<div>Arguments</div>", _pre(arguments)]
    if job.log:
        parts += ["<div>End of its log</div>", _pre(job.log)]
    return _page("".join(parts))


def _pre(text: str) -> str:
    style = (
        f"max-height:24em;overflow:auto;margin:2px 0 6px;padding:6px 8px;border:1px solid {_LINE};border-radius:3px;"
        f"font-family:{_CODE};font-size:12px;line-height:1.4;white-space:pre-wrap;color:inherit;background:transparent"
    )
    return f"<pre tabindex='0' style='{style}'>{_safe(text)}</pre>"


# ---------------------------------------------------------------- the saved form


def static(
    view: PanelModel, examples: Mapping[int, JobDetails] | None = None, *, asof: str = "", command: str = ""
) -> str:
    """The panel as HTML that needs no kernel; `examples` has one job for each position in `view.failures`.

    `asof` tells the time of the snapshot, and may contain `command`.
    """
    parts = [_group(each, (examples or {}).get(position)) for position, each in enumerate(view.failures)]
    if view.failures and view.more:
        parts.append(_page(f"<div style='{_MUTED}'>{_safe(view.more)}</div>"))
    if view.ended and view.retry:
        code = f"<code style='font-family:{_CODE}'>batch.retry()</code>"
        parts.append(_page(f"<div>{code} runs what failed again.</div>"))
    kinds = f"<div class='nbq-kinds'>{''.join(parts)}</div>" if parts else ""
    below = _page(f"<div style='{_MUTED}'>{_with_command(asof, command)}</div>") if asof else ""
    return f"<div style='max-width:860px;padding:3px 8px;border-radius:4px;{PAIR}'>{head(view)}{kinds}{below}</div>"


def _group(each: FailureLine, job: JobDetails | None) -> str:
    hue = f"border-left:3px solid {_HUES['failed']};padding-left:8px;margin:3px 0"
    if job is None:
        return _page(f"<div style='{hue}'>{_safe(each.text)}</div>")
    body = job_html(job, most=TRACE)
    return _page(f"<details style='{hue}'><summary style='cursor:pointer'>{_safe(each.text)}</summary>{body}</details>")


def beside(ident: str, inner: str, *, final: bool) -> str:
    """The saved form beside a live widget with the class `nbq-live-IDENT`: nothing is visible twice.

    While the batch runs, the widget is visible, and the saved form only without a widget, as after a restart of the
    kernel. At the end the saved form is visible, and the clickable parts of the widget. JupyterLab's "model not found"
    and a widget without a kernel are hidden.
    """
    widget, saved, gone = f".nbq-live-{ident}", f".nbq-saved-{ident}", "jupyter-widgets-disconnected"
    live = f"{widget}:not(.{gone})"
    if final:
        rule, hidden = f"{live} .nbq-head,body:has({live}) {saved} .nbq-kinds{{{_NONE}}}", ""
    else:
        rule, hidden = f"body:not(:has({live})) {saved}{{display:block !important}}", " style='display:none'"
    orphan = f".jp-OutputArea-child:has({saved})+.jp-OutputArea-child>.jp-OutputArea-output:not(:has(*))"
    return (
        f"<div class='nbq-saved-{ident}'{hidden}>{inner}</div><style>{rule}{orphan},{widget}.{gone}{{{_NONE}}}</style>"
    )
