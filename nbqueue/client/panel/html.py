"""A View as HTML, the same live and saved: inline styles, the theme's own colours, nothing from the network.

Every text that is put in goes through `_safe`. Colours are JupyterLab's and VS Code's variables, with fallbacks.
"""

from __future__ import annotations

import html
from collections.abc import Mapping

from nbqueue.client.panel.job_details import JobDetails
from nbqueue.client.panel.model import Failures, PanelModel
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
_PLAIN = {  # for frontends that clean HTML, and drop what they cannot judge
    "finished": "#388e3c",
    "failed": "#d32f2f",
    "canceled": "#8a8a8a",
    "started": "#1976d2",
    "queued": "#bdbdbd",
    "scheduled": "#9575cd",
    "deferred": "#bcaaa4",
}
# Text and what is behind it, from one source: of two, one may be light and the other too. Where the page names none of
# them, those of the browser, which follow its scheme.
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
    """All that is seen without a click: what moves, and the lines below it."""
    return _page(_top(view) + _lines(view))


def top(view: PanelModel) -> str:
    """What moves: title, pace, bar, counts, and how far running jobs are."""
    return _page(_top(view))


def lines(view: PanelModel) -> str:
    """The lines below, which seldom change: whoever selects a command in them keeps the selection."""
    text = _lines(view)
    return _page(text) if text else ""


def _top(view: PanelModel) -> str:
    about = f" <span style='{_MUTED}'>{_safe(view.about)}</span>" if view.about else ""
    title = f"<span><b>{_safe(view.title)}</b>{about}</span><span style='margin-left:auto'>{_safe(view.pace)}</span>"
    seed = f"<span style='margin-left:auto;{_SMALL}'>{_safe(view.seed)}</span>" if view.seed else ""
    parts = [
        f"<div style='display:flex;flex-wrap:wrap;column-gap:16px'>{title}</div>",
        _bar(view),
        f"<div style='display:flex;flex-wrap:wrap;column-gap:16px'>{_legend(view)}{seed}</div>",
        *(_going(each) for each in view.going),
    ]
    return "".join(parts)


def _lines(view: PanelModel) -> str:
    found = [_note(text, "failed") for text in view.trouble]
    found += [_note(text, "started", command) for text, command in view.notes]
    found += [_note(each.advice, "started", each.command) for each in view.serving if each.advice]
    said = _safe("".join(f"{part.rstrip('.')}. " for part in (view.served, view.safe) if part)).rstrip()
    # The line is there from the beginning, so that nothing moves when it has words.
    return "".join(found) + (f"<div style='{_MUTED}'>{said or '&nbsp;'}</div>" if said or not view.ended else "")


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


def _going(each: JobProgress | None) -> str:
    """A running job and how far it says it is, in one line; an empty one where there is none."""
    if each is None:
        return "<div>&nbsp;</div>"
    bar = ""
    if each.share is not None:
        outer = f"display:inline-block;width:80px;height:6px;border-radius:3px;box-shadow:inset 0 0 0 1px {_LINE}"
        inner = f"display:block;height:6px;border-radius:3px;width:{each.share:.0%};background-color:"
        bar = (
            f"<span style='{outer}'><span style='{inner}{_PLAIN['started']};{inner}{_HUES['started']}'></span></span> "
        )
    # One line high whatever it says; without a wrap, it would make the panel as wide as its words.
    line = f"{_MUTED};height:1.6em;overflow:hidden;overflow-wrap:anywhere"
    return f"<div style='{line}'>{_safe(each.job)} {bar}{_safe(each.words)}</div>"


def _note(text: str, hue: str, command: str = "") -> str:
    """A line that asks for attention; the command in it stands out, and can be selected with one click."""
    told = _told(text[:1].upper() + text[1:], command)
    return f"<div style='border-left:3px solid {_HUES[hue]};padding-left:8px;margin:3px 0'>{told}</div>"


def _told(text: str, command: str) -> str:
    if not command:
        return _safe(text)
    style = f"font-family:{_CODE};user-select:all;padding:0 4px;border:1px solid {_LINE};border-radius:3px"
    return _safe(text).replace(_safe(command), f"<code style='{style}'>{_safe(command)}</code>")


def message(text: str, *, wrong: bool = False) -> str:
    """A line from the panel itself: what a click did, or why it could not."""
    return _page(_note(text, "failed" if wrong else "started")) if text else ""


def told(job: JobDetails, arguments: str | None = None, *, most: int | None = None) -> str:
    """One failed job: how it ran, its traceback, what it printed, its arguments if they were asked for."""
    trace = job.traceback if most is None or len(job.traceback) <= most else "...\n" + job.traceback[-most:]
    parts = [f"<div><b>{_safe(job.job)}</b> <span style='{_MUTED}'>{_safe(job.facts)}</span></div>", _pre(trace)]
    if arguments is not None:
        parts += ["<div>Its arguments</div>", _pre(arguments)]
    if job.log:
        parts += ["<div>The end of what it printed</div>", _pre(job.log)]
    return _page("".join(parts))


def _pre(text: str) -> str:
    style = (
        f"max-height:24em;overflow:auto;margin:2px 0 6px;padding:6px 8px;border:1px solid {_LINE};border-radius:3px;"
        f"font-family:{_CODE};font-size:12px;line-height:1.4;white-space:pre-wrap;color:inherit;background:transparent"
    )
    return f"<pre tabindex='0' style='{style}'>{_safe(text)}</pre>"


# ---------------------------------------------------------------- the saved form


def static(
    view: PanelModel, examples: Mapping[int, JobDetails] | None = None, *, asof: str = "", again: str = ""
) -> str:
    """The whole as HTML without a kernel; `examples` has a job for each place in `view.failures`.

    `asof` says of which moment it is, and may hold a command, `again`.
    """
    parts = [_kind(each, (examples or {}).get(place)) for place, each in enumerate(view.failures)]
    if view.failures and view.more:
        parts.append(_page(f"<div style='{_MUTED}'>{_safe(view.more)}</div>"))
    if view.ended and view.retry:
        code = f"<code style='font-family:{_CODE}'>batch.retry()</code>"
        parts.append(_page(f"<div>{code} runs what failed again.</div>"))
    kinds = f"<div class='nbq-kinds'>{''.join(parts)}</div>" if parts else ""
    below = _page(f"<div style='{_MUTED}'>{_told(asof, again)}</div>") if asof else ""
    return f"<div style='max-width:860px;padding:3px 8px;border-radius:4px;{PAIR}'>{head(view)}{kinds}{below}</div>"


def _kind(each: Failures, job: JobDetails | None) -> str:
    hue = f"border-left:3px solid {_HUES['failed']};padding-left:8px;margin:3px 0"
    if job is None:
        return _page(f"<div style='{hue}'>{_safe(each.text)}</div>")
    body = told(job, most=TRACE)
    return _page(f"<details style='{hue}'><summary style='cursor:pointer'>{_safe(each.text)}</summary>{body}</details>")


def beside(ident: str, inner: str, *, final: bool) -> str:
    """The saved form beside a live widget that is marked `nbq-live-IDENT`: nothing is seen twice.

    Before the end the widget is seen, and the saved form only where the widget is not, as after a restart of the
    kernel; at the end the saved form's bar, and of the widget what can be clicked. JupyterLab's "model not found", and
    a widget whose kernel is gone, are hidden.
    """
    mark, saved, gone = f".nbq-live-{ident}", f".nbq-saved-{ident}", "jupyter-widgets-disconnected"
    live = f"{mark}:not(.{gone})"
    if final:
        rule, hidden = f"{live} .nbq-head,body:has({live}) {saved} .nbq-kinds{{{_NONE}}}", ""
    else:
        rule, hidden = f"body:not(:has({live})) {saved}{{display:block !important}}", " style='display:none'"
    orphan = f".jp-OutputArea-child:has({saved})+.jp-OutputArea-child>.jp-OutputArea-output:not(:has(*))"
    return f"<div class='nbq-saved-{ident}'{hidden}>{inner}</div><style>{rule}{orphan},{mark}.{gone}{{{_NONE}}}</style>"
