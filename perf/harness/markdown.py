"""As much of Markdown as the fairness notes use: headings, paragraphs, tables, lists, code, links, emphasis."""

import re
from html import escape


def html(text):
    """A document's body. Its headings start at the third level: they stand within a page."""
    made = []
    for block in re.split(r"\n\s*\n", text.strip()):
        rows = block.splitlines()
        if block.startswith("```"):
            made.append(f"<pre>{escape(chr(10).join(rows[1:-1] if rows[-1].startswith('```') else rows[1:]))}</pre>")
        elif match := re.match(r"(#+) (.*)", rows[0]):
            level = min(6, len(match[1]) + 2)
            made.append(f"<h{level}>{inline(match[2])}</h{level}>")
            if rows[1:]:
                made.append(html("\n".join(rows[1:])))
        elif rows[0].startswith("|"):
            made.append(table(rows))
        elif re.match(r"[-*] |\d+\. ", rows[0]):
            items = re.split(r"\n(?=[-*] |\d+\. )", block)
            made.append("<ul>" + "".join(f"<li>{inline(re.sub(r'^([-*]|[0-9]+[.]) ', '', item))}</li>" for item in items)
                        + "</ul>")
        else:
            made.append(f"<p>{inline(block)}</p>")
    return "".join(made)


def table(rows):
    grid = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row.strip().strip("|"))] for row in rows]
    head, *body = [row for row in grid if not all(re.fullmatch(r":?-+:?", cell) for cell in row)]
    return ("<div class='scroll'><table class='words'><thead><tr>" + "".join(f"<th>{inline(cell)}</th>" for cell in head)
            + "</tr></thead><tbody>"
            + "".join("<tr>" + "".join(f"<td>{inline(cell)}</td>" for cell in row) + "</tr>" for row in body)
            + "</tbody></table></div>")


def inline(text):
    """Code, links and emphasis; everything else is text."""
    made = []
    for number, piece in enumerate(re.split(r"`([^`]*)`", text)):
        if number % 2:
            made.append(f"<code>{escape(piece)}</code>")
            continue
        piece = escape(piece.replace("\\|", "|"))
        # Links of a note lead into the repository, where a page of its own has no way to: their text stays.
        piece = re.sub(r"\[([^\]]*)\]\((https://[^)\s]*)\)", r'<a href="\2">\1</a>', piece)
        piece = re.sub(r"\[([^\]]*)\]\([^)\s]*\)", r"\1", piece)
        piece = re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", piece)
        piece = re.sub(r"(?<![\w*])\*([^*\s][^*]*)\*(?![\w*])", r"<em>\1</em>", piece)
        made.append(piece)
    return "".join(made)
