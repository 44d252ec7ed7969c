"""Cells of executed notebooks, and Markdown, as HTML that needs no network (MathML)."""

import base64
import html
import json
import re
from dataclasses import dataclass
from pathlib import Path

import latex2mathml.converter
from nbconvert.filters import ansi2html, markdown2html
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

MATH = re.compile(r"\$\$(?P<block>.+?)\$\$|\$(?P<inline>[^$]+?)\$", re.DOTALL)
CODE = HtmlFormatter(cssclass="code")


@dataclass(frozen=True)
class Cell:
    """A cell of an executed notebook as HTML: its code, and what it showed."""

    notebook: str
    name: str
    code: str
    shown: str

    @property
    def anchor(self) -> str:
        """Where it stands on the page."""
        return f"{self.notebook}-{self.name}"


def markdown(text: str) -> str:
    """Markdown as HTML, with what stands between dollars as MathML."""

    def mathml(match: re.Match) -> str:
        display = "inline" if match["block"] is None else "block"
        return mathematics(html.unescape(match["block"] or match["inline"]), display)

    return MATH.sub(mathml, markdown2html(text))


def mathematics(latex: str, display: str = "block") -> str:
    """LaTeX as MathML, ``inline`` or ``block``."""
    latex = latex.replace(r"\displaystyle", "").strip()
    return latex2mathml.converter.convert(latex, display=display)


def image(path: Path) -> str:
    """A PNG as a ``data:`` address."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def read(path: Path) -> dict[str, dict]:
    """Cells of a notebook by their id."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return {cell["id"]: cell for cell in cells}


def rendered(notebook: str, name: str, cell: dict) -> Cell:
    """A cell of an executed notebook, with all of its outputs in their order."""
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return Cell(notebook, name, "", markdown(source))
    outputs = "\n".join(_output(output) for output in cell["outputs"])
    return Cell(notebook, name, highlight(source, PythonLexer(), CODE), outputs)


def _output(output: dict) -> str:
    """One output; of several forms the richest that stays what it is without a network."""
    if output["output_type"] == "stream":
        if output["name"] == "stderr":  # progress bars
            return ""
        return f"<pre>{html.escape(''.join(output['text']))}</pre>"
    if output["output_type"] == "error":
        return f"<pre>{ansi2html(chr(10).join(output['traceback']))}</pre>"
    forms = {kind: "".join(value) for kind, value in output["data"].items() if value}
    if "image/png" in forms:
        return f'<img alt="a figure" src="data:image/png;base64,{forms["image/png"].strip()}">'
    if "text/html" in forms:
        return f'<div class="wide">{forms["text/html"]}</div>'
    if "text/latex" in forms:
        return MATH.sub(
            lambda match: mathematics(match["block"] or match["inline"]), forms["text/latex"]
        )
    if "text/markdown" in forms:
        return f'<div class="wide">{markdown(forms["text/markdown"])}</div>'
    return f"<pre>{html.escape(forms.get('text/plain', ''))}</pre>"
