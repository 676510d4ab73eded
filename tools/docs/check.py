"What must hold for the built site: links and anchors, no request to another host, no markup left over"
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LEFTOVERS = [(r'\{[^{}\n]*(?:target|style|fig-align|\.callout)[^{}\n]*\}', 'attribute list'), (r'^\s*:::', 'div fence'), (r'\{\{<', 'shortcode'), (r'^#\|', 'cell option'),
             (r'it/s\]|[█▏▎▍▌▋▊▉]{3}|\d+%\|', 'progress bar'), (r'\]\((?:https?:|\.{0,2}/|#|\w+\.(?:html|ipynb|md|qmd))', 'markdown link'), (r'\*\*\w', 'markdown emphasis'), (r'<IPython|Figure size', 'object in place of a picture')]
LOADS = {('script', 'src'), ('img', 'src'), ('img', 'srcset'), ('source', 'src'), ('source', 'srcset'), ('iframe', 'src'), ('video', 'src'), ('audio', 'src'), ('embed', 'src'), ('object', 'data'), ('image', 'href'), ('use', 'href')}
FETCHED = {'stylesheet', 'preload', 'modulepreload', 'icon', 'prefetch', 'preconnect', 'dns-prefetch', 'manifest', 'shortcut icon'}
REMOTE = re.compile(r'(?:https?:)?//', re.I)


class Reader(HTMLParser):
    "Ids, links, loads, headings and the words of one page"
    def __init__(self, html):
        super().__init__()
        self.ids, self.links, self.loads, self.problems, self.counts, self.words, self.stack, self.title = set(), [], [], [], {}, [], [], ''
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        a = {k: v or '' for k, v in attrs}
        if tag in ('p', 'div', 'li', 'td', 'th', 'h1', 'h2', 'h3', 'h4', 'dt', 'dd', 'br'): self.words.append('\n')
        self.counts[tag] = self.counts.get(tag, 0) + 1
        if i := a.get('id'):
            if i in self.ids and 'main' in self.stack and 'svg' not in self.stack: self.problems.append(f'id {i!r} twice')
            self.ids.add(i)
        if tag == 'a' and a.get('name'): self.ids.add(a['name'])
        if tag == 'a' and 'href' in a and not {'onclick', 'role'} & set(a): self.links.append(a['href'])
        self.loads += [v for k, v in a.items() if (tag, k.removeprefix('xlink:')) in LOADS]
        if tag == 'link' and set(a.get('rel', '').split()) & FETCHED: self.loads.append(a.get('href', ''))
        if 'url(' in a.get('style', ''): self.loads += css_loads(a['style'])
        if tag == 'img' and not a.get('alt', '').strip() and 'alt' not in a: self.problems.append(f'a picture without words: {a.get("src", "")[:80]}')
        if tag == 'html' and not a.get('lang'): self.problems.append('no language')
        if tag not in ('br', 'img', 'meta', 'link', 'input', 'hr', 'source', 'wbr', 'base', 'col', 'area', 'embed', 'track'): self.stack.append(tag)

    def handle_endtag(self, tag):
        while tag in self.stack and self.stack.pop() != tag: pass

    def handle_data(self, data):
        if 'style' in self.stack: self.loads += css_loads(data)
        elif 'title' in self.stack and 'svg' not in self.stack: self.title += data
        elif not {'script', 'pre', 'code', 'noscript'} & set(self.stack): self.words.append(data)
        if 'pre' in self.stack and re.search(r'it/s\]|\d+%\|[█▏ ]', data): self.problems.append(f'progress bar: {data.strip()[:60]!r}')


def css_loads(text): return re.findall(r'(?:url\(\s*|@import\s+)["\']?((?:https?:)?//[^"\')\s]+)', text)


def _source_problem(url, blob, root):
    "A link into the repository: the file is there, and has that line"
    path, _, line = url.removeprefix(blob).partition('#L')
    file = root/unquote(path)
    if not file.exists(): return f'{url}: no such file in the repository'
    if line and int(line) > len(file.read_text(encoding='utf-8').splitlines()): return f'{url}: {path} has no line {line}'


def check_site(out, cfg, root):
    "All problems of a built site, one line each; [] where there is none"
    out = Path(out)
    base, git = cfg['doc_host'] + cfg['doc_baseurl'], cfg['git_url']
    pages = {p.relative_to(out).as_posix(): Reader(p.read_text(encoding='utf-8')) for p in sorted(out.rglob('*.html')) if '_static' not in p.parts}
    found = [f'{p.relative_to(out)}: loads {u}' for p in out.rglob('*.css') for u in css_loads(p.read_text(encoding='utf-8', errors='replace'))]
    for name, page in pages.items():
        bad = list(page.problems)
        bad += [f'loads {u[:100]}' for u in page.loads if REMOTE.match(u) and not u.startswith(base)]
        bad += [f'loads {u}, which is not there' for u in page.loads if u and not REMOTE.match(u) and not u.startswith(('data:', '#')) and not _there(out, name, u, cfg).is_file()]
        bad += [p for u in page.links if (p := _link_problem(u, name, pages, out, base, cfg, git, root))]
        text = ''.join(page.words)
        bad += [f'{what} left over: {m[0]!r}' for pattern, what in LEFTOVERS for m in re.finditer(pattern, text, re.M)]
        if not page.title.strip(): bad.append('no title')
        if 'main' not in page.counts: bad.append('no main landmark')
        if page.counts.get('h1', 0) != 1: bad.append(f'{page.counts.get("h1", 0)} headings of the first level')
        found += [f'{name}: {b}' for b in dict.fromkeys(bad)]
    return found


def _there(out, name, url, cfg):
    "The file that a relative address means, seen from a page; the 404 page is read from the site's root"
    path = unquote(urlsplit(url).path)
    if path.startswith('/'): return out/path.removeprefix(cfg['doc_baseurl']).lstrip('/')
    return Path((out/name).parent/path) if path else out/name


def _link_problem(url, name, pages, out, base, cfg, git, root):
    for kind in ('blob', 'tree'):
        blob = f'{git}/{kind}/{cfg["branch"]}/'
        if url.startswith(blob): return _source_problem(url, blob, root)
    if url.startswith(base): url = url.removeprefix(base).lstrip('/') or 'index.html'; name = 'index.html'
    if re.match(r'[a-z][a-z+.-]*:|//', url, re.I): return None
    if not url: return 'a link to nowhere'
    file = _there(out, name, url, cfg)
    if file.is_dir(): file = file/'index.html'
    if not file.is_file(): return f'{url} leads nowhere'
    to, anchor = file.resolve().relative_to(out.resolve()).as_posix(), unquote(urlsplit(url).fragment)
    if anchor and to in pages and anchor not in pages[to].ids and anchor != 'top': return f'{url}: no such anchor'
