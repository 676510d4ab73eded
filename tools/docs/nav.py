"The navigation, read from nbs/sidebar.yml: the one place that says which page stands in which section"
import ast, json, re
from configparser import ConfigParser
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
PLAIN = {'404.qmd'} # pages that stand in no section


class DocsError(Exception): "What is wrong with the pages, one line each, and what to do"


@dataclass(frozen=True)
class Page:
    "One page of the site"
    file: str # below nbs/, as sidebar.yml has it: 07_evaluate.ipynb
    section: str # heading it stands under
    title: str
    description: str # one line
    html: str # below _docs/: evaluate.html
    text: str = '' # its name in the navigation, where that is not its title


def settings(root=ROOT):
    "settings.ini as nbdev reads it"
    parser = ConfigParser(delimiters=['='])
    parser.read(root/'settings.ini', encoding='utf-8')
    return parser['DEFAULT']


def _frontmatter(text):
    m = re.match(r'---\n(.*?)\n?---', text.strip(), re.S)
    return yaml.safe_load(m[1]) or {} if m else {}


def _notebook(path):
    "Title, one-line point and page name of a notebook, as nbdev derives them"
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    sources = [''.join(c['source']) for c in cells]
    front = _frontmatter(sources[0]) if cells[0]['cell_type'] == 'raw' else {}
    head = next((s for c, s in zip(cells, sources) if c['cell_type'] == 'markdown' and re.search(r'^# \S', s, re.M)), '')
    title = front.get('title') or (m[1].strip() if (m := re.search(r'^# +(.+)', head, re.M)) else path.stem)
    point = front.get('description') or (m[1].strip() if (m := re.search(r'^> +(.+)', head, re.M)) else '')
    return title, point, re.sub(r'^\d+[a-zA-Z0-9]*_', '', path.stem.lower()) + '.html'


def _written(path):
    "The same of a .qmd page, or of the script that prints one"
    text = path.read_text(encoding='utf-8')
    front = _frontmatter(ast.get_docstring(ast.parse(text), clean=True) if path.suffix == '.py' else text)
    return front.get('title', path.stem), front.get('description', ''), path.name.split('.')[0] + '.html'


def _source(nbs, file):
    "The file that a page is made of: a notebook, a .qmd, or a script that prints the .qmd"
    return next((p for p in (nbs/file, nbs/f'{file}.py') if p.exists()), None)


def _entries(contents, section=''):
    for c in contents or []:
        if isinstance(c, str): yield section, c, ''
        elif 'section' in c: yield from _entries(c.get('contents'), c['section'])
        else: yield section, c['href'], c.get('text', '')


def files_of_pages(nbs):
    "Every notebook and page below nbs/, as sidebar.yml would name it"
    found = (p.relative_to(nbs).as_posix() for p in sorted(nbs.rglob('*')) if p.is_file())
    return [f.removesuffix('.py') for f in found if re.search(r'\.(ipynb|qmd|qmd\.py)$', f) and not re.search(r'(^|/)[._]', f) and f not in PLAIN]


def read_nav(root=ROOT):
    "All pages in the order of the navigation, and what is wrong: a page that is there and not listed, listed and not there, or twice"
    nbs = root/'nbs'
    tree = yaml.safe_load((nbs/'sidebar.yml').read_text(encoding='utf-8'))
    listed = list(_entries(tree['website']['sidebar']['contents']))
    files, pages = [f for _, f, _ in listed], []
    bad = [f'{f} is in nbs/ and in no section: give it a line in nbs/sidebar.yml' for f in files_of_pages(nbs) if f not in files]
    bad += [f'{f} is in nbs/sidebar.yml twice' for f in sorted({f for f in files if files.count(f) > 1})]
    for section, file, text in listed:
        path = _source(nbs, file)
        if not path or any(p.file == file for p in pages):
            if not path: bad.append(f'{file} is in nbs/sidebar.yml and not in nbs/')
            continue
        title, point, html = _notebook(path) if path.suffix == '.ipynb' else _written(path)
        if not point: bad.append(f'{file} has no one-line point: a line "> ..." under its title')
        pages.append(Page(file, section, title, point, (Path(file).parent/html).as_posix(), text))
    names = [p.html for p in pages]
    bad += [f'two pages would be {h}: {", ".join(p.file for p in pages if p.html == h)}' for h in sorted({h for h in names if names.count(h) > 1})]
    return pages, bad
