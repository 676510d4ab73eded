"The pages that are written from something else than a notebook: the commands, all names, the changelog, llms.txt, the map of the site"
import argparse, ast, contextlib, io, os, re, shlex, sys
from html import escape
from importlib import import_module

import yaml

from .nav import ROOT, DocsError, settings


# -- commands

def scripts(root=ROOT):
    "The console scripts of settings.ini: {name: 'module:function'}"
    return dict(s.split('=') for s in settings(root)['console_scripts'].split())


def grouped(root=ROOT):
    "Groups of the page and the example of each command; refuses a command without one"
    groups = yaml.safe_load((root/'tools/docs/commands.yml').read_text(encoding='utf-8'))
    have, want = [c for g in groups.values() for c in g], list(scripts(root))
    bad = [f'{c} is in settings.ini and not in tools/docs/commands.yml: give it a group and an example' for c in want if c not in have]
    bad += [f'{c} is in tools/docs/commands.yml and not in settings.ini' for c in have if c not in want]
    if bad: raise DocsError('\n'.join(bad))
    return groups


class _Caught(BaseException): pass


@contextlib.contextmanager
def _called(name, *args):
    "As if `name` had been typed, in a terminal of 100 columns"
    argv, columns = sys.argv, os.environ.get('COLUMNS')
    sys.argv, os.environ['COLUMNS'] = [name, *args], '100'
    try: yield
    finally:
        sys.argv = argv
        os.environ.pop('COLUMNS') if columns is None else os.environ.__setitem__('COLUMNS', columns)


def _function(name, root=ROOT):
    module, func = scripts(root)[name].split(':')
    return getattr(import_module(module), func)


def parser_of(name, root=ROOT):
    "The argparse parser that a command builds when it is called"
    def catch(self, *args, **kwargs): raise _Caught(self)
    func, real = _function(name, root), argparse.ArgumentParser.parse_args
    argparse.ArgumentParser.parse_args = catch
    try:
        with _called(name): func()
    except _Caught as e: return e.args[0]
    finally: argparse.ArgumentParser.parse_args = real
    raise DocsError(f'{name} parses no arguments')


def help_of(name, root=ROOT):
    "What `name --help` prints"
    out = io.StringIO()
    with _called(name, '--help'), contextlib.redirect_stdout(out), contextlib.suppress(SystemExit): _function(name, root)()
    return out.getvalue()


def _options(text): return re.sub(r'(?<![\w`-])(--[a-z][\w-]*)', r'`\1`', text)
def _cell(text): return re.sub(r'\s+', ' ', str(text)).replace('|', '\\|').replace('<', '&lt;').replace('*', '\\*')


def _row(parser, action):
    "One line of a command's table: option, value, meaning, default"
    shown = parser._get_formatter()._expand_help(action) if action.help else ''
    said, _, default = shown.removesuffix(')').partition(' (default: ') if ' (default: ' in shown else (shown, '', '')
    if action.nargs == 0: value, default = 'flag', ''
    else: value = ' or '.join(map(str, action.choices)) if action.choices else getattr(action.type, '__name__', '')
    need = 'needed' if action.required and action.option_strings else ''
    return [f"`{' '.join(action.option_strings) or action.dest}`", value, _options(_cell(said.strip())), f'`{default}`' if default else need]


def words_of(example):
    "A command line without the environment that stands before it"
    words = shlex.split(example)
    while words and re.match(r'[A-Z_]+=', words[0]): words.pop(0)
    return words


def command(name, example, root=ROOT):
    "One command: what it does, an example, its options"
    parser = parser_of(name, root)
    rows = [_row(parser, a) for a in parser._actions if a.help != argparse.SUPPRESS and not isinstance(a, argparse._HelpAction) and a.dest not in ('pdb', 'xtra')]
    lines = [['option', 'value', 'what it is', 'default'], ['---']*4, *rows]
    table = '::: {.options}\n' + '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines) + '\n:::' if rows else ''
    said = re.sub(r'\s+', ' ', parser.description.strip()).replace('*', '\\*')
    return f'### `{name}`\n\n{said}.\n\n```sh\n{example}\n```\n\n{table}'


def commands(root=ROOT):
    "The page of all commands"
    intro = 'Every command answers `--help` with what stands here, exits with 0 when all went well, with 1 and one line that says what to do where the input was wrong, and with 2 where the options were. Killed, it goes on from where it was when it is typed again.'
    parts = [intro]
    for group, found in grouped(root).items(): parts += [f'## {group}', *(command(n, e, root) for n, e in found.items())]
    return '\n\n'.join(parts)


# -- all names

def _public(path):
    "Names in __all__, the line of each definition, and the first line of its docstring"
    tree = ast.parse(path.read_text(encoding='utf-8'))
    found = {}
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)): found[node.name] = (node.lineno, (ast.get_docstring(node) or '').split('\n')[0], True)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            for t in node.targets if isinstance(node, ast.Assign) else [node.target]:
                for n in t.elts if isinstance(t, ast.Tuple) else [t]:
                    if isinstance(n, ast.Name): found.setdefault(n.id, (node.lineno, '', False))
    names = next((ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and getattr(n.targets[0], 'id', '') == '__all__'), [])
    return [(n, *found[n]) for n in names if n in found]


def names(root=ROOT):
    "The page of all public names: where each is explained, and where it is defined"
    cfg = settings(root)
    lib, parts = cfg['lib_name'], ['Every name that a module exports. A name links to its explanation, the line number to its source.']
    index = import_module(f'{lib}._modidx').d['syms']
    for full, symbols in index.items():
        module = full.split('.', 1)[1] if '.' in full else full
        rows = _public(root/f'{lib}/{module}.py')
        if not rows: continue
        parts.append(f'## `{full}`\n\n::: {{.names}}\n| name | what it is | line |\n| --- | --- | --- |')
        page = next((s[0].split('#')[0] for s in symbols.values()), '')
        for name, line, doc, explained in rows:
            url = (symbols.get(f'{full}.{name}') or (page,))[0]
            link = f'[`{name}`]({cfg["doc_host"]}{cfg["doc_baseurl"]}/{url})' if explained or page else f'`{name}`'
            parts[-1] += f'\n| {link} | {_cell(doc) if explained else "a value"} | [{line}]({cfg["git_url"]}/blob/{cfg["branch"]}/{lib}/{module}.py#L{line}) |'
        parts[-1] += '\n:::'
    return '\n\n'.join(parts)


# -- files of the repository

def included(file, root=ROOT):
    "A markdown file of the repository without its title; links that leave the site go to the repository"
    cfg, text = settings(root), (root/file).read_text(encoding='utf-8')
    folder = (root/file).parent
    def swap(m):
        if re.match(r'[a-z]+:|#|/', m[2]): return m[0]
        there = os.path.relpath(folder/m[2].partition('#')[0], root).replace(os.sep, '/')
        return f'[{m[1]}]({cfg["git_url"]}/blob/{cfg["branch"]}/{there})' if not there.startswith('nbs/') else f'[{m[1]}]({there[4:]})'
    text = re.sub(r'(?<!!)\[([^\]]*)\]\(([^()\s]+)\)', swap, text)
    return re.sub(r'\A(<!--.*?-->\s*)?# .*\n', '', text, flags=re.S if text.startswith('<!--') else 0).strip()


# -- for machines

def llms(pages, root=ROOT):
    "llms.txt: what this is, and every page with one line"
    cfg = settings(root)
    base, out = cfg['doc_host'] + cfg['doc_baseurl'] + '/', []
    out += [f'# {cfg["title"]}', f'> {cfg["description"]}',
            f'A Python library and commands, written as notebooks with nbdev. Source: <{cfg["git_url"]}>. Each chapter below is one module of `{cfg["lib_name"]}`; stages hand files to each other, so each can be run alone, on one machine or in SageMaker.']
    for section in dict.fromkeys(p.section for p in pages):
        lines = [f'- [{p.text or p.title}]({base}{p.html}): {p.description}' for p in pages if p.section == section]
        out.append(f'## {section}\n\n' + '\n'.join(lines))
    return '\n\n'.join(out) + '\n'


def sitemap(pages, root=ROOT):
    "sitemap.xml: the address of every page"
    cfg = settings(root)
    base = cfg['doc_host'] + cfg['doc_baseurl'] + '/'
    rows = ''.join(f'  <url><loc>{escape(base + ("" if p.html == "index.html" else p.html))}</loc></url>\n' for p in pages)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n{rows}</urlset>\n'
