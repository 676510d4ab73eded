/* Read as a file, a page may not fetch others: results are then shown without an excerpt. */
if (location.protocol === 'file:' && typeof DOCUMENTATION_OPTIONS !== 'undefined') DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;

/* A button that copies a block of code. */
document.addEventListener('DOMContentLoaded', () => {
  if (!navigator.clipboard) return;
  for (const block of document.querySelectorAll('.cell_input .highlight, .highlight-sh .highlight, .highlight-bash .highlight, .highlight-python .highlight')) {
    if (block.closest('.api')) continue;
    const button = Object.assign(document.createElement('button'), {type: 'button', className: 'copy', textContent: 'Copy'});
    button.setAttribute('aria-label', 'Copy this code');
    button.onclick = async () => {
      await navigator.clipboard.writeText(block.querySelector('pre').innerText);
      button.textContent = 'Copied';
      setTimeout(() => button.textContent = 'Copy', 1500);
    };
    block.append(button);
  }
});

/* The page for a wrong address has a base; a link within it still means this page. */
document.addEventListener('DOMContentLoaded', () => {
  if (document.querySelector('base')) for (const a of document.querySelectorAll('a[href^="#"]')) a.href = location.pathname + a.getAttribute('href');
});
