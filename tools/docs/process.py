"""nbdev's own processing of the notebooks: show_doc, hidden and exported cells, links from backticks.

Run in this process, with seven things put right for our notebooks, so that both renderers get the same pages:

- nbdev takes the first cell's title and one-line point and drops the rest; our lede stays.
- nbdev runs every cell with an import to have names for show_doc; we hand it the module, which is exported from the same
  cells. It is quicker, and no example runs half.
- fastcore evaluates annotations in quotes ('np.ndarray'), which fails where a module imports numpy inside of functions; they
  are shown as they are written.
- A private name has no page to link to, a method that stands in its class is explained there, a command on the page of commands,
  and a plain word such as `fit` is no link.
- A picture gets words: those of `#| fig-alt:`, else the docstring of the function that drew it.
- The signature stands without its comments, which follow as a table.
- A default of `os.environ` is shown as that. Its repr is everything that the environment of the build holds, secrets too.
"""
import ast, inspect, json, os, re
from inspect import Parameter
from functools import lru_cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import fastcore.docments, nbdev.doclinks, nbdev.processors, nbdev.serve, nbdev.showdoc
from execnb.shell import CaptureShell
from fastcore.docments import empty
from nbdev.config import get_config
from nbdev.doclinks import NbdevLookup, _lineno
from nbdev.processors import FilterDefaults, FrontmatterProc, _default_exp, _show_docs, exec_show_docs
from nbdev.showdoc import BasicMarkdownRenderer

from .nav import DocsError


def lede(source):
    "What a first cell says after its title and its one-line point"
    return re.sub(r'\A\s*# .*\n*(>.*\n?)*', '', source).strip()


class KeepLede(FrontmatterProc):
    "Title and point become front matter, the lede stays a paragraph"
    def _update(self, f, cell):
        rest = lede(cell.source or '') if cell.cell_type == 'markdown' else ''
        super()._update(f, cell)
        if cell.source is None and rest: cell.source = rest


class ShowFromModule(exec_show_docs):
    "Run show_doc on the exported module"
    def begin(self):
        if not self.nb.has_docs_: return
        self.k = CaptureShell()
        self.k.run_cell('from nbdev.showdoc import show_doc')
        if name := _default_exp(self.nb): self.k.user_ns.update(vars(import_module(f'bin_counter.{name}')))

    def __call__(self, cell):
        if not self.nb.has_docs_ or cell.cell_type != 'code' or not _show_docs(cell.parsed_() or []): return
        self.k.cell(cell)
        if self.k.exc: raise DocsError(f'{Path(self.nb.path_).name}: {cell.source.splitlines()[-1]} failed ({self.k.exc!r}): is the notebook exported?')


@lru_cache(None)
def _ours():
    "Where each function of ours lives: {name: module}"
    index = import_module('bin_counter._modidx').d['syms']
    return {full.rpartition('.')[2]: module for module, names in index.items() for full in names if full.count('.') == module.count('.') + 1}


def picture_words(cell):
    "Describe the pictures of a cell that does not do so itself"
    if cell.cell_type != 'code' or not any(k.startswith('image/') for o in cell.get('outputs', []) for k in o.get('data', {})): return
    if re.search(r'^#\| *fig-alt:', cell.source, re.M): return
    last = cell.source.strip().split('\n')[-1]
    names = [n for n in reversed(re.findall(r'\b([a-z]\w+)\(', last)) if n in _ours()]
    said = inspect.getdoc(getattr(import_module(_ours()[names[0]]), names[0])) if names else None
    cell.source = f'#| fig-alt: {json.dumps((said or f"Picture that this draws: {last}").splitlines()[0])}\n{cell.source}'


class Filters(FilterDefaults):
    "nbdev's processors, two of them ours, and one more"
    def base_procs(self):
        ours = {FrontmatterProc: KeepLede, exec_show_docs: ShowFromModule}
        return [*(ours.get(p, p) for p in super().base_procs()), picture_words]


def _name(anno): return '' if anno is empty else anno if isinstance(anno, str) else getattr(anno, '__name__', None) if inspect.isclass(anno) and not getattr(anno, '__args__', None) else str(anno)
def _type(anno): return re.sub(r'\b(typing|pathlib|collections\.abc|numpy|np|torch\.nn|builtins|bin_counter\.\w+)\.', '', _name(anno)).replace("'", '').replace(' | ', '|')
def _default(value): return '' if value is empty else getattr(value, '__name__', None) or repr(value)
def _code(text): return f'`{text}`' if text and '`' not in text and '|' not in text else text.replace('|', '\\|')
def _param(name, of):
    "One parameter of a signature, without its comment"
    stars = {Parameter.VAR_POSITIONAL: '*', Parameter.VAR_KEYWORD: '**'}.get(of.get('kind'), '')
    kind, default = _type(of.get('anno', empty)), of.get('default', empty)
    return f'{stars}{name}' + (f':{kind}' if kind else '') + (f'={_default(default)}' if default is not empty else '')


class ApiBlock(BasicMarkdownRenderer):
    "Heading, link to the source, signature, docstring, and a table of the docments"
    def head(self):
        "The signature: in one line if it fits, else one line a parameter"
        if inspect.isclass(self.sym) and issubclass(self.sym, Exception): return f'class {self.nm}({self.sym.__bases__[0].__name__})'
        if not callable(self.sym): return self.nm
        found, kind = self.dm.dm, 'class ' if inspect.isclass(self.sym) else ''
        params = [_param(k, v) for k, v in found.items() if k not in ('self', 'cls', 'return')]
        back = '' if kind else _type(found.get('return', {}).get('anno', empty))
        end = f')->{back}' if back else ')'
        line = f'{kind}{self.nm}({", ".join(params)}{end}'
        return line if len(line) <= 76 else f'{kind}{self.nm}(\n    ' + ',\n    '.join(params) + f',\n{end}'

    def table(self):
        found = self.dm.dm
        rows = [(k, _type(v.get('anno', empty)), _default(v.get('default', empty)), v.get('docment') or '') for k, v in found.items() if k not in ('self', 'cls', 'return')]
        back = found.get('return', {})
        if back.get('docment'): rows.append(('returns', _type(back.get('anno', empty)), '', back['docment']))
        if not any(r[3] for r in rows): return ''
        keep = [i for i in range(4) if i in (0, 3) or any(r[i] for r in rows)]
        cells = [[f'<code>{r[0]}</code>' if r[0] != 'returns' else '*returns*', _code(r[1].replace('|', ' or ')), _code(r[2]), re.sub(r'\s+', ' ', r[3]).replace('|', '\\|')] for r in rows]
        lines = [['parameter', 'type', 'default', 'what it is'], ['---']*4, *cells]
        return '\n'.join('| ' + ' | '.join(line[i] for i in keep) + ' |' for line in lines)

    def source(self):
        "Link to the line of the definition"
        found = NbdevLookup()[self.fn]
        if not isinstance(found, tuple): return ''
        line = _lineno(self.fn.removeprefix(f'{getattr(self.sym, "__module__", "")}.'), found[1])
        return f'[source]({found[2]}{f"#L{line}" if line else ""}){{.source}}'

    def _repr_markdown_(self):
        parts = [f'{"#"*self.title_level} {self.nm}', '::: {.api}', f'```python\n{self.head()}\n```', self.source(), self.docs, self.table(), ':::']
        return '\n\n'.join(p for p in parts if p)


@lru_cache(None)
def _methods(module):
    "Methods that stand in their class, as anchors: they have no heading of their own"
    tree = ast.parse((get_config().config_path/module).read_text(encoding='utf-8'))
    return {f'{c.name}.{f.name}'.lower() for c in tree.body if isinstance(c, ast.ClassDef) for f in c.body if isinstance(f, ast.FunctionDef)}


@lru_cache(None)
def _commands():
    from .pages import scripts
    return set(scripts(get_config().config_path))


_link_any = NbdevLookup._link_sym


def _link_name(self, m):
    "A plain word in backticks (`fit`, `accuracy`) is as often a field or a file as a function, so it is a link only as `fit()`"
    return m[0] if re.fullmatch('[a-z]+', m[1]) and not m[0].endswith('()`') else _link_any(self, m)


def _doc(self, sym):
    found = self[sym]
    if not isinstance(found, tuple): return found
    page, _, anchor = found[0].partition('#')
    if anchor in _commands(): return f'{page.rpartition("/")[0]}/commands.html#{anchor}'
    if re.search(r'(^|\.)_', anchor): return None
    return f'{page}#{anchor.split(".")[0]}' if anchor in _methods(found[1]) else found[0]


def _signature(obj, eval_str=False, **kwargs):
    try: return inspect.signature(obj, eval_str=eval_str, **kwargs)
    except NameError: return inspect.signature(obj, **kwargs)


def _indices(group): # the index of this checkout, installed or not
    others = [e for e in entry_points(group=group) if e.name != 'bin_counter']
    return [*others, EntryPoint('bin_counter', 'bin_counter._modidx:d', group)]


def adapt_nbdev():
    "Put the seven things right, in this process"
    names = nbdev.processors._def_names
    fastcore.docments.signature = _signature
    nbdev.doclinks.entry_points = _indices
    NbdevLookup.doc, NbdevLookup._link_sym = _doc, _link_name
    nbdev.processors._def_names = lambda cell, shown: names(cell, shown)[::-1] # nbdev inserts them last first
    nbdev.serve.FilterDefaults = Filters
    nbdev.showdoc.BasicMarkdownRenderer = ApiBlock
    type(os.environ).__repr__ = lambda self: 'os.environ'
