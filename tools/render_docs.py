"""Render the notebooks to _docs/ where Quarto is not installed: one page a chapter through nbconvert, with a list of all pages.

    python tools/render_docs.py
"""
import html, re
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter

root = Path(__file__).parents[1]
STYLE = '''<style>
.bc-nav{font:15px/1.5 system-ui,sans-serif;padding:1rem 1.5rem;border-bottom:1px solid #8886;display:flex;flex-wrap:wrap;gap:.2rem 1rem}
.bc-nav a{text-decoration:none}.bc-nav a[aria-current]{font-weight:600}
</style>'''


def title(nb): return re.match(r'# (.+)', nb.cells[0].source)[1]


def without_hidden(nb):
    "Drop cells that are marked as hidden, and directives of the others"
    nb.cells = [c for c in nb.cells if not re.match(r'#\| ?(hide|default_exp)\b', c.source)]
    for c in nb.cells:
        if c.cell_type == 'code': c.source = re.sub(r'^#\|.*\n?', '', c.source, flags=re.M)
    return nb


def to_pages(text):
    "Links between notebooks become links between pages"
    return re.sub(r'\]\((?:nbs/)?(\w+)\.ipynb\)', r'](\1.html)', text)


def main():
    out = root/'_docs'
    out.mkdir(exist_ok=True)
    paths = [root/'nbs/index.ipynb', *sorted((root/'nbs').glob('[0-9]*.ipynb'))]
    notebooks = {p.stem: without_hidden(nbformat.read(p, as_version=4)) for p in paths}
    exporter = HTMLExporter(template_name='lab', exclude_input_prompt=True, exclude_output_prompt=True)
    for name, nb in notebooks.items():
        for c in nb.cells:
            if c.cell_type == 'markdown': c.source = to_pages(c.source)
        page, _ = exporter.from_notebook_node(nb)
        links = ''.join(f'<a href="{n}.html"{" aria-current=page" if n == name else ""}>{html.escape(title(b))}</a>' for n, b in notebooks.items())
        page = page.replace('</head>', STYLE + '</head>', 1)
        page = re.sub(r'<title>.*?</title>', f'<title>{html.escape(title(nb))} - bin_counter</title>', page, count=1)
        page = re.sub(r'(<body[^>]*>)', lambda m: f'{m[1]}<nav class="bc-nav" aria-label="Chapters">{links}</nav>', page, count=1)
        (out/f'{name}.html').write_text(page)
    print(f'wrote {len(notebooks)} pages to {out}: open {out}/index.html')


main()
