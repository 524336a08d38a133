// The lesson page: one example, shared by all its pictures.

function lessonPage(lesson) {
  if (!document.getElementById("play-figure")) return;
  const example = sharedExample(lesson);
  const board = bench(example);
  recallExample(example);
  guidedTour(example, lesson.stages.map((s) => s.name));
  recoveryCards(example);
  fearCases(example);
  composition(lesson.composition);
  for (const button of document.querySelectorAll("[data-network]")) {
    button.addEventListener("click", () => {
      document.dispatchEvent(new CustomEvent("network", { detail: { lesson: button.dataset.network } }));
      document.getElementById("alone").scrollIntoView();
    });
  }
  onLanguage(board.update);
  if (!location.hash.includes("mode=")) board.player.start();
}
