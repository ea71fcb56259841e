"""The doctor's findings as one HTML page without other files, and as text for the terminal."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tabulate import tabulate

from querypose.analysis.doctor import Finding

_COLORS = {"good": "#2a7f3f", "unclear": "#b07800", "bad": "#b3261e", "failed": "#6a1b9a", "skipped": "#666666"}
_ORDER = ("bad", "failed", "unclear", "skipped", "good")
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: .6rem 0 }
td, th { border: 1px solid #ddd; padding: .15rem .6rem; text-align: left }
img { max-width: 100% } h2 { margin: 2rem 0 .3rem } .verdict { color: #fff; padding: .1rem .5rem; border-radius: .3rem }
"""


def summary(findings: Mapping[str, Finding]) -> str:
    """The verdict in a sentence."""
    bad = [name for name, finding in findings.items() if finding.verdict in ("bad", "failed")]
    if bad:
        return f"What explains a low AP, in the order in which to mend it: {', '.join(bad)}."
    unclear = [name for name, finding in findings.items() if finding.verdict == "unclear"]
    if unclear:
        return f"Nothing is plainly wrong. Look at: {', '.join(unclear)}."
    return "Nothing is wrong. Train longer, and watch progress/OKS."


def as_text(name: str, finding: Finding) -> str:
    """A finding for the terminal, without table and picture unless something is wrong."""
    lines = [f"{finding.verdict.upper():8} {name}: {finding.text}"]
    if finding.table and finding.verdict in ("bad", "unclear"):
        table = tabulate(finding.table[1:], finding.table[0], disable_numparse=True)
        lines += [f"         {line}" for line in table.splitlines()]
    if finding.advice:
        lines.append(f"         Next: {finding.advice}")
    return "\n".join(lines)


def as_html(findings: Mapping[str, Finding], subject: str) -> str:
    """The page: the verdict, the steps, and every finding with its table and picture, the worst first."""
    ordered = sorted(findings.items(), key=lambda item: _ORDER.index(item[1].verdict))
    steps = [
        f"<li><a href='#{name}'>{escape(name)}</a>: {escape(finding.advice)}</li>"
        for name, finding in ordered
        if finding.advice
    ]
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Doctor</title>",
        f"<style>{_STYLE}</style></head><body><h1>Doctor: {escape(subject)}</h1><p>{escape(summary(findings))}</p>",
        f"<h2>Next steps</h2><ol>{''.join(steps)}</ol>" if steps else "",
        *(_section(name, finding) for name, finding in ordered),
        "</body></html>",
    ]
    return "\n".join(parts)


def _section(name: str, finding: Finding) -> str:
    badge = f"<span class='verdict' style='background:{_COLORS[finding.verdict]}'>{finding.verdict}</span>"
    parts = [f"<h2 id='{name}'>{escape(name)} {badge}</h2><p>{escape(finding.text)}</p>"]
    if finding.advice:
        parts.append(f"<p><b>Next:</b> {escape(finding.advice)}</p>")
    if finding.table:
        parts.append(_table(finding.table))
    if finding.picture is not None:
        parts.append(f"<img alt='{escape(name)}' src='data:image/jpeg;base64,{_jpeg(finding.picture)}'>")
    return "\n".join(parts)


def _table(rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows[1:])
    return f"<table><tr>{head}</tr>{body}</table>"


def _jpeg(picture: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=85)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
