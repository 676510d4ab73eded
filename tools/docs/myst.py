"From what nbdev has processed (Quarto's markdown in notebooks) to MyST, which Sphinx reads"
import copy, json, posixpath, re
from html import escape
from pathlib import Path

import yaml

CALLOUTS = {'note': 'note', 'tip': 'tip', 'warning': 'warning', 'important': 'important', 'caution': 'caution'}


def slug(text):
    "The anchor that pandoc gives a heading, and that nbdev's index counts on"
    text = re.sub(r'[^\w\s.-]', '', text.lower()).strip()
    return re.sub(r'^[^a-z]+', '', re.sub(r'\s+', '-', text)) or 'section'


def outside_code(change, text):
    "Apply `change` to a markdown text with its code blocks out of the way"
    blocks = []
    def away(m): blocks.append(m[0]); return f'\0{len(blocks) - 1}\0'
    text = re.sub(r'^(```+|~~~+).*?^\1 *$', away, text, flags=re.M | re.S)
    return re.sub('\0(\\d+)\0', lambda m: blocks[int(m[1])], change(text))


def _attributes(text):
    "Classes and title of a pandoc attribute list: `.callout-note title='Why'`"
    title = re.search(r'title=(["\'])(.*?)\1', text)
    return re.findall(r'\.([\w-]+)', re.sub(r'title=(["\']).*?\1', '', text)), title[2] if title else ''


def divs(text):
    "Pandoc's divs become MyST's directives: a callout an admonition, any other a container with its classes"
    stack, out = [], []
    for line in text.split('\n'):
        opens, closes = re.match(r':::+ *\{(.+?)\} *$|:::+ *([\w-]+) *$', line), re.match(r':::+ *$', line)
        if opens:
            classes, title = _attributes(opens[1]) if opens[1] else ([opens[2]], '')
            kind = next((k for c in classes if (k := CALLOUTS.get(c.removeprefix('callout-')))), None)
            stack.append((len(out), kind, title, classes))
            out.append('')
        elif closes and stack:
            at, kind, title, classes = stack.pop()
            fence = ':'*(3 + sum(l.startswith(':::') and not re.match(r':::+$', l) for l in out[at:])) # an outer fence is longer
            heading = next((i for i in range(at + 1, len(out)) if out[i].strip()), None)
            if kind and not title and heading and (m := re.match(r'#+ (.+)', out[heading])): title, out[heading] = m[1], ''
            if not kind: out[at] = f'{fence}{{container}} {" ".join(classes)}\n'
            else: out[at] = f'{fence}{{admonition}} {title or kind.capitalize()}\n:class: {kind}\n'
            out.append(fence)
        else: out.append(line)
    if stack: raise ValueError(f'a ::: is not closed: {text[:80]!r}')
    return '\n'.join(out)


class Site:
    "Where the pages, the repository and the published site are"
    def __init__(self, pages, cfg, root):
        self.root, self.base = root, cfg['doc_host'] + cfg['doc_baseurl'] + '/'
        self.blob, self.lib = f"{cfg['git_url']}/blob/{cfg['branch']}/", cfg['lib_name']
        self.by_file = {p.file: p for p in pages}
        self.by_html = {p.html: p for p in pages}
        self.notes = {'CHANGELOG.md': 'changelog.html', 'CONTRIBUTING.md': 'contributing.html', 'benchmarks/README.md': 'benchmarks.html'}

    def link(self, url, page, folder='nbs'):
        "A link as Sphinx shall have it: to a page of the site if there is one, else into the repository"
        if url.removeprefix(self.blob).partition('#')[0] in self.notes: url, folder = '../' + url.removeprefix(self.blob), 'nbs'
        if url.startswith(self.base): url, found = url[len(self.base):] or 'index.html', True
        elif re.match(r'[a-z]+:|#|/', url): return url
        else: found = False
        path, _, anchor = url.partition('#')
        at = posixpath.normpath(path if found else posixpath.join(folder, posixpath.dirname(page.file), path))
        file = at.removeprefix('nbs/') if not found else at
        file = file.removeprefix('nbs/') # the README's links begin at the repository's root
        hit = self.by_html.get(file) or self.by_file.get(file) or self.by_html.get(self.notes.get(file)) or self.by_html.get(self.notes.get(at))
        if hit:
            to = posixpath.relpath(Path(hit.html).with_suffix('.ipynb' if hit.file.endswith('.ipynb') else '.md').as_posix(), posixpath.dirname(page.html) or '.')
            return to + (f'#{anchor}' if anchor else '')
        for there in (at, file):
            if (self.root/there).exists(): return self.blob.replace('/blob/', '/tree/') + there if (self.root/there).is_dir() else self.blob + there
        return url

    def links(self, text, page, folder='nbs'):
        "All inline links of a markdown text; pictures stay"
        swap = lambda m: f'{m[1]}({self.link(m[2], page, folder)}{m[3] or ""})'
        return re.sub(r'((?<!!)\[(?:[^\[\]]|\[[^\]]*\])*\])\(([^()\s]+)(\s+"[^"]*")?\)', swap, text)

    def markdown(self, text, page, folder='nbs'):
        def change(t):
            t = re.sub(r'<!--.*?-->', '', t, flags=re.S)
            return self.picture(divs(self.links(t, page, folder)), page)
        return outside_code(change, text)

    def picture(self, text, page):
        "A drawing with the class `inline` is put into the page, where it follows the page's colours"
        def swap(m):
            svg = (self.root/'nbs'/posixpath.dirname(page.file)/m[2]).read_text(encoding='utf-8')
            svg = re.sub(r'<\?xml.*?\?>|<!--.*?-->', '', svg, flags=re.S).strip()
            svg = svg.replace('<svg ', f'<svg role="img" aria-label="{escape(m[1])}" ', 1)
            return '```{raw} html\n<div class="drawing">' + re.sub(r'\n\s*', '\n', svg) + '</div>\n```'
        return re.sub(r'^!\[([^\]]*)\]\(([^)\s]+\.svg)\)\{\.inline\}$', swap, text, flags=re.M)


def _options(source):
    "Quarto's cell options, and the source without them"
    found = dict(re.findall(r'^#\| *([\w-]+) *: *(.*?) *$', source, re.M))
    return found, re.sub(r'^#\|.*\n?', '', source, flags=re.M).strip('\n')


def _streams(outputs):
    "A progress bar that wrote over itself leaves its last state"
    for o in outputs:
        if o.get('output_type') == 'stream': o['text'] = re.sub(r'[^\n]*\r(?!\n)', '', ''.join(o['text']))
    return [o for o in outputs if o.get('output_type') != 'stream' or o['text'].strip()]


def _code_cell(cell):
    "A code cell with MyST-NB's tags for Quarto's options, and words for each picture; None if nothing is left to show"
    options, cell['source'] = _options(''.join(cell['source']))
    off = lambda k: options.get(k, '').strip('"\'').lower() == 'false'
    cell['outputs'] = [] if off('output') or off('include') else _streams(cell.get('outputs', []))
    hidden = off('echo') or off('include') or not cell['source']
    if hidden and not cell['outputs']: return None
    tags = ['remove-input'] if hidden else ['hide-input'] if options.get('code-fold') in ('true', 'show') else []
    pictures = [o for o in cell['outputs'] if any(k.startswith('image/') for k in o.get('data', {}))]
    cell['metadata'] = {'tags': tags}
    if pictures:
        kind = 'plot' if any('image/svg+xml' in o['data'] for o in pictures) else 'photo'
        cell['metadata']['mystnb'] = {'image': {'alt': yaml.safe_load(options['fig-alt']), 'classes': kind}}
    return cell


def _level(text, level):
    "Depth of the last heading"
    for m in re.finditer(r'^(#+) ', re.sub(r'^```.*?^```', '', text, flags=re.M | re.S), re.M): level = len(m[1])
    return level


def _api(cell, level):
    "What show_doc printed, as markdown, with its heading one below the prose's and set as code"
    text = ''.join(next(o['data']['text/markdown'] for o in cell['outputs'] if 'text/markdown' in o.get('data', {})))
    return re.sub(r'\A#+ (.+)', lambda m: f'{"#"*min(3, level + 1)} `{m[1]}`', text.strip())


def convert_notebook(path, page, site, last=''):
    "A processed notebook as MyST-NB reads it; `last` is put at its end"
    nb, cells, level = json.loads(path.read_text(encoding='utf-8')), [], 1
    head = [f'# {page.title}', f'{{.lead}}\n{site.markdown(page.description, page)}', _origin(page, site)]
    for cell in copy.deepcopy(nb['cells']):
        source = ''.join(cell['source'])
        if cell['cell_type'] == 'raw': continue
        if cell['cell_type'] == 'code' and re.search(r'^show_doc', source, re.M) and cell.get('outputs'):
            cells.append(_markdown_cell(site.markdown(_api(cell, level), page)))
        elif cell['cell_type'] == 'code':
            if kept := _code_cell(cell): cells.append(kept)
        else:
            text = site.markdown(source, page).strip()
            level = _level(text, level)
            if text: cells.append(_markdown_cell(text))
    kernel = dict(kernelspec=dict(display_name='python3', language='python', name='python3'), language_info=dict(name='python', pygments_lexer='ipython3'))
    out = [_markdown_cell('\n\n'.join(h for h in head if h)), *cells, *([_markdown_cell(last)] if last else [])]
    for i, c in enumerate(out): c['id'] = f'cell-{i}'
    return json.dumps(dict(cells=out, metadata=kernel, nbformat=4, nbformat_minor=5))


def _markdown_cell(text): return dict(cell_type='markdown', metadata={}, source=text)


def _origin(page, site):
    "Which module and which notebook a chapter is"
    name = Path(page.html).with_suffix('').as_posix() # a page in a folder is no module, whatever it is called
    notebook = f'[notebook]({site.blob}nbs/{page.file}){{.origin}}'
    if not (site.root/site.lib/f'{name}.py').exists() or page.file == 'index.ipynb': return '' if page.file == 'index.ipynb' else f'{{.origin-line}}\nThis page is a {notebook}'
    return f'{{.origin-line}}\nModule [`{site.lib}.{name}`]({site.blob}{site.lib}/{name}.py), written from its {notebook}'


def convert_page(path, page, site):
    "A .qmd page as MyST reads it"
    text = re.sub(r'\A---\n.*?\n---\n', '', path.read_text(encoding='utf-8').lstrip(), flags=re.S)
    return f'# {page.title}\n\n{{.lead}}\n{page.description}\n\n{site.markdown(text, page)}'


def toctrees(pages):
    "The navigation, for the home page"
    out = []
    for section in dict.fromkeys(p.section for p in pages):
        names = [(p.text, 'self' if p.html == 'index.html' else Path(p.html).with_suffix('').as_posix()) for p in pages if p.section == section]
        lines = [f'{text} <{name}>' if text else name for text, name in names]
        out.append(f'```{{toctree}}\n:hidden:\n:caption: {section}\n\n' + '\n'.join(lines) + '\n```')
    return '\n\n'.join(out)
