"""Write README.md from nbs/index.ipynb, without Quarto: prose as it is, code and its printed output in fences.

    python tools/readme.py [--check]     # --check only says whether README.md is up to date, by its exit status

Links of the notebook begin in nbs/, those of the README at the root of the repository.
"""
import json, re, sys
from configparser import ConfigParser
from pathlib import Path

root = Path(__file__).parents[1]
cfg = ConfigParser(delimiters=['='])
cfg.read(root/'settings.ini', encoding='utf-8')
site = cfg['DEFAULT']['doc_host'] + cfg['DEFAULT']['doc_baseurl']
# pages of the site that are files of the repository, or only of the site
WRITTEN = {'benchmarks.qmd': 'benchmarks/README.md', 'changelog.qmd': 'CHANGELOG.md', 'contributing.qmd': 'CONTRIBUTING.md', 'commands.qmd': f'{site}/commands.html', 'names.qmd': f'{site}/names.html'}


def fence(text, kind=''): return f'```{kind}\n{text.rstrip()}\n```'


def printed(output):
    "Text of one output, '' for pictures"
    if output['output_type'] == 'stream': return ''.join(output['text'])
    return ''.join(output.get('data', {}).get('text/plain', []))


def from_root(m):
    "A link or picture of the notebook, as the README has it; attributes are for the site"
    url, _, anchor = m[2].partition('#')
    to = WRITTEN.get(url) or (f'nbs/{url}' if url and not url.startswith(('nbs/', '../')) and (root/'nbs'/url).exists() else url.removeprefix('../'))
    return f'{m[1]}({to}{"#" + anchor if anchor else ""})'


def prose(text):
    "Markdown of a cell with its links put right, code blocks left alone"
    parts = re.split(r'(^```.*?^```$)', text, flags=re.M | re.S)
    return ''.join(p if i%2 else re.sub(r'(!?\[[^\]]*\])\((?![a-z]+:)([^)\s]*)\)(?:\{[^}]*\})?', from_root, p) for i, p in enumerate(parts))


def markdown(nb):
    "The notebook as markdown"
    out = ['<!-- written from nbs/index.ipynb by tools/readme.py: edit the notebook -->']
    for c in nb['cells']:
        text = ''.join(c['source'])
        if text.startswith('#| hide'): continue
        out.append(prose(text) if c['cell_type'] == 'markdown' else fence(text, 'python'))
        out += [fence(t) for o in c.get('outputs', []) if (t := printed(o).strip())]
    return '\n\n'.join(out) + '\n'


def main():
    text = markdown(json.loads((root/'nbs/index.ipynb').read_text()))
    if '--check' in sys.argv: sys.exit(None if (root/'README.md').read_text() == text else 'README.md differs from nbs/index.ipynb: run python tools/readme.py and commit')
    (root/'README.md').write_text(text)


if __name__ == '__main__': main()
