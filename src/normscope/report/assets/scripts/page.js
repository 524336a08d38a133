// Language, theme, address, charts: what every page shares. Loaded last; starts the page.

const data = JSON.parse(document.querySelector('script[type="application/json"]').textContent);
const root = document.documentElement;
const listeners = [];
let lang = data.lang;

function say(key, values = {}) {
  return data.messages[key][lang].replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

function onLanguage(listener) {
  listeners.push(listener);
}

// --- the address keeps the state, so that a setting can be sent as a link ---

function remembered() {
  return Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
}

let pending = null;
function remember(values) {
  pending = { ...(pending ?? remembered()), ...values };
  clearTimeout(remember.timer);
  remember.timer = setTimeout(() => {
    const kept = Object.entries(pending).filter(([, value]) => value !== undefined);
    history.replaceState(null, "", `#${new URLSearchParams(kept)}`);
    pending = null;
  }, 200);
}

// --- language and theme ---

function speak(chosen) {
  lang = chosen;
  root.lang = { en: "en", zh: "zh-CN" }[lang];
  for (const element of document.querySelectorAll("[data-en]")) element.textContent = element.dataset[lang];
  for (const button of document.querySelectorAll("[data-lang]")) {
    button.setAttribute("aria-pressed", String(button.dataset.lang === lang));
  }
  for (const listener of listeners) listener();
  for (const host of document.querySelectorAll("[data-chart][data-drawn]")) drawChart(host);
}

function dress(theme) {
  root.dataset.theme = theme;
  document.getElementById("theme").setAttribute("aria-pressed", String(theme === "dark"));
}

function startSwitches() {
  const asked = remembered();
  for (const button of document.querySelectorAll("[data-lang]")) {
    button.addEventListener("click", () => {
      speak(button.dataset.lang);
      remember({ lang });
    });
  }
  const darkByDefault = matchMedia("(prefers-color-scheme: dark)").matches;
  dress(["light", "dark"].includes(asked.theme) ? asked.theme : darkByDefault ? "dark" : "light");
  document.getElementById("theme").addEventListener("click", () => {
    dress(root.dataset.theme === "dark" ? "light" : "dark");
    remember({ theme: root.dataset.theme });
  });
  if (["en", "zh"].includes(asked.lang)) lang = asked.lang;
}

// --- charts ---

// texts in a specification are {en, zh}; what is drawn has one language
function inLanguage(value) {
  if (Array.isArray(value)) return value.map(inLanguage);
  if (value === null || typeof value !== "object") return value;
  const keys = Object.keys(value);
  if (keys.length === 2 && "en" in value && "zh" in value) return value[lang];
  return Object.fromEntries(keys.map((key) => [key, inLanguage(value[key])]));
}

const note = document.getElementById("note");

function tooltip(_handler, event, _item, value) {
  note.hidden = !value;
  if (!value) return;
  const lines = Object.entries(value).map(([name, text]) => html("div", {}, `${name}: ${text}`));
  note.replaceChildren(...lines);
  const room = document.documentElement.clientWidth - note.offsetWidth - 12;
  note.style.left = `${Math.max(8, Math.min(event.clientX + 14, room))}px`;
  note.style.top = `${event.clientY + 16}px`;
}

// how many entries of the legend fit side by side
function legendColumns(spec, width) {
  const parts = [spec, ...(spec.layer ?? [])];
  const names = parts.flatMap((part) => part.encoding?.color?.scale?.domain ?? []).map(String);
  const wide = (name) => [...name].reduce((sum, sign) => sum + (sign > "\u2e7f" ? 13 : 7.5), 45);
  return Math.max(1, Math.floor(width / Math.max(60, ...names.map(wide))));
}

async function drawChart(host) {
  host.dataset.drawn = "";
  const spec = inLanguage(data.charts[host.dataset.chart]);
  const columns = legendColumns(spec, host.clientWidth);
  const result = await vegaEmbed(host, spec, {
    mode: "vega-lite",
    renderer: "svg",
    actions: false,
    defaultStyle: false,
    ast: true, // no eval: the page's policy forbids it
    tooltip,
    config: { ...data.chartConfig, legend: { ...data.chartConfig.legend, columns } },
  });
  // the figure's own caption names the picture; its marks say nothing more to a screen reader
  const picture = host.querySelector("svg");
  for (const name of ["aria-label", "aria-roledescription", "role"]) picture.removeAttribute(name);
  picture.setAttribute("aria-hidden", "true");
  host.dataset.ready = "";
  return result;
}

// what stands in a closed <details> is drawn when it is opened
function whenOpen(element, start) {
  const closed = [];
  for (let box = element.closest("details"); box; box = box.parentElement.closest("details")) {
    if (!box.open) closed.push(box);
  }
  if (!closed.length) return start();
  closed[0].addEventListener("toggle", () => whenOpen(element, start), { once: true });
}

startSwitches();
for (const box of document.querySelectorAll(".table")) foldable(box);
if (data.lesson) lessonPage(data.lesson);
if (data.network) onLanguage(network(data.network));
glossary();
speak(lang);
for (const host of document.querySelectorAll("[data-journey]")) journey(host, data.histories);
for (const host of document.querySelectorAll("[data-chart]")) whenOpen(host, () => drawChart(host));
for (const card of document.querySelectorAll("[data-channel]")) {
  whenOpen(card, () => channelCard(card, data.channels[Number(card.dataset.channel)]));
}
for (const table of document.querySelectorAll("[data-sortable]")) sortable(table);
for (const link of document.querySelectorAll("table a[href^='#']")) openTarget(link);
root.dataset.started = "";
