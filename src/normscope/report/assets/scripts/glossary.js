// Symbols in texts explain themselves: on hover, focus and tap. The glossary's list is the source.

const PLACES = "main :is(p, li, h2, h3, h4, th, td.measure, summary, figcaption)";

function glossary() {
  const meanings = new Map(
    [...document.querySelectorAll("dt[data-symbol]")].map((term) => [term.dataset.symbol, term]),
  );
  if (!meanings.size) return;
  const plain = (symbol) => symbol.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  const longest = [...meanings.keys()].sort((a, b) => b.length - a.length);
  // not inside a longer word, such as the x of "max"
  const pattern = new RegExp(`(?<![A-Za-z0-9_])(?:${longest.map(plain).join("|")})(?![A-Za-z0-9_])`, "g");
  let number = 0;

  // a symbol within a control cannot be one of its own: there the control's focus explains it
  function wrapped(symbol, parent, seen) {
    const within = parent.closest("button, summary, a, label");
    const again = seen.has(symbol);
    seen.add(symbol);
    const better = parent.closest("th, td") ? meanings.get(symbol).dataset.better : undefined;
    const options = { class: "term", "data-term": symbol, "data-better": better };
    if (within || again) return html("span", options, symbol);
    return html("button", { ...options, type: "button", id: `term-${number++}`, "aria-describedby": "note" }, symbol);
  }

  function mark(element, seen) {
    const walk = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
    const texts = [];
    while (walk.nextNode()) {
      const box = walk.currentNode.parentElement;
      if (!box.closest("[data-term], svg, dl.terms, [data-chart], code, [data-role], .name, .figure")) texts.push(walk.currentNode);
    }
    for (const text of texts) {
      const found = [...text.data.matchAll(pattern)];
      if (!found.length) continue;
      const parts = [];
      let end = 0;
      for (const { 0: symbol, index } of found) {
        parts.push(text.data.slice(end, index), wrapped(symbol, text.parentElement, seen));
        end = index + symbol.length;
      }
      text.replaceWith(...parts, text.data.slice(end));
    }
  }

  function markAll() {
    number = 0;
    for (const part of document.querySelectorAll("main > header, main > section")) {
      const seen = new Set(); // one stop of the keyboard for each symbol of a section
      for (const element of part.querySelectorAll(PLACES)) mark(element, seen);
    }
  }

  function explain(term) {
    const entry = meanings.get(term.dataset.term);
    note.replaceChildren(html("b", {}, `${term.dataset.term} `), entry.nextElementSibling.textContent);
    note.setAttribute("role", "tooltip");
    note.hidden = false;
    const box = term.getBoundingClientRect();
    const room = document.documentElement.clientWidth - note.offsetWidth - 8;
    const below = box.bottom + 6 + note.offsetHeight < innerHeight;
    note.style.left = `${Math.max(8, Math.min(box.left, room))}px`;
    note.style.top = `${below ? box.bottom + 6 : box.top - note.offsetHeight - 6}px`;
  }

  const termOf = (event) => event.target.closest?.("[data-term]");
  const inside = (event) => termOf(event) ?? (event.target.matches?.("button, summary, a") ? event.target.querySelector("[data-term]") : null);
  const hide = () => (note.hidden = true);
  document.addEventListener("pointerover", (event) => termOf(event) && explain(termOf(event)));
  document.addEventListener("pointerout", (event) => termOf(event) && hide());
  document.addEventListener("focusin", (event) => {
    const term = inside(event);
    if (term && event.target.matches(":focus-visible")) explain(term);
  });
  document.addEventListener("focusout", (event) => inside(event) && hide());
  document.addEventListener("click", (event) => termOf(event) && explain(termOf(event)));
  document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
  addEventListener("scroll", hide, { passive: true });
  onLanguage(markAll);
}
