// The guided tour: each step sets the playground and says what it shows.

const TOUR = {
  input: { mode: "joint", preset: "plain", focus: "x" },
  joint: { mode: "joint", preset: "given", focus: "y" },
  activated: { mode: "joint", preset: "plain", focus: "a" },
  learned_joint: { mode: "joint", preset: "joint", focus: "a" },
  standardised_per_class: { mode: "per_class", preset: "plain", focus: "z" },
  scaled_shifted: { mode: "per_class", preset: "given", focus: "y" },
  learned_distribution: { mode: "per_class", preset: "distribution", focus: "y" },
  identity: { mode: "per_class", preset: "identity", focus: "y" },
  learned_classification: { mode: "per_class", preset: "classification", focus: "y" },
  unlabelled: { mode: "joint", preset: "unlabelled", focus: "y" },
};

function guidedTour(example) {
  const strip = document.getElementById("tour");
  const [back, next] = strip.querySelectorAll("button");
  const title = strip.querySelector("[data-role=title]");
  const notes = [...strip.querySelectorAll("[data-step]")];
  const names = notes.map((note) => note.dataset.step);
  const asked = Number(remembered().tour);
  let at = Number.isInteger(asked) && asked >= 1 && asked <= names.length ? asked - 1 : -1;

  function tell() {
    const own = !example.unchanged();
    for (const note of document.querySelectorAll("[data-own]")) note.hidden = !own;
    title.hidden = at < 0;
    title.textContent = say("live.tour_at", { step: at + 1, of: names.length });
    back.hidden = at < 0;
    next.textContent = say(at < 0 ? "live.tour_start" : at === names.length - 1 ? "live.tour_end" : "live.tour_next");
    // the sentences hold the recorded numbers; for one's own the playground has its own sentence
    notes.forEach((note, i) => {
      note.hidden = i !== at;
      for (const sentence of note.querySelectorAll("[data-role=sentence]")) sentence.hidden = own;
      note.querySelector("[data-role=own]").hidden = !own;
    });
    remember({ tour: at < 0 ? undefined : at + 1 });
  }

  function go(to) {
    at = to >= names.length || to < 0 ? -1 : to;
    const step = TOUR[names[at]] ?? TOUR.activated;
    example.set({ mode: step.mode, focus: step.focus });
    const { gamma, beta } = example.preset(step.preset);
    example.set({ gamma, beta, focus: step.focus });
    tell();
  }
  back.addEventListener("click", () => go(at - 1));
  next.addEventListener("click", () => go(at + 1));
  for (const button of document.querySelectorAll("[data-go]")) {
    button.addEventListener("click", () => {
      go(names.indexOf(button.dataset.go));
      document.getElementById("play").scrollIntoView();
      next.focus({ preventScroll: true });
    });
  }
  example.watch((changes) => changes.classes && tell());
  onLanguage(tell);
  if (at >= 0) go(at);
}
