"""Writes docs/forms.md: what the search makes of every graph of the tests. `make docs` runs it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from attention_forms import FORMS, Example
from look_alikes import LOOK_ALIKES
from small_graphs import parse

from onnx_attnq.find import Sites, expose, find_sites
from onnx_attnq.find.fused import FUSED_OPS, REFUSED_OPS

PAGE: Final = Path(__file__).parent.parent / "docs" / "forms.md"

_TEXT: Final = """\
<!-- Written by tests/forms_page.py; do not edit. -->

# What is found and what is declined

Each row of the tables of attentions and look-alikes is a small graph of the tests, and says what `find_sites` made of it.
`onnx-attnq inspect MODEL` says the same of your model, and `--explain NODE` tells how one softmax was judged.

## Attention that is found

The second column is what the rewriter replaces:

| replaced | meaning |
| --- | --- |
| attention | both products and all between them become one op, which the native library computes as a whole |
| softmax | the softmax becomes one op; the products stay as they are |
| probabilities | the softmax stays; its result is quantized |

{found}

## Fused ops

These are turned into standard ops first, and then treated as above, but for those that would
[become slower](decoders.md), and all with `--keep-fused`. A node whose
attributes or inputs are not understood is declined with its reason.

{fused}

These are declined:

{refused}

Any other op of these two domains whose name ends in `Attention` is declined, too.

## What is no attention

{declined}
"""


def page() -> str:
    """The page's text."""
    found = [(name, ", ".join(dict.fromkeys(str(site.form) for site in _find(e).sites))) for name, e in FORMS.items()]
    declined = [(name, _find(Example(text)).rejections[0].reason) for name, (text, _) in LOOK_ALIKES.items()]
    return _TEXT.format(
        found=_table(("form", "replaced"), found),
        fused=_table(("op", "domain"), [(f"`{op}`", domain or "ai.onnx") for domain, op in sorted(FUSED_OPS)]),
        refused=_table(
            ("op", "domain", "reason"),
            [(f"`{op}`", domain or "ai.onnx", why) for (domain, op), why in sorted(REFUSED_OPS.items())],
        ),
        declined=_table(("graph", "reason"), declined),
    )


def _find(example: Example) -> Sites:
    model = parse(example.text, opset=example.opset, functions=example.functions)
    return find_sites(expose(model))


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
